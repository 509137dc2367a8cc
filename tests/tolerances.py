"""Every tolerance of the test suite, by family.

Where activations pass the 8-bit quantiser, two float implementations agree to rounding error as
long as no activation lies so near a boundary (x.5) that they round it to different integers; one
such flip changes the linear's output by about one part in a thousand. The golden models are
therefore chosen by seed so that no activation, over the whole text, comes within GOLDEN_MARGIN
steps of a boundary. What is left is rounding: float32 has 6e-8, and a layer is some tens of
dependent operations whose sums run over up to a few hundred terms.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ryzanstein.config import KVDtype

__all__ = [
    "ATTENTION",
    "ATTENTION_INT8",
    "CACHE_LOGITS",
    "EXP",
    "FLOAT64",
    "GOLDEN_HIDDEN",
    "GOLDEN_LOGITS",
    "GOLDEN_MARGIN",
    "ORACLE",
    "ROPE_FREQUENCIES",
    "TANH",
    "TIE",
    "reduction",
    "roundings",
]

# Distance to a rounding boundary in quantiser steps. Activations err by some 1e-7 of the largest
# in the row, which is 127 steps.
GOLDEN_MARGIN = 4e-5
# Engine and transformers, both float32: largest error over largest magnitude, each layer.
GOLDEN_HIDDEN = 3e-6
GOLDEN_LOGITS = 3e-6
# transformers in float32 and the float64 oracle, likewise.
ORACLE = 3e-6
# Relative; transformers computes them in float32.
ROPE_FREQUENCIES = 2e-6
# A float16 cache rounds keys and values to 5e-4 of themselves: some hundredths of a quantiser step,
# so that a few in a hundred activations flip. An int8 cache rounds them to 4e-3 of the largest in
# their row: some tenths of a step.
CACHE_LOGITS: dict[KVDtype, float] = {"f16": 5e-2, "int8": 7e-2}
# Relative; two ways of writing one float64 formula.
FLOAT64 = 1e-13

# Single kernels against the float64 oracle. Integer results and storage conversions have no entry:
# they are equal.

_HALF_ULP = 2.0**-24  # one float32 rounding, relative to its result


def roundings(count: int) -> float:
    """Relative to the magnitudes that enter: an element-wise op of `count` roundings."""
    return count * _HALF_ULP


def reduction(count: int) -> float:
    """Relative to the sum of the terms' magnitudes: a float32 sum of `count` terms.

    Each add errs by at most half an ulp of a partial sum, with either sign: a random walk. Four
    standard deviations of it, and four roundings for what comes before and after the sum.
    """
    return (4 * math.sqrt(count) + 4) * _HALF_ULP


# The vector exp errs by less than 2e-7 of its result (csrc/kernels/vector/math.h).
EXP = 2e-7
# The vector tanh, likewise.
TANH = 5e-7
# Relative to the largest value: scores of random unit-variance keys and queries stay below 10 and
# err by some 1e-6 (a sum over D terms), weights by as much of themselves, and their sums likewise.
ATTENTION = 4e-6
# Likewise, with an int8 cache: queries are in steps of 1/32767 of their largest element, of which a
# score takes a random walk of half steps; the weights in such steps of the largest.
ATTENTION_INT8 = 3e-5
# Quantiser steps from x.5 within which float32 and the oracle may round to different integers:
# two roundings of a number up to 127.
TIE = 2e-5
