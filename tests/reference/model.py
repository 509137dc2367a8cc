"""The float64 oracle of a checkpoint: its tensors, as `reference.decoder` takes them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from checkpoints import quantization_config

from reference import decoder, ops

if TYPE_CHECKING:
    from collections.abc import Mapping

    from checkpoints import Config, Stored
    from numpy.typing import NDArray

    from reference.decoder import Trace
    from reference.ops import F64, I8


class Oracle:
    """A decoder over a checkpoint's tensors, written from transformers' modelling code."""

    def __init__(self, config: Config, tensors: Mapping[str, Stored], length: int = 0) -> None:
        """Take a checkpoint; `length` is what the sequence will grow to."""
        self._config = config
        self._tensors = tensors
        self._quantization = quantization_config(config)
        self._is_gemma = config["architectures"][0].startswith("Gemma")
        heads: int = config["num_attention_heads"]
        dim = int(config.get("head_dim") or config["hidden_size"] // heads)
        embedding = self._values("model.embed_tokens.weight")
        scalar = config.get("query_pre_attn_scalar", dim)
        sections = rope_sections(config)
        ropes = [inverse_frequencies(section, dim, length) for section in sections]
        self._decoder = decoder.Decoder(
            decoder.Config(
                num_heads=heads,
                num_kv_heads=config["num_key_value_heads"],
                head_dim=dim,
                rms_norm_eps=config["rms_norm_eps"],
                activation=ACTIVATIONS[config.get("hidden_activation") or config["hidden_act"]],
                inv_freq=np.stack(ropes)[None],
                rope_attention_factors=np.array([attention_factor(part) for part in sections]),
                embedding_scale=math.sqrt(config["hidden_size"]) if self._is_gemma else 1.0,
                attention_scale=scalar**-0.5,
                attention_softcap=config.get("attn_logit_softcapping") or 0.0,
                final_softcap=config.get("final_logit_softcapping") or 0.0,
            ),
            [self._layer(i) for i in range(config["num_hidden_layers"])],
            embedding,
            self._norm("model.norm"),
            embedding if config["tie_word_embeddings"] else self._values("lm_head.weight"),
        )

    def forward(self, token_ids: NDArray[Any]) -> Trace:
        """Run one sequence from position 0."""
        return self._decoder.forward(token_ids)

    def _layer(self, index: int) -> decoder.Layer:
        layer = f"model.layers.{index}."
        window = sliding_windows(self._config)[index]
        # In Gemma 2 and 3 the norm after attention is of its output.
        around = f"{layer}pre_feedforward_layernorm.weight" in self._tensors
        after = f"{layer}post_attention_layernorm"
        return decoder.Layer(
            input_norm=self._norm(f"{layer}input_layernorm"),
            attn_in=[self._linear(f"{layer}self_attn.{name}_proj") for name in "qkv"],
            q_norm=self._optional_norm(f"{layer}self_attn.q_norm"),
            k_norm=self._optional_norm(f"{layer}self_attn.k_norm"),
            sliding_window=window,
            rope=int(window > 0 and len(rope_sections(self._config)) > 1),
            attn_sub_norm=self._either_norm(layer, "attn_sub_norm", "inner_attn_ln"),
            o_proj=self._linear(f"{layer}self_attn.o_proj"),
            attn_output_norm=self._norm(after) if around else None,
            ffn_norm=self._norm(f"{layer}pre_feedforward_layernorm" if around else after),
            mlp_in=[self._linear(f"{layer}mlp.{name}_proj") for name in ("gate", "up")],
            ffn_sub_norm=self._either_norm(layer, "ffn_sub_norm", "ffn_layernorm"),
            down_proj=self._linear(f"{layer}mlp.down_proj"),
            ffn_output_norm=self._optional_norm(f"{layer}post_feedforward_layernorm"),
        )

    def _linear(self, name: str) -> decoder.Linear:
        bias = self._values(f"{name}.bias") if f"{name}.bias" in self._tensors else None
        if not self._quantization:
            return decoder.DenseLinear(self._values(f"{name}.weight"), bias=bias)
        codes, scale = self._ternary(name)
        eps = self._quantization.get("rms_norm_eps", 1e-6)
        norm = self._optional_norm(f"{name}.rms_norm")
        return decoder.TernaryLinear(codes, np.full(len(codes), scale), norm, eps, bias)

    def _ternary(self, name: str) -> tuple[I8, float]:
        if self._quantization.get("quantization_mode") == "online":
            return ops.ternarize(self._values(f"{name}.weight"))
        scale = float(self._values(f"{name}.weight_scale").item())
        inverted = self._quantization.get("linear_class", "bitlinear") == "bitlinear"
        codes = ops.unpack_hf(self._tensors[f"{name}.weight"].array)
        return codes, 1 / scale if inverted else scale

    def _norm(self, name: str) -> F64:
        return self._values(f"{name}.weight") + (1.0 if self._is_gemma else 0.0)

    def _optional_norm(self, name: str) -> F64 | None:
        return self._norm(name) if f"{name}.weight" in self._tensors else None

    def _either_norm(self, layer: str, *names: str) -> F64 | None:
        for part in ("self_attn", "mlp"):
            for name in names:
                if (norm := self._optional_norm(f"{layer}{part}.{name}")) is not None:
                    return norm
        return None

    def _values(self, name: str) -> F64:
        return self._tensors[name].values()


ACTIVATIONS = {"silu": "silu", "relu2": "relu2", "gelu_pytorch_tanh": "gelu_tanh"}


def sliding_windows(config: Config) -> list[int]:
    """Return for each layer how many keys a token sees, 0 for all."""
    layers: int = config["num_hidden_layers"]
    window = config.get("sliding_window") or 0
    kinds = config.get("layer_types")
    if kinds is not None:
        return [window if kind == "sliding_attention" else 0 for kind in kinds]
    match config["architectures"][0]:
        case "MistralForCausalLM":
            return [window] * layers
        case "Qwen2ForCausalLM" | "Qwen3ForCausalLM" if config.get("use_sliding_window"):
            return [window if i >= config["max_window_layers"] else 0 for i in range(layers)]
        case "Gemma2ForCausalLM":
            return [window if i % 2 == 0 else 0 for i in range(layers)]
        case "Gemma3ForCausalLM":
            pattern = config["sliding_window_pattern"]
            return [window if (i + 1) % pattern else 0 for i in range(layers)]
    return [0] * layers


def rope_sections(config: Config) -> list[Config]:
    """Return the rotary parameters, those of layers that see everything first."""
    section = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if "full_attention" in section:
        return [section["full_attention"], section["sliding_attention"]]
    whole = {"rope_theta": config.get("rope_theta")} | section
    for key in ("max_position_embeddings", "original_max_position_embeddings"):
        if key in config:
            whole.setdefault(key, config[key])
    if config["architectures"] == ["Gemma3ForCausalLM"]:
        return [whole, {"rope_theta": config["rope_local_base_freq"]}]
    return [whole]


def inverse_frequencies(section: Config, dim: int, length: int = 0) -> F64:
    """Return float64 [dim / 2] for a sequence of so many tokens at most."""
    theta = float(section["rope_theta"])
    kind = section.get("rope_type", section.get("type", "default"))
    if kind == "ntk":
        theta *= section["factor"] ** (dim / (dim - 2))
    if kind == "dynamic":
        theta *= dynamic_stretch(section, length) ** (dim / (dim - 2))
    base = np.array([theta ** (-2.0 * i / dim) for i in range(dim // 2)])
    if kind in ("default", "ntk", "dynamic"):
        return base
    if kind == "longrope":
        is_long = length > section["original_max_position_embeddings"]
        return np.asarray(base / section["long_factor" if is_long else "short_factor"])
    factor = float(section["factor"])
    if kind == "linear":
        return base / factor
    if kind == "yarn":
        return yarn_frequencies(section, base, theta)
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


def attention_factor(section: Config) -> float:
    """Return what cosines and sines are multiplied by."""
    kind = section.get("rope_type", section.get("type"))
    if "attention_factor" in section:
        return float(section["attention_factor"])
    if kind == "longrope":
        original = section["original_max_position_embeddings"]
        factor = section.get("factor", section["max_position_embeddings"] / original)
        return math.sqrt(1 + math.log(factor, original))
    if kind != "yarn":
        return 1.0
    return 0.1 * math.log(float(section["factor"])) + 1.0


def dynamic_stretch(section: Config, length: int) -> float:
    """Return the stretch of dynamic NTK for the next doubling of the context, or its whole."""
    original, factor = section["max_position_embeddings"], section["factor"]
    rung = original
    while rung < length:
        rung = min(2 * rung, int(original * factor))
    return float(factor * rung / original - (factor - 1))


def yarn_frequencies(section: Config, base: F64, theta: float) -> F64:
    """Return float64 [dim / 2] (arXiv:2309.00071): slow turns stretched, fast ones kept."""
    dim = 2 * len(base)

    def pair(turns: float) -> float:
        wavelength = section["original_max_position_embeddings"] / (2 * math.pi * turns)
        return dim * math.log(wavelength) / (2 * math.log(theta))

    first, last = pair(section.get("beta_fast", 32)), pair(section.get("beta_slow", 1))
    if section.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    out = []
    for index, frequency in enumerate(base):
        stretched = min(1.0, max(0.0, (index - first) / (last - first)))
        out.append(frequency * (1.0 - stretched) + frequency / section["factor"] * stretched)
    return np.array(out)
