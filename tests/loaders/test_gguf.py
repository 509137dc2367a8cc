from __future__ import annotations

import re
import struct
import time
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from gguf_bytes import NUMBERS, GgufBytes, RawTensor, quantize_ternary

from ryzanstein.errors import CorruptFileError, ModelLoadError, UnsupportedFormatError
from ryzanstein.loaders.gguf import GgufFile

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

F32 = NUMBERS["F32"]
METADATA = {"general.architecture": "llama", "a.list": [1, 2, 3], "a.words": ["x", "", "é"]}


def tensor(kind: str, shape: tuple[int, ...], nbytes: int, number: int | None = None) -> RawTensor:
    return RawTensor(NUMBERS[kind] if number is None else number, shape, bytes(nbytes))


SMALL = GgufBytes(METADATA, {"one": tensor("F32", (3, 4), 48), "two": tensor("Q8_0", (1, 32), 34)})


def load(path: Path, data: bytes) -> GgufFile:
    path = path / "model.gguf"
    path.write_bytes(data)
    return GgufFile(path)


def test_reads_what_the_package_writes(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    values: dict[str, tuple[str, Any]] = {
        "u8": ("uint8", 200),
        "i8": ("int8", -3),
        "u16": ("uint16", 60000),
        "i16": ("int16", -30000),
        "u32": ("uint32", 4000000000),
        "i32": ("int32", -5),
        "f32": ("float32", 0.5),
        "u64": ("uint64", 2**63),
        "i64": ("int64", -(2**62)),
        "f64": ("float64", 0.1),
        "yes": ("bool", True),
        "text": ("string", "naïve 😀"),
        "ints": ("array", [1, 2, 3]),
        "floats": ("array", [0.25, -1.0]),
        "words": ("array", ["a", "b c", "ü"]),
    }
    for name, (kind, value) in values.items():
        getattr(writer, f"add_{kind}")(f"x.{name}", value)
    writer.add_custom_alignment(64)
    rng = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {
        "f32": rng.standard_normal((3, 5)).astype(np.float32),
        "f16": rng.standard_normal((2, 3, 4)).astype(np.float16),
        "vector": rng.standard_normal(7).astype(np.float32),
    }
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    blocks = gguf.quants.quantize(
        rng.standard_normal((4, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0
    )
    writer.add_tensor("q8", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = GgufFile(path)

    expected = {f"x.{name}": value for name, (_, value) in values.items()}
    assert {key: file.metadata[key] for key in expected} == expected
    assert [type(file.metadata[f"x.{name}"]) for name in values] == [
        type(value) for _, value in values.values()
    ]
    assert file.metadata["general.architecture"] == "qwen2"
    assert list(file) == [*arrays, "q8"]
    assert len(file) == 4
    for name, array in arrays.items():
        found = file.tensor(name)
        assert found.shape == array.shape
        assert np.array_equal(file.view(name, array.dtype.str, array.shape), array)
    assert file.tensor("q8").shape == (4, 64)
    assert file.tensor("q8").type.name == "Q8_0"
    assert np.array_equal(file.view("q8"), blocks.reshape(-1))
    reader = gguf.GGUFReader(path)
    assert {key: file.metadata[key] for key in file.metadata} == {
        key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")
    }
    assert [item.data_offset for item in reader.tensors] == [file.tensor(n).begin for n in file]


def test_views_are_read_only_and_outlive_the_file(tmp_path: Path) -> None:
    view = load(tmp_path, SMALL.serialize()).view("one", "<f4", (3, 4))
    assert not view.flags.writeable
    assert not view.flags.owndata
    assert not view.any()


def test_pages_can_be_dropped_and_come_back(tmp_path: Path) -> None:
    values = np.arange(4096 * 4, dtype=np.float32)
    content = GgufBytes(METADATA, {"a": RawTensor(F32, values.shape, values.tobytes())})
    file = load(tmp_path, content.serialize())
    file.release("a")
    assert np.array_equal(file.view("a", "<f4", values.shape), values)


def test_the_package_reads_what_these_tests_write(tmp_path: Path) -> None:
    file = load(tmp_path, SMALL.serialize())
    reader = gguf.GGUFReader(file.path)
    assert reader.fields["a.words"].contents() == file.metadata["a.words"] == METADATA["a.words"]
    assert [item.name for item in reader.tensors] == list(file)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    data = SMALL.serialize()
    padding = len(data) - data.rstrip(b"\0").__len__()
    whole = len(data) - 30  # what follows the last tensor only aligns
    assert padding >= 30
    for size in range(len(data)):
        if size < whole:
            with pytest.raises(CorruptFileError, match="download the file again"):
                load(tmp_path, data[:size])
        else:
            assert len(load(tmp_path, data[:size])) == 2


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"x\.gguf does not exist; download"):
        GgufFile(tmp_path / "x.gguf")
    with pytest.raises(ModelLoadError, match="cannot be read"):
        GgufFile(tmp_path)


def test_two_types_of_one_number_differ_in_size(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(-1, 2, (32, 128))
    for number, kind in ((42, "Q2_0"), (42, "PQ2_0"), (142, "PQ2_0")):
        data = quantize_ternary(kind, codes, 0.5)
        content = {"a": RawTensor(number, codes.shape, data), "b": tensor("F32", (1,), 4)}
        file = load(tmp_path, GgufBytes(METADATA, content).serialize())
        assert file.tensor("a").type.name == kind
        assert bytes(file.view("a")) == data


def header(tensors: int = 0, entries: int = 0, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return struct.pack("<4sIQQ", magic, version, tensors, entries)


def string(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def entry(kind: int, value: bytes, key: bytes = b"k") -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + data


def info(
    name: bytes, dims: tuple[int, ...], kind: int = 0, offset: int = 0, claimed: int | None = None
) -> bytes:
    count = len(dims) if claimed is None else claimed
    sizes = struct.pack(f"<I{len(dims)}Q", count, *dims)
    return string(name) + sizes + struct.pack("<IQ", kind, offset)


HUGE = 2**64 - 1
U32 = 4
STRING, ARRAY = 8, 9
HOSTILE: dict[str, tuple[bytes, str]] = {
    "magic": (header(magic=b"GGML"), "it begins with b'GGML', not b'GGUF'"),
    "tensors": (header(tensors=HUGE), f"the header claims {HUGE} tensors, more than"),
    "entries": (header(entries=HUGE), f"the header claims {HUGE} metadata entries, more than"),
    "no entries": (header(entries=3), "a metadata key needs 8 bytes"),
    "key": (header(entries=1) + string(b"k", HUGE), f"a metadata key needs {HUGE} bytes"),
    "empty key": (header(entries=1) + entry(U32, bytes(4), b""), "a metadata key is '', which"),
    "key in bytes": (
        header(entries=1) + entry(U32, bytes(4), b"\xff"),
        "a metadata key is not UTF",
    ),
    "key of controls": (
        header(entries=1) + entry(U32, bytes(4), b"\n"),
        r"a metadata key is '\\n'",
    ),
    "twice": (header(entries=2) + 2 * entry(U32, bytes(4)), "the metadata has 'k' twice"),
    "type": (header(entries=1) + entry(13, bytes(8)), "the value of 'k' has type 13, which GGUF"),
    "text": (header(entries=1) + entry(STRING, string(b"\xc3(")), "the value of 'k' is not UTF-8"),
    "length": (header(entries=1) + entry(STRING, string(b"x", 1 << 63)), "needs 922337203"),
    "items": (header(entries=1) + entry(ARRAY, array(U32, HUGE)), f"claims {HUGE} items, which"),
    "some items": (header(entries=1) + entry(ARRAY, array(U32, 5, bytes(8))), "needs 20 bytes"),
    "words": (header(entries=1) + entry(ARRAY, array(STRING, 1 << 20)), "needs 8388608 bytes"),
    "word": (
        header(entries=1) + entry(ARRAY, array(STRING, 2, string(b"abc") + string(b"x", HUGE))),
        f"the value of 'k' needs {HUGE} bytes",
    ),
    "cut word": (
        header(entries=1) + entry(ARRAY, array(STRING, 2, string(b"0123456789"))),
        "the value of 'k' needs 8 bytes",
    ),
    "nested": (
        header(entries=1) + entry(ARRAY, array(ARRAY, 1, array(ARRAY, 1))),
        "is an array of type 9, which no GGUF reader has",
    ),
    "alignment 0": (
        header(entries=1) + entry(U32, bytes(4), b"general.alignment"),
        "general.alignment is 0, not a power of two",
    ),
    "alignment 48": (
        header(entries=1) + entry(U32, struct.pack("<I", 48), b"general.alignment"),
        "general.alignment is 48, not a power of two",
    ),
    "alignment 2**31": (
        header(entries=1) + entry(U32, struct.pack("<I", 1 << 31), b"general.alignment"),
        "general.alignment is 2147483648, not a power of two",
    ),
    "alignment text": (
        header(entries=1) + entry(STRING, string(b"32"), b"general.alignment"),
        "general.alignment is '32', not a power of two",
    ),
    "no tensors": (header(tensors=1), "a tensor's name needs 8 bytes"),
    "no dimensions": (
        header(tensors=1) + info(b"a", ()),
        "tensor 'a' has 0 dimensions, not 1 to 4",
    ),
    "dimensions": (
        header(tensors=1) + info(b"a", (), claimed=1 << 31),
        "tensor 'a' has 2147483648 dimensions, not 1 to 4",
    ),
    "empty": (header(tensors=1) + info(b"a", (4, 0)), r"tensor 'a' has shape \[0, 4\]"),
    "overflow": (
        header(tensors=1) + info(b"a", (1 << 62, 1 << 62)) + bytes(64),
        r"tensor 'a' of shape .* has \d+ bytes, but F32 needs 850705917302346158658436518579",
    ),
    "beyond": (
        header(tensors=1) + info(b"a", (4,), offset=1 << 62) + bytes(64),
        r"tensor 'a' begins at byte 4611686018427387968, expected 64",
    ),
    "overlap": (
        header(tensors=2) + info(b"a", (8,)) + info(b"b", (8,)) + bytes(64),
        "tensor 'a' of shape .* has 0 bytes, but F32 needs 32",
    ),
    "hole": (
        header(tensors=2) + info(b"a", (8,)) + info(b"b", (8,), offset=64) + bytes(128),
        "tensor 'a' of shape .* has 64 bytes, but F32 needs 32",
    ),
    "backwards": (
        header(tensors=2) + info(b"a", (8,), offset=32) + info(b"b", (8,)) + bytes(128),
        "tensor 'a' begins at byte 128, expected 96",
    ),
    "same name": (
        header(tensors=2) + info(b"a", (8,)) + info(b"a", (8,), offset=32) + bytes(128),
        "there are two tensors 'a'",
    ),
    "whole blocks": (
        header(tensors=1) + info(b"a", (48,), kind=8) + bytes(64),
        "but Q8_0 needs whole blocks",
    ),
    "removed type": (
        header(tensors=1) + info(b"a", (128, 4), kind=36) + bytes(23 + 288),
        "has 288 bytes, but I2_S needs 160",
    ),
    "either type": (
        header(tensors=1) + info(b"a", (128,), kind=42) + bytes(119),
        "has 128 bytes, but Q2_0 needs 36 and PQ2_0 needs 34",
    ),
    "what follows": (SMALL.serialize() + bytes(64), "has 128 bytes, but Q8_0 needs 34"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers(name: str, tmp_path: Path) -> None:
    data, message = HOSTILE[name]
    began = time.process_time()
    with pytest.raises(CorruptFileError, match=message) as caught:
        load(tmp_path, data)
    assert re.search(r"model\.gguf: .*; download the file again$", str(caught.value))
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("version", "kind"), [(1, "version 1"), (4, "version 4"), (3 << 24, "big-endian")]
)
def test_other_versions(version: int, kind: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFormatError, match=rf"model\.gguf is a {kind} GGUF file"):
        load(tmp_path, header(version=version))


def test_a_type_that_cannot_be_read(tmp_path: Path) -> None:
    content = GgufBytes(METADATA, {"a": tensor("F32", (8,), 32, number=10)})
    with pytest.raises(UnsupportedFormatError, match=r"model\.gguf: tensor 'a' has type 10 \(Q2_K"):
        load(tmp_path, content.serialize())


def test_a_sparse_file_of_empty_strings(tmp_path: Path) -> None:
    """A header that costs nothing to store must not cost memory or time to read."""
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(header(entries=1) + entry(ARRAY, array(STRING, 1 << 30)))
        file.truncate(1 << 40)
    began = time.process_time()
    with pytest.raises(CorruptFileError, match="claims 1073741824 items"):
        GgufFile(path)
    assert time.process_time() - began < 1
