"""Which logits a sampling chain can come to see, so that the head need not compute the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ryzanstein.sampling.params import SamplingParams

__all__ = ["EVERY_LOGIT", "Screening", "screening"]

# The sampler rounds its min-p floor once; this much more margin costs no candidate worth counting.
_ROUNDING = 1e-5


@dataclass(frozen=True, slots=True)
class Screening:
    """The `top` highest logits, and all within `margin` of the lowest of them; top 0 means all.

    With `seen`, these of the tokens that the sequence has not seen, and those of all it has.
    """

    top: int
    margin: float = 0.0
    seen: bool = False


EVERY_LOGIT = Screening(0)


def screening(params: SamplingParams) -> Screening:
    """Return the smallest set of logits from which `params` gives the token it gives from all.

    Greedy decoding looks at the highest, top-k at k of them whatever follows it, and min-p alone
    at those within -T ln(min_p) of the highest. A penalty changes the logits of seen tokens only:
    whatever it makes of them, the k highest of all are among these and the k highest others. Top-p
    or log-probabilities need the mass of the whole row.

    Example:
        >>> screening(SamplingParams(temperature=0.0))
        Screening(top=1, margin=0.0, seen=False)
    """
    if params.logprobs is not None:
        return EVERY_LOGIT
    seen = params.repetition_penalty != 1.0
    if params.temperature == 0.0:
        return Screening(1, seen=seen)
    if params.top_k > 0:
        return Screening(params.top_k, seen=seen)
    if params.min_p > 0.0 and params.top_p == 1.0:
        margin = -params.temperature * math.log(params.min_p)
        return Screening(1, margin * (1.0 + _ROUNDING) + _ROUNDING, seen)
    return EVERY_LOGIT
