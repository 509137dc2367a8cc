from __future__ import annotations

import numpy as np
import pytest
from arrays import FORMATS, SIZES, at_fence, guarded, misaligned, narrow, widen

from ryzanstein._core import ops as kernels


def table(name: str, rows: int, columns: int) -> np.ndarray:
    return narrow(np.random.default_rng(columns).standard_normal((rows, columns)), name)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FORMATS)
def test_every_value_is_exact(name: str, size: int, isa: str) -> None:
    weights = misaligned(table(name, 4, size))
    for row in range(4):
        out = guarded(size, offset=3)
        kernels.embed(isa, weights, row, out.array)
        out.check()
        assert out.array.tobytes() == widen(weights[row]).tobytes()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FORMATS)
def test_a_scale_rounds_once(name: str, size: int, isa: str) -> None:
    weights, scale = table(name, 2, size), np.float32(1.3)
    out = np.empty(size, np.float32)
    kernels.embed(isa, weights, 1, out, float(scale))
    assert out.tobytes() == (widen(weights[1]) * scale).tobytes()


@pytest.mark.parametrize("dtype", [np.uint16, np.float16])
def test_every_16_bit_pattern(dtype: type, isa: str) -> None:
    weights: np.ndarray = np.arange(1 << 16, dtype=np.uint16).view(dtype).reshape(1, -1)
    out = np.empty(1 << 16, np.float32)
    kernels.embed(isa, weights, 0, out)
    expected = widen(weights[0])
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(out), nan)
    assert out[~nan].tobytes() == expected[~nan].tobytes()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FORMATS)
def test_reads_nothing_past_the_table(name: str, size: int, isa: str) -> None:
    weights = at_fence(table(name, 2, size))
    out = at_fence(np.zeros(size, np.float32))
    kernels.embed(isa, weights, 1, out)
    np.testing.assert_array_equal(out, widen(weights[1]))
