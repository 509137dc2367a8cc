from __future__ import annotations

import numpy as np
import pytest
from arrays import SIZES, at_fence, guarded
from reference import ops
from tolerances import TANH, roundings

from ryzanstein._core import ops as kernels


def run(isa: str, x: np.ndarray, cap: float) -> np.ndarray:
    place = guarded(x.size)
    place.array[...] = x
    kernels.softcap(isa, place.array, cap)
    place.check()
    return place.array


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cap", [1.0, 30.0, 50.0])
def test_against_the_oracle(cap: float, size: int, isa: str) -> None:
    x = (np.random.default_rng(size).standard_normal(size) * cap).astype(np.float32)
    expected = ops.soft_capped(x.astype(np.float64), cap)
    np.testing.assert_allclose(run(isa, x, cap), expected, rtol=TANH + roundings(3))


def test_the_whole_range(isa: str) -> None:
    """Small numbers keep their digits, large ones end at the cap."""
    x = np.concatenate([np.linspace(-400, 400, 20001), np.logspace(-30, 30, 2001)])
    x = np.concatenate([x, -x]).astype(np.float32)
    expected = ops.soft_capped(x.astype(np.float64), 30.0)
    np.testing.assert_allclose(run(isa, x, 30.0), expected, rtol=TANH + roundings(3))


def test_what_is_not_finite(isa: str) -> None:
    x = np.array([np.inf, -np.inf, np.nan, 0.0, 1.0], np.float32)
    out = run(isa, x, 30.0)
    assert out[:2].tolist() == [30.0, -30.0]
    np.testing.assert_array_equal(np.isnan(out), np.isnan(x))


@pytest.mark.parametrize("size", SIZES)
def test_reads_nothing_past_its_input(size: int, isa: str) -> None:
    x = at_fence(np.ones(size, np.float32))
    kernels.softcap(isa, x, 2.0)
    np.testing.assert_allclose(x, 2 * np.tanh(0.5), rtol=TANH + roundings(3))
