from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING, Any

import gguf
import gguf.quants
import numpy as np
import pytest
from gguf_bytes import NUMBERS, quantize_ternary

from ryzanstein.errors import UnsupportedFormatError
from ryzanstein.loaders.gguf_grouped import grouped_format, grouped_rows
from ryzanstein.loaders.gguf_types import TERNARY_TYPES, TYPES, row_scales, types_numbered
from ryzanstein.models.grouped import grouped_matrix

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

FORKS = ["I2_S", "Q2_0", "PQ2_0", "IQ1_BN", "IQ2_BN"]
PACKAGE = sorted(set(TYPES) - set(FORKS))
COLUMNS = 512  # whole blocks of every type
# Where a block has its float16 numbers.
HALVES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q8_0": [0],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "TQ1_0": [52],
    "TQ2_0": [64],
}


def random_bytes(kind: str, rows: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return any bytes at all, but for finite scales."""
    tensor_type = TYPES[kind]
    size = tensor_type.nbytes((rows, COLUMNS))
    assert size is not None
    data = rng.integers(0, 256, size, dtype=np.uint8)
    blocks = data.reshape(-1, tensor_type.block_bytes)
    for offset in HALVES.get(kind, []):
        scales = rng.standard_normal(len(blocks)).astype("<f2")
        scales[:3] = [0.0, -0.0, 6e-8]  # a subnormal
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(-1, 2)
    return data


@pytest.mark.parametrize("kind", PACKAGE)
def test_values_are_those_of_the_gguf_package(kind: str) -> None:
    data = random_bytes(kind, 6, np.random.default_rng(1))
    item = gguf.GGMLQuantizationType[kind]
    expected = gguf.quants.dequantize(data.reshape(6, -1), item)
    found = TYPES[kind].dequantize(data, (6, COLUMNS), 0, 6)
    assert found.dtype == np.float32
    assert found.shape == (6, COLUMNS)
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("kind", PACKAGE)
def test_sizes_are_those_of_the_gguf_package(kind: str) -> None:
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    assert TYPES[kind].nbytes((3, 4, 5 * block)) == 60 * block_bytes
    assert block == 1 or TYPES[kind].nbytes((4, block + 1)) is None


@pytest.mark.parametrize("kind", sorted(set(TYPES) - {"F32", "F16", "BF16"}))
def test_groups_hold_the_values_exactly(kind: str) -> None:
    """More rows than a panel has; K that does not fill the last group where a type allows that."""
    shape = (70, 192 if kind == "I2_S" or TYPES[kind].block <= 64 else COLUMNS)
    rng = np.random.default_rng(3)
    if kind in FORKS:
        codes = rng.integers(-1, 2, shape)
        data = np.frombuffer(quantize_ternary(kind, codes, 0.3), np.uint8)
    else:
        data = random_bytes(kind, 70, rng)[: TYPES[kind].nbytes(shape)]
    expected = TYPES[kind].dequantize(data, shape, 0, 70)
    grouped = grouped_format(TYPES[kind])
    assert grouped is not None
    matrix = grouped_matrix(shape, grouped)
    for begin, end in ((0, 5), (5, 70)):
        matrix.pack_codes(begin, *grouped_rows(TYPES[kind], data, shape, begin, end))
    assert np.array_equal(matrix.dequantize(), expected)


def test_plain_numbers_have_no_groups() -> None:
    assert [grouped_format(TYPES[kind]) for kind in ("F32", "F16", "BF16")] == [None] * 3


def i2_s(data: bytes, n: int, columns: int, index: int) -> tuple[int, float]:
    block, place = divmod(index, 128)
    group, lane = divmod(place, 32)
    scale = struct.unpack_from("<f", data, n // 4)[0]
    return (data[32 * block + lane] >> (6 - 2 * group)) & 3, scale


def q2_0(data: bytes, n: int, columns: int, index: int, block: int = 64) -> tuple[int, float]:
    start, place = (index // block) * (2 + block // 4), index % block
    return (data[start + 2 + place // 4] >> (2 * (place % 4))) & 3, half(data, start)


def pq2_0(data: bytes, n: int, columns: int, index: int) -> tuple[int, float]:
    return q2_0(data, n, columns, index, 128)


def iq2_bn(data: bytes, n: int, columns: int, index: int) -> tuple[int, float]:
    row, place = divmod(index, columns)
    start = row * (4 + columns // 4)
    block, inside = divmod(place, 64)
    level, lane = divmod(inside, 16)
    code = (data[start + 4 + 16 * block + lane] >> (2 * level)) & 3
    return code, struct.unpack_from("<f", data, start)[0]


def iq1_bn(data: bytes, n: int, columns: int, index: int) -> tuple[int, float]:
    row, place = divmod(index, columns)
    start = row * (2 + columns // 64 * 13)
    block, inside = divmod(place, 64)
    group, element = divmod(inside, 16)
    if element == 15:
        byte, digit = 12, group
    else:
        third, digit = divmod(element, 5)
        byte = 3 * group + third
    value = (data[start + 2 + 13 * block + byte] * (81, 27, 9, 3, 1)[digit]) & 255
    return (value + (value >> 1)) >> 7, half(data, start)


def half(data: bytes, offset: int) -> float:
    return float(np.frombuffer(data, "<f2", 1, offset)[0])


LAYOUTS: dict[str, Callable[[bytes, int, int, int], tuple[int, float]]] = {
    "I2_S": i2_s,
    "Q2_0": q2_0,
    "PQ2_0": pq2_0,
    "IQ2_BN": iq2_bn,
    "IQ1_BN": iq1_bn,
}


@pytest.mark.parametrize("kind", FORKS)
@pytest.mark.parametrize("rows", [1, 4])
def test_types_of_forks_follow_their_layouts(kind: str, rows: int) -> None:
    rng = np.random.default_rng(2)
    codes = rng.integers(-1, 2, (rows, COLUMNS))
    data = quantize_ternary(kind, codes, 0.03125)
    n = codes.size
    oracle = [LAYOUTS[kind](data, n, COLUMNS, index) for index in range(n)]
    assert [code - 1 for code, _ in oracle] == codes.reshape(-1).tolist()
    array = np.frombuffer(data, np.uint8)
    assert TYPES[kind].nbytes(codes.shape) == len(data)
    found, scales = TYPES[kind].decode(array, codes.shape, 0, rows)
    assert np.array_equal(found, codes)
    assert found.dtype == np.int8
    assert scales.dtype == np.float32
    values = np.array([(code - 1) * np.float64(scale) for code, scale in oracle])
    dequantised = TYPES[kind].dequantize(array, codes.shape, 0, rows)
    assert np.array_equal(dequantised.reshape(-1), values)


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_codes_and_scales_make_up_the_values(kind: str) -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(-1, 2, (3, COLUMNS))
    data = quantize_ternary(kind, codes, 0.75)
    item = gguf.GGMLQuantizationType[kind]
    assert data == gguf.quants.quantize((codes * 0.75).astype(np.float32), item).tobytes()
    found, scales = TYPES[kind].decode(np.frombuffer(data, np.uint8), codes.shape, 0, 3)
    assert np.array_equal(found, codes)
    assert np.array_equal(scales, np.full((3, 2), 0.75))


@pytest.mark.parametrize("kind", TYPES)
def test_any_range_of_rows_can_be_read_alone(kind: str) -> None:
    rng = np.random.default_rng(4)
    if kind in FORKS:
        codes = rng.integers(-1, 2, (5, COLUMNS))
        data = np.frombuffer(quantize_ternary(kind, codes, 0.5), np.uint8)
    else:
        data = random_bytes(kind, 5, rng)
    shape = (5, COLUMNS)
    whole = TYPES[kind].dequantize(data, shape, 0, 5)
    for begin, end in itertools.combinations(range(6), 2):
        part = TYPES[kind].dequantize(data, shape, begin, end)
        assert part.tobytes() == whole[begin:end].tobytes()


def test_blocks_of_i2_s_run_through_rows() -> None:
    codes = np.random.default_rng(5).integers(-1, 2, (8, 48))  # 8 * 48 = 3 * 128
    data = np.frombuffer(quantize_ternary("I2_S", codes, 2.0), np.uint8)
    assert TYPES["I2_S"].nbytes((8, 48)) == len(data)
    assert TYPES["I2_S"].nbytes((7, 48)) is None
    for begin, end in itertools.combinations(range(9), 2):
        found, scales = TYPES["I2_S"].decode(data, (8, 48), begin, end)
        assert np.array_equal(found, codes[begin:end])
        assert np.array_equal(scales, np.full((end - begin, 1), 2.0))


def test_codes_that_i2_s_never_has() -> None:
    data = np.frombuffer(quantize_ternary("I2_S", np.zeros((2, 128)), 1.0), np.uint8).copy()
    data[40] = 0b01110101
    TYPES["I2_S"].decode(data, (2, 128), 0, 1)
    with pytest.raises(UnsupportedFormatError, match="it holds code 3, which I2_S never has"):
        TYPES["I2_S"].decode(data, (2, 128), 1, 2)


def scales_of(codes: Any, scales: Any) -> list[float] | None:
    found = row_scales(np.array(codes, np.int8), np.array(scales, np.float32))
    return None if found is None else found.tolist()


def test_a_row_has_the_scale_of_its_groups() -> None:
    assert scales_of([[1, 0, 0, -1]], [[0.5, 0.5]]) == [0.5]
    assert scales_of([[1, 0, 0, -1]], [[0.5, 0.25]]) is None
    assert scales_of([[1, 0, 1, 1], [1, 1, 1, -1]], [[0.5, 0.5], [2, 2]]) == [0.5, 2]
    # Quantisers write a scale of zero, or any, beside zeros.
    assert scales_of([[0, 0, 0, -1]], [[0, 3]]) == [3]
    assert scales_of([[1, 0, 0, 0]], [[3, 7]]) == [3]
    assert scales_of([[0, 0, 0, 0]], [[3, 7]]) == [0]
    assert scales_of([[1, 0], [0, 0]], [[3], [7]]) == [3, 7]


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_has_a_number(kind: str) -> None:
    assert TYPES[kind] in types_numbered(NUMBERS[kind], "x")


def test_ternary_types() -> None:
    assert set(TERNARY_TYPES) == {*FORKS, "TQ1_0", "TQ2_0"}


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (37, "I8_S of bitnet.cpp"),
        (38, "TL1 of bitnet.cpp, whose layout depends on a file of its own"),
        (39, "TL2 of bitnet.cpp, whose layout .* or MXFP4"),
        (335, "IQ2_BN_R4 of ik_llama.cpp"),
        (10, "Q2_K"),
        (9999, "unknown"),
    ],
)
def test_types_that_cannot_be_read(number: int, message: str) -> None:
    with pytest.raises(UnsupportedFormatError, match=rf"^x has type {number} \({message}"):
        types_numbered(number, "x")
