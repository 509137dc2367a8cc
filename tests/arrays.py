"""Arrays at awkward places: between guard bytes, off alignment, flush against unreadable memory."""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

__all__ = [
    "FORMATS",
    "SIZES",
    "Guarded",
    "at_fence",
    "guarded",
    "misaligned",
    "narrow",
    "on_cache_lines",
    "widen",
]

# Around the widths of every vector, and the two row lengths of BitNet b1.58 2B.
SIZES = [1, 2, 3, 5, 7, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 2560, 6912]

# Of dense weights.
FORMATS = ["f32", "f16", "bf16"]

_GUARD_BYTES = 256
_GUARD = 0xA5
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Guarded:
    """A writable array whose surroundings must stay as they are."""

    array: NDArray[Any]
    _raw: NDArray[np.uint8]
    _begin: int

    def check(self) -> None:
        """Assert that nothing outside the array has been written."""
        end = self._begin + self.array.nbytes
        assert np.all(self._raw[: self._begin] == _GUARD), "written before the output"
        assert np.all(self._raw[end:] == _GUARD), "written past the output"


def guarded(
    shape: int | tuple[int, ...], dtype: DTypeLike = np.float32, offset: int = 1
) -> Guarded:
    """Return a guarded array that begins `offset` elements past a 64-byte boundary."""
    kind = np.dtype(dtype)
    nbytes = int(np.prod(shape)) * kind.itemsize
    raw = np.full(nbytes + 2 * _GUARD_BYTES + _ALIGNMENT, _GUARD, np.uint8)
    begin = _GUARD_BYTES + -(raw.ctypes.data + _GUARD_BYTES) % _ALIGNMENT + offset * kind.itemsize
    array = raw[begin : begin + nbytes].view(kind).reshape(shape)
    return Guarded(array, raw, begin)


def on_cache_lines(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a copy that begins on a cache line, as arrays of a packed file do."""
    memory = np.empty(array.size + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    copy = memory[begin : begin + array.size]
    copy[:] = array
    return copy


def misaligned(array: NDArray[Any], offset: int = 1) -> NDArray[Any]:
    """Return a copy that begins `offset` elements past a 64-byte boundary."""
    place = guarded(array.shape, array.dtype, offset)
    place.array[...] = array
    return place.array


def at_fence(array: NDArray[Any]) -> NDArray[Any]:
    """Return a copy whose end touches a page that must not be read: reading on is a crash."""
    readable = -(-max(array.nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, readable + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert protect(address + readable, mmap.PAGESIZE, 0) == 0, ctypes.get_errno()
    begin = readable - array.nbytes
    copy = np.frombuffer(pages, array.dtype, array.size, begin).reshape(array.shape)
    copy[...] = array
    return copy


def narrow(values: NDArray[Any], name: str) -> NDArray[Any]:
    """Return values as "f32", "f16", or "bf16" (bit patterns as uint16, rounded toward zero)."""
    if name == "bf16":
        return (values.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return values.astype({"f32": np.float32, "f16": np.float16}[name])


def widen(array: NDArray[Any]) -> NDArray[np.float32]:
    """Return float32 values of float32, float16 or bfloat16 bit patterns, exactly."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(np.float32)
