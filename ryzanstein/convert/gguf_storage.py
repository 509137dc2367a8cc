"""Which GGUF type a tensor is written in, and how far its weights may be from what they were."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from gguf.constants import GGML_QUANT_SIZES

from ryzanstein.errors import QuantizationError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ryzanstein._core import F32Array
    from ryzanstein.convert.source import SourceTensor

__all__ = ["TERNARY", "TYPES", "StoredType", "check_values", "choose_type", "ternary_blocks"]

TYPES = {
    "tq2_0": GGMLType.TQ2_0,
    "tq1_0": GGMLType.TQ1_0,
    "q8_0": GGMLType.Q8_0,
    "q4_0": GGMLType.Q4_0,
}
_FLOATS = {"F32": GGMLType.F32, "F16": GGMLType.F16, "BF16": GGMLType.BF16}
TERNARY = (GGMLType.TQ2_0, GGMLType.TQ1_0)
# How far a type's weights may be from what they were, as a share of the block's largest: half a
# step of 1/127; half a step of 1/8, and a whole one at the end that has no code of its own; and in
# all of them the rounding of the block's scale to float16.
_HALF_ROUNDING = 2.0**-11
_ERRORS = {
    GGMLType.Q8_0: 0.5 / 127 + 2 * _HALF_ROUNDING,
    GGMLType.Q4_0: 1 / 8 + 2 * _HALF_ROUNDING,
    GGMLType.TQ2_0: _HALF_ROUNDING,
    GGMLType.TQ1_0: _HALF_ROUNDING,
}
# Below the smallest normal float16, rounding is to this step whatever the value.
_SMALLEST_STEP = 2.0**-24


class StoredType(NamedTuple):
    """A GGUF type, and why it is not the one asked for where it is not."""

    type: GGMLType
    note: str | None = None


def choose_type(tensor: SourceTensor, wanted: GGMLType, *, is_embedding: bool) -> StoredType:
    """Return what to store a tensor in.

    Norms stay float32, which llama.cpp demands. Embedding and head keep their type beside ternary
    weights, and are Q8_0 beside Q4_0: at 4 bits the head costs more quality than all other matrices
    together.
    """
    if len(tensor.shape) == 1:
        return StoredType(GGMLType.F32)
    if is_embedding and wanted in TERNARY:
        return StoredType(_FLOATS[tensor.dtype])
    if is_embedding and wanted is GGMLType.Q4_0:
        wanted = GGMLType.Q8_0
    block = GGML_QUANT_SIZES[wanted][0]
    if tensor.shape[-1] % block:
        note = f"rows of {tensor.shape[-1]} are not whole blocks of {block}"
        return StoredType(GGMLType.F16, note)
    return StoredType(wanted)


def ternary_blocks(kind: GGMLType, values: F32Array) -> NDArray[np.uint8] | None:
    """Return the blocks of ternary rows in Q8_0 or Q4_0, None for other types.

    The scale is the row's own and codes are -1, 0 and 1, which loses nothing that float16 holds.
    What encodes any weights makes the largest take the last code, whose step it then rounds.
    """
    if kind not in (GGMLType.Q8_0, GGMLType.Q4_0):
        return None
    blocks = np.sign(values).astype(np.int8).reshape(len(values), -1, 32)
    with np.errstate(over="ignore"):  # found by the check
        scales = np.abs(values).max(axis=1).astype("<f2")
    data = np.empty((*blocks.shape[:2], GGML_QUANT_SIZES[kind][1]), np.uint8)
    data[..., :2] = scales.view(np.uint8).reshape(-1, 1, 2)
    if kind is GGMLType.Q8_0:
        data[..., 2:] = blocks.view(np.uint8)
    else:
        codes = (blocks + np.int8(8)).view(np.uint8)
        data[..., 2:] = codes[..., :16] | codes[..., 16:] << np.uint8(4)
    return data


def check_values(kind: GGMLType, before: F32Array, after: F32Array) -> None:
    """Raise unless the weights of some rows are what storing them in a type allows.

    Args:
        kind: the type they were stored in.
        before: float32 [n, K].
        after: the same as read back.

    Raises:
        QuantizationError: the type cannot hold the weights.
    """
    if not np.isfinite(after).all():
        raise QuantizationError(f"{kind.name} cannot hold {np.abs(before).max():g}")
    if kind in TERNARY and not np.array_equal(np.sign(after), np.sign(before)):
        raise QuantizationError(f"{kind.name} cannot hold the scale {np.abs(before).max():g}")
    block = GGML_QUANT_SIZES[kind][0]
    if kind in _ERRORS:
        largest = np.abs(before.reshape(-1, block)).max(axis=1, keepdims=True)
        allowed = _ERRORS[kind] * largest + block * _SMALLEST_STEP
        sound = np.abs((after - before).reshape(-1, block)) <= allowed
    else:
        sound = after == _rounded(kind, before)
    if not sound.all():
        raise QuantizationError(f"what was written as {kind.name} reads back as other weights")


def _rounded(kind: GGMLType, values: F32Array) -> F32Array:
    if kind is GGMLType.F16:
        return values.astype(np.float16).astype(np.float32)
    return values  # float32, or bfloat16 as it was
