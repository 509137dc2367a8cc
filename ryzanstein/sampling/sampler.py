"""From what a caller asked to the native sampler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ryzanstein import _core
from ryzanstein.sampling.strategies import EDITS
from ryzanstein.sampling.words import NO_WORDS, Words

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ryzanstein.sampling.params import SamplingParams

__all__ = ["make_sampler"]

# What the native sampler takes as it is, under the same name.
_NUMBERS = (
    "temperature",
    "dynatemp_range",
    "dynatemp_exponent",
    "top_n_sigma",
    "top_k",
    "typical_p",
    "top_p",
    "min_p",
    "xtc_probability",
    "xtc_threshold",
    "min_keep",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "logit_bias",
    "min_tokens",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "penalty_last_n",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
)


def make_sampler(
    params: SamplingParams,
    *,
    seed: int,
    prompt_length: int = 0,
    stop_ids: Iterable[int] = (),
    words: Words = NO_WORDS,
) -> _core.Sampler:
    """Return the sampler of one sequence.

    Args:
        params: what to do; its logits_processor is the caller's business.
        seed: of the draws.
        prompt_length: tokens of the sequence that were given, not generated.
        stop_ids: tokens that may not be drawn before min_tokens.
        words: those of `params` as tokens.

    Example:
        >>> sampler = make_sampler(SamplingParams(top_k=40), seed=1)
    """
    return _core.Sampler(
        order=[name for name in params.order if name not in EDITS],
        bad_words=words.bad,
        dry_breakers=words.breakers,
        stop_ids=sorted(stop_ids),
        prompt_length=prompt_length,
        seed=seed,
        **{name: getattr(params, name) for name in _NUMBERS},
    )
