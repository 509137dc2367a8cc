"""The tensor types of GGUF files: how many bytes, and what numbers the bytes stand for.

Layouts are those of ggml and its forks. Ternary types are decoded to codes and scales here, other
quantised ones to codes and scales in `gguf_grouped` and to floats by the gguf package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ryzanstein.errors import UnsupportedFormatError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    # Codes int8 [n, K] of some rows, and scales float32 [n, groups], each of K / groups weights.
    Decoded: TypeAlias = tuple[NDArray[np.int8], NDArray[np.float32]]

__all__ = ["TERNARY_TYPES", "TYPES", "TensorType", "row_scales", "types_numbered"]

_SHIFTS = np.array([0, 2, 4, 6], np.uint8)
# The four codes of each byte, lowest bits first, as the bytes of a uint32.
_FOUR_CODES = ((np.arange(256, dtype=np.uint8)[:, None] >> _SHIFTS) & np.uint8(3)).view("<u4")[:, 0]
_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


@dataclass(frozen=True, slots=True)
class TensorType:
    """One tensor type: its layout in bytes, and how to read it.

    A row is `row_bytes` and then blocks; `tensor_bytes` follow the last row.
    """

    name: str
    block: int  # weights
    block_bytes: int
    row_bytes: int = 0
    tensor_bytes: int = 0
    dense: str | None = None  # numpy's type, where the bytes are plain numbers
    decoder: Callable[[NDArray[np.uint8]], Decoded] | None = None

    def nbytes(self, shape: tuple[int, ...]) -> int | None:
        """Return the size of a tensor, None where blocks do not divide it."""
        rows, columns = math.prod(shape[:-1]), shape[-1]
        # Blocks that end with the tensor may straddle rows.
        if (rows * columns if self.tensor_bytes else columns) % self.block:
            return None
        blocks = rows * columns // self.block
        return blocks * self.block_bytes + rows * self.row_bytes + self.tensor_bytes

    def dequantize(
        self, data: NDArray[np.uint8], shape: tuple[int, ...], begin: int, end: int
    ) -> NDArray[np.float32]:
        """Return rows [begin, end) of a tensor as float32 [n, K], bit for bit as ggml has them.

        Args:
            data: the tensor's bytes, uint8 [nbytes].
            shape: of the tensor; every dimension but the last counts rows.
        """
        if self.name in TERNARY_TYPES:
            codes, scales = self.decode(data, shape, begin, end)
            grouped = codes.reshape(*scales.shape, -1).astype(np.float32)
            return np.multiply(grouped, scales[..., None], out=grouped).reshape(codes.shape)
        rows = self.rows(data, shape, begin, end)
        if self.dense is not None:
            values = rows.view(self.dense)
            if self.name == "BF16":
                return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
            return values.astype(np.float32)
        # Takes 0.1 s to import, and ternary files need it for nothing.
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        values = dequantize(rows, GGMLQuantizationType[self.name])
        return np.asarray(values, np.float32)

    def decode(
        self, data: NDArray[np.uint8], shape: tuple[int, ...], begin: int, end: int
    ) -> Decoded:
        """Return rows [begin, end) of a ternary tensor as codes and the scales of their groups.

        Raises:
            UnsupportedFormatError: bytes that this layout never has.
        """
        if self.decoder is None:  # I2_S, which is not stored by rows
            return _i2_s(data, shape[-1], begin, end)
        return self.decoder(self.rows(data, shape, begin, end))

    def rows(
        self, data: NDArray[np.uint8], shape: tuple[int, ...], begin: int, end: int
    ) -> NDArray[np.uint8]:
        """Return the bytes of rows [begin, end), uint8 [n, bytes]; I2_S is not stored by rows."""
        size = shape[-1] // self.block * self.block_bytes + self.row_bytes
        return data[begin * size : end * size].reshape(end - begin, size)


def row_scales(codes: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Return the one scale of each row, float32 [n], or None where a row has several.

    Groups of zeros have any scale: quantisers write 0 for them. A row of zeros has scale 0.
    """
    if scales.shape[1] == 1:
        return scales[:, 0]
    used = np.any(codes.reshape(*scales.shape, -1) != 0, axis=2)
    first = scales[np.arange(len(scales)), used.argmax(axis=1)]
    if ((scales != first[:, None]) & used).any():
        return None
    return np.where(used.any(axis=1), first, np.float32(0))


