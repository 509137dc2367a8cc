from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from arrays import FORMATS, SIZES, at_fence, misaligned, narrow, on_cache_lines, widen
from hypothesis import given
from hypothesis import strategies as st
from reference import ops

from ryzanstein import QuantizationError, ValidationError
from ryzanstein._core import TernaryMatrix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ryzanstein._core import F32Array, I8Array, TernaryFormat

PACKINGS: list[TernaryFormat] = ["two_bit", "five_trit"]
COLUMNS = [*SIZES[:16], 19, 20, 21, 39, 40, 41, 79, 80, 81, 2560]


def random_codes(rows: int, columns: int, seed: int = 1) -> I8Array:
    return np.random.default_rng(seed).integers(-1, 2, (rows, columns)).astype(np.int8)


def ones(count: int) -> F32Array:
    return np.ones(count, np.float32)


def exact_ternary(weights: NDArray[Any]) -> tuple[I8Array, np.float32]:
    """Return the contract's codes and scale: a mean in float64, the rest in float32."""
    values = widen(weights)
    rows = [np.add.accumulate(np.abs(row), dtype=np.float64)[-1] for row in values]
    mean = np.float32(np.add.accumulate(rows)[-1] / values.size)
    scale = np.maximum(mean, np.float32(1e-5))
    return np.clip(np.rint(values * (np.float32(1) / scale)), -1, 1).astype(np.int8), scale


@pytest.mark.parametrize("kind", PACKINGS)
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("rows", [1, 3, 17, 65])
def test_codes_come_back(rows: int, columns: int, kind: TernaryFormat) -> None:
    codes = random_codes(rows, columns)
    scales = np.random.default_rng(2).uniform(-1, 1, rows).astype(np.float32)
    matrix = TernaryMatrix(rows, columns, kind)
    matrix.pack_codes(0, misaligned(codes), misaligned(scales))
    assert (matrix.out_features, matrix.in_features, matrix.format) == (rows, columns, kind)
    np.testing.assert_array_equal(matrix.codes(), codes)
    np.testing.assert_array_equal(matrix.row_scales(), scales)


@pytest.mark.parametrize("kind", PACKINGS)
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("quarter", [1, 3, 16, 17])
def test_hugging_face_rows_are_a_quarter_apart(
    quarter: int, columns: int, kind: TernaryFormat
) -> None:
    codes = random_codes(4 * quarter, columns)
    packed = np.zeros((quarter, columns), np.uint8)
    for row in range(4 * quarter):
        part, r = divmod(row, quarter)
        packed[r] |= (codes[row] + 1).astype(np.uint8) << np.uint8(2 * part)
    np.testing.assert_array_equal(packed, ops.pack_hf(codes))

    matrix = TernaryMatrix(4 * quarter, columns, kind)
    matrix.pack_hf(0, at_fence(packed), 0.25)
    np.testing.assert_array_equal(matrix.codes(), codes)
    np.testing.assert_array_equal(matrix.row_scales(), np.full(4 * quarter, 0.25))


