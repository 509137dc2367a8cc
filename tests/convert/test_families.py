"""Every family of the golden specs, written as GGUF and loaded again."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
from checkpoints import Config, parse, random_tensors, store, write_checkpoint
from golden.engine import Sequence
from golden.files import relative_error
from golden.specs import SPECS
from support import byte_level

from ryzanstein import UnsupportedFormatError
from ryzanstein.convert import convert_model
from ryzanstein.loaders.gguf import GgufFile
from ryzanstein.loaders.model_files import DirectoryFiles, open_files
from ryzanstein.models import load_model, read_config
from ryzanstein.quant import to_float32

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# As in real models: GGUF has no word for others.
_REAL: dict[str, Config] = {
    "qwen2": {"use_sliding_window": False},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3": {"query_pre_attn_scalar": 16},
}
CONFIGS: dict[str, Config] = {
    spec.name: spec.config | {"vocab_size": 260} | _REAL.get(spec.name, {}) for spec in SPECS
}
DENSE = ["llama_dense", "llama_longrope", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"]
# Whole blocks of 32 and of 256 weights.
SIZES_32 = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES_32 |= {"head_dim": 16, "intermediate_size": 128}
SIZES_256 = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES_256 |= {"head_dim": 64, "intermediate_size": 256}
# Shorter than any window: beyond it, GGUF's llama and qwen2 see more than the model does.
_PROMPT = np.arange(1, 11)
# Of logits: quantised linears take activations of 8 bits, those of a directory do not.
_ROUNDED_ACTIVATIONS = 0.05
# Of a weight, as a share of its tensor's largest.
_TOLERANCES = {"q8_0": 0.005, "q4_0": 0.13}


def write_model(directory: Path, config: Config) -> Path:
    write_checkpoint(directory, config, random_tensors(config, 1, "F32"))
    tokenizer = json.loads(byte_level().to_str())
    tokenizer["model"]["vocab"]["he"] = 257
    tokenizer["model"]["merges"] = [["h", "e"]]
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return directory


def logits(path: Path, prompt: NDArray[np.int64] = _PROMPT) -> NDArray[np.float32]:
    model = load_model(open_files(path), threads=1, isa=None)
    return Sequence(model, len(prompt)).extend(prompt)[1]


def check_against_source(model: Path, file: Path, config: Config, tolerance: float) -> None:
    """A file's weights are near the model's, and it computes with them what a directory does."""
    weights = open_files(file).open_weights()
    before = parse((model / "model.safetensors").read_bytes())
    held = {name: store(to_float32(weights.view(name)), "F32") for name in before}
    for name, tensor in held.items():
        assert relative_error(tensor.values(), before[name].values()) <= tolerance, name
    expected = logits(write_checkpoint(file.parent / "held", config, held))
    assert relative_error(logits(file), expected) < _ROUNDED_ACTIVATIONS


@pytest.mark.parametrize("to", ["q8_0", "q4_0"])
@pytest.mark.parametrize("name", DENSE)
def test_dense_families(name: str, to: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", CONFIGS[name] | SIZES_32)
    conversion = convert_model(DirectoryFiles(model), tmp_path / "out.gguf", to)
    assert [tensor.note for tensor in conversion.tensors if tensor.note] == []
    check_against_source(model, conversion.path, CONFIGS[name] | SIZES_32, _TOLERANCES[to])


@pytest.mark.parametrize("name", DENSE)
def test_sizes_that_are_not_whole_blocks(name: str, tmp_path: Path) -> None:
    """Those of the golden models: many of their tensors fall back to F16, which is nearly exact."""
    config = CONFIGS[name] | {"hidden_size": 36, "head_dim": 16}
    model = write_model(tmp_path / "model", config)
    conversion = convert_model(DirectoryFiles(model), tmp_path / "out.gguf", "q8_0")
    noted = [tensor for tensor in conversion.tensors if tensor.note]
    assert {tensor.stored for tensor in noted} == {"F16"}
    assert "rows of 36 are not whole blocks of 32" in {tensor.note for tensor in noted}
    check_against_source(model, conversion.path, config, _TOLERANCES["q8_0"])


@pytest.mark.parametrize(
    "name", ["bitnet_offline", "bitnet_online", "bitnet_1bitllm", "llama_divide"]
)
def test_ternary_families(name: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", CONFIGS[name] | SIZES_256)
    for to in ("tq2_0", "tq1_0"):
        conversion = convert_model(DirectoryFiles(model), tmp_path / f"{to}.gguf", to)
        assert relative_error(logits(conversion.path), logits(model)) < 0.05


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("qwen3", gguf.MODEL_ARCH.QWEN3),
        ("gemma2", gguf.MODEL_ARCH.GEMMA2),
        ("gemma3", gguf.MODEL_ARCH.GEMMA3),
        ("qwen2", gguf.MODEL_ARCH.QWEN2),
    ],
)
def test_names_are_those_of_the_gguf_package(
    name: str, architecture: gguf.MODEL_ARCH, tmp_path: Path
) -> None:
    model = write_model(
        tmp_path / "model", CONFIGS[name] | SIZES_32 | {"tie_word_embeddings": True}
    )
    path = convert_model(DirectoryFiles(model), tmp_path / "out.gguf", "q8_0").path
    file = GgufFile(path)
    names = gguf.get_tensor_name_map(architecture, CONFIGS[name]["num_hidden_layers"])
    expected = set()
    for tensor in parse((model / "model.safetensors").read_bytes()):
        base, _, suffix = tensor.rpartition(".")
        expected.add(f"{names.get_name(base)}.{suffix}")
    assert set(file) == expected
    assert file.metadata["general.architecture"] == gguf.MODEL_ARCH_NAMES[architecture]


def test_hyperparameters_of_gemma(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", CONFIGS["gemma3"] | SIZES_32)
    path = convert_model(DirectoryFiles(model), tmp_path / "out.gguf", "q8_0").path
    metadata = {
        key.removeprefix("gemma3."): value
        for key, value in GgufFile(path).metadata.items()
        if key.startswith("gemma3.")
    }
    expected = {
        "attention.sliding_window": 12,
        "attention.sliding_window_pattern": 3,
        "attention.key_length": 16,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4,
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 8.0,
    }
    assert {key: metadata[key] for key in expected} == expected
    model = write_model(tmp_path / "second", CONFIGS["gemma2"] | SIZES_32)
    path = convert_model(DirectoryFiles(model), tmp_path / "second.gguf", "q8_0").path
    assert GgufFile(path).metadata["gemma2.attn_logit_softcapping"] == 5.0
    assert GgufFile(path).metadata["gemma2.final_logit_softcapping"] == 20.0


def test_longrope_is_read_as_it_was_written(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", CONFIGS["llama_longrope"] | SIZES_32)
    path = convert_model(DirectoryFiles(model), tmp_path / "out.gguf", "q8_0").path
    (rope,), (copy,) = (read_config(open_files(where)).ropes for where in (model, path))
    # The factor is only what the attention factor is made from.
    assert replace(copy, attention_factor=1.0, factor=rope.factor) == replace(
        rope, attention_factor=1.0
    )
    assert copy.attention_factor == pytest.approx(rope.attention_factor, rel=1e-6)
    assert rope.attention_factor > 1.3


def test_a_window_that_gguf_cannot_say_limits_the_context(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", CONFIGS["mistral"] | SIZES_32)
    conversion = convert_model(DirectoryFiles(model), tmp_path / "out.gguf", "q8_0")
    (note,) = conversion.notes
    assert "has no sliding window. The context is limited to 13 tokens" in note
    assert GgufFile(conversion.path).metadata["llama.context_length"] == 13


@pytest.mark.parametrize(
    ("name", "other", "to", "problem"),
    [
        ("gemma2", {"query_pre_attn_scalar": 12}, "q8_0", "cannot say query_pre_attn_scalar 12"),
        ("gemma2", {"final_logit_softcapping": None}, "q8_0", "logits are not soft-capped"),
        (
            "gemma3",
            {"layer_types": ["full_attention", "full_attention", "sliding_attention"]},
            "q8_0",
            "only that every n-th has none",
        ),
        (
            "qwen2",
            {
                "rope_parameters": None,
                "rope_theta": 1e6,
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "beta_fast": 16.0,
                    "original_max_position_embeddings": 128,
                },
            },
            "q8_0",
            "cannot say yarn rotary scaling with other",
        ),
        ("qwen2", {"use_sliding_window": True}, "q8_0", "cannot say a window shorter than"),
        ("qwen3", {"attention_bias": True}, "q8_0", "qwen3 has biases on nothing"),
        ("llama_divide", {}, "tq2_0", "rows of .*, not whole blocks of 256"),
    ],
)
def test_what_gguf_cannot_say(
    name: str, other: Config, to: str, problem: str, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "model", CONFIGS[name] | other)
    with pytest.raises(UnsupportedFormatError, match=problem):
        convert_model(DirectoryFiles(model), tmp_path / "out.gguf", to)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
