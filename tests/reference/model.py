"""The float64 oracle of a checkpoint: its tensors, as `reference.decoder` takes them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from reference import decoder, ops

if TYPE_CHECKING:
    from collections.abc import Mapping

    from checkpoints import Config, Stored
    from numpy.typing import NDArray

    from reference.decoder import Trace
    from reference.ops import F64, I8


class Oracle:
    """A decoder over a checkpoint's tensors."""

    def __init__(self, config: Config, tensors: Mapping[str, Stored]) -> None:
        self._config = config
        self._tensors = tensors
        heads: int = config["num_attention_heads"]
        dim = int(config.get("head_dim") or config["hidden_size"] // heads)
        embedding = self._values("model.embed_tokens.weight")
        self._decoder = decoder.Decoder(
            decoder.Config(
                num_heads=heads,
                num_kv_heads=config["num_key_value_heads"],
                head_dim=dim,
                rms_norm_eps=config["rms_norm_eps"],
                activation=config["hidden_act"],
                inv_freq=inverse_frequencies(config, dim)[None],
            ),
            [self._layer(f"model.layers.{i}.") for i in range(config["num_hidden_layers"])],
            embedding,
            self._norm("model.norm"),
            embedding if config["tie_word_embeddings"] else self._values("lm_head.weight"),
        )

    def forward(self, token_ids: NDArray[Any]) -> Trace:
        """Run one sequence from position 0."""
        return self._decoder.forward(token_ids)

    def _layer(self, layer: str) -> decoder.Layer:
        return decoder.Layer(
            input_norm=self._norm(f"{layer}input_layernorm"),
            attn_in=[self._linear(f"{layer}self_attn.{name}_proj") for name in "qkv"],
            attn_sub_norm=self._optional_norm(f"{layer}self_attn.attn_sub_norm"),
            o_proj=self._linear(f"{layer}self_attn.o_proj"),
            ffn_norm=self._norm(f"{layer}post_attention_layernorm"),
            mlp_in=[self._linear(f"{layer}mlp.{name}_proj") for name in ("gate", "up")],
            ffn_sub_norm=self._optional_norm(f"{layer}mlp.ffn_sub_norm"),
            down_proj=self._linear(f"{layer}mlp.down_proj"),
        )

    def _linear(self, name: str) -> decoder.Linear:
        codes, scale = self._ternary(name)
        eps = self._config["quantization_config"].get("rms_norm_eps", 1e-6)
        norm = self._optional_norm(f"{name}.rms_norm")
        return decoder.TernaryLinear(codes, np.full(len(codes), scale), norm, eps)

    def _ternary(self, name: str) -> tuple[I8, float]:
        quantization = self._config["quantization_config"]
        if quantization.get("quantization_mode") == "online":
            return ops.ternarize(self._values(f"{name}.weight"))
        scale = float(self._values(f"{name}.weight_scale").item())
        inverted = quantization.get("linear_class", "bitlinear") == "bitlinear"
        codes = ops.unpack_hf(self._tensors[f"{name}.weight"].array)
        return codes, 1 / scale if inverted else scale

    def _norm(self, name: str) -> F64:
        return self._values(f"{name}.weight")

    def _optional_norm(self, name: str) -> F64 | None:
        return self._norm(name) if f"{name}.weight" in self._tensors else None

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
