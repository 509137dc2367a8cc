"""What a generation returns: plain, immutable, picklable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = [
    "Choice",
    "Completion",
    "FinishReason",
    "MissReason",
    "Piece",
    "Timings",
    "TokenLogprob",
    "Usage",
]

MissReason: TypeAlias = Literal["short", "new", "diverged", "evicted", "off"]
FinishReason: TypeAlias = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of a token, before temperature and penalties.

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
        prompt_tokens: those of the prompt, once, however many choices there are.
        completion_tokens: those generated, over all choices and those that best_of left out.
        cached_tokens: those of the prompt whose keys and values were in the prefix cache.
        cache_miss: why it were not more: "short" (less than a page was left: nothing more could be
            found), "new" (nothing like the rest was there), "diverged" (the cache goes on otherwise
            from there), "evicted" (it was there once) or "off" (also for a prompt with logprobs).
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
        decode_tokens_per_s: tokens after the first (of each choice, or for a beam search of the
            longest) over the time they took; None if there are none.
        total_s: from the request to its last token.
        drafted_tokens: guesses that speculative decoding had checked.
        accepted_tokens: those that were right: each saved a step.
        speculation_saved_s: what these steps would have taken, beside whatever else ran.
        speculation_cost_s: what making guesses took, and checking them added to steps.
    """

    time_to_first_token_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float | None
    total_s: float
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    speculation_saved_s: float = 0.0
    speculation_cost_s: float = 0.0

    @property
    def acceptance(self) -> float | None:
        """Return the share of the guesses checked that were right; None if none was checked."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else None

    @property
    def speculation_gain_s(self) -> float:
        """Return the time that guessing saved on balance; below 0, it was lost."""
        return self.speculation_saved_s - self.speculation_cost_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One text for a prompt.

    Args:
        index: which of the choices it is.
        text: what was generated, without the stop string that ended it; behind the prompt's text if
            `echo` was asked for.
        token_ids: every generated token, the one that ended it included.
        logprobs: one entry per token if they were asked for, else None.
        cumulative_logprob: their sum; None if no log-probabilities were computed.
        finish_reason: "stop" (an end token or a stop string), "length" (max_tokens, or the end of
            the context) or "cancelled".
        seed: reproduces the choice as a sample of its own when passed as `SamplingParams.seed`.
    """

    index: int = 0
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    cumulative_logprob: float | None = None
    finish_reason: FinishReason
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion(Choice):
    """A finished generation: its first choice, which is the best where they are ranked, and more.

    Args:
        usage: tokens in and out, of all choices together.
        timings: how long it took, until the last choice was done.
        prompt_token_ids: the prompt as the model saw it.
        prompt_logprobs: one entry per token of the prompt if they were asked for, else None; that
            of the first token, which follows nothing, is None.
        others: the choices behind the first.
    """

    usage: Usage
    timings: Timings
    prompt_token_ids: tuple[int, ...]
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    others: tuple[Choice, ...] = ()

    @property
    def choices(self) -> tuple[Choice, ...]:
        """Return all choices, this one first."""
        return (self, *self.others)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a stream. Texts and token ids of one index concatenate to those of that choice.

    Args:
        text: may be empty in a choice's last piece.
        token_ids: tokens since the choice's piece before.
        finish_reason: set in a choice's last piece only.
        completion: the whole, in the stream's last piece only.
        index: the choice it belongs to; 0 where there is one.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    completion: Completion | None = None
    index: int = 0
