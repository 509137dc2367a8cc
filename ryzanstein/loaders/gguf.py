"""GGUF files: metadata and named read-only bytes over a memory map.

The header is parsed here because the gguf package's reader refuses the type numbers that only
forks of ggml use, trusts every length, and makes an array of every token (docs/decisions/0014).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ryzanstein.errors import CorruptFileError, UnsupportedFormatError
from ryzanstein.loaders.gguf_types import TensorType, types_numbered
from ryzanstein.loaders.mapped_file import MappedFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["GGUF_MAGIC", "GgufFile", "GgufTensor"]

GGUF_MAGIC = b"GGUF"
_REMEDY = "download the file again"
_VERSIONS = (2, 3)
_PREAMBLE = struct.Struct("<4sIQQ")  # magic, version, tensors, metadata entries
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
# The header of a model with 262144 tokens and their merges is near 20 MB.
_MAX_HEADER_BYTES = 100_000_000
_MAX_ITEMS = 1 << 22  # of all arrays, which are made into lists
_MAX_ENTRIES = 1 << 16  # of metadata
_MAX_TENSORS = 1 << 17
_MAX_NAME_BYTES = 1 << 16
_MAX_DIMENSIONS = 4  # what ggml has
_MAX_ALIGNMENT = 1 << 20
_ALIGNMENT_KEY = "general.alignment"
# Value types by number; 8 is a string and 9 an array.
_SCALARS: dict[int, str] = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """What a header says of one tensor; the last dimension of `shape` is contiguous."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    begin: int  # from the start of the file
    nbytes: int


class GgufFile:
    """One memory-mapped GGUF file; no tensor is read until its bytes are touched.

    `metadata` maps keys to Python scalars, strings and lists of either, `status` is what the system
    says of the file.

    Example:
        >>> GgufFile(Path("model.gguf")).metadata["general.architecture"]
        'bitnet-b1.58'
    """

    def __init__(self, path: Path) -> None:
        """Map the file and check its whole header.

        Raises:
            ModelLoadError: the file is missing or unreadable.
            CorruptFileError: the header contradicts itself or the file's length.
            UnsupportedFormatError: a version, byte order or tensor type that is not supported.
        """
        self.path = path
        self._file = MappedFile(path, "GGUF", _PREAMBLE.size)
        self.status = self._file.status
        self.metadata, self._tensors = _parse(_Cursor(self._file))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __len__(self) -> int:
        return len(self._tensors)

    def tensor(self, name: str) -> GgufTensor:
        """Return what the header says of a tensor."""
        return self._tensors[name]

    def view(
        self, name: str, dtype: str = "u1", shape: tuple[int, ...] | None = None
    ) -> NDArray[Any]:
        """Return a tensor's bytes as a read-only array over the map, flat unless a shape is given.

        At an offset that the dtype cannot be read from in place it is copied.
        """
        tensor = self._tensors[name]
        return self._file.view(tensor.begin, dtype, (tensor.nbytes,) if shape is None else shape)

    def release(self, name: str) -> None:
        """Let the kernel drop the tensor's resident pages; a later view reads them again."""
        tensor = self._tensors[name]
        self._file.release(tensor.begin, tensor.nbytes)


