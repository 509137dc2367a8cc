from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import Stored, serialize, store

from ryzanstein.errors import CorruptFileError, ModelLoadError, UnsupportedFormatError
from ryzanstein.loaders.safetensors import SafetensorsFile, TensorInfo

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def write(path: Path, header: Any, body: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + body)
    return path


def entry(dtype: str, shape: object, begin: object, end: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors: dict[str, NDArray[Any]] = {
        "f64": rng.standard_normal((3, 5)),
        "f32": rng.standard_normal((2, 3, 4)).astype(np.float32),
        "f16": rng.standard_normal(7).astype(np.float16),
        "i64": rng.integers(-9, 9, (4, 1)),
        "i32": rng.integers(-9, 9, (2, 2)).astype(np.int32),
        "i16": rng.integers(-9, 9, 3).astype(np.int16),
        "i8": rng.integers(-9, 9, 3).astype(np.int8),
        "u8": rng.integers(0, 9, (5, 3)).astype(np.uint8),
        "bool": rng.integers(0, 2, 5).astype(np.bool_),
        "scalar": np.array(2.5, np.float32),
        "empty": np.empty((0, 4), np.float32),
    }
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})

    file = SafetensorsFile(tmp_path / "x.safetensors")

    assert set(file) == set(tensors)
    for name, expected in tensors.items():
        view = file.view(name)
        assert view.dtype == expected.dtype
        assert np.array_equal(view, expected)
        assert view.flags.c_contiguous
        assert file.info(name).shape == expected.shape
        assert file.info(name).nbytes == expected.nbytes


def test_views_are_read_only_and_outlive_the_file(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    (tmp_path / "x").write_bytes(serialize({"a": store(values, "F32")}))
    view = SafetensorsFile(tmp_path / "x").view("a")
    assert not view.flags.writeable
    assert not view.flags.owndata
    assert np.array_equal(view, values)


def test_bfloat16_is_its_bit_patterns(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(serialize({"a": store(np.array([1.0, -2.0, 0.5]), "BF16")}))
    file = SafetensorsFile(tmp_path / "x")
    assert file.info("a") == TensorInfo("a", "BF16", (3,), 6)
    assert file.view("a").tolist() == [0x3F80, 0xC000, 0x3F00]


def test_misaligned_tensor_is_copied(tmp_path: Path) -> None:
    floats = np.array([1.5, -3.0], np.float32)
    header = {"a": entry("U8", [1], 0, 1), "b": entry("F32", [2], 1, 9)}
    text = json.dumps(header).encode()
    path = write(tmp_path / "x", text + b" " * (-len(text) % 8), b"\x07" + floats.tobytes())
    view = SafetensorsFile(path).view("b")
    assert view.flags.aligned
    assert not view.flags.writeable
    assert np.array_equal(view, floats)


def test_released_pages_come_back(tmp_path: Path) -> None:
    values = np.arange(100_000, dtype=np.float32)
    small = Stored("U8", np.arange(3, dtype=np.uint8))
    (tmp_path / "x").write_bytes(serialize({"a": store(values, "F32"), "b": small}))
    file = SafetensorsFile(tmp_path / "x")
    view = file.view("a")
    assert view.sum(dtype=np.float64) == values.sum(dtype=np.float64)
    file.release("a")
    file.release("b")
    assert np.array_equal(view, values)


BAD_ENTRIES: dict[str, tuple[object, str]] = {
    "not an object": ([1], "'a' is described by [1], not an object"),
    "no dtype": ({"shape": [4], "data_offsets": [0, 4]}, "'a' has dtype None"),
    "no shape": ({"dtype": "U8", "data_offsets": [0, 4]}, "'a' has shape None"),
    "no offsets": ({"dtype": "U8", "shape": [4]}, "'a' has data_offsets None"),
    "negative size": (entry("U8", [-4], 0, 4), "'a' has shape [-4]"),
    "fractional size": (entry("U8", [4.0], 0, 4), "'a' has shape [4.0]"),
    "boolean size": (entry("U8", [True, 4], 0, 4), "'a' has shape [True, 4]"),
    "many dimensions": (entry("U8", [1] * 99, 0, 4), "not at most 8 sizes"),
    "huge size": (entry("U8", [1 << 80], 0, 4), "'a' has shape [1208925819614629174706176]"),
    "huge product": (entry("U8", [1 << 62] * 8, 0, 4), "spans 4 bytes"),
    "wrong size": (entry("F32", [4], 0, 4), "spans 4 bytes, but F32 [4] needs 16"),
    "three offsets": ({"dtype": "U8", "shape": [4], "data_offsets": [0, 4, 4]}, "data_offsets"),
    "descending": (entry("U8", [4], 4, 0), "'a' has data_offsets [4, 0]"),
    "past the end": (entry("U8", [5], 0, 5), "ends at byte"),
    "hole before": (entry("U8", [3], 1, 4), "follows unused bytes"),
    "hole after": (entry("U8", [3], 0, 3), "1 bytes follow the last tensor"),
}


@pytest.mark.parametrize(("value", "message"), BAD_ENTRIES.values(), ids=BAD_ENTRIES)
def test_bad_entry(value: object, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"a": value}, b"1234")
    with pytest.raises(CorruptFileError, match=re.escape(message)) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)


def test_unknown_dtype(tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"a": entry("F8_E4M3", [4], 0, 4)}, b"1234")
    with pytest.raises(UnsupportedFormatError, match="'a' has dtype 'F8_E4M3'; supported are F64"):
        SafetensorsFile(path)


def test_overlap(tmp_path: Path) -> None:
    header = {"a": entry("U8", [3], 0, 3), "b": entry("U8", [2], 2, 4)}
    with pytest.raises(CorruptFileError, match="'b' overlaps another"):
        SafetensorsFile(write(tmp_path / "x", header, b"1234"))


def test_name_twice(tmp_path: Path) -> None:
    one = json.dumps(entry("U8", [2], 0, 2))
    text = f'{{"a": {one}, "a": {one}}}'.encode()
    with pytest.raises(CorruptFileError, match="the name 'a' appears twice"):
        SafetensorsFile(write(tmp_path / "x", text, b"12"))


@pytest.mark.parametrize("size", [0, 1, 7])
def test_file_shorter_than_a_length(size: int, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\0" * size)
    with pytest.raises(CorruptFileError, match=f"{size} bytes and cannot hold a safetensors"):
        SafetensorsFile(tmp_path / "x")


@pytest.mark.parametrize("length", [3, 1 << 40, (1 << 64) - 1])
def test_header_length_beyond_the_file(length: int, tmp_path: Path) -> None:
    path = write(tmp_path / "x", b"{}", length=length)
    with pytest.raises(CorruptFileError, match=f"header claims {length} bytes, the file has 2"):
        SafetensorsFile(path)


def test_truncation_anywhere(tmp_path: Path) -> None:
    whole = serialize({"a": store(np.arange(4.0), "F32"), "b": store(np.arange(3.0), "BF16")})
    for length in range(len(whole)):
        (tmp_path / "x").write_bytes(whole[:length])
        with pytest.raises(CorruptFileError, match=re.escape(str(tmp_path / "x"))):
            SafetensorsFile(tmp_path / "x")


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="does not exist"):
        SafetensorsFile(tmp_path / "x")
    with pytest.raises(ModelLoadError, match="cannot be read: Is a directory"):
        SafetensorsFile(tmp_path)
