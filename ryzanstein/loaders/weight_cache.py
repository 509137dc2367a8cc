"""Packed weights kept in files, which later loads map instead of packing again.

A file holds the packed objects of one model: each a few named arrays, whose meaning is the affair
of whoever packs. It is a safetensors file with every array on a cache line, named by a hash of its
identity, a text that says what the arrays were made from and how. The header is always checked; the
arrays themselves are trusted like those of the checkpoint.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ryzanstein.config import cache_directory, check_real
from ryzanstein.errors import CorruptFileError, ModelLoadError, ValidationError
from ryzanstein.loaders.safetensors import SafetensorsFile, dtype_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["PackedWeights", "WeightCache", "default_weight_cache"]

PackedObjects: TypeAlias = "Mapping[str, Mapping[str, NDArray[Any]]]"

_LOGGER = logging.getLogger(__name__)
_FORMAT = 2  # of what is kept for a model
_BLOCK_BYTES = 8 << 20  # written at a time: some huge pages
_MOST_PIECES = os.sysconf("SC_IOV_MAX")  # that one write may gather
_ALIGNMENT = 64  # of arrays, in the file and so in the mapping: a cache line
_SUFFIX, _TEMPORARY = ".safetensors", ".tmp"
_ABANDONED_SECONDS = 3600.0
# Smaller models are packed in the time that a cache would save.
_MINIMUM_BYTES = 64 << 20
_LIMIT_VARIABLE = "RYZANSTEIN_CACHE_LIMIT"
_LIMIT_GB = 16.0


class PackedWeights:
    """The packed objects of one file, mapped: processes that load the same model share them."""

    def __init__(self, path: Path, identity: str) -> None:
        """Map the file and check that it is whole and what was asked for.

        Raises:
            ModelLoadError: there is no such file, or it cannot be read.
            CorruptFileError: it is damaged, or was made from other files or in another way.
        """
        self._file = SafetensorsFile(path)
        infos = [self._file.info(key) for key in self._file]
        layout = _layout((info.name, info.dtype, info.shape) for info in infos)
        if self._file.metadata != {"identity": identity, "layout": layout}:
            raise CorruptFileError(
                f"{path} is damaged, or was made from other files or in another way"
            )
        self._keys: dict[str, dict[str, str]] = {}
        for key in self._file:
            name, _, array = key.rpartition("/")
            self._keys.setdefault(name, {})[array] = key
        self.nbytes = sum(info.nbytes for info in infos)
        self._file.populate()

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """Return the arrays of an object, in place; none where the file has no such object."""
        return {array: self._file.view(key) for array, key in self._keys.get(name, {}).items()}


@dataclass(frozen=True, slots=True)
class WeightCache:
    """A directory of packed weights that forgets those used longest ago.

    Args:
        directory: where the files are; made when the first is written.
        limit_bytes: what they may take together.
        minimum_bytes: weights that take less are not worth a file.
    """

    directory: Path
    limit_bytes: int
    minimum_bytes: int = _MINIMUM_BYTES

    def path(self, identity: str) -> Path:
        """Return where the weights of this identity are, or would be."""
        digest = hashlib.sha256(f"{_FORMAT} {identity}".encode()).hexdigest()
        return self.directory / (digest[:32] + _SUFFIX)

    def find(self, identity: str) -> PackedWeights | None:
        """Return what `store` kept under this identity, or None where it is gone or damaged."""
        path = self.path(identity)
        try:
            packed = PackedWeights(path, identity)
        except ModelLoadError as error:
            _LOGGER.debug("no packed weights: %s", error)
            return None
        with suppress(OSError):  # a cache that is only read keeps its order
            os.utime(path)
        return packed

    def store(self, identity: str, objects: PackedObjects) -> None:
        """Keep the arrays of some objects for later loads.

        Not being able to is no error: the reason is logged.
        """
        size = sum(array.nbytes for arrays in objects.values() for array in arrays.values())
        if not self.minimum_bytes <= size <= self.limit_bytes:
            _LOGGER.debug("%d bytes of packed weights are not kept", size)
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._make_room(size)
            _write(self.path(identity), identity, objects)
        except OSError as error:
            _LOGGER.warning(
                "packed weights cannot be kept in %s, so the next load takes as long as this one: "
                "%s. RYZANSTEIN_CACHE names another place",
                self.directory,
                error.strerror or error,
            )

    def report(self) -> dict[str, object]:
        """Return the directory, how many files it holds, their bytes and the limit."""
        sizes = [status.st_size for _, status in self._files(_SUFFIX)]
        return {
            "directory": str(self.directory),
            "files": len(sizes),
            "bytes": sum(sizes),
            "limit_bytes": self.limit_bytes,
        }

    def _make_room(self, size: int) -> None:
        """Delete what was used longest ago, and what a killed process left half written."""
        left = self.limit_bytes - size
        for path, status in sorted(self._files(_SUFFIX), key=lambda file: -file[1].st_mtime_ns):
            left -= status.st_size
            if left < 0:
                path.unlink(missing_ok=True)
        for path, status in self._files(_TEMPORARY):
            if time.time() - status.st_mtime > _ABANDONED_SECONDS:
                path.unlink(missing_ok=True)
        if shutil.disk_usage(self.directory).free < 2 * size:  # a cache must not fill a disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _files(self, suffix: str) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.directory.glob(f"*{suffix}"):
            with suppress(OSError):  # another process may delete it first
                yield path, path.stat()


def default_weight_cache() -> WeightCache | None:
    """Return the cache in the user's cache directory, None where there is no such directory.

    Raises:
        ValidationError: RYZANSTEIN_CACHE_LIMIT is not a number of gigabytes.
    """
    directory = cache_directory()
    text = os.environ.get(_LIMIT_VARIABLE) or str(_LIMIT_GB)
    try:
        limit = check_real(_LIMIT_VARIABLE, float(text), 0.0)
    except ValueError:
        raise ValidationError(
            f"{_LIMIT_VARIABLE} must be a number of gigabytes, got {text!r}"
        ) from None
    return None if directory is None else WeightCache(directory / "packed", int(limit * 1e9))


def _write(path: Path, identity: str, objects: PackedObjects) -> None:
    """Write a file that is whole or not there, whatever happens meanwhile.

    The safetensors library's writer copies every tensor and aligns to eight bytes only.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}{_TEMPORARY}")
    try:
        with temporary.open("xb", buffering=0) as file:
            for block in _blocks(_pieces(identity, objects)):
                _write_all(file.fileno(), block)
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _blocks(pieces: Iterable[memoryview]) -> Iterator[list[memoryview]]:
    """Yield what the pieces hold, block by block, in place.

    The system keeps a block that is written whole, at a multiple of its size, in huge pages, which
    is how it is then mapped: 4 % faster to decode from.
    """
    block: list[memoryview] = []
    room = _BLOCK_BYTES
    for piece in pieces:
        while piece:
            block.append(piece[:room])
            piece = piece[room:]
            room -= len(block[-1])
            if room == 0:
                yield block
                block, room = [], _BLOCK_BYTES
    yield block


