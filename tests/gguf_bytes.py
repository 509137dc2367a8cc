"""GGUF files made with numpy alone, whatever their headers and types say, for tests."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ryzanstein.loaders.gguf_types import TYPES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["BLOCKS", "NUMBERS", "GgufBytes", "RawTensor", "quantize_ternary", "random_tensor"]

# The numbers of the types that these tests write.
NUMBERS = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q8_0": 8,
    "Q4_K": 12,
    "Q5_K": 13,
    "Q6_K": 14,
    "BF16": 30,
    "TQ1_0": 34,
    "TQ2_0": 35,
    "I2_S": 36,
    "Q2_0": 42,
    "IQ1_BN": 134,
    "IQ2_BN": 135,
    "PQ2_0": 142,
}

# Of a block: the offsets of its float16 numbers, and values with which random codes give weights of
# mean zero and magnitude near 1 / 16, one over the root of the columns.
BLOCKS: dict[str, dict[int, float]] = {
    "Q4_0": {0: 0.0135},
    "Q4_1": {0: 0.0135, 2: -7.5 * 0.0135},
    "Q5_0": {0: 0.0068},
    "Q8_0": {0: 0.00085},
    "Q4_K": {0: 0.0003, 2: 7.5 * 0.0003},
    "Q5_K": {0: 0.00015, 2: 15.5 * 0.00015},
    "Q6_K": {208: 0.000046},
    "Q2_0": {0: 0.05},
    "PQ2_0": {0: 0.05},
    "TQ2_0": {64: 0.05},
}


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor as a header describes it, and its bytes."""

    type: int
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class GgufBytes:
    """What a GGUF file holds; `serialize` writes it."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, RawTensor]

    def serialize(self) -> bytes:
        """Return the file's bytes, tensors padded to 32 bytes."""
        out = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(self.tensors), len(self.metadata)))
        for key, value in self.metadata.items():
            out += _string(key) + _value(value)
        offset = 0
        for name, tensor in self.tensors.items():
            out += _string(name) + struct.pack("<I", len(tensor.shape))
            out += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape[::-1])
            out += struct.pack("<IQ", tensor.type, offset)
            offset += len(_padded(tensor.data))
        return _padded(bytes(out)) + b"".join(_padded(t.data) for t in self.tensors.values())


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 32)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    kind, data = _typed(value)
    return struct.pack("<I", kind) + data


def _typed(value: Any) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        return (4, struct.pack("<I", value)) if value >= 0 else (5, struct.pack("<i", value))
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, str):
        return 8, _string(value)
    items = [_typed(item) for item in value]
    kind = items[0][0] if items else 4
    data = b"".join(item for _, item in items)
    return 9, struct.pack("<IQ", kind, len(items)) + data


def quantize_ternary(kind: str, codes: NDArray[Any], scale: float) -> bytes:
    """Return codes [N, K] in {-1, 0, 1} with one scale in a ternary type, from its layout."""
    digits = codes.astype(np.int64).reshape(-1) + 1
    half = np.array([scale], "<f2").tobytes()
    out = bytearray()
    if kind == "I2_S":
        for block in digits.reshape(-1, 4, 32):
            out += bytes((block * [[64], [16], [4], [1]]).sum(0).tolist())
        return bytes(out) + struct.pack("<f28x", scale)
    if kind == "TQ2_0":
        for block in digits.reshape(-1, 2, 4, 32):
            out += bytes((block * [[1], [4], [16], [64]]).sum(1).reshape(-1).tolist()) + half
    elif kind == "TQ1_0":
        for block in digits.reshape(-1, 256):
            out += _base3(block[:160].reshape(5, 32)) + _base3(block[160:240].reshape(5, 16))
            out += _base3(block[240:].reshape(4, 4)) + half
    elif kind in ("Q2_0", "PQ2_0"):
        for block in digits.reshape(-1, 64 if kind == "Q2_0" else 128):
            out += half + bytes((block.reshape(-1, 4) @ [1, 4, 16, 64]).tolist())
    elif kind == "IQ2_BN":
        for row in digits.reshape(len(codes), -1, 4, 16):
            out += struct.pack("<f", scale)
            out += bytes((row * [[1], [4], [16], [64]]).sum(1).reshape(-1).tolist())
    elif kind == "IQ1_BN":
        for row in digits.reshape(len(codes), -1, 4, 16):
            out += half
            for groups in row:
                most = groups[:, :15].reshape(12, 5) @ [1, 3, 9, 27, 81]
                last = groups[:, 15] @ [1, 3, 9, 27]
                out += bytes([-(-256 * int(index) // 243) for index in [*most, last]])
    else:
        raise ValueError(kind)
    return bytes(out)


def _base3(digits: NDArray[Any]) -> bytes:
    """Bytes of TQ1_0: the first of `digits` [5 or 4, m] is the most significant."""
    weights = np.array([81, 27, 9, 3, 1])[: len(digits), None]
    return bytes([-(-256 * int(value) // 243) for value in (digits * weights).sum(0)])


def random_tensor(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> RawTensor:
    """Return random codes, and scales of either sign that vary by a third."""
    size = TYPES[kind].nbytes(shape)
    assert size is not None
    data = rng.integers(0, 256, size, dtype=np.uint8)
    blocks = data.reshape(-1, TYPES[kind].block_bytes)
    factors = rng.uniform(0.8, 1.2, len(blocks)) * rng.choice([-1, 1], len(blocks))
    for offset, value in BLOCKS[kind].items():
        halves = (factors * value).astype("<f2")
        blocks[:, offset : offset + 2] = halves.view(np.uint8).reshape(-1, 2)
    return RawTensor(NUMBERS[kind], shape, data.tobytes())
