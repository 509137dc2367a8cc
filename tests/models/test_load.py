"""Loading whole checkpoints: what is accepted, what is refused and how."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from checkpoints import Config, Stored, Tensors, random_tensors, store, write_checkpoint
from golden.engine import Sequence
from golden.specs import SPECS

from ryzanstein.errors import (
    CorruptFileError,
    ModelLoadError,
    QuantizationError,
    RyzansteinError,
    UnsupportedFormatError,
    ValidationError,
)
from ryzanstein.loaders.checkpoint import Checkpoint
from ryzanstein.loaders.model_files import open_files
from ryzanstein.models import LoadedModel, inspect_tensors, load_model

if TYPE_CHECKING:
    from pathlib import Path

    from ryzanstein._core import F32Array

OFFLINE, ONLINE, UNTIED = SPECS[0], SPECS[1], SPECS[4]
PROMPT = np.arange(10)
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
SCALE = f"{DOWN}_scale"


def load(directory: Path, config: Config, tensors: Tensors, shards: int = 1) -> LoadedModel:
    write_checkpoint(directory, config, tensors, shards)
    return load_model(open_files(directory), threads=1, isa=None)


def logits(model: LoadedModel) -> F32Array:
    return Sequence(model, len(PROMPT)).extend(PROMPT)[1]


@pytest.fixture
def offline() -> Tensors:
    return random_tensors(OFFLINE.config, 1)


@pytest.fixture
def online() -> Tensors:
    return random_tensors(ONLINE.config, 1, "BF16")


def refused(
    directory: Path,
    config: Config,
    tensors: Tensors,
    error: type[RyzansteinError],
    *parts: str,
) -> None:
    with pytest.raises(error) as caught:
        load(directory, config, tensors)
    for part in parts:
        assert part in str(caught.value)


def changed(tensors: Tensors, name: str, index: Any, value: float) -> Tensors:
    array = tensors[name].array.copy()
    array[index] = value
    return tensors | {name: dataclasses.replace(tensors[name], array=array)}


def test_shards_and_threads_change_nothing(offline: Tensors, tmp_path: Path) -> None:
    expected = logits(load(tmp_path / "whole", OFFLINE.config, offline))
    assert np.array_equal(logits(load(tmp_path / "shards", OFFLINE.config, offline, 3)), expected)
    threaded = load_model(open_files(tmp_path / "whole"), threads=3, isa=None)
    assert np.array_equal(logits(threaded), expected)


def test_weights_outlive_the_checkpoint_directory(offline: Tensors, tmp_path: Path) -> None:
    model = load(tmp_path, OFFLINE.config, offline)
    expected = logits(model)
    for path in tmp_path.iterdir():
        path.unlink()
    assert np.array_equal(logits(model), expected)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_scale_of_any_float_type_and_no_dimensions(dtype: str, tmp_path: Path) -> None:
    tensors = random_tensors(OFFLINE.config, 1, dtype)
    expected = logits(load(tmp_path / "one", OFFLINE.config, tensors))
    flat = {
        name: Stored(tensor.dtype, tensor.array.reshape(())) if name.endswith("_scale") else tensor
        for name, tensor in tensors.items()
    }
    assert np.array_equal(logits(load(tmp_path / "two", OFFLINE.config, flat)), expected)


def test_tied_head_may_be_stored_too(offline: Tensors, tmp_path: Path) -> None:
    expected = logits(load(tmp_path / "one", OFFLINE.config, offline))
    twice = offline | {HEAD: offline[EMBEDDING]}
    assert np.array_equal(logits(load(tmp_path / "two", OFFLINE.config, twice)), expected)


def test_tied_head_with_other_values(offline: Tensors, tmp_path: Path) -> None:
    other = changed(offline | {HEAD: offline[EMBEDDING]}, HEAD, (3, 3), 0.5)
    message = "'lm_head.weight' differs from the embedding"
    refused(tmp_path, OFFLINE.config, other, CorruptFileError, message)
    short = offline | {HEAD: store(offline[EMBEDDING].array[:-1], "F32")}
    refused(tmp_path, OFFLINE.config, short, CorruptFileError, message)


def test_buffers_of_old_checkpoints_are_ignored(offline: Tensors, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    load(tmp_path, OFFLINE.config, offline | {name: store(np.ones(8), "F32")})


@pytest.mark.parametrize("name", [EMBEDDING, NORM, DOWN, SCALE, HEAD])
def test_missing_tensor(name: str, tmp_path: Path) -> None:
    tensors = random_tensors(UNTIED.config, 1)
    del tensors[name]
    refused(tmp_path, UNTIED.config, tensors, ModelLoadError, f"tensor '{name}' is missing")


def test_missing_norm_inside_a_linear(offline: Tensors, tmp_path: Path) -> None:
    section = OFFLINE.config["quantization_config"] | {"use_rms_norm": True}
    config = OFFLINE.config | {"quantization_config": section}
    refused(tmp_path, config, offline, ModelLoadError, "q_proj.rms_norm.weight' is missing")


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (EMBEDDING, np.zeros((95, 64)), "has shape [95, 64], expected [96, 64]"),
        (NORM, np.zeros((64, 1)), "has shape [64, 1], expected [64]"),
        (SCALE, np.zeros(2), "has shape [2], expected [1] or []"),
        (EMBEDDING, np.zeros((96, 64), np.uint8), "has dtype U8, expected F32 or F16 or BF16"),
        (DOWN, np.zeros((64, 100)), "set quantization_mode to online"),
        (DOWN, np.zeros((64, 100), np.uint8), "has shape [64, 100], expected [16, 100]"),
    ],
)
def test_tensor_of_another_kind(
    name: str, array: Any, message: str, offline: Tensors, tmp_path: Path
) -> None:
    wrong = offline | {name: store(array, "U8" if array.dtype == np.uint8 else "F32")}
    refused(tmp_path, OFFLINE.config, wrong, CorruptFileError, f"tensor '{name}'", message)


def test_packed_weights_where_masters_should_be(online: Tensors, tmp_path: Path) -> None:
    packed = online | {DOWN: store(np.zeros((12, 100)), "U8")}
    refused(tmp_path, ONLINE.config, packed, CorruptFileError, "set quantization_mode to offline")


def test_tensor_nobody_reads(offline: Tensors, tmp_path: Path) -> None:
    bias = offline | {"model.layers.0.self_attn.q_proj.bias": store(np.ones(64), "F32")}
    refused(tmp_path, OFFLINE.config, bias, UnsupportedFormatError, "q_proj.bias' (and 0 more)")
    fewer = OFFLINE.config | {"num_hidden_layers": 1}
    refused(tmp_path, fewer, offline, UnsupportedFormatError, "not part of BitNetForCausalLM")


def test_rows_that_cannot_be_packed(offline: Tensors, tmp_path: Path) -> None:
    config = OFFLINE.config | {"intermediate_size": 102}
    refused(tmp_path, config, offline, UnsupportedFormatError, "102 rows", "multiple of 4")


def test_code_that_is_not_ternary(offline: Tensors, tmp_path: Path) -> None:
    wrong = changed(offline, DOWN, (3, 7), 0b11_01_01_01)
    where = f"model.safetensors: tensor '{DOWN}'"
    refused(tmp_path, OFFLINE.config, wrong, QuantizationError, where, "row 51", "column 7")


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, 1e-45])
def test_scale_that_is_no_scale(value: float, tmp_path: Path) -> None:
    wrong = changed(random_tensors(UNTIED.config, 1), SCALE, 0, value)
    where = f"model.safetensors: tensor '{DOWN}'"
    refused(tmp_path, UNTIED.config, wrong, QuantizationError, where, "weight_scale is")


@pytest.mark.parametrize("value", [0x7FC0, 0x7F80, 0xFF80])
def test_master_that_is_not_finite(value: int, online: Tensors, tmp_path: Path) -> None:
    wrong = changed(online, DOWN, (2, 5), value)
    refused(tmp_path, ONLINE.config, wrong, QuantizationError, f"tensor '{DOWN}'")


@pytest.mark.parametrize("dtype", ["F32", "F16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("name", "index"),
    [
        (EMBEDDING, (95, 63)),
        (HEAD, (0, 0)),
        (NORM, (17,)),
        ("model.layers.1.input_layernorm.weight", (3,)),
    ],
)
def test_dense_tensor_that_is_not_finite(
    name: str, index: tuple[int, ...], value: float, dtype: str, tmp_path: Path
) -> None:
    config = OFFLINE.config | {"tie_word_embeddings": False}
    wrong = changed(random_tensors(config, 1, dtype), name, index, value)
    message = f"holds a NaN or infinity at {list(index)}"
    refused(tmp_path, config, wrong, CorruptFileError, f"tensor '{name}'", message)


def test_bad_arguments(offline: Tensors, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, OFFLINE.config, offline)
    with pytest.raises(ValidationError, match="threads is 0"):
        load_model(open_files(tmp_path), threads=0, isa=None)
    with pytest.raises(ValidationError, match="sse9"):
        load_model(open_files(tmp_path), threads=1, isa="sse9")


def test_missing_weights_and_missing_directory(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, OFFLINE.config, {})
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"neither model\.safetensors nor"):
        load_model(open_files(tmp_path), threads=1, isa=None)
    with pytest.raises(ModelLoadError, match=re.escape(str(tmp_path / "x"))):
        load_model(open_files(tmp_path / "x"), threads=1, isa=None)


def test_inspect_tensors(offline: Tensors, tmp_path: Path) -> None:
    infos = inspect_tensors(open_files(write_checkpoint(tmp_path, OFFLINE.config, offline, 2)))
    assert [info.name for info in infos] == sorted(offline)
    for info in infos:
        assert info.dtype == offline[info.name].dtype
        assert info.shape == offline[info.name].array.shape
        assert info.nbytes == offline[info.name].array.nbytes


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_bar_only_on_a_terminal(
    terminal: bool,
    offline: Tensors,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_checkpoint(tmp_path, OFFLINE.config, offline)
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if terminal else "0")
    load_model(open_files(tmp_path), threads=1, isa=None, progress=True)
    output = capsys.readouterr()
    assert output.out == ""
    assert (f"Loading {tmp_path.name}" in output.err) == terminal


def test_packed_pages_are_released(
    offline: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the embedding, which is read in place, leaves memory once it is packed."""
    released: list[str] = []
    monkeypatch.setattr(Checkpoint, "release", lambda _, name: released.append(name))
    load(tmp_path, OFFLINE.config, offline)
    kept = set(offline) - set(released)
    assert {name for name in kept if not name.endswith("_scale")} == {EMBEDDING}
