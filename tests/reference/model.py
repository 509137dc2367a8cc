"""Oracle of the whole decoder in float64, straight from a checkpoint's tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reference import ops

if TYPE_CHECKING:
    from collections.abc import Mapping

    from checkpoints import Config, Stored
    from numpy.typing import NDArray

    from reference.ops import F64, I8


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


class Oracle:
    """A decoder over a checkpoint's tensors."""

    def __init__(self, config: Config, tensors: Mapping[str, Stored]) -> None:
        self._config = config
        self._tensors = tensors
        self._heads: int = config["num_attention_heads"]
        self._kv_heads: int = config["num_key_value_heads"]
        self._dim = int(config.get("head_dim") or config["hidden_size"] // self._heads)
        self._inv_freq = inverse_frequencies(config, self._dim)
        self._margin = math.inf
        # Unpacking and ternarising dominate a pass: do them once.
        self._linears = {
            name.removesuffix(".weight"): self._ternary(name)
            for name in tensors
            if name.endswith("_proj.weight")
        }

    def forward(self, token_ids: NDArray[Any]) -> Trace:
        """Run one sequence from position 0."""
        self._margin = math.inf
        positions = np.arange(len(token_ids))
        embedding = self._values("model.embed_tokens.weight")
        x = embedding[token_ids]
        hidden = [x]
        for index in range(self._config["num_hidden_layers"]):
            x = self._layer(f"model.layers.{index}.", x, positions)
            hidden.append(x)
        hidden[-1] = self._norm("model.norm", x)
        tied = self._config["tie_word_embeddings"]
        head = embedding if tied else self._values("lm_head.weight")
        return Trace(np.stack(hidden), hidden[-1] @ head.T, self._margin)

    def _layer(self, layer: str, x: F64, positions: NDArray[Any]) -> F64:
        normed = self._norm(f"{layer}input_layernorm", x)
        q, k, v = (
            self._linear(f"{layer}self_attn.{name}_proj", normed).reshape(len(x), -1, self._dim)
            for name in "qkv"
        )
        q, k = (ops.rope(part, positions, self._inv_freq, 1.0) for part in (q, k))
        mixed = ops.attention(q, k, v, positions).reshape(len(x), -1)
        mixed = self._optional_norm(f"{layer}self_attn.attn_sub_norm", mixed)
        x = x + self._linear(f"{layer}self_attn.o_proj", mixed)
        normed = self._norm(f"{layer}post_attention_layernorm", x)
        gate, up = (self._linear(f"{layer}mlp.{name}_proj", normed) for name in ("gate", "up"))
        inner = ops.gate(self._config["hidden_act"], gate, up)
        inner = self._optional_norm(f"{layer}mlp.ffn_sub_norm", inner)
        return x + self._linear(f"{layer}mlp.down_proj", inner)

    def _linear(self, name: str, x: F64) -> F64:
        gain = f"{name}.rms_norm.weight"
        if gain in self._tensors:
            eps = self._config["quantization_config"].get("rms_norm_eps", 1e-6)
            x = ops.rms_norm(x, self._values(gain), eps)
        scaled = ops.scaled_activations(x)
        self._margin = min(self._margin, float(np.min(np.abs(np.abs(scaled) % 1.0 - 0.5))))
        q, act_scale, _ = ops.quantize_rows(x)
        codes, scale = self._linears[name]
        return ops.ternary_linear(q, act_scale, codes, np.full(len(codes), scale))

    def _ternary(self, name: str) -> tuple[I8, float]:
        quantization = self._config["quantization_config"]
        if quantization.get("quantization_mode") == "online":
            return ops.ternarize(self._values(name))
        scale = float(self._values(f"{name}_scale").item())
        inverted = quantization.get("linear_class", "bitlinear") == "bitlinear"
        return ops.unpack_hf(self._tensors[name].array), 1 / scale if inverted else scale

    def _norm(self, name: str, x: F64) -> F64:
        return ops.rms_norm(x, self._values(f"{name}.weight"), self._config["rms_norm_eps"])

    def _optional_norm(self, name: str, x: F64) -> F64:
        return self._norm(name, x) if f"{name}.weight" in self._tensors else x

    def _values(self, name: str) -> F64:
        return self._tensors[name].values()


def inverse_frequencies(config: Config, dim: int) -> F64:
    """Return float64 [dim / 2] for rope types default, linear and llama3 (arXiv:2104.09864)."""
    section = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(section["rope_theta"] if "rope_theta" in section else config["rope_theta"])
    base = np.array([theta ** (-2.0 * i / dim) for i in range(dim // 2)])
    kind = section.get("rope_type", "default")
    if kind == "default":
        return base
    factor = float(section["factor"])
    if kind == "linear":
        return base / factor
    low, high = section["low_freq_factor"], section["high_freq_factor"]
    original = section["original_max_position_embeddings"]
    out = []
    for frequency in base:
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            out.append(frequency)
        elif wavelength > original / low:
            out.append(frequency / factor)
        else:
            blend = (original / wavelength - low) / (high - low)
            out.append((1 - blend) * frequency / factor + blend * frequency)
    return np.array(out)
