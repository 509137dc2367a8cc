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


def planes(isa: str, weights: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
    """Return what the high plane and both planes give for the logits, then the slack of either."""
    coded = kernels.ScreenMatrix(weights)
    high = np.empty((len(x), len(weights)), np.float32)
    kernels.screen_linear(isa, coded, x, high)
    both = high.copy()
    rows = np.arange(len(weights), dtype=np.int32)
    for state, logits in zip(x, both, strict=True):
        kernels.screen_rest(isa, coded, state[None], rows, logits)
    return [high, both, *kernels.screen_slack(coded, x)]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7])
def test_bounds_hold_the_exact_and_the_computed_logits(
    tokens: int, size: int, name: str, isa: str
) -> None:
    rows = ROWS[size % len(ROWS)]
    weights, x = make(name, rows, tokens, size)
    high, both, high_slack, slack = planes(isa, weights, x)
    computed = np.empty((tokens, rows), np.float32)
    kernels.dense_linear(isa, weights, x, computed)
    exact = x.astype(np.float64) @ widen(weights).astype(np.float64).T
    for logits in (computed, exact):
        assert np.all(np.abs(high - logits) <= high_slack)
        assert np.all(np.abs(both - logits) <= slack)


def test_bounds_are_tight_enough_to_be_of_use(isa: str) -> None:
    """Gaussian rows: in standard deviations of the logits."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((256, 2560)).astype(np.float32)
    x = rng.standard_normal((3, 2560)).astype(np.float32)
    _, _, high_slack, slack = planes(isa, weights, x)
    deviation = np.std(x @ weights.T)
    assert np.max(high_slack / deviation) < 3.0
    assert np.median(high_slack / deviation) < 2.6
    assert np.max(slack / deviation) < 2.0
    assert np.median(slack / deviation) < 1.0


def test_planes_are_as_near_as_their_bits_allow(isa: str) -> None:
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((300, 2560)).astype(np.float32)
    x = rng.standard_normal((5, 2560)).astype(np.float32)
    high, both, _, _ = planes(isa, weights, x)
    exact = x.astype(np.float64) @ weights.T.astype(np.float64)
    assert 0.045 < np.std(high - exact) / np.std(exact) < 0.055
    assert 0.015 < np.std(both - exact) / np.std(exact) < 0.022