@dataclass(frozen=True, slots=True)
class _Info:
    """A tensor as the header describes it, before its type is known."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int  # from the start of the tensors' part


class _Cursor:
    """Reads a header from front to back; nothing past the end of the file is ever asked for."""

    def __init__(self, file: MappedFile) -> None:
        self.path = file.path
        self.position = 0
        self.items = 0  # of the arrays so far
        self.size = len(file.data)
        self._data = file.data

    def corrupt(self, problem: str) -> CorruptFileError:
        """Return the error for a header that cannot be right."""
        return CorruptFileError(f"{self.path}: {problem}; {_REMEDY}")

    def take(self, nbytes: int, what: str) -> bytes:
        """Return the next bytes."""
        self._require(nbytes, what)
        begin = self.position
        self.position += nbytes
        return self._data[begin : self.position]

    def unsigned(self, form: struct.Struct, what: str) -> int:
        """Return the next unsigned integer, of four or eight bytes."""
        value: int = form.unpack(self.take(form.size, what))[0]
        return value

    def string(self, what: str) -> str:
        """Return the next string, a length and UTF-8."""
        return self._decode(self.take(self.unsigned(_U64, what), what), what)

    def strings(self, count: int, what: str) -> list[str]:
        """Return the next strings: one loop without calls, for there are half a million."""
        self._require(8 * count, what)
        data, position, unpack = self._data, self.position, _U64.unpack_from
        limit = min(self.size, _MAX_HEADER_BYTES)
        items = []
        for _ in range(count):
            begin = position + 8
            if begin > limit:
                raise self._ends(8, what)
            position = begin + unpack(data, position)[0]
            if position > limit:
                raise self._ends(position - begin, what)
            items.append(data[begin:position])
        self.position = position
        return [self._decode(item, what) for item in items]

    def numbers(self, form: str, count: int, what: str) -> list[Any]:
        """Return the next numbers of one type."""
        data = self.take(count * np.dtype(form).itemsize, what)
        return list(np.frombuffer(data, form).tolist())

    def _decode(self, text: bytes, what: str) -> str:
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.corrupt(f"{what} is not UTF-8: {error}") from error

    def _require(self, nbytes: int, what: str) -> None:
        if nbytes > min(self.size, _MAX_HEADER_BYTES) - self.position:
            raise self._ends(nbytes, what)

    def _ends(self, nbytes: int, what: str) -> CorruptFileError:
        return self.corrupt(
            f"{what} needs {nbytes} bytes from byte {self.position} on, the file has {self.size} "
            f"(and a header may have {_MAX_HEADER_BYTES})"
        )


def _parse(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    magic, version, tensors, entries = _PREAMBLE.unpack(cursor.take(_PREAMBLE.size, "the header"))
    if magic != GGUF_MAGIC:
        raise cursor.corrupt(f"it begins with {magic!r}, not {GGUF_MAGIC!r}")
    if version not in _VERSIONS:
        big_endian = version & 0xFFFF == 0
        kind = "big-endian" if big_endian else f"version {version}"
        raise UnsupportedFormatError(
            f"{cursor.path} is a {kind} GGUF file; supported are versions 2 and 3, little-endian. "
            "Get a newer file, or convert the original checkpoint again"
        )
    for count, maximum, what in (
        (tensors, _MAX_TENSORS, "tensors"),
        (entries, _MAX_ENTRIES, "metadata entries"),
    ):
        if count > maximum:
            raise cursor.corrupt(f"the header claims {count} {what}, more than {maximum}")
    metadata = _parse_metadata(cursor, entries)
    infos = [_parse_info(cursor) for _ in range(tensors)]
    return metadata, _place(cursor, metadata, infos)


def _parse_metadata(cursor: _Cursor, entries: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        key = _name(cursor, "a metadata key")
        if key in metadata:
            raise cursor.corrupt(f"the metadata has {key!r} twice")
        metadata[key] = _parse_value(cursor, f"the value of {key!r}")
    return metadata


def _name(cursor: _Cursor, what: str) -> str:
    name = cursor.string(what)
    if not 0 < len(name) <= _MAX_NAME_BYTES or not name.isprintable():
        raise cursor.corrupt(f"{what} is {name[:40]!r}, which is not a name")
    return name


def _parse_value(cursor: _Cursor, what: str) -> Any:
    kind = cursor.unsigned(_U32, what)
    if kind == _STRING:
        return cursor.string(what)
    if kind in _SCALARS:
        return cursor.numbers(_SCALARS[kind], 1, what)[0]
    if kind != _ARRAY:
        raise cursor.corrupt(f"{what} has type {kind}, which GGUF does not have")
    item = cursor.unsigned(_U32, what)
    count = cursor.unsigned(_U64, what)
    cursor.items += count
    if cursor.items > _MAX_ITEMS:
        raise cursor.corrupt(f"{what} claims {count} items, which makes more than {_MAX_ITEMS}")
    if item == _STRING:
        return cursor.strings(count, what)
    if item in _SCALARS:
        return cursor.numbers(_SCALARS[item], count, what)
    # Arrays of arrays exist on paper only: ggml reads none either.
    raise cursor.corrupt(f"{what} is an array of type {item}, which no GGUF reader has")


def _parse_info(cursor: _Cursor) -> _Info:
    name = _name(cursor, "a tensor's name")
    what = f"tensor {name!r}"
    dimensions = cursor.unsigned(_U32, what)
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise cursor.corrupt(f"{what} has {dimensions} dimensions, not 1 to {_MAX_DIMENSIONS}")
    shape = tuple(cursor.unsigned(_U64, what) for _ in range(dimensions))[::-1]
    if not all(0 < size < 1 << 63 for size in shape):
        raise cursor.corrupt(f"{what} has shape {list(shape)}")
    return _Info(name, shape, cursor.unsigned(_U32, what), cursor.unsigned(_U64, what))


def _place(cursor: _Cursor, metadata: dict[str, Any], infos: list[_Info]) -> dict[str, GgufTensor]:
    """Return the tensors, which must fill what follows the header in their order.

    A tensor's size is not in the file: it is what lies before the next one, less the padding.
    """
    alignment = metadata.get(_ALIGNMENT_KEY, 32)
    is_power = type(alignment) is int and 0 < alignment <= _MAX_ALIGNMENT
    if not is_power or alignment & (alignment - 1):
        raise cursor.corrupt(f"{_ALIGNMENT_KEY} is {alignment!r}, not a power of two")
    start = _padded(cursor.position, alignment)
    tensors: dict[str, GgufTensor] = {}
    position = start
    for index, info in enumerate(infos):
        what = f"tensor {info.name!r}"
        if info.name in tensors:
            raise cursor.corrupt(f"there are two tensors {info.name!r}")
        if start + info.offset != position:
            raise cursor.corrupt(
                f"{what} begins at byte {start + info.offset}, expected {position}"
            )
        is_last = index + 1 == len(infos)
        # The file may end with the last tensor's bytes or with their padding.
        end = _padded(cursor.size, alignment) if is_last else start + infos[index + 1].offset
        kind, nbytes = _resolve(cursor, info, end - position, alignment)
        if position + nbytes > cursor.size:
            raise cursor.corrupt(
                f"{what} ends at byte {position + nbytes} of a file of {cursor.size}"
            )
        tensors[info.name] = GgufTensor(info.name, kind, info.shape, position, nbytes)
        position = end
    return tensors


def _resolve(cursor: _Cursor, info: _Info, space: int, alignment: int) -> tuple[TensorType, int]:
    """Return the type whose size, padded, is the space between this tensor and the next."""
    where = f"{cursor.path}: tensor {info.name!r}"
    needs = []
    for kind in types_numbered(info.type_id, where):
        nbytes = kind.nbytes(info.shape)
        if nbytes is not None and _padded(nbytes, alignment) == space:
            return kind, nbytes
        needs.append(f"{kind.name} needs {'whole blocks' if nbytes is None else nbytes}")
    raise cursor.corrupt(
        f"tensor {info.name!r} of shape {list(info.shape)} has {space} bytes, but "
        f"{' and '.join(needs)}"
    )


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
