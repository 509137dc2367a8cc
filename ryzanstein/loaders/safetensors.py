"""Safetensors files as named read-only numpy views over a memory map.

The header is parsed here because the safetensors library's numpy reader copies every tensor to the
heap and its errors name no tensor; we need views whose pages can be dropped, bfloat16 included.
The rules are the library's own: a header of at most 100 MB, tensors that tile the rest exactly.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ryzanstein.errors import CorruptFileError, UnsupportedFormatError
from ryzanstein.loaders.json_file import parse_json_object
from ryzanstein.loaders.mapped_file import MappedFile

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["SafetensorsFile", "TensorInfo", "dtype_name"]

_MAX_HEADER_BYTES = 100_000_000
_MAX_DIMENSIONS = 8
_REMEDY = "download the file again"
# bfloat16 has no numpy type: its bit patterns travel as uint16.
_NUMPY_TYPES: dict[str, type[np.generic]] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


_NAMES = {np.dtype(numpy_type): name for name, numpy_type in _NUMPY_TYPES.items()}


def dtype_name(array: NDArray[Any]) -> str:
    """Return the safetensors name of an array's dtype; uint16 is U16, not BF16."""
    return _NAMES[array.dtype]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a header says of one tensor; dtype is the safetensors name, such as "BF16"."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Entry:
    info: TensorInfo
    begin: int  # from the start of the file


class SafetensorsFile:
    """One memory-mapped safetensors file; nothing is read until a view is touched.

    `metadata` holds what the header says of the file as a whole, `status` what the system says.
    """

    def __init__(self, path: Path) -> None:
        """Map the file and check its whole header.

        Raises:
            ModelLoadError: the file is missing or unreadable.
            CorruptFileError: the header contradicts itself or the file's length.
            UnsupportedFormatError: a tensor has a dtype numpy cannot hold.
        """
        self.path = path
        self._file = MappedFile(path, "safetensors", minimum_bytes=8)
        self.status = self._file.status
        self.metadata, self._entries = _parse_header(path, self._file.data)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def info(self, name: str) -> TensorInfo:
        """Return what the header says of a tensor."""
        return self._entries[name].info

    def view(self, name: str) -> NDArray[Any]:
        """Return a read-only array over the map (bfloat16 as uint16 bit patterns).

        A tensor at an offset that its dtype cannot be read from in place is copied.
        """
        entry = self._entries[name]
        return self._file.view(entry.begin, _NUMPY_TYPES[entry.info.dtype], entry.info.shape)

    def release(self, name: str) -> None:
        """Let the kernel drop the tensor's resident pages; a later view reads them again."""
        entry = self._entries[name]
        self._file.release(entry.begin, entry.info.nbytes)

    def populate(self) -> None:
        """Read the whole file into memory, in huge pages where its file system has them."""
        self._file.populate()


def _parse_header(path: Path, data: mmap.mmap) -> tuple[object, dict[str, _Entry]]:
    (header_bytes,) = struct.unpack("<Q", data[:8])
    available = len(data) - 8
    if header_bytes > min(available, _MAX_HEADER_BYTES):
        raise CorruptFileError(
            f"{path}: the header claims {header_bytes} bytes, the file has {available} after the "
            f"length (and a header may have {_MAX_HEADER_BYTES}); {_REMEDY}"
        )
    header = parse_json_object(data[8 : 8 + header_bytes], f"{path}: the header")
    metadata = header.pop("__metadata__", None)
    start = 8 + header_bytes
    entries = {name: _parse_entry(path, name, value, start) for name, value in header.items()}
    _check_tiling(path, entries, start, len(data))
    return metadata, entries


def _parse_entry(path: Path, name: str, value: object, start: int) -> _Entry:
    where = f"{path}: tensor {name!r}"
    if not isinstance(value, dict):
        raise CorruptFileError(f"{where} is described by {value!r}, not an object; {_REMEDY}")
    dtype, shape, offsets = (value.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str):
        raise CorruptFileError(f"{where} has dtype {dtype!r}; {_REMEDY}")
    if dtype not in _NUMPY_TYPES:
        raise UnsupportedFormatError(
            f"{where} has dtype {dtype!r}; supported are {', '.join(_NUMPY_TYPES)}"
        )
    dimensions = _sizes(shape)
    if dimensions is None or len(dimensions) > _MAX_DIMENSIONS:
        raise CorruptFileError(
            f"{where} has shape {_brief(shape)}, not at most {_MAX_DIMENSIONS} sizes; {_REMEDY}"
        )
    span = _sizes(offsets)
    if span is None or len(span) != 2 or span[0] > span[1]:
        raise CorruptFileError(f"{where} has data_offsets {_brief(offsets)}; {_REMEDY}")
    nbytes = math.prod(dimensions) * np.dtype(_NUMPY_TYPES[dtype]).itemsize
    if span[1] - span[0] != nbytes:
        raise CorruptFileError(
            f"{where} spans {span[1] - span[0]} bytes, but {dtype} {list(dimensions)} needs "
            f"{nbytes}; {_REMEDY}"
        )
    return _Entry(TensorInfo(name, dtype, dimensions, nbytes), start + span[0])


def _sizes(value: object) -> tuple[int, ...] | None:
    """Return the value as non-negative integers below 2**63, or None where it is anything else."""
    if not isinstance(value, list):
        return None
    if not all(type(item) is int and 0 <= item < 1 << 63 for item in value):
        return None
    return tuple(value)


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check_tiling(path: Path, entries: dict[str, _Entry], start: int, size: int) -> None:
    """Demand that the tensors cover the bytes after the header without overlap or hole."""
    position = start
    ordered = sorted(entries.values(), key=lambda entry: (entry.begin, entry.info.nbytes))
    for entry in ordered:
        where = f"{path}: tensor {entry.info.name!r}"
        end = entry.begin + entry.info.nbytes
        if end > size:
            raise CorruptFileError(
                f"{where} ends at byte {end} of a file of {size}; it is truncated, {_REMEDY}"
            )
        if entry.begin != position:
            problem = "overlaps another" if entry.begin < position else "follows unused bytes"
            raise CorruptFileError(
                f"{where} {problem}: it begins at byte {entry.begin}, expected {position}; "
                f"{_REMEDY}"
            )
        position = end
    if position != size:
        raise CorruptFileError(f"{path}: {size - position} bytes follow the last tensor; {_REMEDY}")