def _write_all(descriptor: int, block: list[memoryview]) -> None:
    while block:
        written = os.writev(descriptor, block[:_MOST_PIECES])
        while block and written >= len(block[0]):
            written -= len(block.pop(0))
        if block:
            block[0] = block[0][written:]


def _pieces(identity: str, objects: PackedObjects) -> Iterable[memoryview]:
    """Return the file's parts: a header filled up with spaces, then arrays and what aligns them."""
    layout: list[tuple[str, str, tuple[int, ...]]] = []
    entries: dict[str, object] = {}
    body: list[memoryview] = []
    offset = 0
    for name, array in _aligned(objects):
        end = offset + array.nbytes
        dtype, shape = dtype_name(array), array.shape
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        layout.append((name, dtype, shape))
        body.append(array.reshape(-1).view(np.uint8).data)
        offset = end
    metadata = {"identity": identity, "layout": _layout(layout)}
    text = json.dumps({"__metadata__": metadata, **entries}).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return [memoryview(len(text).to_bytes(8, "little") + text), *body]


def _aligned(objects: PackedObjects) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield name and array of everything, with what brings the next one to a cache line."""
    offset = 0
    for name, arrays in objects.items():
        for key, array in arrays.items():
            yield f"{name}/{key}", array
            offset += array.nbytes
            if padding := -offset % _ALIGNMENT:
                yield f"padding {offset}", np.zeros(padding, np.uint8)
                offset += padding


def _layout(entries: Iterable[tuple[str, str, tuple[int, ...]]]) -> str:
    """Return a hash of the names, dtypes and shapes of a file's arrays, in their order."""
    return hashlib.sha256(json.dumps(list(entries)).encode()).hexdigest()
