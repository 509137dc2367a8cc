"""What one caller asked for: the sequences it takes, and the completion they become."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from ryzanstein._core import PAGE_TOKENS
from ryzanstein.engine.reader import Reader
from ryzanstein.engine.result import Choice, Completion, Piece, Timings, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence as ABCSequence

    from ryzanstein.engine.sequence import Sequence
    from ryzanstein.sampling import SamplingParams
    from ryzanstein.tokenizer import Tokenizer

__all__ = ["Request", "make_completion", "make_timings"]


class Request:
    """Follows a sequence and its branches to the completion that they make together.

    Args:
        sequence: what the engine works on.
        params: for the stop strings, and which choices to keep.
        tokenizer: turns tokens into text.
        echo: text to put in front of each choice.
    """

    def __init__(
        self, sequence: Sequence, params: SamplingParams, tokenizer: Tokenizer, echo: str = ""
    ) -> None:
        self.sequences = (sequence, *sequence.branches)
        self._readers = [
            Reader(s, params, tokenizer, index, echo) for index, s in enumerate(self.sequences)
        ]
        self._params = params
        self._created = time.perf_counter()

    @property
    def has_news(self) -> bool:
        """Return whether `take` has something to look at."""
        return any(reader.has_news for reader in self._readers)

    def cancel(self) -> None:
        """End every sequence where it is, from any thread; a step under way may add last tokens."""
        for sequence in self.sequences:
            if not sequence.is_finished:
                sequence.ended = "cancelled"

    def take(self) -> list[Piece]:
        """Return what was generated since the last call, at most one piece of each choice.

        Raises:
            DistributionError: a sequence ended because no token could be drawn.
            ValidationError: one ended because its logits processor failed.
        """
        taken = (reader.take() for reader in self._readers if reader.has_news)
        pieces = [piece for piece in taken if piece is not None]
        if pieces and all(reader.is_read for reader in self._readers):
            pieces[-1] = replace(pieces[-1], completion=self._complete())
        return pieces

    def _complete(self) -> Completion:
        choices = self._ranked([reader.choice() for reader in self._readers])
        return make_completion(choices, self.sequences[0], self._num_generated, self._timings())

    def _ranked(self, choices: list[Choice]) -> list[Choice]:
        """Return the choices to keep, the likeliest first if `best_of` was asked for."""
        if self._params.best_of is None:
            return choices
        choices.sort(key=lambda choice: -(choice.cumulative_logprob or 0.0))
        kept = choices[: self._params.n]
        return [replace(choice, index=index) for index, choice in enumerate(kept)]

    @property
    def _num_generated(self) -> int:
        return sum(len(sequence.generated) for sequence in self.sequences)

    def _timings(self) -> Timings:
        prompt = self.sequences[0]
        last = max((r.last_token for r in self._readers if r.last_token), default=self._created)
        first = min((r.first_token for r in self._readers if r.first_token), default=last)
        num_later = self._num_generated - sum(r.first_token is not None for r in self._readers)
        drafters = [s.drafter for s in self.sequences if s.drafter is not None]
        return replace(
            make_timings(prompt, self._created, first, last, num_later),
            drafted_tokens=sum(drafter.num_drafted for drafter in drafters),
            accepted_tokens=sum(drafter.num_accepted for drafter in drafters),
            speculation_saved_s=sum(drafter.saved_seconds for drafter in drafters),
            speculation_cost_s=sum(drafter.cost_seconds for drafter in drafters),
        )


def make_timings(
    prompt: Sequence, created: float, first: float, last: float, num_later: int
) -> Timings:
    """Return the timings of a request, from moments by `time.perf_counter`.

    Args:
        prompt: the sequence that computed the prompt.
        created: when the request was made.
        first: when its first token came.
        last: when its last one did.
        num_later: tokens that came one after the other behind the first.
    """
    admitted = prompt.admitted_at or created
    return Timings(
        time_to_first_token_s=first - created,
        prefill_tokens_per_s=prompt.num_prompt_tokens / max(first - admitted, 1e-9),
        decode_tokens_per_s=num_later / (last - first) if last > first else None,
        total_s=last - created,
    )


def make_completion(
    choices: ABCSequence[Choice], prompt: Sequence, num_generated: int, timings: Timings
) -> Completion:
    """Return what a request comes to: its choices, and what they have in common.

    Args:
        choices: at least one, the first first.
        prompt: the sequence that computed the prompt.
        num_generated: tokens, over all choices.
        timings: of the request.
    """
    first, *others = choices
    scores = None if prompt.num_prompt_logprobs is None else tuple(prompt.prompt_logprobs)
    return Completion(
        **{field.name: getattr(first, field.name) for field in fields(first)},
        usage=Usage(
            prompt.num_prompt_tokens,
            num_generated,
            len(prompt.prefix.pages) * PAGE_TOKENS,
            prompt.prefix.reason,
        ),
        timings=timings,
        prompt_token_ids=tuple(prompt.buffer[: prompt.num_prompt_tokens].tolist()),
        prompt_logprobs=scores,
        others=tuple(others),
    )
