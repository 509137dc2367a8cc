from __future__ import annotations

import numpy as np
import pytest
from arrays import FORMATS, SIZES, narrow, widen

from ryzanstein._core import ops as kernels

ROWS = [1, 63, 64, 65, 200]


def make(name: str, rows: int, tokens: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return weights [rows, size] with outliers and activations [tokens, size] with outliers."""
    rng = np.random.default_rng((rows, tokens, size))
    weights = narrow(rng.standard_t(4, (rows, size)), name)
    return weights, rng.standard_t(3, (tokens, size)).astype(np.float32)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7])
def test_bounds_hold_the_exact_and_the_computed_logits(
    tokens: int, size: int, name: str, isa: str
) -> None:
    rows = ROWS[size % len(ROWS)]
    weights, x = make(name, rows, tokens, size)
    lower, upper = kernels.screen_linear(isa, weights, x)
    computed = np.empty((tokens, rows), np.float32)
    kernels.dense_linear(isa, weights, x, computed)
    exact = x.astype(np.float64) @ widen(weights).astype(np.float64).T
    for logits in (computed, exact):
        assert np.all(lower[:, :rows] <= logits)
        assert np.all(logits <= upper[:, :rows])


def test_bounds_are_tight_enough_to_be_of_use(isa: str) -> None:
    """Gaussian rows: about a standard deviation of the logits, where 4 bits would take sixteen."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((256, 2560)).astype(np.float32)
    x = rng.standard_normal((3, 2560)).astype(np.float32)
    lower, upper = kernels.screen_linear(isa, weights, x)
    width = (upper - lower) / np.std(x @ weights.T)
    assert np.median(width) < 1.0
    assert np.max(width) < 1.5


def test_rows_of_zeros_and_hidden_states_of_zeros(isa: str) -> None:
    weights, x = make("f32", 70, 2, 33)
    weights[7] = 0
    x[1] = 0
    lower, upper = kernels.screen_linear(isa, weights, x)
    assert np.all(lower[:, 7] == 0)
    assert np.all(upper[:, 7] == 0)
    assert np.all(lower[1, :70] == 0)
    assert np.all(upper[1, :70] == 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_rules_nothing_out(bad: float, isa: str) -> None:
    weights, x = make("f32", 70, 2, 33)
    x[1, 5] = bad
    lower, upper = kernels.screen_linear(isa, weights, x)
    assert np.isfinite(lower[0, :70]).all()
    assert not (upper[1, :70] < np.inf).any()
    assert not (lower[1, :70] > -np.inf).any()
