from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from checkpoints import Tensors, store, write_checkpoint

from ryzanstein.errors import CorruptFileError, ModelLoadError, UnsupportedFormatError
from ryzanstein.loaders.checkpoint import Checkpoint

if TYPE_CHECKING:
    from pathlib import Path

INDEX = "model.safetensors.index.json"


@pytest.fixture
def tensors() -> Tensors:
    rng = np.random.default_rng(0)
    return {name: store(rng.standard_normal((4, 3)), "F32") for name in ("a", "b", "c", "d", "e")}


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shards_read_as_one(shards: int, tensors: Tensors, tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path, {}, tensors, shards))
    assert set(checkpoint) == set(tensors)
    assert "f" not in checkpoint
    for name, tensor in tensors.items():
        assert name in checkpoint
        assert np.array_equal(checkpoint.view(name), tensor.array)
        assert checkpoint.info(name).dtype == "F32"
        assert f".safetensors: tensor '{name}'" in checkpoint.where(name)
        checkpoint.release(name)


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=re.escape(f"no model directory {tmp_path / 'x'}")):
        Checkpoint(tmp_path / "x")


def test_file_in_place_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"PK")
    with pytest.raises(UnsupportedFormatError, match=r"x\.bin is not a GGUF file; point at"):
        Checkpoint(tmp_path / "x.bin")


def test_directory_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"neither model\.safetensors nor .*; download"):
        Checkpoint(tmp_path)


def test_directory_of_gguf_files(tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ModelLoadError, match=r"point at one of its GGUF files: a\.gguf, b\.gguf$"):
        Checkpoint(tmp_path)


def test_directory_with_other_weights(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelLoadError, match=r"only pytorch_model\.bin; get the safetensors form"):
        Checkpoint(tmp_path)


def test_missing_shard(tensors: Tensors, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {}, tensors, 2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"model-00002-of-00002\.safetensors does not exist"):
        Checkpoint(tmp_path)


def test_index_names_a_tensor_its_shard_lacks(tensors: Tensors, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {}, tensors, 2)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["z"] = index["weight_map"]["a"]
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CorruptFileError, match=r"'z' should be in model-00001.*does not hold it"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("weight_map", [None, [], "x"])
def test_index_without_a_map(weight_map: object, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CorruptFileError, match="'weight_map' must be an object"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/passwd", 3, None, "a\0b"])
def test_index_pointing_elsewhere(shard: object, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(CorruptFileError, match="which is not a plain file name"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("shard", ["", "..", "x" * 5000])
def test_index_naming_no_file(shard: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ModelLoadError):
        Checkpoint(tmp_path)
