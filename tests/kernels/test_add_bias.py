from __future__ import annotations

import numpy as np
import pytest
from arrays import SIZES, at_fence, guarded, misaligned

from ryzanstein._core import ops as kernels


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tokens", [1, 3])
def test_from_a_column_on(tokens: int, size: int, isa: str) -> None:
    rng = np.random.default_rng(size)
    rows = rng.standard_normal((tokens, size)).astype(np.float32)
    bias = misaligned(rng.standard_normal(size).astype(np.float32))
    for begin in {0, size // 2, size}:
        expected = rows.copy()
        expected[:, begin:] += bias[begin:]
        out = guarded(rows.shape)
        out.array[...] = rows
        kernels.add_bias(isa, bias, out.array, begin)
        out.check()
        assert out.array.tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", SIZES)
def test_reads_nothing_past_its_inputs(size: int, isa: str) -> None:
    ones = at_fence(np.ones(size, np.float32))
    out = at_fence(np.ones((2, size), np.float32))
    kernels.add_bias(isa, ones, out)
    assert np.all(out == 2)
