"""What a generation returns: plain, immutable, picklable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Completion", "FinishReason", "MissReason", "Piece", "Timings", "TokenLogprob", "Usage"]

MissReason: TypeAlias = Literal["short", "new", "diverged", "evicted", "off"]
FinishReason: TypeAlias = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of a generated token, before temperature and penalties.

    A token that a structured output forced has 0 and no `top`: it was certain, and the model's own
    opinion was never computed.

    Args:
        token_id: the token.
        logprob: its natural log-probability.
        top: the most likely (token id, log-probability), descending.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens in and out.

    Args:
        prompt_tokens: those of the prompt.
        completion_tokens: those generated.
        cached_tokens: those of the prompt whose keys and values were in the prefix cache.
        cache_miss: why it were not more: "short" (less than a page was left: nothing more could be
            found), "new" (nothing like the rest was there), "diverged" (the cache goes on otherwise
            from there), "evicted" (it was there once) or "off".
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    cache_miss: MissReason = "off"

    @property
    def total_tokens(self) -> int:
        """Return both together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """How long a generation took.

    Args:
        time_to_first_token_s: from the request to its first token, waiting included.
        prefill_tokens_per_s: prompt tokens over the time from admission to the first token.
        decode_tokens_per_s: tokens after the first over the time they took; None if there are none.
        total_s: from the request to its last token.
        drafted_tokens: guesses that speculative decoding had checked.
        accepted_tokens: those that were right: each saved a step.
    """

    time_to_first_token_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float | None
    total_s: float
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished generation.

    Args:
        text: what was generated, without the stop string that ended it.
        token_ids: every generated token, the one that ended it included.
        logprobs: one entry per token if they were asked for, else None.
        finish_reason: "stop" (an end token or a stop string), "length" (max_tokens, or the end of
            the context) or "cancelled".
        usage: tokens in and out.
        timings: how long it took.
        prompt_token_ids: the prompt as the model saw it.
        seed: reproduces the sample when passed as `SamplingParams.seed`.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    prompt_token_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a stream. Texts and token ids concatenate to those of the completion.

    Args:
        text: may be empty in the last piece.
        token_ids: tokens since the piece before.
        finish_reason: set in the last piece only.
        completion: the whole, in the last piece only.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    completion: Completion | None = None
