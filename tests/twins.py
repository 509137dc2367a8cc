"""Random decoders of every architecture, each twice: native, and as the float64 oracle has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from arrays import narrow, widen
from reference import decoder as oracle
from support import TinyModel

from ryzanstein import _core

if TYPE_CHECKING:
    from ryzanstein._core import F32Array, HeadKind

__all__ = ["Shape", "Twins", "twins"]

Kind = Literal["f32", "f16", "bf16", "ternary", "int8", "int4", "int2"]
Pair = tuple[_core.Linear, oracle.Linear]
# Of both ropes, in each of three sets.
_THETAS = ((1e4, 1e2), (3e4, 1e2), (1e5, 2e2))
_BITS: dict[Kind, int] = {"int8": 8, "int4": 4, "int2": 2}


@dataclass(frozen=True, slots=True)
class Shape:
    """What a random decoder is made of; every field is one thing that architectures differ in."""

    hidden: int = 48
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    inner: int = 80
    vocab: int = 61
    layers: int = 2
    # Of q, k, v, o, gate, up and down.
    kinds: tuple[Kind, ...] = ("f32",) * 7
    biases: bool = False
    linear_norms: bool = False
    head_norms: bool = False
    sub_norms: bool = False
    output_norms: bool = False
    # Of each layer in turn.
    windows: tuple[int, ...] = (0,)
    sinks: tuple[int, ...] = (0,)
    ropes: tuple[int, ...] = (0,)
    activation: _core.Activation = "silu"
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    attention_softcap: float = 0.0
    final_softcap: float = 0.0
    # Makes scores and logits large enough for caps to matter.
    gain: float = 1.0


@dataclass(frozen=True, slots=True)
class Twins:
    """A native decoder and the oracle of the same weights."""

    shape: Shape
    native: TinyModel
    oracle: oracle.Decoder


class _Maker:
    """Draws weights, and hands them to both."""

    def __init__(self, seed: int, shape: Shape) -> None:
        self._rng = np.random.default_rng(seed)
        self._shape = shape

    def norm(self, size: int, *, wanted: bool = True) -> F32Array | None:
        return self._rng.uniform(0.5, 1.5, size).astype(np.float32) if wanted else None

    def matrix(self, rows: int, columns: int, scale: float = 1.0) -> F32Array:
        values = self._rng.standard_normal((rows, columns)) * (scale / columns**0.5)
        weights: F32Array = values.astype(np.float32)
        return weights

    def linear(self, rows: int, columns: int, kind: Kind, *, scale: float = 1.0) -> Pair:
        s = self._shape
        options: dict[str, Any] = {
            "norm": self.norm(columns, wanted=s.linear_norms),
            "bias": self._rng.standard_normal(rows).astype(np.float32) if s.biases else None,
        }
        wide = {name: _float64(value) for name, value in options.items()}
        if kind == "ternary":
            codes = self._rng.integers(-1, 2, (rows, columns)).astype(np.int8)
            scales = (self._rng.uniform(1, 1.5, rows) * scale / np.sqrt(columns)).astype(np.float32)
            packed = _core.TernaryMatrix(rows, columns)
            packed.pack_codes(0, codes, scales)
            twin = oracle.TernaryLinear(codes, scales.astype(np.float64), **wide)
            return _core.Linear(packed, **options), twin
        if kind in _BITS:
            coded = _core.GroupedMatrix(rows, columns, _BITS[kind])
            coded.pack_float(0, self.matrix(rows, columns, scale))
            values = coded.dequantize().astype(np.float64)
            return _core.Linear(coded, **options), oracle.GroupedLinear(values, **wide)
        weights = narrow(self.matrix(rows, columns, scale), kind)
        dense = oracle.DenseLinear(widen(weights).astype(np.float64), **wide)
        return _core.Linear(_core.DenseMatrix(weights), **options), dense

    def layer(self, index: int) -> tuple[_core.LayerWeights, oracle.Layer]:
        s = self._shape
        q, k, v, o, gate, up, down = s.kinds
        width, kv_width = s.heads * s.head_dim, s.kv_heads * s.head_dim
        linears = {
            "attn_in": [
                self.linear(width, s.hidden, q, scale=s.gain),
                self.linear(kv_width, s.hidden, k),
                self.linear(kv_width, s.hidden, v),
            ],
            "o_proj": [self.linear(s.hidden, width, o)],
            "mlp_in": [self.linear(s.inner, s.hidden, kind) for kind in (gate, up)],
            "down_proj": [self.linear(s.hidden, s.inner, down)],
        }
        norms = {
            "input_norm": self.norm(s.hidden),
            "ffn_norm": self.norm(s.hidden),
            "q_norm": self.norm(s.head_dim, wanted=s.head_norms),
            "k_norm": self.norm(s.head_dim, wanted=s.head_norms),
            "attn_sub_norm": self.norm(width, wanted=s.sub_norms),
            "ffn_sub_norm": self.norm(s.inner, wanted=s.sub_norms),
            "attn_output_norm": self.norm(s.hidden, wanted=s.output_norms),
            "ffn_output_norm": self.norm(s.hidden, wanted=s.output_norms),
        }
        plain: dict[str, Any] = {
            "sliding_window": s.windows[index % len(s.windows)],
            "attention_sinks": s.sinks[index % len(s.sinks)],
            "rope": s.ropes[index % len(s.ropes)],
        }
        return (
            _core.LayerWeights(**plain, **norms, **_side(linears, 0)),  # type: ignore[arg-type]
            oracle.Layer(
                **plain,
                **{name: _float64(norm) for name, norm in norms.items()},
                **_side(linears, 1),
            ),
        )


def _side(linears: dict[str, list[Pair]], which: Literal[0, 1]) -> dict[str, Any]:
    """Return the native linears or the oracle's; one that stands alone is not in a list."""
    sides = {name: [pair[which] for pair in pairs] for name, pairs in linears.items()}
    alone = ("o_proj", "down_proj")
    return {name: side[0] if name in alone else side for name, side in sides.items()}


