"""Random grouped matrices of every kind that kernels tell apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from reference import grouped as oracle

from ryzanstein._core import GroupedMatrix

if TYPE_CHECKING:
    from collections.abc import Iterable

# bits, group, scale_dtype, has_minimum
Kind = tuple[int, int, str, bool]


def kinds_of(bits: Iterable[int]) -> list[Kind]:
    """Return kinds that between them take every path of a kernel."""
    formats = ((32, "f16", False), (16, "f32", True), (16, "f16", False), (128, "f32", True))
    return [(b, *rest) for b in bits for rest in formats]


class RandomGrouped:
    """A matrix, its weights in float64, and what they are made of; `rng` goes on from there."""

    def __init__(self, kind: Kind, rows: int, columns: int) -> None:
        bits, group, dtype, has_minimum = kind
        self.rng = np.random.default_rng(bits + 7 * columns)
        shape = (rows, -(-columns // group))
        codes = self.rng.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
        self.scales = self.rng.uniform(-2, 2, shape).astype(np.float16).astype(np.float32)
        minima = self.rng.standard_normal(shape).astype(np.float16).astype(np.float32)
        self.minima = minima if has_minimum else None
        self.matrix = GroupedMatrix(rows, columns, bits, group, dtype, has_minimum)  # type: ignore[arg-type]
        self.matrix.pack_codes(0, codes, self.scales, self.minima)
        self.weights = oracle.dequantize(codes, self.scales, self.minima, bits, group)
