from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from arrays import guarded, misaligned
from grouped_matrices import Kind, RandomGrouped, kinds_of
from reference import grouped as oracle
from tolerances import reduction

from ryzanstein import ValidationError
from ryzanstein._core import GroupedMatrix
from ryzanstein._core import ops as kernels

if TYPE_CHECKING:
    from ryzanstein._core import F32Array

KINDS = kinds_of((2, 4, 8))


class Problem:
    """Random weights of one kind and activations with outliers."""

    def __init__(self, kind: Kind, rows: int, columns: int, tokens: int) -> None:
        made = RandomGrouped(kind, rows, columns)
        self.matrix, self.weights, rng = made.matrix, made.weights, made.rng
        self.x = rng.standard_normal((tokens, columns)).astype(np.float32)
        self.x[rng.random(self.x.shape) < 0.02] *= 50

    def run(self, isa: str, tokens: slice = slice(None)) -> F32Array:
        x = misaligned(self.x[tokens])
        out = guarded((len(x), self.matrix.out_features))
        kernels.weight_only_linear(isa, self.matrix, x, out.array)
        out.check()
        return out.array


@pytest.mark.parametrize("columns", [1, 16, 31, 32, 33, 127, 129, 2560])
@pytest.mark.parametrize("kind", KINDS)
def test_against_the_oracle(kind: Kind, columns: int, isa: str) -> None:
    """Weights are exact, as they are not where a minimum is added, but for one rounding."""
    for tokens in (1, 5):
        problem = Problem(kind, 70, columns, tokens)
        x = problem.x.astype(np.float64)
        bound = np.abs(x) @ np.abs(problem.weights).T * reduction(columns + 2)
        if kind[3]:
            bound += np.abs(x).sum(axis=1, keepdims=True) * (2.0 ** (kind[0] - 23) + 2.0**-21)
        assert np.all(np.abs(problem.run(isa) - x @ problem.weights.T) <= bound)


@pytest.mark.parametrize("tokens", [2, 3, 4, 5, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_do_not_depend_on_each_other(kind: Kind, tokens: int, isa: str) -> None:
    problem = Problem(kind, 65, 97, tokens)
    whole = problem.run(isa)
    for t in range(tokens):
        assert problem.run(isa, slice(t, t + 1)).tobytes() == whole[t : t + 1].tobytes()


@pytest.mark.parametrize("rows", [1, 7, 8, 15, 16, 17, 63, 64, 65, 130])
def test_rows_do_not_depend_on_each_other(rows: int, isa: str) -> None:
    whole = Problem((4, 32, "f16", False), 130, 97, 3)
    problem = Problem((4, 32, "f16", False), rows, 97, 3)
    codes, scales, _ = whole.matrix.unpack()
    problem.matrix.pack_codes(0, codes[:rows], scales[:rows])
    problem.x = whole.x
    assert problem.run(isa).tobytes() == whole.run(isa)[:, :rows].tobytes()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_code_decodes(bits: int, isa: str) -> None:
    """Each in every place of a block, found out by one activation at a time."""
    count = 1 << bits
    codes = (np.arange(count)[:, None] + 37 * np.arange(32)) % count
    matrix = GroupedMatrix(count, 32, bits)
    matrix.pack_codes(0, codes.astype(np.uint8), np.ones((count, 1), np.float32))
    out = np.empty((32, count), np.float32)
    kernels.weight_only_linear(isa, matrix, np.eye(32, dtype=np.float32), out)
    np.testing.assert_array_equal(out, codes.T - oracle.zero_point(bits))


def test_codes_of_odd_bits_are_refused(isa: str) -> None:
    x, out = np.ones((1, 32), np.float32), np.empty((1, 3), np.float32)
    for bits in (1, 3):
        with pytest.raises(ValidationError, match="takes codes of 2, 4 or 8 bits"):
            kernels.weight_only_linear(isa, GroupedMatrix(3, 32, bits), x, out)


@pytest.mark.parametrize("tokens", [1, 6])
def test_nan_stays_in_its_token(tokens: int, isa: str) -> None:
    problem = Problem((4, 32, "f16", False), 65, 97, tokens)
    problem.x[tokens - 1, 5] = np.nan
    bad = np.zeros((tokens, 65), bool)
    bad[tokens - 1] = True
    np.testing.assert_array_equal(np.isnan(problem.run(isa)), bad)
