from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from arrays import FORMATS, at_fence, misaligned, narrow, on_cache_lines, widen
from hypothesis import given
from hypothesis import strategies as st
from reference import grouped as oracle

from ryzanstein import QuantizationError, ValidationError
from ryzanstein._core import GroupedMatrix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ryzanstein._core import F32Array

    U8Array = NDArray[np.uint8]

BITS = [1, 2, 3, 4, 8]
GROUPS = [16, 32, 64, 128]
COLUMNS = [1, 15, 16, 17, 31, 32, 33, 64, 65, 127, 128, 129, 300]


def random_parts(
    rows: int, columns: int, bits: int, group: int, seed: int = 1
) -> tuple[U8Array, F32Array, F32Array]:
    """Return codes, and scales and minima that float16 holds exactly."""
    rng = np.random.default_rng(seed)
    shape = (rows, -(-columns // group))
    codes: U8Array = rng.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    scales = rng.uniform(-2, 2, shape).astype(np.float16).astype(np.float32)
    minima = rng.standard_normal(shape).astype(np.float16).astype(np.float32)
    return codes, scales, minima


@pytest.mark.parametrize("has_minimum", [False, True])
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", BITS)
def test_parts_come_back(bits: int, group: int, columns: int, has_minimum: bool) -> None:
    codes, scales, minima = random_parts(67, columns, bits, group)
    given_minima = misaligned(minima) if has_minimum else None
    matrix = GroupedMatrix(67, columns, bits, group, "f16", has_minimum)
    matrix.pack_codes(0, at_fence(codes), misaligned(scales), given_minima)
    found_codes, found_scales, found_minima = matrix.unpack()
    np.testing.assert_array_equal(found_codes, codes)
    np.testing.assert_array_equal(found_scales, scales)
    if has_minimum:
        np.testing.assert_array_equal(found_minima, minima)
    else:
        assert found_minima is None
    # A code of 8 bits times a scale of 11, plus a minimum: one rounding of either.
    wide = oracle.dequantize(codes, scales, given_minima, bits, group)
    np.testing.assert_allclose(matrix.dequantize(), wide, rtol=1e-6, atol=1e-4)


def test_rows_are_dequantised_in_parts() -> None:
    codes, scales, _ = random_parts(67, 40, 4, 32)
    matrix = GroupedMatrix(67, 40, 4)
    matrix.pack_codes(0, codes, scales)
    np.testing.assert_array_equal(matrix.dequantize(60, 66), matrix.dequantize()[60:66])
    with pytest.raises(ValidationError, match=r"rows 60\.\.68 are not within a matrix of 67 rows"):
        matrix.dequantize(60, 68)


def test_float32_scales_hold_products() -> None:
    codes, scales, minima = random_parts(5, 64, 4, 32)
    products = scales * np.float32(63)
    assert np.any(products.astype(np.float16) != products)
    matrix = GroupedMatrix(5, 64, 4, 32, "f32", has_minimum=True)
    matrix.pack_codes(0, codes, products, minima * np.float32(61))
    np.testing.assert_array_equal(matrix.unpack()[1], products)
    np.testing.assert_array_equal(matrix.unpack()[2], minima * np.float32(61))


@given(st.data())
def test_rows_may_come_in_any_pieces(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 100))
    bits = data.draw(st.sampled_from(BITS))
    codes, scales, _ = random_parts(rows, columns, bits, 32, data.draw(st.integers(0, 99)))
    bounds = sorted({0, rows, *data.draw(st.lists(st.integers(0, rows), max_size=5))})
    matrix = GroupedMatrix(rows, columns, bits)
    for begin, end in data.draw(st.permutations(list(pairwise(bounds)))):
        matrix.pack_codes(begin, codes[begin:end], scales[begin:end])
    np.testing.assert_array_equal(matrix.unpack()[0], codes)
    np.testing.assert_array_equal(matrix.unpack()[1], scales)


# Root mean square error relative to the weights', Gaussian, groups of 32: a percent above measured.
# Q4_0's and Q8_0's own rules give 0.086 and 0.0053.
ERRORS = {1: 0.73, 2: 0.342, 3: 0.168, 4: 0.0840, 8: 0.0053}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bits", BITS)
def test_floats_are_rounded_well(bits: int, name: str) -> None:
    weights = narrow(np.random.default_rng(3).standard_normal((200, 320)) * 0.03, name)
    matrix = GroupedMatrix(200, 320, bits)
    matrix.pack_float(0, misaligned(weights))
    values = widen(weights).astype(np.float64)
    error = np.linalg.norm(matrix.dequantize() - values) / np.linalg.norm(values)
    assert error < ERRORS[bits]


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", BITS)
def test_every_float_takes_the_nearest_code(bits: int, group: int, columns: int) -> None:
    weights = np.random.default_rng(columns).standard_normal((9, columns)).astype(np.float32)
    matrix = GroupedMatrix(9, columns, bits, group)
    matrix.pack_float(0, at_fence(weights))
    codes, scales, _ = matrix.unpack()
    steps = weights / np.repeat(scales.astype(np.float64), group, axis=1)[:, :columns]
    zero = oracle.zero_point(bits)
    nearest = np.clip(steps, -zero, (1 << bits) - 1 - zero)
    np.testing.assert_allclose(codes.astype(np.float64) - zero, nearest, rtol=0, atol=0.5001)


@pytest.mark.parametrize("bits", BITS)
def test_what_a_format_can_hold_is_held(bits: int) -> None:
    codes, scales, _ = random_parts(64, 256, bits, 32)
    codes[:, ::32] = (1 << bits) - 1 if bits == 2 else 0  # the code farthest from zero
    exact = GroupedMatrix(64, 256, bits)
    exact.pack_codes(0, codes, scales)
    again = GroupedMatrix(64, 256, bits)
    again.pack_float(0, exact.dequantize())
    np.testing.assert_array_equal(again.dequantize(), exact.dequantize())


def test_zeros_are_zeros() -> None:
    matrix = GroupedMatrix(3, 70, 4)
    matrix.pack_float(0, np.zeros((3, 70), np.float32))
    assert not matrix.dequantize().any()
    matrix.pack_float(0, np.full((3, 70), 1e-40, np.float32))
    assert not matrix.dequantize().any()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_that_are_not_finite_are_located(value: float, name: str) -> None:
    weights = np.ones((5, 37))
    weights[3, 20] = value
    matrix = GroupedMatrix(7, 37, 4)
    with pytest.raises(QuantizationError, match=r"row 5 holds a NaN or an infinity"):
        matrix.pack_float(2, narrow(weights, name))


def test_floats_beyond_a_float16_scale_are_located() -> None:
    weights = np.ones((5, 70), np.float32)
    weights[3, 40] = 1e6
    message = r"weights at row 5, column 32 are too large for a float16 scale"
    with pytest.raises(QuantizationError, match=message):
        GroupedMatrix(7, 70, 4).pack_float(2, weights)
    GroupedMatrix(7, 70, 4, scale_dtype="f32").pack_float(2, weights)


def test_codes_out_of_range_are_located() -> None:
    codes, scales, _ = random_parts(5, 37, 2, 32)
    codes[3, 20] = 4
    with pytest.raises(QuantizationError, match="code 4 at row 5, column 20 does not fit 2 bits"):
        GroupedMatrix(7, 37, 2).pack_codes(2, codes, scales)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5, 1 + 2.0**-11])
