"""Oracle of the whole decoder in float64, in the terms of `_core.Decoder`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from reference import grouped, ops

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from reference.ops import F64, I8

__all__ = [
    "Config",
    "Decoder",
    "DenseLinear",
    "GroupedLinear",
    "Layer",
    "Linear",
    "TernaryLinear",
    "Trace",
]


@dataclass(frozen=True, slots=True)
class Trace:
    """Everything one forward pass computed.

    `hidden` is [L + 1, T, hidden]: each layer's input and, last, the final norm's output. `margin`
    is how near, in steps of the 8-bit quantiser, any activation came to a rounding boundary: an
    implementation whose activations err by less makes the same integers.
    """

    hidden: F64
    logits: F64
    margin: float


@dataclass(frozen=True, slots=True)
class DenseLinear:
    """y = norm(x) . weights[N, K] + bias."""

    weights: F64
    norm: F64 | None = None
    norm_eps: float = 1e-6
    bias: F64 | None = None

    def __call__(self, x: F64) -> tuple[F64, float]:
        """Return y[T, N], and the margin as `Trace` has it."""
        y = _normed(x, self.norm, self.norm_eps) @ self.weights.T
        return y if self.bias is None else y + self.bias, math.inf


@dataclass(frozen=True, slots=True)
class TernaryLinear:
    """y = quantised(norm(x)) . (codes[N, K] * scales[N]) + bias."""

    codes: I8
    scales: F64
    norm: F64 | None = None
    norm_eps: float = 1e-6
    bias: F64 | None = None

    def __call__(self, x: F64) -> tuple[F64, float]:
        """Return y[T, N], and the margin as `Trace` has it."""
        x = _normed(x, self.norm, self.norm_eps)
        margin = float(np.min(np.abs(np.abs(ops.scaled_activations(x)) % 1.0 - 0.5)))
        q, act_scale, _ = ops.quantize_rows(x)
        y = ops.ternary_linear(q, act_scale, self.codes, self.scales)
        return y if self.bias is None else y + self.bias, margin


@dataclass(frozen=True, slots=True)
class GroupedLinear:
    """y = quantised in blocks(norm(x)) . weights[N, K] + bias."""

    weights: F64
    norm: F64 | None = None
    norm_eps: float = 1e-6
    bias: F64 | None = None

    def __call__(self, x: F64) -> tuple[F64, float]:
        """Return y[T, N], and the margin as `Trace` has it."""
        x = _normed(x, self.norm, self.norm_eps)
        q, scales = grouped.quantize_blocks(x)
        steps = x / np.repeat(scales, grouped.BLOCK, axis=1)[:, : x.shape[1]]
        margin = float(np.min(np.abs(np.abs(steps) % 1.0 - 0.5)))
        y = grouped.grouped_linear(q, scales, self.weights)
        return y if self.bias is None else y + self.bias, margin


Linear: TypeAlias = DenseLinear | TernaryLinear | GroupedLinear


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """As `_core.LayerWeights`."""

    input_norm: F64
    attn_in: list[Linear]
    o_proj: Linear
    ffn_norm: F64
    mlp_in: list[Linear]
    down_proj: Linear
    q_norm: F64 | None = None
    k_norm: F64 | None = None
    attn_sub_norm: F64 | None = None
    attn_output_norm: F64 | None = None
    ffn_sub_norm: F64 | None = None
    ffn_output_norm: F64 | None = None
    sliding_window: int = 0
    attention_sinks: int = 0
    rope: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """As `_core.DecoderConfig`; `inv_freq` is [rope_sets, ropes, D / 2]."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    activation: str
    inv_freq: F64
    rope_attention_factors: F64 | None = None
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    attention_softcap: float = 0.0
    final_softcap: float = 0.0


@dataclass(slots=True)
class Decoder:
    """A decoder over float64 weights: embedding and head [V, hidden]."""

    config: Config
    layers: list[Layer]
    embedding: F64
    final_norm: F64
    head: F64
    _margin: float = field(default=math.inf, init=False)
    _rope_set: int = field(default=0, init=False)

    def forward(self, token_ids: NDArray[Any], rope_set: int = 0) -> Trace:
        """Run one sequence from position 0."""
        self._margin, self._rope_set = math.inf, rope_set
        x = self.embedding[token_ids] * self.config.embedding_scale
        hidden = [x]
        for layer in self.layers:
            x = x + self._attention(layer, x)
            x = x + self._feed_forward(layer, x)
            hidden.append(x)
        hidden[-1] = self._normed(x, self.final_norm)
        logits = ops.soft_capped(hidden[-1] @ self.head.T, self.config.final_softcap)
        return Trace(np.stack(hidden), logits, self._margin)

    def _attention(self, layer: Layer, x: F64) -> F64:
        c = self.config
        positions = np.arange(len(x))
        rows = self._linears(layer.attn_in, self._normed(x, layer.input_norm))
        heads = rows.reshape(len(x), -1, c.head_dim)
        q, k, v = np.split(heads, [c.num_heads, c.num_heads + c.num_kv_heads], axis=1)
        q, k = self._normed(q, layer.q_norm), self._normed(k, layer.k_norm)
        factors = c.rope_attention_factors
        factor = 1.0 if factors is None else float(factors[layer.rope])
        turns = (positions, c.inv_freq[self._rope_set, layer.rope], factor)
        q, k = (ops.rope(part, *turns) for part in (q, k))
        mixed = ops.attention(
            q,
            k,
            v,
            positions,
            scale=c.attention_scale,
            softcap=c.attention_softcap,
            window=layer.sliding_window,
            sinks=layer.attention_sinks,
        )
        mixed = self._normed(mixed.reshape(len(x), -1), layer.attn_sub_norm)
        return self._normed(self._linears([layer.o_proj], mixed), layer.attn_output_norm)

    def _feed_forward(self, layer: Layer, x: F64) -> F64:
        rows = self._linears(layer.mlp_in, self._normed(x, layer.ffn_norm))
        inner = ops.gate(self.config.activation, *np.split(rows, 2, axis=1))
        inner = self._normed(inner, layer.ffn_sub_norm)
        return self._normed(self._linears([layer.down_proj], inner), layer.ffn_output_norm)

    def _linears(self, linears: list[Linear], x: F64) -> F64:
        parts = []
        for linear in linears:
            y, margin = linear(x)
            parts.append(y)
            self._margin = min(self._margin, margin)
        return np.concatenate(parts, axis=1)

    def _normed(self, x: F64, gain: F64 | None) -> F64:
        return _normed(x, gain, self.config.rms_norm_eps)


def _normed(x: F64, gain: F64 | None, eps: float) -> F64:
    return x if gain is None else ops.rms_norm(x, gain, eps)
