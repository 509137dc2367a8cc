"""Every dense architecture computes from a GGUF file what it does from a Hugging Face directory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from checkpoints import Config, Stored, Tensors, random_tensors, store, write_checkpoint
from gguf_bytes import BLOCKS, NUMBERS, GgufBytes, RawTensor, random_tensor
from gguf_models import permute
from golden.engine import Sequence
from golden.specs import SPECS

from ryzanstein.loaders.model_files import open_files
from ryzanstein.models import load_model

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
_SIZES |= {"intermediate_size": 128}
CONFIGS: dict[str, Config] = {spec.name: spec.config | _SIZES for spec in SPECS}
# What GGUF cannot say, or llama.cpp decides by itself, is as it is in real models.
ARCHITECTURES: dict[str, tuple[Config, str]] = {
    "llama": (
        CONFIGS["llama_dense"] | {"attention_bias": False, "mlp_bias": False, "rope_scaling": None},
        "llama",
    ),
    "mistral": (CONFIGS["mistral"] | {"sliding_window": None}, "llama"),
    "qwen2": (CONFIGS["qwen2"] | {"use_sliding_window": False}, "qwen2"),
    "qwen3": (CONFIGS["qwen3"], "qwen3"),
    "gemma": (CONFIGS["gemma"], "gemma"),
    "gemma2": (
        CONFIGS["gemma2"] | {"query_pre_attn_scalar": 16, "tie_word_embeddings": True},
        "gemma2",
    ),
    "gemma3": (CONFIGS["gemma3"] | {"query_pre_attn_scalar": 16}, "gemma3"),
}
_HYPERPARAMETERS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attention.sliding_window_pattern": "sliding_window_pattern",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "context_length": "max_position_embeddings",
}


def to_gguf(config: Config, tensors: Tensors, architecture: str, kind: str) -> GgufBytes:
    """Do what llama.cpp's converter does; the names are the gguf package's."""
    metadata: dict[str, Any] = {
        f"{architecture}.{key}": config[field]
        for key, field in _HYPERPARAMETERS.items()
        if config.get(field) is not None
    }
    rope = config.get("rope_parameters") or config
    metadata[f"{architecture}.rope.freq_base"] = rope["rope_theta"]
    if scaling := config.get("rope_scaling"):
        metadata[f"{architecture}.rope.scaling.type"] = scaling["rope_type"]
        metadata[f"{architecture}.rope.scaling.factor"] = scaling["factor"]
        if original := scaling.get("original_max_position_embeddings"):
            metadata[f"{architecture}.rope.scaling.original_context_length"] = original
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config["num_hidden_layers"])
    raw = {}
    for name, tensor in tensors.items():
        values = tensor.values()
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        if architecture == "llama" and ".q_proj." in name:
            values = permute(values, config["num_attention_heads"])
        if architecture == "llama" and ".k_proj." in name:
            values = permute(values, config["num_key_value_heads"])
        base, _, suffix = name.rpartition(".")
        stored = kind if name.endswith("_proj.weight") else "F32"
        item = gguf.GGMLQuantizationType[stored]
        data = gguf.quants.quantize(values.astype(np.float32), item).tobytes()
        raw[f"{names.get_name(base)}.{suffix}"] = RawTensor(NUMBERS[stored], values.shape, data)
    return GgufBytes({"general.architecture": architecture} | metadata, raw)


def logits(path: Path) -> NDArray[np.float32]:
    model = load_model(open_files(path), threads=2, isa=None)
    return Sequence(model, 40).extend(np.arange(40))[1]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_gguf_computes_what_the_directory_does(name: str, tmp_path: Path) -> None:
    config, architecture = ARCHITECTURES[name]
    tensors = random_tensors(config, 0, "F32")
    path = tmp_path / "model.gguf"
    path.write_bytes(to_gguf(config, tensors, architecture, "F32").serialize())
    # A gain of Gemma's has the precision that is left after adding one.
    rounded = {
        key: store(np.float32(1) + tensor.array - np.float32(1), "F32")
        if architecture.startswith("gemma") and key.endswith("norm.weight")
        else tensor
        for key, tensor in tensors.items()
    }
    assert np.array_equal(logits(path), logits(write_checkpoint(tmp_path / "hf", config, rounded)))


@pytest.mark.parametrize("original", [32, 64])
def test_longrope(original: int, tmp_path: Path) -> None:
    """40 tokens beyond the original context, and within it."""
    config = CONFIGS["llama_longrope"] | {"original_max_position_embeddings": original}
    divisors = config["rope_scaling"]
    config["rope_scaling"] = {"rope_type": "longrope", "attention_factor": 1.25, **divisors}
    tensors = random_tensors(config, 0, "F32")
    content = to_gguf(config | {"rope_scaling": None}, tensors, "llama", "F32")
    scaling = {"type": "longrope", "original_context_length": original, "attn_factor": 1.25}
    metadata = dict(content.metadata)
    metadata |= {f"llama.rope.scaling.{key}": value for key, value in scaling.items()}
    held = dict(content.tensors)
    for kind in ("long", "short"):
        values = np.array(divisors[f"{kind}_factor"], "<f4")
        factors = RawTensor(NUMBERS["F32"], values.shape, values.tobytes())
        held[f"rope_factors_{kind}.weight"] = factors
    data = GgufBytes(metadata, held)
    path = tmp_path / "model.gguf"
    path.write_bytes(data.serialize())
    assert np.array_equal(logits(path), logits(write_checkpoint(tmp_path / "hf", config, tensors)))


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_rounded_linears_are_their_values(kind: str, tmp_path: Path) -> None:
    config, architecture = ARCHITECTURES["mistral"]
    tensors = random_tensors(config, 1, "F32")
    path = tmp_path / "model.gguf"
    path.write_bytes(to_gguf(config, tensors, architecture, kind).serialize())
    item = gguf.GGMLQuantizationType[kind]

    def rounded(tensor: Stored) -> Stored:
        values = gguf.quants.dequantize(gguf.quants.quantize(tensor.array, item), item)
        return Stored("F32", values.astype(np.float32).reshape(tensor.array.shape))

    values = {n: rounded(t) if n.endswith("_proj.weight") else t for n, t in tensors.items()}
    directory = write_checkpoint(tmp_path / "hf", config, values)
    assert np.allclose(logits(path), logits(directory), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("name", ["llama", "gemma", "gemma2", "gemma3"])
def test_embeddings_of_quantised_types(name: str, kind: str, tmp_path: Path) -> None:
    """They are exactly the gguf package's values, which Gemma scales by a float32.

    llama.cpp takes the root of the size in float32, and so does transformers of a GGUF file
    (`tests/live`). That of 768 is not a number of bfloat16 or float16.
    """
    config, architecture = ARCHITECTURES[name]
    config = config | {"hidden_size": 768, "vocab_size": 96}
    content = to_gguf(config, random_tensors(config, 0, "F32"), architecture, "F32")
    embedding = random_tensor(kind, (96, 768), np.random.default_rng(1))
    content = replace(content, tensors={**content.tensors, "token_embd.weight": embedding})
    path = tmp_path / "model.gguf"
    path.write_bytes(content.serialize())
    model = load_model(open_files(path), threads=2, isa=None)
    found, _ = Sequence(model, 40).extend(np.arange(40))
    values = decoded(kind, embedding)[:40]
    scale = np.sqrt(np.float32(768)) if architecture != "llama" else np.float32(1)
    assert np.array_equal(found[0], values * scale)


def decoded(kind: str, tensor: RawTensor) -> NDArray[np.float32]:
    """Return what a tensor's bytes stand for; the gguf package has no word for the last two."""
    data = np.frombuffer(tensor.data, np.uint8).reshape(tensor.shape[0], -1)
    if kind not in ("Q2_0", "PQ2_0"):
        values = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
        return np.asarray(values, np.float32)
    blocks = data.reshape(tensor.shape[0], -1, 18 if kind == "Q2_0" else 34)
    codes = (blocks[..., 2:, None] >> np.array([0, 2, 4, 6], np.uint8)) & np.uint8(3)
    scales = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)
    weights = (codes.reshape(*blocks.shape[:2], -1).astype(np.float32) - 1) * scales
    return weights.reshape(tensor.shape)
