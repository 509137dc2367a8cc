"""Oracle of every operation of the decoder: numpy, float64, written from the formulas.

Shape letters as in `ryzanstein/_core/__init__.pyi`: T tokens, H query heads, G key/value heads,
D head dim, K in-features, N out-features, n keys. Nothing here may import the native module.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

F64: TypeAlias = NDArray[np.float64]
I8: TypeAlias = NDArray[np.int8]
I64: TypeAlias = NDArray[np.int64]
Array: TypeAlias = NDArray[Any]

ABSMAX_FLOOR = 1e-5
ABSMEAN_FLOOR = 1e-5


def rms_norm(x: Array, gain: Array, eps: float) -> F64:
    """Return x / sqrt(mean(x^2) + eps) * gain over the last axis (arXiv:1910.07467)."""
    wide = x.astype(np.float64)
    mean_square: F64 = np.mean(wide * wide, axis=-1, keepdims=True)
    return wide / np.sqrt(mean_square + eps) * gain.astype(np.float64)


def scaled_activations(x: Array) -> F64:
    """Return x * 127 / max(absmax, 1e-5) per row: what the 8-bit quantiser rounds."""
    wide = x.astype(np.float64)
    absmax: F64 = np.maximum(np.max(np.abs(wide), axis=-1, keepdims=True), ABSMAX_FLOOR)
    return wide * (127.0 / absmax)


def quantize_rows(x: Array) -> tuple[I8, F64, I64]:
    """Return int8 [T, K] codes, their scale absmax / 127 [T], and the row sums of the codes [T].

    BitNet b1.58 (arXiv:2402.17764): round half to even, clamp to [-128, 127].
    """
    absmax = np.maximum(np.max(np.abs(x.astype(np.float64)), axis=-1), ABSMAX_FLOOR)
    codes = np.clip(np.rint(scaled_activations(x)), -128, 127).astype(np.int8)
    return codes, absmax / 127.0, codes.sum(axis=-1, dtype=np.int64)


def ternarize(weights: Array) -> tuple[I8, float]:
    """Return int8 codes of round(W / mean|W|) clamped to [-1, 1], and the scale mean|W|."""
    wide = weights.astype(np.float64)
    scale = max(float(np.mean(np.abs(wide))), ABSMEAN_FLOOR)
    return np.clip(np.rint(wide / scale), -1, 1).astype(np.int8), scale


def unpack_hf(packed: NDArray[np.uint8]) -> I8:
    """Return int8 [4M, K] from Hugging Face's packing uint8 [M, K].

    Row i * M + r is bits 2i and 2i + 1 of packed row r, holding value + 1.
    """
    parts = [((packed >> (2 * i)) & 3).astype(np.int8) - 1 for i in range(4)]
    return np.concatenate(parts).astype(np.int8)


def pack_hf(codes: I8) -> NDArray[np.uint8]:
    """Return uint8 [N/4, K] from int8 [N, K] in {-1, 0, 1}; the inverse of `unpack_hf`."""
    stored = (codes + 1).astype(np.uint8).reshape(4, -1, codes.shape[1])
    merged = stored[0] | stored[1] << 2 | stored[2] << 4 | stored[3] << 6
    return np.asarray(merged, dtype=np.uint8)


def ternary_linear(q: I8, act_scale: Array, codes: I8, row_scales: Array) -> F64:
    """Return y[T, N] = (q[T, K] . codes[N, K]) * row_scales[N] * act_scale[T]."""
    sums = q.astype(np.int64) @ codes.astype(np.int64).T
    rows = row_scales.astype(np.float64)[None, :]
    return sums.astype(np.float64) * rows * act_scale.astype(np.float64)[:, None]


def rope(x: Array, positions: Array, inv_freq: Array, factor: float) -> F64:
    """Rotate pairs (i, i + D/2) of x[T, H, D] by positions[T] * inv_freq[D/2], times factor."""
    wide = x.astype(np.float64)
    angles = positions.astype(np.float64)[:, None] * inv_freq.astype(np.float64)[None, :]
    cos = factor * np.cos(angles)[:, None, :]
    sin = factor * np.sin(angles)[:, None, :]
    low, high = np.split(wide, 2, axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def softmax(x: Array) -> F64:
    """Return exp(x) / sum(exp(x)) over the last axis."""
    wide = x.astype(np.float64)
    powers = np.exp(wide - np.max(wide, axis=-1, keepdims=True))
    return np.asarray(powers / np.sum(powers, axis=-1, keepdims=True), dtype=np.float64)


def soft_capped(x: F64, softcap: float) -> F64:
    """Return softcap * tanh(x / softcap), or x for a softcap of 0."""
    return x if softcap == 0 else np.asarray(softcap * np.tanh(x / softcap), dtype=np.float64)


def attention(
    q: Array,
    k: Array,
    v: Array,
    q_positions: Array,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    window: int = 0,
    sinks: int = 0,
) -> F64:
    """Causal grouped-query attention: q[T, H, D] over k, v[n, G, D] -> [T, H, D].

    Key j stands at position j and is seen by a query at position p when j <= p, with a window w
    when also j > p - w or j < sinks; query head h reads key head h // (H / G). Scores are q . k
    times the scale, 1 / sqrt(D) by default, and soft-capped.
    """
    tokens, heads, dim = q.shape
    group = heads // k.shape[1]
    out = np.empty((tokens, heads, dim), dtype=np.float64)
    for t in range(tokens):
        end = int(q_positions[t]) + 1
        own = np.arange(end)
        seen = own[(own >= end - window) | (own < sinks)] if window else own
        for h in range(heads):
            keys = k[seen, h // group].astype(np.float64)
            values = v[seen, h // group].astype(np.float64)
            scores = keys @ q[t, h].astype(np.float64)
            scores = scores / np.sqrt(dim) if scale is None else scores * scale
            out[t, h] = softmax(soft_capped(scores, softcap)) @ values
    return out


def silu(x: Array) -> F64:
    """Return x * sigmoid(x)."""
    wide = x.astype(np.float64)
    # exp of a non-positive number on either side of zero: cannot overflow
    small = np.exp(-np.abs(wide))
    sigmoid = np.where(wide >= 0, 1.0, small) / (1.0 + small)
    return np.asarray(wide * sigmoid, dtype=np.float64)


def relu2(x: Array) -> F64:
    """Return max(x, 0)^2."""
    return np.asarray(np.maximum(x.astype(np.float64), 0.0) ** 2, dtype=np.float64)


def gelu_tanh(x: Array) -> F64:
    """Return 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) (arXiv:1606.08415)."""
    wide = x.astype(np.float64)
    with np.errstate(over="ignore"):
        inner = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
        # 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2u)), which keeps its digits where tanh(u) is near -1
        return np.asarray(wide / (1.0 + np.exp(-2.0 * inner)), dtype=np.float64)


def gate(name: str, gate: Array, up: Array) -> F64:
    """Return act(gate) * up for the activation called `name`."""
    activation = {"silu": silu, "relu2": relu2, "gelu_tanh": gelu_tanh}[name]
    return activation(gate) * up.astype(np.float64)
