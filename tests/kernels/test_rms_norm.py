from __future__ import annotations

import numpy as np
import pytest
from arrays import SIZES, at_fence, guarded, misaligned
from reference import ops
from tolerances import reduction

from ryzanstein._core import ops as kernels


@pytest.mark.parametrize("size", SIZES)
def test_against_the_oracle(size: int, isa: str) -> None:
    rng = np.random.default_rng(size)
    x = misaligned((rng.standard_normal(size) * 30).astype(np.float32))
    gain = misaligned(rng.uniform(-2, 2, size).astype(np.float32), 3)
    out = guarded(size, offset=2)
    kernels.rms_norm(isa, x, gain, 1e-5, out.array)
    out.check()
    np.testing.assert_allclose(out.array, ops.rms_norm(x, gain, 1e-5), rtol=reduction(size))


@pytest.mark.parametrize("scale", [1e-18, 1e-6, 1e6, 1e15])
def test_magnitudes(scale: float, isa: str) -> None:
    x = (np.random.default_rng(1).standard_normal(97) * scale).astype(np.float32)
    gain = np.ones(97, np.float32)
    out = np.empty(97, np.float32)
    kernels.rms_norm(isa, x, gain, 1e-6, out)
    np.testing.assert_allclose(out, ops.rms_norm(x, gain, 1e-6), rtol=reduction(97))


@pytest.mark.parametrize("size", [1, 16, 33])
def test_zeros_stay_zero(size: int, isa: str) -> None:
    out = np.full(size, 7, np.float32)
    kernels.rms_norm(isa, np.zeros(size, np.float32), np.ones(size, np.float32), 1e-5, out)
    assert not out.any()


@pytest.mark.parametrize("size", SIZES)
def test_in_place(size: int, isa: str) -> None:
    rng = np.random.default_rng(2)
    x, gain = rng.standard_normal((2, size)).astype(np.float32)
    apart = np.empty_like(x)
    kernels.rms_norm(isa, x, gain, 1e-5, apart)
    kernels.rms_norm(isa, x, gain, 1e-5, x)
    assert x.tobytes() == apart.tobytes()


@pytest.mark.parametrize("size", SIZES)
def test_a_residual_is_added_last(size: int, isa: str) -> None:
    x, gain, residual = np.random.default_rng(3).standard_normal((3, size)).astype(np.float32)
    expected = np.empty_like(x)
    kernels.rms_norm(isa, x, gain, 1e-5, expected)
    expected += residual
    out = guarded(size)
    kernels.rms_norm(isa, x, gain, 1e-5, out.array, misaligned(residual))
    out.check()
    assert out.array.tobytes() == expected.tobytes()
    kernels.rms_norm(isa, x, gain, 1e-5, residual, residual)
    assert residual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", SIZES[:16])
def test_nan_reaches_every_output(size: int, isa: str) -> None:
    for place in {0, size // 2, size - 1}:
        x = np.ones(size, np.float32)
        x[place] = np.nan
        out = np.zeros(size, np.float32)
        kernels.rms_norm(isa, x, np.ones(size, np.float32), 1e-5, out)
        assert np.isnan(out).all()


def test_an_infinity_does_not_vanish(isa: str) -> None:
    x = np.ones(33, np.float32)
    x[20] = -np.inf
    out = np.zeros(33, np.float32)
    kernels.rms_norm(isa, x, np.ones(33, np.float32), 1e-5, out)
    assert np.isnan(out[20])


@pytest.mark.parametrize("size", SIZES)
def test_reads_nothing_past_its_inputs(size: int, isa: str) -> None:
    ones = np.ones(size, np.float32)
    out = at_fence(np.zeros(size, np.float32))
    kernels.rms_norm(isa, at_fence(ones), at_fence(ones), 0.0, out)
    np.testing.assert_allclose(out, 1, rtol=reduction(size))
