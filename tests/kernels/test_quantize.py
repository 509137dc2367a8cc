from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from arrays import SIZES, at_fence, guarded, misaligned
from reference import ops
from tolerances import TIE

from ryzanstein._core import ops as kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ryzanstein._core import F32Array, I8Array


def quantize(isa: str, x: F32Array, padding: int = 0) -> tuple[I8Array, np.float32, int]:
    """Run the kernel into guarded memory; return codes, scale and sum."""
    padded = -(-x.size // 16) * 16 + padding
    q = guarded(padded, np.int8)
    scale, total = kernels.quantize(isa, x, q.array)
    q.check()
    assert not q.array[x.size :].any()
    return q.array[: x.size], np.float32(scale), total


def exact(x: F32Array) -> tuple[NDArray[np.int64], np.float32]:
    """Return the contract's codes and scale, operation by operation in float32."""
    absmax = np.maximum(np.max(np.abs(x)), np.float32(1e-5))
    codes = np.clip(np.rint(x * (np.float32(127) / absmax)), -128, 127)
    return codes.astype(np.int64), absmax / np.float32(127)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("magnitude", [1e-7, 1.0, 1e30])
def test_bits_of_the_contract(size: int, magnitude: float, isa: str) -> None:
    rng = np.random.default_rng(size)
    x = misaligned((rng.standard_normal(size) * magnitude).astype(np.float32))
    expected, expected_scale = exact(x)
    for padding in (0, 16, 64):
        codes, scale, total = quantize(isa, x, padding)
        np.testing.assert_array_equal(codes, expected)
        assert scale == expected_scale
        assert total == expected.sum()


@pytest.mark.parametrize("size", SIZES)
def test_against_the_oracle(size: int, isa: str) -> None:
    x = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    codes, scale, total = quantize(isa, x)
    (wanted,), (wanted_scale,), _ = ops.quantize_rows(x[None])
    scaled = ops.scaled_activations(x[None])[0]
    near_tie = np.abs(np.abs(scaled - np.floor(scaled)) - 0.5) < TIE
    np.testing.assert_array_equal(codes[~near_tie], wanted[~near_tie])
    np.testing.assert_allclose(codes, scaled, rtol=0, atol=0.5 + TIE)
    assert scale == np.float32(wanted_scale)
    assert total == codes.astype(np.int64).sum()


def test_ties_go_to_even(isa: str) -> None:
    x = np.array([127, 0.5, 1.5, 2.5, 3.5, 126.5, 125.5], np.float32)
    codes, scale, _ = quantize(isa, np.concatenate([x, -x]))
    assert codes[:7].tolist() == [127, 0, 2, 2, 4, 126, 126]
    np.testing.assert_array_equal(codes[7:], -codes[:7])
    assert scale == 1.0


@pytest.mark.parametrize("size", SIZES)
def test_zeros_have_the_smallest_scale(size: int, isa: str) -> None:
    codes, scale, total = quantize(isa, np.zeros(size, np.float32))
    assert not codes.any()
    assert scale == np.float32(1e-5) / np.float32(127)
    assert total == 0


@pytest.mark.parametrize("size", SIZES[:16])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_reaches_the_scale(size: int, value: float, isa: str) -> None:
    for place in {0, size // 2, size - 1}:
        x = np.random.default_rng(1).standard_normal(size).astype(np.float32)
        x[place] = value
        _, scale, _ = quantize(isa, x)
        assert np.isnan(scale) if np.isnan(value) else np.isinf(scale)


def test_the_largest_sum(isa: str) -> None:
    x = np.full(1 << 20, -3.5, np.float32)
    codes, _, total = quantize(isa, x)
    assert np.all(codes == -127)
    assert total == -127 << 20


@pytest.mark.parametrize("size", SIZES)
def test_reads_nothing_past_its_input(size: int, isa: str) -> None:
    q = at_fence(np.zeros(-(-size // 16) * 16, np.int8))
    kernels.quantize(isa, at_fence(np.full(size, 2, np.float32)), q)
    assert np.all(q[:size] == 127)


@pytest.mark.parametrize("size", SIZES)
def test_a_norm_on_the_way_changes_no_bit(size: int, isa: str) -> None:
    rng = np.random.default_rng(size)
    x = misaligned(rng.standard_normal(size).astype(np.float32))
    gain = misaligned(rng.uniform(0.5, 2, size).astype(np.float32), 2)
    normed = np.empty_like(x)
    kernels.rms_norm(isa, x, gain, 1e-5, normed)
    expected = quantize(isa, normed)
    q = guarded(-(-size // 16) * 16, np.int8)
    scale, total = kernels.quantize(isa, x, q.array, gain, 1e-5)
    q.check()
    np.testing.assert_array_equal(q.array[:size], expected[0])
    assert (np.float32(scale), total) == expected[1:]


def test_the_mean_may_count_zeros_that_are_not_there(isa: str) -> None:
    rng = np.random.default_rng(5)
    x, gain = rng.uniform(0.5, 2, (2, 48)).astype(np.float32)
    q = np.empty(48, np.int8)
    scale, _ = kernels.quantize(isa, x, q, gain, 1e-5, 64)
    longer = ops.rms_norm(np.append(x, np.zeros(16)), np.append(gain, np.ones(16)), 1e-5)
    assert scale == pytest.approx(np.max(np.abs(longer)) / 127, rel=1e-6)
