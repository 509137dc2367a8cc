"""A sequence on its way back to text: detokenised, searched for stop strings, timed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ryzanstein.engine.result import Choice, Piece
from ryzanstein.engine.stop import StopMatcher
from ryzanstein.tokenizer import Detokenizer

if TYPE_CHECKING:
    from ryzanstein.engine.sequence import Sequence
    from ryzanstein.sampling import SamplingParams
    from ryzanstein.tokenizer import Tokenizer

__all__ = ["Reader"]


class Reader:
    """Follows one sequence and turns its new tokens into pieces of text.

    `first_token` and `last_token` are when they were read, by `time.perf_counter`; `is_read` says
    whether `take` has returned the last piece.

    Args:
        sequence: what the engine works on.
        params: for the stop strings.
        tokenizer: turns tokens into text.
        index: of the choice that this becomes.
        echo: text to put in front.
    """

    def __init__(
        self,
        sequence: Sequence,
        params: SamplingParams,
        tokenizer: Tokenizer,
        index: int = 0,
        echo: str = "",
    ) -> None:
        self.sequence = sequence
        self._index = index
        self._show_logprobs = params.logprobs is not None
        self._detokenizer = Detokenizer(
            tokenizer, sequence.buffer[: sequence.num_prompt_tokens].tolist()
        )
        self._stops = StopMatcher(params.stop_strings)
        self._min_tokens = params.min_tokens
        self._num_seen = 0
        self._num_yielded = 0
        self._echo = echo
        self._texts: list[str] = []
        self.is_read = False
        self.first_token: float | None = None
        self.last_token: float | None = None

    @property
    def done(self) -> bool:
        """Return whether every token has been turned into text and no more will come."""
        return self.sequence.finish_reason is not None and self._num_seen == len(
            self.sequence.generated
        )

    @property
    def has_news(self) -> bool:
        """Return whether `take` has something to look at."""
        if self.is_read:
            return False
        return self.sequence.is_finished or self._num_seen < len(self.sequence.generated)

    def take(self) -> Piece | None:
        """Return the text of tokens generated since the last call, or None if there is none yet.

        When a stop string completes, the sequence is marked as ended.

        Raises:
            DistributionError: the sequence ended because no token could be drawn.
            ValidationError: it ended because its logits processor failed.
        """
        unread = self._unread()
        if self.sequence.error is not None and not unread:
            raise self.sequence.error
        text = "".join(self._read(token) for token in unread)
        if self.done:
            text += self._settle(self._detokenizer.flush()) + self._stops.flush()
        if not text and not self.done:
            return None
        text, self._echo = self._echo + text, ""
        self._texts.append(text)
        token_ids = tuple(self.sequence.generated[self._num_yielded : self._num_seen].tolist())
        self._num_yielded = self._num_seen
        self.is_read = self.done
        reason = self.sequence.finish_reason if self.done else None
        return Piece(text, token_ids, reason, index=self._index)

    def choice(self) -> Choice:
        """Return the whole, once it is done."""
        sequence = self.sequence
        assert sequence.finish_reason is not None
        known = sequence.num_logprobs is not None
        return Choice(
            index=self._index,
            text="".join(self._texts),
            token_ids=tuple(sequence.generated.tolist()),
            logprobs=tuple(sequence.logprobs) if self._show_logprobs else None,
            cumulative_logprob=sum(e.logprob for e in sequence.logprobs) if known else None,
            finish_reason=sequence.finish_reason,
            seed=sequence.seed,
        )

    def _unread(self) -> list[int]:
        new: list[int] = self.sequence.generated[self._num_seen :].tolist()
        if new:
            self.last_token = time.perf_counter()
            self.first_token = self.first_token or self.last_token
        return new

    def _read(self, token: int) -> str:
        if self._stops.matched:
            return ""
        self._num_seen += 1
        if token in self.sequence.stop_ids:
            return ""
        return self._settle(self._detokenizer.push(token))

    def _settle(self, text: str) -> str:
        if self._num_seen < self._min_tokens:
            return text
        settled = self._stops.feed(text)
        if self._stops.matched:
            self.sequence.end_after(self._num_seen, "stop")
        return settled