def _float64(array: F32Array | None) -> Any:
    return None if array is None else array.astype(np.float64)


def twins(
    seed: int,
    shape: Shape,
    *,
    isa: str | None = None,
    threads: int = 1,
    head_kind: HeadKind = "dense",
) -> Twins:
    """Return a random decoder twice. Steps are shared by all threads, however small."""
    make = _Maker(seed, shape)
    layers = [make.layer(index) for index in range(shape.layers)]
    embedding = make.matrix(shape.vocab, shape.hidden, np.sqrt(shape.hidden))
    head = make.matrix(shape.vocab, shape.hidden, shape.gain)
    final_norm = make.norm(shape.hidden)
    assert final_norm is not None
    half = np.arange(shape.head_dim // 2) / (shape.head_dim // 2)
    common: dict[str, Any] = {
        "num_heads": shape.heads,
        "num_kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": 1e-6,
        "activation": shape.activation,
        "inv_freq": np.stack([[base**-half for base in pair] for pair in _THETAS]),
        "embedding_scale": float(np.float32(shape.embedding_scale)),
        "attention_scale": shape.attention_scale,
        "attention_softcap": shape.attention_softcap,
        "final_softcap": shape.final_softcap,
    }
    config = _core.DecoderConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        vocab_size=shape.vocab,
        **common,
    )
    native = _core.Decoder(
        config,
        [ours for ours, _ in layers],
        embedding,
        final_norm,
        head,
        head_kind=head_kind,
        threads=threads,
        isa=isa,
        small_step=0,
    )
    reference = oracle.Decoder(
        oracle.Config(**common),
        [theirs for _, theirs in layers],
        embedding.astype(np.float64),
        final_norm.astype(np.float64),
        head.astype(np.float64),
    )
    model = TinyModel(native, shape.vocab, shape.layers, shape.kv_heads, shape.head_dim)
    return Twins(shape, model, reference)
