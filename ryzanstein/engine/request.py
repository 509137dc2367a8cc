"""A sequence on its way back to text: detokenised, searched for stop strings, timed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ryzanstein._core import PAGE_TOKENS
from ryzanstein.engine.result import Completion, Piece, Timings, Usage
from ryzanstein.engine.stop import StopMatcher
from ryzanstein.tokenizer import Detokenizer

if TYPE_CHECKING:
    from ryzanstein.engine.sequence import Sequence
    from ryzanstein.sampling import SamplingParams
    from ryzanstein.tokenizer import Tokenizer

__all__ = ["Request"]


class Request:
    """Follows one sequence and turns its new tokens into pieces of text.

    Args:
        sequence: what the engine works on.
        params: for the stop strings.
        tokenizer: turns tokens into text.
    """

    def __init__(self, sequence: Sequence, params: SamplingParams, tokenizer: Tokenizer) -> None:
        self.sequence = sequence
        self._detokenizer = Detokenizer(
            tokenizer, sequence.buffer[: sequence.num_prompt_tokens].tolist()
        )
        self._stops = StopMatcher(params.stop_strings)
        self._min_tokens = params.min_tokens
        self._num_seen = 0
        self._num_yielded = 0
        self._texts: list[str] = []
        self._created = time.perf_counter()
        self._first_token: float | None = None
        self._last_token = self._created

    @property
    def done(self) -> bool:
        """Return whether every token has been turned into text and no more will come."""
        return self.sequence.finish_reason is not None and self._num_seen == len(
            self.sequence.generated
        )

    @property
    def has_news(self) -> bool:
        """Return whether `take` has something to look at."""
        return self.sequence.is_finished or self._num_seen < len(self.sequence.generated)

    def cancel(self) -> None:
        """End the sequence where it is, from any thread; a step under way may add a last token."""
        if not self.sequence.is_finished:
            self.sequence.ended = "cancelled"

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
        self._texts.append(text)
        token_ids = tuple(self.sequence.generated[self._num_yielded : self._num_seen].tolist())
        self._num_yielded = self._num_seen
        if not self.done:
            return Piece(text, token_ids)
        return Piece(text, token_ids, self.sequence.finish_reason, self._complete())

    def _unread(self) -> list[int]:
        new: list[int] = self.sequence.generated[self._num_seen :].tolist()
        if new:
            self._last_token = time.perf_counter()
            self._first_token = self._first_token or self._last_token
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

    def _complete(self) -> Completion:
        sequence = self.sequence
        first = self._first_token or self._last_token
        admitted = sequence.admitted_at or self._created
        num_generated = len(sequence.generated)
        decoding = self._last_token - first
        drafter = sequence.drafter
        assert sequence.finish_reason is not None
        return Completion(
            text="".join(self._texts),
            token_ids=tuple(sequence.generated.tolist()),
            logprobs=None if sequence.num_logprobs is None else tuple(sequence.logprobs),
            finish_reason=sequence.finish_reason,
            usage=Usage(
                sequence.num_prompt_tokens,
                num_generated,
                len(sequence.prefix.pages) * PAGE_TOKENS,
                sequence.prefix.reason,
            ),
            timings=Timings(
                time_to_first_token_s=first - self._created,
                prefill_tokens_per_s=sequence.num_prompt_tokens / max(first - admitted, 1e-9),
                decode_tokens_per_s=(num_generated - 1) / decoding if decoding > 0 else None,
                total_s=self._last_token - self._created,
                drafted_tokens=drafter.num_drafted if drafter else 0,
                accepted_tokens=drafter.num_accepted if drafter else 0,
            ),
            prompt_token_ids=tuple(sequence.buffer[: sequence.num_prompt_tokens].tolist()),
            seed=sequence.seed,
        )