def _half(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(data).view("<f2").astype(np.float32)


def _codes(values: NDArray[np.uint8], rows: int) -> NDArray[np.int8]:
    return values.reshape(rows, -1).view(np.int8) - np.int8(1)


def _two_bits(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the four fields of each byte of [..., m] as [..., 4, m], lowest first."""
    return (data[..., None, :] >> _SHIFTS[:, None]) & np.uint8(3)


def _tq2_0(rows: NDArray[np.uint8]) -> Decoded:
    """64 bytes, each of codes 32 apart in its half of the block, then a float16 scale."""
    blocks = rows.reshape(len(rows), -1, 66)
    codes = _two_bits(blocks[..., :64].reshape(len(rows), -1, 2, 32))
    return _codes(codes, len(rows)), _half(blocks[..., 64:])[..., 0]


def _trits(data: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Return `count` base-3 digits of each byte of [..., m] as [..., count, m], highest first."""
    digits = (data[..., None, :] * _POWERS[:count, None]).astype(np.uint16)
    return ((digits * np.uint16(3)) >> np.uint16(8)).astype(np.uint8)


def _tq1_0(rows: NDArray[np.uint8]) -> Decoded:
    """32 and 16 bytes of five codes, 4 bytes of four, then a float16 scale."""
    blocks = rows.reshape(len(rows), -1, 54)
    parts = (
        _trits(blocks[..., :32], 5),
        _trits(blocks[..., 32:48], 5),
        _trits(blocks[..., 48:52], 4),
    )
    codes = np.concatenate([part.reshape(*blocks.shape[:2], -1) for part in parts], axis=2)
    return _codes(codes, len(rows)), _half(blocks[..., 52:])[..., 0]


def _q2_0(rows: NDArray[np.uint8], size: int) -> Decoded:
    """A float16 scale, then bytes of four adjacent codes."""
    blocks = rows.reshape(len(rows), -1, size)
    codes = _FOUR_CODES[blocks[..., 2:]].view(np.uint8)
    return _codes(codes, len(rows)), _half(blocks[..., :2])[..., 0]


def _iq2_bn(rows: NDArray[np.uint8]) -> Decoded:
    """A float32 scale, then 16 bytes of codes 16 apart for every 64 weights."""
    scales = np.ascontiguousarray(rows[:, :4]).view("<f4").astype(np.float32)
    codes = _two_bits(rows[:, 4:].reshape(len(rows), -1, 16))
    return _codes(codes, len(rows)), scales


def _iq1_bn(rows: NDArray[np.uint8]) -> Decoded:
    """A float16 scale, then 13 bytes for every 64 weights.

    Of each 16 weights three bytes hold 15; the last byte holds the sixteenth of all four.
    """
    blocks = rows[:, 2:].reshape(len(rows), -1, 13)
    most = _low_trits(blocks[..., :12], 5).reshape(*blocks.shape[:2], 4, 15)
    last = _low_trits(blocks[..., 12:], 4).reshape(*blocks.shape[:2], 4, 1)
    codes = np.concatenate([most, last], axis=3)
    return _codes(codes, len(rows)), _half(rows[:, :2])


def _low_trits(data: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Return `count` base-3 digits of each byte of [..., m] as [..., m, count], lowest first."""
    digits = (data[..., None] * _POWERS[::-1][:count]).astype(np.uint16)
    return ((digits + (digits >> np.uint16(1))) >> np.uint16(7)).astype(np.uint8)


def _i2_s(data: NDArray[np.uint8], columns: int, begin: int, end: int) -> Decoded:
    """For every 128 weights 32 bytes of codes 32 apart, the first in the highest bits.

    Blocks run through the whole tensor, whatever its rows; one float32 scale follows them. Other
    builds of bitnet.cpp order the same codes differently, of which nothing in a file tells.
    """
    first, last = begin * columns // 128, -(-end * columns // 128)
    blocks = data[32 * first : 32 * last].reshape(-1, 1, 32)
    values = ((blocks >> _SHIFTS[::-1, None]) & np.uint8(3)).reshape(-1)
    values = values[begin * columns - 128 * first :][: (end - begin) * columns]
    if values.max(initial=0) > 2:
        raise UnsupportedFormatError(
            "it holds code 3, which I2_S never has: the file is damaged, or its layout is another "
            "than that of x86. Get the file made on x86, or the model's Hugging Face directory"
        )
    scale = data[-32:-28].view("<f4").astype(np.float32)
    return _codes(values, end - begin), np.repeat(scale, end - begin)[:, None]


def _types(*types: TensorType) -> dict[str, TensorType]:
    return {kind.name: kind for kind in types}


_DENSE = _types(
    TensorType("F32", 1, 4, dense="<f4"),
    TensorType("F16", 1, 2, dense="<f2"),
    TensorType("BF16", 1, 2, dense="<u2"),
)
_TERNARY = _types(
    TensorType("I2_S", 128, 32, tensor_bytes=32),
    TensorType("TQ1_0", 256, 54, decoder=_tq1_0),
    TensorType("TQ2_0", 256, 66, decoder=_tq2_0),
    TensorType("Q2_0", 64, 18, decoder=partial(_q2_0, size=18)),
    TensorType("PQ2_0", 128, 34, decoder=partial(_q2_0, size=34)),
    TensorType("IQ1_BN", 64, 13, row_bytes=2, decoder=_iq1_bn),
    TensorType("IQ2_BN", 64, 16, row_bytes=4, decoder=_iq2_bn),
)
_QUANTISED = _types(
    TensorType("Q4_0", 32, 18),
    TensorType("Q4_1", 32, 20),
    TensorType("Q5_0", 32, 22),
    TensorType("Q8_0", 32, 34),
    TensorType("Q4_K", 256, 144),
    TensorType("Q5_K", 256, 176),
    TensorType("Q6_K", 256, 210),
)
TERNARY_TYPES = tuple(_TERNARY)
TYPES = _DENSE | _TERNARY | _QUANTISED

# Types by number. Two share one where forks took a number that ggml gave out later: sizes tell.
_NUMBERS: dict[int, tuple[str, ...]] = {
    0: ("F32",),
    1: ("F16",),
    2: ("Q4_0",),
    3: ("Q4_1",),
    6: ("Q5_0",),
    8: ("Q8_0",),
    12: ("Q4_K",),
    13: ("Q5_K",),
    14: ("Q6_K",),
    30: ("BF16",),
    34: ("TQ1_0",),
    35: ("TQ2_0",),
    36: ("I2_S",),  # bitnet.cpp; IQ4_NL_4_4 of ggml, since removed
    42: ("Q2_0", "PQ2_0"),  # the second in files of PrismML's fork before it moved to 142
    134: ("IQ1_BN",),  # these two ik_llama.cpp
    135: ("IQ2_BN",),
    142: ("PQ2_0",),
}
# Numbers that are known and not supported, and what to do.
_REFUSED = {
    37: "I8_S of bitnet.cpp, which is of activations",
    38: "TL1 of bitnet.cpp, whose layout depends on a file of its own",
    39: "TL2 of bitnet.cpp, whose layout depends on a file of its own, or MXFP4",
    335: "IQ2_BN_R4 of ik_llama.cpp, which interleaves four rows; use IQ2_BN",
}


def types_numbered(number: int, where: str) -> tuple[TensorType, ...]:
    """Return the types that a number in a header may mean.

    Raises:
        UnsupportedFormatError: none that can be read.
    """
    names = _NUMBERS.get(number)
    if names is None:
        from gguf import GGMLQuantizationType

        known = {item.value: item.name for item in GGMLQuantizationType} | _REFUSED
        raise UnsupportedFormatError(
            f"{where} has type {number} ({known.get(number, 'unknown')}), which cannot be read; "
            f"supported are {', '.join(TYPES)}. Get a file in one of these, or the model's "
            "Hugging Face directory"
        )
    return tuple(TYPES[name] for name in names)
