"""One request as the engine sees it: token ids, how far they are computed, when to stop."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ryzanstein import _core
from ryzanstein.engine.result import TokenLogprob
from ryzanstein.sampling.screening import EVERY_LOGIT, Screening, screening

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ryzanstein._core import F32Array, I32Array
    from ryzanstein.engine.block_manager import BlockTable
    from ryzanstein.engine.result import FinishReason
    from ryzanstein.errors import DistributionError
    from ryzanstein.sampling import SamplingParams

__all__ = ["Sequence"]


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens of one request, the prompt first.

    `num_computed` counts the tokens whose keys and values are in the cache for good; a step that
    fails half-way is undone by truncating the block table to it.

    Every field is consistent after each assignment, so an interrupt (Ctrl-C) between any two costs
    at most a recomputed token, never a wrong or a missing one.

    Args:
        buffer: int32 [prompt + max_tokens], filled up to num_tokens.
        num_prompt_tokens: tokens given by the caller.
        sampler: draws the next token.
        stop_ids: tokens that end the sequence.
        num_logprobs: top log-probabilities to keep per token; None keeps nothing.
        seed: what the sampler was seeded with.
        screening: which logits the sampler can come to see.
        ended: set when the sequence was ended from outside.
        error: set when no token could be drawn.
    """

    buffer: I32Array
    num_prompt_tokens: int
    sampler: _core.Sampler
    stop_ids: frozenset[int]
    num_logprobs: int | None
    seed: int
    screening: Screening = EVERY_LOGIT
    num_tokens: int = field(init=False)
    num_computed: int = 0
    table: BlockTable | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    ended: FinishReason | None = None
    error: DistributionError | None = None
    admitted_at: float | None = None

    def __post_init__(self) -> None:
        self.num_tokens = self.num_prompt_tokens

    @classmethod
    def create(
        cls,
        prompt_ids: I32Array,
        params: SamplingParams,
        *,
        max_tokens: int,
        eos_token_ids: Iterable[int] = (),
    ) -> Sequence:
        """Return a waiting sequence.

        Args:
            prompt_ids: int32 [n].
            params: how to sample and stop; its stop strings are the caller's business.
            max_tokens: tokens to generate at most.
            eos_token_ids: the model's own end tokens.
        """
        buffer = np.empty(len(prompt_ids) + max_tokens, np.int32)
        buffer[: len(prompt_ids)] = prompt_ids
        seed = secrets.randbits(64) if params.seed is None else params.seed
        own = () if params.ignore_eos else eos_token_ids
        return cls(
            buffer=buffer,
            num_prompt_tokens=len(prompt_ids),
            sampler=_core.Sampler(
                temperature=params.temperature,
                top_k=params.top_k,
                top_p=params.top_p,
                min_p=params.min_p,
                repetition_penalty=params.repetition_penalty,
                seed=seed,
            ),
            stop_ids=frozenset((*own, *params.stop_token_ids)),
            num_logprobs=params.logprobs,
            seed=seed,
            screening=screening(params),
        )

    @property
    def finish_reason(self) -> FinishReason | None:
        """Return why the sequence is over, or None while it is not."""
        if self.ended is not None:
            return self.ended
        last = self.num_tokens - 1
        if last >= self.num_prompt_tokens and int(self.buffer[last]) in self.stop_ids:
            return "stop"
        return "length" if self.num_tokens == self.capacity else None

    @property
    def is_finished(self) -> bool:
        """Return whether no further token will come."""
        return self.error is not None or self.finish_reason is not None

    @property
    def num_pending(self) -> int:
        """Return the tokens whose keys and values are still to be computed."""
        return self.num_tokens - self.num_computed

    @property
    def capacity(self) -> int:
        """Return the tokens this sequence may grow to."""
        return len(self.buffer)

    @property
    def generated(self) -> I32Array:
        """Return the tokens generated so far, int32 [n]."""
        return self.buffer[self.num_prompt_tokens : self.num_tokens]

    def mark_admitted(self) -> None:
        """Note when the scheduler first gave this sequence pages."""
        if self.admitted_at is None:
            self.admitted_at = time.perf_counter()

    def extend(self, logits: F32Array) -> None:
        """Draw the next token from float32 [V] logits.

        Raises:
            DistributionError: no token can be drawn.
        """
        position = self.num_tokens
        token = self.sampler.sample(logits, self.buffer[:position], position)
        if self.num_logprobs is not None:
            own, top = _core.log_probs(logits, token, self.num_logprobs)
            self.logprobs[position - self.num_prompt_tokens :] = [
                TokenLogprob(token, own, tuple(top))
            ]
        self.buffer[position] = token
        self.num_tokens = position + 1

    def end_after(self, num_generated: int, reason: FinishReason) -> None:
        """End here, dropping tokens behind the first `num_generated` generated ones."""
        self.num_tokens = self.num_prompt_tokens + num_generated
        del self.logprobs[num_generated:]
        self.ended = reason
