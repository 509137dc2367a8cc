"""Tiny random checkpoints in the Hugging Face layout, made with numpy alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from reference import ops

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = [
    "Config",
    "Stored",
    "Tensors",
    "biased_linears",
    "linear_shapes",
    "norm_sizes",
    "parse",
    "quantization_config",
    "random_tensors",
    "serialize",
    "store",
    "with_images",
    "write_checkpoint",
]

Config: TypeAlias = dict[str, Any]
_NAMES = {"float32": "F32", "float16": "F16", "uint8": "U8"}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as safetensors stores it; dtype BF16 travels as uint16 bit patterns."""

    dtype: str
    array: NDArray[Any]

    def values(self) -> NDArray[np.float64]:
        """Return the numbers the bytes stand for."""
        if self.dtype == "BF16":
            return (self.array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return self.array.astype(np.float64)


Tensors: TypeAlias = dict[str, Stored]


def store(values: NDArray[Any], dtype: str) -> Stored:
    """Return values rounded to a safetensors dtype: F32, F16, BF16 or U8."""
    if dtype != "BF16":
        numpy_type = {name: key for key, name in _NAMES.items()}[dtype]
        return Stored(dtype, values.astype(numpy_type))
    bits = values.astype(np.float32).view(np.uint32)
    # round half to even on the 16 bits that go
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return Stored(dtype, (rounded >> 16).astype(np.uint16))


def serialize(tensors: Mapping[str, Stored]) -> bytes:
    """Return the bytes of a safetensors file."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    # Wide types first, as save_file writes them, so that every tensor is aligned.
    ordered = sorted(tensors, key=lambda name: -tensors[name].array.itemsize)
    for name in ordered:
        tensor = tensors[name]
        end = offset + tensor.array.nbytes
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.array.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(tensors[name].array.tobytes() for name in ordered)
    return len(text).to_bytes(8, "little") + text + body


def parse(data: bytes) -> Tensors:
    """Return the tensors of a sound safetensors file; the inverse of `serialize`."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    del header["__metadata__"]
    types = {name: key for key, name in _NAMES.items()} | {"BF16": "uint16"}
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        flat = np.frombuffer(data[start + begin : start + end], types[entry["dtype"]])
        tensors[name] = Stored(entry["dtype"], flat.reshape(entry["shape"]))
    return tensors


def write_checkpoint(
    directory: Path, config: Config, tensors: Mapping[str, Stored], shards: int = 1
) -> Path:
    """Write config.json and the weights, in one file or in shards with an index."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    if shards == 1:
        (directory / "model.safetensors").write_bytes(serialize(tensors))
        return directory
    weight_map = {}
    names = sorted(tensors)
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[shard::shards]
        (directory / file).write_bytes(serialize({name: tensors[name] for name in part}))
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def random_tensors(config: Config, seed: int, dtype: str = "F32") -> Tensors:
    """Return random weights for a config.json; `dtype` is that of everything not packed."""
    rng = np.random.default_rng(seed)
    hidden = config["hidden_size"]
    vocabulary = (config["vocab_size"], hidden)
    # Small beside what the layers add, or a tied head would only repeat the last token.
    embedding = 0.15 * rng.standard_normal(vocabulary)
    tensors = {"model.embed_tokens.weight": store(embedding, dtype)}
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = store(rng.standard_normal(vocabulary) / 8, dtype)
    # Gemma's gains are stored less one.
    gains = (-0.5, 0.5) if config["architectures"][0].startswith("Gemma") else (0.5, 1.5)
    tensors["model.norm.weight"] = store(rng.uniform(*gains, (hidden,)), dtype)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}."
        for norm, size in norm_sizes(config).items():
            tensors[f"{layer}{norm}.weight"] = store(rng.uniform(*gains, (size,)), dtype)
        for linear, shape in linear_shapes(config).items():
            tensors |= _random_linear(config, layer + linear, shape, rng, dtype)
            if linear in biased_linears(config):
                bias = 0.5 * rng.standard_normal(shape[:1])
                tensors[f"{layer}{linear}.bias"] = store(bias, dtype)
    return tensors


def with_images(tensors: Mapping[str, Stored]) -> Tensors:
    """Return a text model's tensors as Gemma 3's are published, with some of those for images."""
    parts = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
    sizes = {
        "multi_modal_projector.mm_input_projection_weight": (8, 16),
        "multi_modal_projector.mm_soft_emb_norm.weight": (8,),
        "vision_tower.vision_model.post_layernorm.bias": (8,),
        "vision_tower.vision_model.post_layernorm.weight": (8,),
    }
    return parts | {name: store(np.ones(size), "BF16") for name, size in sizes.items()}


def norm_sizes(config: Config) -> dict[str, int]:
    """Return the size of each norm of a layer."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    wide = config["num_attention_heads"] * _head_dim(config)
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    heads = {"self_attn.q_norm": _head_dim(config), "self_attn.k_norm": _head_dim(config)}
    around = {"pre_feedforward_layernorm": hidden, "post_feedforward_layernorm": hidden}
    return norms | {
        "BitNetForCausalLM": {"self_attn.attn_sub_norm": wide, "mlp.ffn_sub_norm": inner},
        "BitnetForCausalLM": {"self_attn.inner_attn_ln": wide, "mlp.ffn_layernorm": inner},
        "Qwen3ForCausalLM": heads,
        "Gemma2ForCausalLM": around,
        "Gemma3ForCausalLM": around | heads,
    }.get(config["architectures"][0], {})


def biased_linears(config: Config) -> set[str]:
    """Return the linears of a layer that have a bias."""
    biased: set[str] = set()
    if config["architectures"] == ["Qwen2ForCausalLM"]:
        biased |= {f"self_attn.{part}_proj" for part in "qkv"}
    if config.get("attention_bias"):
        biased |= {f"self_attn.{part}_proj" for part in "qkvo"}
    if config.get("mlp_bias"):
        biased |= {f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    return biased


def linear_shapes(config: Config) -> dict[str, tuple[int, int]]:
    """Return (out, in) of each linear of a layer."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    wide = config["num_attention_heads"] * _head_dim(config)
    narrow = config["num_key_value_heads"] * _head_dim(config)
    return {
        "self_attn.q_proj": (wide, hidden),
        "self_attn.k_proj": (narrow, hidden),
        "self_attn.v_proj": (narrow, hidden),
        "self_attn.o_proj": (hidden, wide),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def _head_dim(config: Config) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def quantization_config(config: Config) -> Config:
    """Return how the linears are quantised, empty if they are floats."""
    if config["architectures"] == ["BitnetForCausalLM"]:  # 1bitLLM's, which says nothing of it
        return {"linear_class": "autobitlinear", "quantization_mode": "online"}
    return dict(config.get("quantization_config") or {})


def _random_linear(
    config: Config, name: str, shape: tuple[int, int], rng: np.random.Generator, dtype: str
) -> Tensors:
    quantization = quantization_config(config)
    # About unit output variance for unit inputs, with the scale itself random.
    factor = rng.uniform(0.8, 1.6) / np.sqrt(shape[1])
    tensors = {}
    if not quantization or quantization.get("quantization_mode") == "online":
        tensors[f"{name}.weight"] = store(rng.standard_normal(shape) * factor, dtype)
    else:
        codes = rng.integers(-1, 2, shape).astype(np.int8)
        inverted = quantization.get("linear_class", "bitlinear") == "bitlinear"
        scale = np.array([1 / factor if inverted else factor])
        tensors[f"{name}.weight"] = store(ops.pack_hf(codes), "U8")
        tensors[f"{name}.weight_scale"] = store(scale, dtype)
    if quantization.get("use_rms_norm"):
        tensors[f"{name}.rms_norm.weight"] = store(rng.uniform(0.5, 1.5, (shape[1],)), dtype)
    return tensors
