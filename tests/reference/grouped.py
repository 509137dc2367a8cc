"""Oracle of grouped weights and block-quantised activations: numpy, float64, from the formulas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from reference.ops import F64, I8

BLOCK = 32
ABSMAX_FLOOR = 1e-30


def zero_point(bits: int) -> int:
    """Return the code that stands for zero where there are no minima."""
    return {1: 1, 2: 1, 3: 4, 4: 8, 8: 128}[bits]


def quantize_blocks(x: NDArray[Any]) -> tuple[I8, F64]:
    """Return int8 [T, K] and scales [T, ceil(K / 32)]: each block of 32 by its absmax / 127."""
    tokens, columns = x.shape
    blocks = -(-columns // BLOCK)
    wide = np.zeros((tokens, blocks, BLOCK))
    wide.reshape(tokens, -1)[:, :columns] = x
    absmax = np.maximum(np.max(np.abs(wide), axis=2), ABSMAX_FLOOR)
    codes = np.rint(wide * (127.0 / absmax)[:, :, None]).astype(np.int8)
    return codes.reshape(tokens, -1)[:, :columns], absmax / 127.0


def dequantize(
    codes: NDArray[np.uint8],
    scales: NDArray[Any],
    minima: NDArray[Any] | None,
    bits: int,
    group: int,
) -> F64:
    """Return scale * (code - zero), or scale * code + minimum, [N, K]."""
    columns = codes.shape[1]
    spread = np.repeat(scales.astype(np.float64), group, axis=1)[:, :columns]
    if minima is None:
        return spread * (codes.astype(np.float64) - zero_point(bits))
    return spread * codes + np.repeat(minima.astype(np.float64), group, axis=1)[:, :columns]


def grouped_linear(q: I8, act_scales: NDArray[Any], weights: F64) -> F64:
    """Return y[T, N] of block-quantised activations and dequantised weights [N, K]."""
    spread = np.repeat(act_scales.astype(np.float64), BLOCK, axis=1)[:, : q.shape[1]]
    return (q * spread) @ weights.T
