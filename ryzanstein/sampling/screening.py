"""Which logits a sampling chain can come to see, so that the head need not compute the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ryzanstein.sampling.strategies import EDITS, STRATEGIES
from ryzanstein.sampling.words import NO_WORDS, Words

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ryzanstein.sampling.params import SamplingParams

__all__ = ["EVERY_LOGIT", "Screening", "screening"]

# The sampler rounds its min-p floor once; this much more margin costs no candidate worth counting.
_ROUNDING = 1e-5


@dataclass(frozen=True, slots=True)
class Screening:
    """The `top` highest logits, and all within `margin` of the lowest of them; top 0 means all.

    With `seen`, these of the tokens that the sequence has not seen, and those of all it has; the
    tokens of `known` count as seen.
    """

    top: int
    margin: float = 0.0
    seen: bool = False
    known: tuple[int, ...] = ()


EVERY_LOGIT = Screening(0)


def screening(
    params: SamplingParams, *, stop_ids: Iterable[int] = (), words: Words = NO_WORDS
) -> Screening:
    """Return the smallest set of logits from which `params` gives the token it gives from all.

    Greedy decoding looks at the highest, top-k at k of them whatever follows it, and min-p at those
    within -T ln(min_p) of the highest. Penalties, biases and bans change the logits of known tokens
    only: whatever they make of them, the k highest of all are among these and the k highest others.
    A filter that asks for the mass or the spread of the whole row before one of these has cut it
    looks at everything, as log-probabilities, a Python function and a structured output do: where
    that bans the highest logits, the highest that are left may be anywhere.

    Example:
        >>> screening(SamplingParams(temperature=0.0))
        Screening(top=1, margin=0.0, seen=False, known=())
    """
    if params.computed_logprobs is not None or params.logits_processor is not None:
        return EVERY_LOGIT
    if params.structured_output is not None:
        return EVERY_LOGIT
    top, margin = _looked_at(params)
    if top == 0:
        return EVERY_LOGIT
    seen = any(STRATEGIES[edit].active_fields(params) for edit in EDITS)
    known = {token for token, _ in params.biases} | {word[-1] for word in words.bad}
    if params.min_tokens:
        known.update(stop_ids)
    return Screening(top, margin, seen, tuple(sorted(known)))


def _looked_at(params: SamplingParams) -> tuple[int, float]:
    """Return `top` and `margin`, as the first filter that cuts asks for them."""
    if params.temperature == 0.0:
        return 1, 0.0
    temperature = 1.0
    for name in params.order if not params.mirostat else ():
        active = STRATEGIES[name].active_fields(params)
        if not active or name in EDITS:
            continue
        if name == "top_k":
            return params.top_k, 0.0
        if name == "min_p":
            margin = -temperature * math.log(params.min_p)
            return params.min_keep, margin * (1.0 + _ROUNDING) + _ROUNDING
        if active != ["temperature"]:
            break
        temperature = params.temperature
    return 0, 0.0