@pytest.mark.parametrize("kind", PACKINGS)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_masters_are_ternarised(columns: int, name: str, kind: TernaryFormat) -> None:
    values = np.random.default_rng(columns).standard_normal((9, columns)) * 0.03
    weights = misaligned(narrow(values, name))
    matrix = TernaryMatrix(9, columns, kind)
    scale = matrix.pack_master(0, weights)
    expected, expected_scale = exact_ternary(weights)
    assert np.float32(scale) == expected_scale
    np.testing.assert_array_equal(matrix.codes(), expected)
    np.testing.assert_array_equal(matrix.row_scales(), np.full(9, expected_scale))
    assert scale == pytest.approx(ops.ternarize(widen(weights))[1], rel=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_ties_stay_zero(name: str) -> None:
    # Their mean magnitude is 1, so the scale does not move the ties.
    row = np.array([0.5, -0.5, 1.5, -1.5, 0.5, -0.5, 1.5, -1.5])
    step = {"f32": 2.0**-20, "f16": 2.0**-10, "bf16": 2.0**-7}[name]
    rows = np.stack([row, row + np.sign(row) * step, row - np.sign(row) * step])
    matrix = TernaryMatrix(3, 8)
    assert matrix.pack_master(0, narrow(rows, name)) == 1.0
    assert matrix.codes().tolist() == [
        [0, 0, 1, -1, 0, 0, 1, -1],
        [1, -1, 1, -1, 1, -1, 1, -1],
        [0, 0, 1, -1, 0, 0, 1, -1],
    ]


def test_masters_of_nothing_but_zeros() -> None:
    matrix = TernaryMatrix(2, 5)
    scale = matrix.pack_master(0, np.zeros((2, 5), np.float32))
    assert scale == np.float32(1e-5)
    assert not matrix.codes().any()


@given(st.data())
def test_rows_may_come_in_any_pieces(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 100))
    codes = random_codes(rows, columns, data.draw(st.integers(0, 99)))
    scales = np.arange(rows, dtype=np.float32)
    bounds = sorted({0, rows, *data.draw(st.lists(st.integers(0, rows), max_size=5))})
    pieces = list(pairwise(bounds))
    matrix = TernaryMatrix(rows, columns, data.draw(st.sampled_from(PACKINGS)))
    for begin, end in data.draw(st.permutations(pieces)):
        part = codes[begin:end]
        if (end - begin) % 4 == 0 and data.draw(st.booleans()):
            matrix.pack_hf(begin, ops.pack_hf(part), float(begin))
            scales[begin:end] = begin
        else:
            matrix.pack_codes(begin, part, scales[begin:end])
    np.testing.assert_array_equal(matrix.codes(), codes)
    np.testing.assert_array_equal(matrix.row_scales(), scales)


@given(st.data())
def test_master_rows_err_by_less_than_half_a_step(data: st.DataObject) -> None:
    shape = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 60))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    magnitude = 10.0 ** data.draw(st.integers(-4, 30))
    values = rng.standard_normal(shape) * magnitude
    weights = narrow(values, data.draw(st.sampled_from(["f32", "bf16"])))
    begin = data.draw(st.integers(0, 5))
    matrix = TernaryMatrix(shape[0] + begin, shape[1], data.draw(st.sampled_from(PACKINGS)))
    scale = matrix.pack_master(begin, weights)
    codes = matrix.codes()[begin:]
    values = widen(weights).astype(np.float64)
    inside = np.abs(values) <= 1.5 * scale
    assert np.all(np.abs(values - scale * codes)[inside] <= 0.5 * scale * (1 + 1e-6))
    np.testing.assert_array_equal(codes[~inside], np.sign(values[~inside]))


@pytest.mark.parametrize("kind", PACKINGS)
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 36), (4, 18), (1, 35)])
def test_code_three_is_located(row: int, column: int, part: int, kind: TernaryFormat) -> None:
    packed = ops.pack_hf(random_codes(20, 37))
    packed[row, column] |= 3 << (2 * part)
    matrix = TernaryMatrix(24, 37, kind)
    place = f"code 3 at row {4 + part * 5 + row}, column {column}:"
    with pytest.raises(QuantizationError, match=place):
        matrix.pack_hf(4, packed, 1.0)


@pytest.mark.parametrize("value", [-128, -2, 2, 3, 127])
def test_values_that_are_not_ternary_are_located(value: int) -> None:
    codes = random_codes(5, 37)
    codes[3, 20] = value
    matrix = TernaryMatrix(7, 37)
    with pytest.raises(QuantizationError, match=rf"value {value} at row 5, column 20"):
        matrix.pack_codes(2, codes, ones(5))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_masters_that_are_not_finite_are_located(value: float, name: str) -> None:
    weights = np.ones((5, 37))
    weights[3, 20] = value
    matrix = TernaryMatrix(7, 37)
    with pytest.raises(QuantizationError, match=r"row 5 holds a NaN or an infinity"):
        matrix.pack_master(2, narrow(weights, name))


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf])
def test_scales_must_be_finite(scale: float) -> None:
    matrix = TernaryMatrix(4, 8)
    with pytest.raises(QuantizationError, match=r"weight scale is .*, expected a finite number"):
        matrix.pack_hf(0, ops.pack_hf(random_codes(4, 8)), scale)
    scales = ones(4)
    scales[2] = scale
    with pytest.raises(QuantizationError, match=r"weight scale is .*, expected a finite number"):
        matrix.pack_codes(0, random_codes(4, 8), scales)


