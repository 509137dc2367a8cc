from __future__ import annotations

import numpy as np
import pytest
from arrays import SIZES, at_fence, guarded, misaligned
from tolerances import roundings

from ryzanstein._core import ops as kernels

HEAD_DIMS = SIZES[:16]


def padded(head_dim: int) -> int:
    return -(-head_dim // 16) * 16


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("group", [1, 3, 5])
def test_against_the_formula(group: int, head_dim: int, isa: str) -> None:
    rng = np.random.default_rng(head_dim)
    total = rng.uniform(1, 4096, group).astype(np.float32)
    rows = rng.standard_normal((group, padded(head_dim))).astype(np.float32)
    out = guarded((group, head_dim))
    kernels.attention_finish(isa, misaligned(total), misaligned(rows, 3), out.array)
    out.check()
    expected = rows[:, :head_dim].astype(np.float64) / total[:, None]
    np.testing.assert_allclose(out.array, expected, rtol=roundings(2))


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_nan_stays_in_its_head(head_dim: int, isa: str) -> None:
    rows = np.ones((3, padded(head_dim)), np.float32)
    rows[0, head_dim - 1] = np.nan
    total = np.array([1, 2, np.nan], np.float32)
    out = np.empty((3, head_dim), np.float32)
    kernels.attention_finish(isa, total, rows, out)
    np.testing.assert_array_equal(np.isnan(out[0]), np.arange(head_dim) == head_dim - 1)
    assert np.all(out[1] == 0.5)
    assert np.isnan(out[2]).all()


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_stays_inside_its_arrays(head_dim: int, isa: str) -> None:
    rows = at_fence(np.ones((2, padded(head_dim)), np.float32))
    out = at_fence(np.zeros((2, head_dim), np.float32))
    kernels.attention_finish(isa, at_fence(np.ones(2, np.float32)), rows, out)
    assert np.all(out == 1)
