from __future__ import annotations

import numpy as np
import pytest
from arrays import SIZES, at_fence, guarded, misaligned
from reference import ops
from tolerances import roundings

from ryzanstein._core import ops as kernels

HALVES = SIZES[:16]
FACTOR = 1.2


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("heads", [1, 3])
def test_against_the_oracle(half: int, heads: int, isa: str) -> None:
    rng = np.random.default_rng(half)
    x = rng.standard_normal((heads, 2 * half)).astype(np.float32)
    frequencies = 10000.0 ** (-np.arange(half) / half)
    angles = 4095 * frequencies
    cos = misaligned((FACTOR * np.cos(angles)).astype(np.float32))
    sin = misaligned((FACTOR * np.sin(angles)).astype(np.float32), 3)
    out = guarded(x.shape)
    out.array[...] = x
    kernels.rope(isa, out.array, cos, sin)
    out.check()
    (expected,) = ops.rope(x[None], np.array([4095]), frequencies, FACTOR)
    # Two products and a sum, and the rounding of cos and sin, relative to both of a pair.
    low, high = np.abs(np.split(x, 2, axis=1))
    bound = np.tile(FACTOR * (low + high), 2) * roundings(4)
    assert np.all(np.abs(out.array - expected) <= bound)


@pytest.mark.parametrize("half", HALVES)
def test_position_zero_changes_nothing(half: int, isa: str) -> None:
    x = np.random.default_rng(half).standard_normal((2, 2 * half)).astype(np.float32)
    turned = x.copy()
    kernels.rope(isa, turned, np.ones(half, np.float32), np.zeros(half, np.float32))
    assert turned.tobytes() == x.tobytes()


@pytest.mark.parametrize("half", [1, 8, 17])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_pair(half: int, value: float, isa: str) -> None:
    x = np.ones((2, 2 * half), np.float32)
    x[1, half - 1] = value
    kernels.rope(isa, x, np.full(half, 0.6, np.float32), np.full(half, 0.8, np.float32))
    bad = np.zeros(x.shape, bool)
    bad[1, [half - 1, 2 * half - 1]] = True
    np.testing.assert_array_equal(~np.isfinite(x), bad)


@pytest.mark.parametrize("half", HALVES)
def test_rows_do_not_depend_on_each_other(half: int, isa: str) -> None:
    rng = np.random.default_rng(half)
    x = rng.standard_normal((4, 2 * half)).astype(np.float32)
    cos, sin = rng.uniform(-1, 1, (2, half)).astype(np.float32)
    rows = [row[None].copy() for row in x]
    for row in rows:
        kernels.rope(isa, row, cos, sin)
    kernels.rope(isa, x, cos, sin)
    assert x.tobytes() == np.concatenate(rows).tobytes()


@pytest.mark.parametrize("half", HALVES)
def test_reads_nothing_past_its_inputs(half: int, isa: str) -> None:
    ones = at_fence(np.ones(half, np.float32))
    x = at_fence(np.ones((1, 2 * half), np.float32))
    kernels.rope(isa, x, ones, at_fence(np.zeros(half, np.float32)))
    assert np.all(x == 1)
