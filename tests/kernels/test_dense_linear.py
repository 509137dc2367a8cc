from __future__ import annotations

import numpy as np
import pytest
from arrays import FORMATS, SIZES, at_fence, guarded, misaligned, narrow, widen
from tolerances import reduction

from ryzanstein._core import ops as kernels


def make(name: str, rows: int, tokens: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return weights [rows, size] and activations [tokens, size]."""
    rng = np.random.default_rng(size)
    weights = narrow(rng.standard_normal((rows, size)), name)
    return misaligned(weights), misaligned(rng.standard_normal((tokens, size)).astype(np.float32))


def run(isa: str, weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    out = guarded((len(x), len(weights)))
    kernels.dense_linear(isa, weights, x, out.array)
    out.check()
    return out.array


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_against_the_oracle(tokens: int, name: str, size: int, isa: str) -> None:
    weights, x = make(name, 11, tokens, size)
    wide = widen(weights).astype(np.float64)
    expected = x.astype(np.float64) @ wide.T
    bound = np.abs(x).astype(np.float64) @ np.abs(wide).T * reduction(size)
    assert np.all(np.abs(run(isa, weights, x) - expected) <= bound)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FORMATS)
def test_tokens_and_rows_do_not_depend_on_each_other(name: str, size: int, isa: str) -> None:
    """The LM head gives a row the same bits for one candidate, a tile, or the whole vocabulary."""
    weights, x = make(name, 9, 7, size)
    whole = run(isa, weights, x)
    for t in range(7):
        assert run(isa, weights, x[t : t + 1]).tobytes() == whole[t : t + 1].tobytes()
    for tokens in range(2, 7):
        assert run(isa, weights, x[:tokens]).tobytes() == whole[:tokens].tobytes()
    for row in range(9):
        one = run(isa, weights[row : row + 1], x)
        assert one.tobytes() == whole[:, row : row + 1].tobytes()
        rest = run(isa, weights[row:], x)
        assert rest.tobytes() == whole[:, row:].tobytes()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [33, 6912])
def test_groups_of_tokens_do_not_show(size: int, name: str, isa: str) -> None:
    """One token, up to 24 and more take three paths, the last in groups of 96."""
    weights, x = make(name, 19, 101, size)
    alone = np.concatenate([run(isa, weights, row[None]) for row in x])
    for tokens in (24, 25, 26, 96, 97, 101):
        assert run(isa, weights, x[:tokens]).tobytes() == alone[:tokens].tobytes()


@pytest.mark.parametrize("size", [5, 33, 2560])
@pytest.mark.parametrize("tokens", [1, 5])
def test_a_residual_is_added_last(tokens: int, size: int, isa: str) -> None:
    weights, x = make("bf16", 9, tokens, size)
    residual = np.random.default_rng(1).standard_normal((tokens, 9)).astype(np.float32)
    expected = run(isa, weights, x) + residual
    out = guarded((tokens, 9))
    kernels.dense_linear(isa, weights, x, out.array, misaligned(residual))
    out.check()
    assert out.array.tobytes() == expected.tobytes()
    kernels.dense_linear(isa, weights, x, residual, residual)
    assert residual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", SIZES[:16])
def test_nan_stays_in_its_token_and_row(size: int, isa: str) -> None:
    weights, x = make("f32", 9, 5, size)
    weights[4, size - 1] = np.nan
    x[2, 0] = np.nan
    bad = np.zeros((5, 9), bool)
    bad[2] = bad[:, 4] = True
    np.testing.assert_array_equal(np.isnan(run(isa, weights, x)), bad)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("tokens", [1, 4])
def test_reads_nothing_past_its_inputs(tokens: int, name: str, size: int, isa: str) -> None:
    weights, x = make(name, 5, tokens, size)
    out = at_fence(np.zeros((tokens, 5), np.float32))
    kernels.dense_linear(isa, at_fence(weights), at_fence(x), out)
    assert out.tobytes() == run(isa, weights, x).tobytes()