def test_scales_must_fit_their_type(value: float) -> None:
    codes, scales, minima = random_parts(5, 37, 4, 16)
    for place in (scales, minima):
        spoilt = place.copy()
        spoilt[3, 1] = value
        parts = (spoilt, minima) if place is scales else (scales, spoilt)
        with pytest.raises(QuantizationError, match="at row 5, column 16 is not a finite float16"):
            GroupedMatrix(7, 37, 4, 16, has_minimum=True).pack_codes(2, codes, *parts)


@pytest.mark.parametrize(("begin", "rows"), [(0, 9), (5, 4), (8, 4), (9, 4), (1 << 62, 4)])
def test_rows_must_fit(begin: int, rows: int) -> None:
    matrix = GroupedMatrix(8, 5, 4)
    codes, scales, _ = random_parts(rows, 5, 4, 32)
    message = rf"rows {begin}\.\.\+{rows} do not fit a matrix of 8 rows"
    with pytest.raises(ValidationError, match=message):
        matrix.pack_codes(begin, codes, scales)
    with pytest.raises(ValidationError, match=message):
        matrix.pack_float(begin, codes.astype(np.float32))


def test_shapes_must_match() -> None:
    matrix = GroupedMatrix(8, 40, 4)
    codes, scales, minima = random_parts(8, 40, 4, 32)
    with pytest.raises(ValidationError, match=r"codes has shape \[8, 39\], expected \[8, 40\]"):
        matrix.pack_codes(0, np.ascontiguousarray(codes[:, :39]), scales)
    with pytest.raises(ValidationError, match=r"scales has shape \[7, 2\], expected \[8, 2\]"):
        matrix.pack_codes(0, codes, scales[:7])
    with pytest.raises(ValidationError, match="this matrix takes no minima"):
        matrix.pack_codes(0, codes, scales, minima)
    with pytest.raises(ValidationError, match=r"weights has shape \[8, 39\], expected \[8, 40\]"):
        matrix.pack_float(0, np.zeros((8, 39), np.float32))
    with_minima = GroupedMatrix(8, 40, 4, has_minimum=True)
    with pytest.raises(ValidationError, match="this matrix needs minima"):
        with_minima.pack_codes(0, codes, scales)
    with pytest.raises(ValidationError, match="takes codes only"):
        with_minima.pack_float(0, np.zeros((8, 40), np.float32))


