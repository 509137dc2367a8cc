"""The ops on a row of logits, which give the same bits in every tier."""

from __future__ import annotations

import numpy as np
import pytest
from arrays import SIZES, guarded, misaligned

from ryzanstein._core import ops as kernels


def row(size: int, spread: float = 5.0) -> np.ndarray:
    logits = np.random.default_rng(size).normal(scale=spread, size=size).astype(np.float32)
    logits[size // 3] = -np.inf
    return logits


@pytest.mark.parametrize("blocks", [1, 2, 7])
def test_block_max(isa: str, blocks: int) -> None:
    values = row(blocks * 64)
    out = guarded(blocks)
    assert kernels.block_max(isa, misaligned(values), out.array) is False
    out.check()
    assert np.array_equal(out.array, values.reshape(blocks, 64).max(axis=1))
    for place in (0, 17, blocks * 64 - 1):
        damaged = values.copy()
        damaged[place] = np.nan
        assert kernels.block_max(isa, damaged, out.array) is True
    values[1] = np.inf
    assert kernels.block_max(isa, values, out.array) is False
    assert out.array[0] == np.inf


@pytest.mark.parametrize("size", [*SIZES, 5000])
@pytest.mark.parametrize("inv_temperature", [0.0, 0.3, 1.0, 40.0])
def test_softmax_weights(isa: str, size: int, inv_temperature: float) -> None:
    values = row(size)
    reference = float(np.max(values, initial=-1.0)) - 0.5  # some are above
    out = guarded(size)
    total = kernels.softmax_weights(isa, misaligned(values), reference, inv_temperature, out.array)
    out.check()
    weights = out.array.astype(np.float64)
    depth = np.where(np.isfinite(values), np.minimum(values.astype(np.float64) - reference, 0), 0)
    exact = np.where(np.isfinite(values), np.exp(depth * np.float32(inv_temperature)), 0)
    # Relative in the exponent's rounding too, which grows with its size.
    error = 3e-7 * exact * (1 + np.abs(depth) * inv_temperature) + 2.0**-34
    assert np.all(np.abs(weights - exact) <= error)
    assert np.array_equal(weights * 2.0**34, np.round(weights * 2.0**34))
    assert total == weights.sum()
    scalar = np.empty_like(values)
    kernels.softmax_weights("scalar", values, reference, inv_temperature, scalar)
    assert scalar.tobytes() == out.array.tobytes()


@pytest.mark.parametrize("size", [*SIZES, 5000])
def test_weighted_moments(isa: str, size: int) -> None:
    values = row(size)
    weights = np.random.default_rng(size).random(size).astype(np.float32)
    weights[~np.isfinite(values)] = 0
    got = kernels.weighted_moments(isa, misaligned(values), misaligned(weights), 2.0)
    assert got == kernels.weighted_moments("scalar", values, weights, 2.0)
    distance = np.where(np.isfinite(values), values.astype(np.float64) - 2.0, 0)
    for power, sum_ in enumerate(got, 1):
        terms = weights * distance**power
        assert sum_ == pytest.approx(terms.sum(), abs=4e-7 * np.abs(terms).sum() + 1e-30)


@pytest.mark.parametrize("size", SIZES)
def test_rungs(isa: str, size: int) -> None:
    values = row(size)
    out = guarded(size, np.uint16)
    kernels.rungs(isa, misaligned(values), 4.0, 64.0, 100, out.array)
    out.check()
    depth = (np.float32(4.0) - values) * np.float32(64.0)
    assert np.array_equal(out.array, np.clip(depth, 0, 99).astype(np.uint16))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("first", "last"), [(0, 0), (3, 3), (2, 9), (0, 65535), (40000, 65535)])
def test_rung_members(isa: str, size: int, first: int, last: int) -> None:
    rungs = np.random.default_rng(size).choice([0, 1, 2, 3, 9, 10, 39999, 40000, 65535], size)
    out = guarded(size, np.int32)
    found = kernels.rung_members(isa, misaligned(rungs.astype(np.uint16)), first, last, out.array)
    out.check()
    expected = np.flatnonzero((rungs >= first) & (rungs <= last))
    assert out.array[:found].tolist() == expected.tolist()
