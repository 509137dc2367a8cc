"""Quantised tensors of GGUF as codes in groups of columns with a scale: nothing is rounded.

A group's weights are scale * (code - zero) as `GroupedMatrix` has it, or scale * code + minimum.
Types whose codes have five or six bits take eight; the scales of a K-quant are products, which
float32 holds exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np

from ryzanstein.loaders.gguf_types import TERNARY_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from ryzanstein.loaders.gguf_types import TensorType

    Bytes: TypeAlias = NDArray[np.uint8]
    Floats: TypeAlias = NDArray[np.float32]
    Decoded: TypeAlias = tuple[Bytes, Floats] | tuple[Bytes, Floats, Floats]

__all__ = ["GroupedFormat", "GroupedRows", "GroupedTensor", "grouped_format", "grouped_rows"]

_LARGEST_GROUP = 128


class GroupedFormat(NamedTuple):
    """The arguments of a `GroupedMatrix` after its shape."""

    bits: int
    group: int
    scale_dtype: Literal["f16", "f32"] = "f16"
    has_minimum: bool = False


class GroupedRows(NamedTuple):
    """Some rows: codes uint8 [n, K], scales and minima float32 [n, ceil(K / group)]."""

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    minima: NDArray[np.float32] | None = None


class GroupedTensor(NamedTuple):
    """A tensor in groups: its format, and its rows with the index of the first of each part."""

    format: GroupedFormat
    parts: Iterator[tuple[int, GroupedRows]]


def grouped_format(kind: TensorType) -> GroupedFormat | None:
    """Return the format that holds a type's tensors, None for one of plain numbers."""
    if kind.name in TERNARY_TYPES:
        single = kind.name in ("I2_S", "IQ2_BN")  # float32 scales
        group = min(kind.block, _LARGEST_GROUP)
        return GroupedFormat(2, group, "f32" if single else "f16")
    found = _QUANTISED.get(kind.name)
    return None if found is None else found[0]


def grouped_rows(
    kind: TensorType, data: NDArray[np.uint8], shape: tuple[int, ...], begin: int, end: int
) -> GroupedRows:
    """Return rows [begin, end) of a tensor whose type has a format.

    Args:
        kind: the tensor's type.
        data: the tensor's bytes, uint8 [nbytes].
        shape: of the tensor; every dimension but the last counts rows.
        begin: the first row.
        end: the row after the last.

    Raises:
        UnsupportedFormatError: bytes that the type's layout never has.
    """
    if kind.name in TERNARY_TYPES:
        ternary, scales = kind.decode(data, shape, begin, end)
        format_ = grouped_format(kind)
        assert format_ is not None
        groups = -(-shape[-1] // format_.group)
        if scales.shape[1] != groups:
            scales = np.repeat(scales, groups // scales.shape[1], axis=1)
        return GroupedRows((ternary + np.int8(1)).view(np.uint8), scales)
    decode = _QUANTISED[kind.name][1]
    rows = kind.rows(data, shape, begin, end)
    codes, scales, *minima = decode(rows.reshape(len(rows), -1, kind.block_bytes))
    shape = (len(rows), -1)
    return GroupedRows(
        codes.reshape(shape), scales.reshape(shape), *(part.reshape(shape) for part in minima)
    )


def _half(data: Bytes) -> Floats:
    """Return float16 numbers [..., 2 bytes each] as float32."""
    return np.ascontiguousarray(data).view("<f2").astype(np.float32)


def _nibbles(data: Bytes) -> Bytes:
    """Return [..., m] bytes as [..., 2 m] codes: the low halves, then the high ones."""
    return np.concatenate([data & np.uint8(15), data >> np.uint8(4)], axis=-1)


# Each of the functions below takes blocks [n, blocks, bytes] and returns their codes, the scales of
# their groups, and minima where the type has them.


def _q4_0(blocks: Bytes) -> Decoded:
    return _nibbles(blocks[..., 2:]), _half(blocks[..., :2])


def _q4_1(blocks: Bytes) -> Decoded:
    return _nibbles(blocks[..., 4:]), _half(blocks[..., :2]), _half(blocks[..., 2:4])


def _q5_0(blocks: Bytes) -> Decoded:
    fifth = np.unpackbits(blocks[..., 2:6], axis=-1, bitorder="little")
    codes = _nibbles(blocks[..., 6:]) | (fifth << np.uint8(4))
    return codes + np.uint8(128 - 16), _half(blocks[..., :2])


def _q8_0(blocks: Bytes) -> Decoded:
    # Adding 128 to an int8, as a byte.
    return blocks[..., 2:] ^ np.uint8(128), _half(blocks[..., :2])


def _k_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    """Return scales and minima [n, blocks, 8] from two float16 and eight pairs of six bits."""
    low, middle, high = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    six, four, two = np.uint8(63), np.uint8(4), np.uint8(6)
    upper_scales = (high & np.uint8(15)) | ((low >> two) << four)
    upper_minima = (high >> four) | ((middle >> two) << four)
    scales = np.concatenate([low & six, upper_scales], axis=-1).astype(np.float32)
    minima = np.concatenate([middle & six, upper_minima], axis=-1).astype(np.float32)
    return scales * _half(blocks[..., :2]), minima * -_half(blocks[..., 2:4])


def _q4_k(blocks: Bytes) -> Decoded:
    codes = _nibbles(blocks[..., 16:].reshape(*blocks.shape[:2], 4, 32))
    return codes, *_k_scales(blocks)


def _q5_k(blocks: Bytes) -> Decoded:
    low = _nibbles(blocks[..., 48:].reshape(*blocks.shape[:2], 4, 32))
    shifts = np.arange(8, dtype=np.uint8)[:, None]
    fifth = (blocks[..., None, 16:48] >> shifts) & np.uint8(1)  # of each group of 32
    return low.reshape(fifth.shape) | (fifth << np.uint8(4)), *_k_scales(blocks)


def _q6_k(blocks: Bytes) -> Decoded:
    low = _nibbles(blocks[..., :128].reshape(*blocks.shape[:2], 2, 64))
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = blocks[..., 128:192].reshape(*blocks.shape[:2], 2, 1, 32)
    upper = ((high >> shifts) & np.uint8(3)) << np.uint8(4)
    codes = (low.reshape(upper.shape) | upper) + np.uint8(128 - 32)
    scales = blocks[..., 192:208].view(np.int8).astype(np.float32)
    return codes, scales * _half(blocks[..., 208:])


_QUANTISED: dict[str, tuple[GroupedFormat, Callable[[Bytes], Decoded]]] = {
    "Q4_0": (GroupedFormat(4, 32), _q4_0),
    "Q4_1": (GroupedFormat(4, 32, has_minimum=True), _q4_1),
    "Q5_0": (GroupedFormat(8, 32), _q5_0),
    "Q8_0": (GroupedFormat(8, 32), _q8_0),
    "Q4_K": (GroupedFormat(4, 32, "f32", has_minimum=True), _q4_k),
    "Q5_K": (GroupedFormat(8, 32, "f32", has_minimum=True), _q5_k),
    "Q6_K": (GroupedFormat(8, 16, "f32"), _q6_k),
}
