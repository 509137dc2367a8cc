"""Stored weights to the numbers a ternary linear computes with: scale rules and float formats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ryzanstein.errors import QuantizationError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ryzanstein._core import F32Array

__all__ = ["exact_ternary", "first_non_finite", "output_scale", "to_bfloat16", "to_float32"]

_CHUNK = 1 << 20
_LARGEST = float(np.finfo(np.float32).max)
# Unsigned type of the same width, mask of everything but the sign, bits of infinity.
_FLOAT_BITS: dict[str, tuple[type[np.unsignedinteger[Any]], int, int]] = {
    "float32": (np.uint32, 0x7FFFFFFF, 0x7F800000),
    "float16": (np.uint16, 0x7FFF, 0x7C00),
    "uint16": (np.uint16, 0x7FFF, 0x7F80),
}


def to_float32(array: NDArray[Any]) -> F32Array:
    """Return float32 values of float32, float16, or bfloat16 given as uint16 bit patterns."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.ascontiguousarray(array, dtype=np.float32)


def to_bfloat16(array: NDArray[Any]) -> NDArray[Any]:
    """Return finite float32 values as bfloat16 bit patterns uint16, halves to even."""
    bits = np.ascontiguousarray(array).view(np.uint32).reshape(-1)
    rounded = np.empty(bits.size, np.uint16)
    step = _CHUNK // 16  # what is made on the way stays in cache
    for begin in range(0, bits.size, step):
        part = bits[begin : begin + step]
        carried = part + (np.uint32(0x7FFF) + ((part >> np.uint32(16)) & np.uint32(1)))
        rounded[begin : begin + step] = carried >> np.uint32(16)
    return rounded.reshape(array.shape)


def exact_ternary(array: NDArray[Any]) -> tuple[NDArray[np.int8], F32Array] | None:
    """Return int8 codes [N, K] and float32 scales [N] of weights that are ternary already.

    That is, each row holds one magnitude and zeros. None where a row does not.
    """
    codes = np.empty(array.shape, np.int8)
    scales = np.empty(len(array), np.float32)
    step = max(1, _CHUNK // array.shape[1])
    for row in range(0, len(array), step):
        values = to_float32(array[row : row + step])
        magnitudes = np.abs(values)
        scale = magnitudes.max(axis=1)
        if not ((magnitudes == scale[:, None]) | (magnitudes == 0)).all():
            return None
        codes[row : row + step] = np.sign(values)
        scales[row : row + step] = scale
    return codes, scales


def first_non_finite(array: NDArray[Any]) -> int | None:
    """Return the flat index of the first NaN or infinity, or None.

    Args:
        array: C-contiguous float32, float16, or bfloat16 as uint16; read in chunks that stay in
            cache, so that an embedding of a billion bytes costs one pass and no memory.
    """
    unsigned, mask, infinity = _FLOAT_BITS[array.dtype.name]
    bits = array.reshape(-1).view(unsigned)
    scratch = np.empty(min(_CHUNK, bits.size), unsigned)
    for start in range(0, bits.size, _CHUNK):
        chunk = bits[start : start + _CHUNK]
        magnitude = np.bitwise_and(chunk, unsigned(mask), out=scratch[: chunk.size])
        if magnitude.max() >= infinity:
            return start + int(np.argmax(magnitude >= infinity))
    return None


def output_scale(linear_class: str, weight_scale: NDArray[Any]) -> float:
    """Return the factor c of y = (codes . activations) * c / activation scale.

    transformers' two classes store opposite things under one name: `AutoBitLinear` multiplies by
    weight_scale (about mean|W|), `BitLinear` divides by it.

    Raises:
        QuantizationError: a scale that is not a finite positive number, or whose inverse is not.
    """
    stored = float(to_float32(weight_scale.reshape(-1))[0])
    if stored > 0 and np.isfinite(stored):
        scale = stored if linear_class == "autobitlinear" else 1.0 / stored
        if scale <= _LARGEST:
            return scale
    raise QuantizationError(
        f"weight_scale is {stored}; it must be a finite number above zero that float32 can invert"
    )