@pytest.mark.parametrize(("begin", "rows"), [(0, 12), (5, 4), (8, 4), (9, 4), (1 << 62, 4)])
def test_rows_must_fit(begin: int, rows: int) -> None:
    matrix = TernaryMatrix(8, 5)
    codes = random_codes(rows, 5)
    message = rf"rows {begin}\.\.\+{rows} do not fit a matrix of 8 rows"
    with pytest.raises(ValidationError, match=message):
        matrix.pack_codes(begin, codes, ones(rows))
    with pytest.raises(ValidationError, match=message):
        matrix.pack_hf(begin, ops.pack_hf(codes), 1.0)
    with pytest.raises(ValidationError, match=message):
        matrix.pack_master(begin, codes.astype(np.float32))


def test_columns_must_match() -> None:
    matrix = TernaryMatrix(8, 5)
    message = r"has shape \[4, 6\], expected 5 columns"
    with pytest.raises(ValidationError, match=message):
        matrix.pack_codes(0, random_codes(4, 6), ones(4))
    with pytest.raises(ValidationError, match=message):
        matrix.pack_hf(0, np.zeros((4, 6), np.uint8), 1.0)
    with pytest.raises(ValidationError, match=message):
        matrix.pack_master(0, np.zeros((4, 6), np.float32))


def test_one_scale_for_each_row() -> None:
    with pytest.raises(ValidationError, match="differ in their number of rows"):
        TernaryMatrix(8, 5).pack_codes(0, random_codes(4, 5), ones(3))


def test_two_dimensions() -> None:
    matrix = TernaryMatrix(8, 5)
    flat: Any = np.zeros(5, np.float32)
    with pytest.raises(ValidationError, match=r"weights has shape \[5\], expected 2 dimensions"):
        matrix.pack_master(0, flat)
    with pytest.raises(ValidationError, match=r"codes has shape \[5\], expected 2 dimensions"):
        matrix.pack_codes(0, flat.astype(np.int8), ones(1))


@pytest.mark.parametrize("kind", PACKINGS)
def test_stored_arrays_are_the_same_matrix(kind: TernaryFormat) -> None:
    matrix = TernaryMatrix(67, 45, kind)
    scales = np.random.default_rng(2).uniform(-1, 1, 67).astype(np.float32)
    matrix.pack_codes(0, random_codes(67, 45), scales)
    arrays = {name: on_cache_lines(array) for name, array in matrix.arrays().items()}
    again = TernaryMatrix(67, 45, kind, arrays)
    assert again.nbytes == matrix.nbytes
    np.testing.assert_array_equal(again.codes(), random_codes(67, 45))
    np.testing.assert_array_equal(again.row_scales(), scales)
    with pytest.raises(ValidationError, match="a matrix of stored arrays is only read"):
        again.pack_codes(0, random_codes(4, 45), ones(4))


def test_stored_arrays_of_another_matrix_are_refused() -> None:
    arrays = {name: on_cache_lines(array) for name, array in TernaryMatrix(8, 5).arrays().items()}
    packed = arrays["packed"]
    shifted = on_cache_lines(np.zeros(packed.size + 1, np.uint8))[1:]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "array 'packed' has 0 bytes, expected 256"),
        (arrays | {"packed": packed[:64]}, "array 'packed' has 64 bytes, expected 256"),
        (arrays | {"more": packed}, "3 arrays are stored, 2 are known"),
        (arrays | {"packed": shifted}, "must be aligned to 64 bytes"),
    ]
    for stored, message in wrong:
        with pytest.raises(ValidationError, match=message):
            TernaryMatrix(8, 5, arrays=stored)
    with pytest.raises(TypeError):
        TernaryMatrix(8, 5, arrays=arrays | {"packed": packed.view(np.int8)})
    with pytest.raises(TypeError):
        TernaryMatrix(8, 5, arrays=arrays | {"packed": np.zeros(512, np.uint8)[::2]})


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_empty_shapes_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValidationError, match=r"shape \[\d, \d\] must be within 1"):
        TernaryMatrix(*shape)


def test_unknown_formats_are_refused() -> None:
    kind: Any = "three_bit"
    with pytest.raises(ValidationError, match="'three_bit' is not one of: two_bit, five_trit"):
        TernaryMatrix(4, 4, kind)
