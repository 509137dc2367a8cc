from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from arrays import SIZES, at_fence, guarded, misaligned
from reference import grouped as oracle
from tolerances import TIE

from ryzanstein._core import ops as kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ryzanstein._core import F32Array, I8Array, I32Array


def quantize(
    isa: str, x: F32Array, padding: int = 0, gain: F32Array | None = None
) -> tuple[I8Array, F32Array, I32Array]:
    """Return codes [T, K], scales [T, blocks] and minus sums [T, blocks, 3]; check the padding."""
    tokens, columns = x.shape
    used = -(-columns // 32)
    q = guarded((used + padding) * tokens * 32, np.int8)
    blocks = guarded((used + padding) * tokens * 4, np.int32)
    shape = (used + padding, tokens)
    codes, numbers = q.array.reshape(*shape, 32), blocks.array.reshape(*shape, 4)
    kernels.quantize_blocks(isa, x, codes, numbers, gain)
    q.check()
    blocks.check()
    rows = codes.swapaxes(0, 1).reshape(tokens, -1)
    assert not rows[:, columns:].any()
    assert not numbers[used:, :, 1:].any()
    scales = np.ascontiguousarray(numbers[:used, :, 0]).view(np.float32).T
    return rows[:, :columns], scales, numbers[:used, :, 1:].swapaxes(0, 1)


def exact(x: F32Array) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the contract's codes and scales, operation by operation in float32."""
    padded = np.zeros((len(x), -(-x.shape[1] // 32) * 32), np.float32)
    padded[:, : x.shape[1]] = x
    parts = padded.reshape(len(x), -1, 32)
    absmax = np.maximum(np.max(np.abs(parts), axis=2), np.float32(1e-30))
    codes = np.rint(parts * (np.float32(127) / absmax)[:, :, None])
    return codes.reshape(padded.shape)[:, : x.shape[1]], absmax / np.float32(127)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("magnitude", [1e-25, 1.0, 1e30])
def test_bits_of_the_contract(size: int, magnitude: float, isa: str) -> None:
    rng = np.random.default_rng(size)
    x = misaligned((rng.standard_normal((3, size)) * magnitude).astype(np.float32))
    expected, expected_scales = exact(x)
    for padding in (0, 3):
        codes, scales, sums = quantize(isa, x, padding)
        np.testing.assert_array_equal(codes, expected)
        np.testing.assert_array_equal(scales, expected_scales)
        whole = np.zeros((3, scales.shape[1] * 32))
        whole[:, :size] = codes
        halves = -whole.reshape(3, -1, 2, 16).sum(axis=3)
        np.testing.assert_array_equal(sums[:, :, 0], halves.sum(axis=2))
        np.testing.assert_array_equal(sums[:, :, 1:], halves)


@pytest.mark.parametrize("size", SIZES)
def test_against_the_oracle(size: int, isa: str) -> None:
    x = np.random.default_rng(size).standard_normal((2, size)).astype(np.float32)
    codes, scales, _ = quantize(isa, x)
    wanted, wanted_scales = oracle.quantize_blocks(x)
    np.testing.assert_allclose(scales, wanted_scales, rtol=1e-6)
    steps = x / np.repeat(wanted_scales, 32, axis=1)[:, :size]
    near_tie = np.abs(np.abs(steps - np.floor(steps)) - 0.5) < TIE
    np.testing.assert_array_equal(codes[~near_tie], wanted[~near_tie])


@pytest.mark.parametrize("size", SIZES)
def test_a_norm_on_the_way_changes_no_bit(size: int, isa: str) -> None:
    rng = np.random.default_rng(size)
    x = misaligned(rng.standard_normal((2, size)).astype(np.float32))
    gain = misaligned(rng.uniform(0.5, 2, size).astype(np.float32), 2)
    normed = np.empty_like(x)
    for row, out in zip(x, normed, strict=True):
        kernels.rms_norm(isa, row, gain, 1e-5, out)
    for found, expected in zip(quantize(isa, x, gain=gain), quantize(isa, normed), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_block(value: float, isa: str) -> None:
    for place in (0, 40, 69):
        x = np.random.default_rng(1).standard_normal((2, 70)).astype(np.float32)
        x[1, place] = value
        _, scales, _ = quantize(isa, x)
        bad = np.zeros(scales.shape, bool)
        bad[1, place // 32] = True
        np.testing.assert_array_equal(~np.isfinite(scales), bad)
        assert np.isnan(scales[bad]) if np.isnan(value) else np.isinf(scales[bad])


def test_zeros(isa: str) -> None:
    codes, scales, sums = quantize(isa, np.zeros((1, 70), np.float32))
    assert not codes.any()
    assert not sums.any()
    assert np.all(scales == np.float32(1e-30) / np.float32(127))


@pytest.mark.parametrize("size", SIZES)
def test_reads_nothing_past_its_input(size: int, isa: str) -> None:
    codes, _, _ = quantize(isa, at_fence(np.full((1, size), 2, np.float32)))
    assert np.all(codes == 127)