@pytest.mark.parametrize("bits", BITS)
def test_stored_arrays_are_the_same_matrix(bits: int) -> None:
    codes, scales, minima = random_parts(67, 145, bits, 64)
    matrix = GroupedMatrix(67, 145, bits, 64, has_minimum=True)
    matrix.pack_codes(0, codes, scales, minima)
    arrays = {name: on_cache_lines(array) for name, array in matrix.arrays().items()}
    again = GroupedMatrix(67, 145, bits, 64, has_minimum=True, arrays=arrays)
    assert again.nbytes == matrix.nbytes
    np.testing.assert_array_equal(again.dequantize(), matrix.dequantize())
    with pytest.raises(ValidationError, match="a matrix of stored arrays is only read"):
        again.pack_codes(0, codes, scales, minima)
    with pytest.raises(ValidationError, match=r"array 'packed' has \d+ bytes, expected"):
        GroupedMatrix(67, 145, bits, 32, arrays=arrays)


def test_bytes_per_weight() -> None:
    assert GroupedMatrix(64, 128, 4).nbytes == 64 * 128 * 9 // 16  # as Q4_0
    assert GroupedMatrix(64, 128, 8).nbytes == 64 * 128 * 17 // 16  # as Q8_0
    assert GroupedMatrix(64, 128, 2, 128).nbytes == 64 * 34


def test_unknown_formats_are_refused() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"bits": 5}, "bits is 5, expected 1, 2, 3, 4 or 8"),
        ({"bits": 4, "group": 48}, "group is 48, expected 16, 32, 64 or 128"),
        ({"bits": 4, "scale_dtype": "bf16"}, "scale_dtype 'bf16' is not one of: f16, f32"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValidationError, match=message):
            GroupedMatrix(4, 4, **arguments)
    for shape in ((0, 5), (5, 0), (1, 1 << 24)):
        with pytest.raises(ValidationError, match=r"shape \[\d+, \d+\] must be within 1"):
            GroupedMatrix(*shape, bits=4)
