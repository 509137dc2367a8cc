"""Products over selected channels: the same bits as the whole product over what is not zero."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from arrays import guarded

from ryzanstein import ValidationError
from ryzanstein._core import TernaryMatrix, TernaryRows
from ryzanstein._core import ops as kernels

if TYPE_CHECKING:
    from ryzanstein._core import F32Array, I8Array, I32Array, TernaryFormat

UNIT = 320
# One unit and its edges, several, and more columns than one chunk of the column kernel.
WIDTHS = [1, 63, 64, 319, 320, 321, 700]
SCALE = 0.37


class Problem:
    """Random weights [N, K] and their packed forms."""

    def __init__(self, rows: int, columns: int, kind: TernaryFormat = "five_trit") -> None:
        self.rng = np.random.default_rng(rows * 1000 + columns)
        self.codes: I8Array = self.rng.integers(-1, 2, (rows, columns)).astype(np.int8)
        self.row_scale: F32Array = self.rng.uniform(1e-3, 2, rows).astype(np.float32)
        self.matrix = TernaryMatrix(rows, columns, kind)
        self.matrix.pack_codes(0, self.codes, self.row_scale)

    def product(self, q: I8Array) -> F32Array:
        """Return the contract's bits."""
        sums = self.codes.astype(np.int64) @ q.astype(np.int64)
        return sums.astype(np.float32) * (self.row_scale * np.float32(SCALE))


def padded(values: I8Array, multiple: int) -> I8Array:
    out = np.zeros(-(-len(values) // multiple) * multiple, np.int8)
    out[: len(values)] = values
    return out


def random_subset(rng: np.random.Generator, size: int, count: int) -> I32Array:
    return np.sort(rng.choice(size, count, replace=False)).astype(np.int32)


@pytest.mark.parametrize("width", WIDTHS)
def test_selected_rows_are_the_rows_of_the_whole_product(width: int, isa: str) -> None:
    problem = Problem(70, width)
    rows = TernaryRows.of_rows(problem.matrix, 5, 70)
    assert (rows.rows, rows.columns) == (65, width)
    q = problem.rng.integers(-127, 128, width).astype(np.int8)
    whole = problem.product(q)[5:]
    for count in (0, 1, 2, 3, 4, 5, 13, 65):
        selected = random_subset(problem.rng, 65, count)
        out = guarded((65,))
        out.array[:] = -7.0
        kernels.selected_rows(
            isa,
            rows,
            problem.row_scale[5:].copy(),
            selected,
            padded(q, UNIT),
            SCALE,
            int(q.sum(dtype=np.int32)),
            out.array,
        )
        out.check()
        expected = np.full(65, -7.0, np.float32)
        expected[selected] = whole[selected]
        assert out.array.tobytes() == expected.tobytes()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("nonzero", [0, 1, 3, 4, 64, 65, 200])
def test_selected_columns_give_the_whole_product(width: int, nonzero: int, isa: str) -> None:
    problem = Problem(width, 200)
    columns = TernaryRows.of_columns(problem.matrix)
    assert (columns.rows, columns.columns) == (200, width)
    q = np.zeros(200, np.int8)
    selected = random_subset(problem.rng, 200, nonzero)
    q[selected] = problem.rng.choice([-127, -3, 1, 127], nonzero)
    residual = problem.rng.standard_normal(width).astype(np.float32)
    out = guarded((width,))
    units = -(-width // UNIT)
    for begin, end in ((0, units // 2), (units // 2, units)):
        kernels.selected_columns(
            isa,
            columns,
            problem.row_scale,
            selected,
            q,
            SCALE,
            int(q.sum(dtype=np.int32)),
            begin,
            end,
            residual,
            out.array,
        )
    out.check()
    assert out.array.tobytes() == (residual + problem.product(q)).tobytes()


@pytest.mark.parametrize("kind", ["two_bit", "five_trit"])
def test_rows_and_columns_come_from_either_format(kind: TernaryFormat) -> None:
    problem = Problem(130, 333, kind)
    one = np.zeros(UNIT * 2, np.int8)
    unit_scale = np.ones(333, np.float32)
    for rows, codes in (
        (TernaryRows.of_rows(problem.matrix, 0, 130), problem.codes),
        (TernaryRows.of_columns(problem.matrix), problem.codes.T),
    ):
        everything = np.arange(len(codes), dtype=np.int32)
        for column in (0, 63, 64, codes.shape[1] - 1):
            one[:] = 0
            one[column] = 1
            out = np.empty(len(codes), np.float32)
            q = one[: -(-codes.shape[1] // UNIT) * UNIT].copy()
            kernels.selected_rows(
                "scalar", rows, unit_scale[: len(codes)], everything, q, 1.0, 1, out
            )
            assert np.array_equal(out, codes[:, column])


def test_largest_sums_are_exact(isa: str) -> None:
    size = 4 * UNIT
    matrix = TernaryMatrix(size, size, "five_trit")
    ones = np.ones(size, np.float32)
    matrix.pack_codes(0, np.ones((size, size), np.int8), ones)
    q = np.full(size, -127, np.int8)
    selected = np.arange(size, dtype=np.int32)
    out = np.empty(size, np.float32)
    rows = TernaryRows.of_rows(matrix, 0, size)
    kernels.selected_rows(isa, rows, ones, selected, q, 1.0, -127 * size, out)
    assert np.all(out == -127.0 * size)
    columns = TernaryRows.of_columns(matrix)
    zeros = np.zeros(size, np.float32)
    kernels.selected_columns(isa, columns, ones, selected, q, 1.0, -127 * size, 0, 4, zeros, out)
    assert np.all(out == -127.0 * size)


def test_select_gates_keeps_whatever_relu2_does_not_make_zero(isa: str) -> None:
    rng = np.random.default_rng(3)
    gate = rng.standard_normal(1000).astype(np.float32)
    gate[::7] = 0.0
    gate[3:9] = [np.nan, np.inf, -np.inf, -0.0, 1e-45, -3.4e38]
    for begin, end in ((0, 1000), (3, 20), (5, 5), (990, 999)):
        expected = [i for i in range(begin, end) if not (gate[i] <= 0 and np.isfinite(gate[i]))]
        assert kernels.select_gates(isa, gate, begin, end).tolist() == expected


def test_select_nonzero(isa: str) -> None:
    rng = np.random.default_rng(4)
    q = rng.integers(-1, 2, 320).astype(np.int8)
    q[17] = -128
    assert kernels.select_nonzero(isa, q).tolist() == np.flatnonzero(q).tolist()
    assert kernels.select_nonzero(isa, np.zeros(16, np.int8)).size == 0


def test_rows_outside_the_matrix_are_refused() -> None:
    matrix = Problem(4, 4).matrix
    for begin, end in ((0, 5), (2, 2), (3, 1)):
        with pytest.raises(ValidationError, match="not within a matrix of 4"):
            TernaryRows.of_rows(matrix, begin, end)
