from __future__ import annotations

import numpy as np
import pytest
from arrays import guarded, misaligned
from tolerances import EXP, roundings

from ryzanstein._core import ops as kernels

HEAD_DIMS = [2, 16, 20, 33, 64, 100, 128]


def padded(head_dim: int) -> int:
    return -(-head_dim // 16) * 16


def partial(rng: np.random.Generator, group: int, head_dim: int) -> tuple[np.ndarray, ...]:
    """Return max, sum and output of one part."""
    top = (rng.standard_normal(group) * 5).astype(np.float32)
    total = rng.uniform(1, 32, group).astype(np.float32)
    return top, total, rng.standard_normal((group, padded(head_dim))).astype(np.float32)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("group", [1, 2, 5])
def test_against_the_formula(group: int, head_dim: int, isa: str) -> None:
    rng = np.random.default_rng(head_dim)
    part, into = partial(rng, group, head_dim), partial(rng, group, head_dim)
    places = [guarded(array.shape, offset=i + 1) for i, array in enumerate(into)]
    for place, array in zip(places, into, strict=True):
        place.array[...] = array
    parts = [misaligned(array, 3) for array in part]
    kernels.attention_merge(isa, head_dim, *parts, *(place.array for place in places))

    top = np.maximum(part[0], into[0]).astype(np.float64)
    ours, theirs = np.exp(into[0] - top), np.exp(part[0] - top)
    # exp of a difference that is itself rounded, then two products and a sum.
    error = EXP + roundings(4 + 40)
    for place in places:
        place.check()
    np.testing.assert_array_equal(places[0].array, top)
    expected = into[1] * ours + part[1] * theirs
    np.testing.assert_allclose(places[1].array, expected, rtol=error)
    terms = into[2] * ours[:, None], part[2] * theirs[:, None]
    bound = error * (np.abs(terms[0]) + np.abs(terms[1]))
    assert np.all(np.abs(places[2].array - (terms[0] + terms[1])) <= bound)


def test_a_part_without_keys_changes_nothing(isa: str) -> None:
    """Not even the sign of a zero: a row may come to its first keys in any part."""
    some = partial(np.random.default_rng(1), 3, 20)
    some[2][:] = np.where(np.arange(some[2].size).reshape(some[2].shape) % 2, -0.0, some[2])
    none = np.full(3, -np.inf, np.float32), np.zeros(3, np.float32), np.zeros_like(some[2])
    for part, into in ((some, none), (none, some)):
        merged = [array.copy() for array in into]
        kernels.attention_merge(isa, 20, *part, *merged)
        for found, expected in zip(merged, some, strict=True):
            assert found.tobytes() == expected.tobytes()


def test_a_part_far_below_vanishes(isa: str) -> None:
    rng = np.random.default_rng(1)
    low, high = partial(rng, 3, 20), partial(rng, 3, 20)
    low[0][:] = -1e30
    for order in (0, 1):
        part, into = ((low, high), (high, low))[order]
        merged = [array.copy() for array in into]
        kernels.attention_merge(isa, 20, *part, *merged)
        for found, expected in zip(merged, high, strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("group", [1, 2, 5])
def test_heads_do_not_depend_on_each_other(group: int, head_dim: int, isa: str) -> None:
    rng = np.random.default_rng(3)
    part, into = partial(rng, group, head_dim), partial(rng, group, head_dim)
    together = [array.copy() for array in into]
    kernels.attention_merge(isa, head_dim, *part, *together)
    for h in range(group):
        head = slice(h, h + 1)
        alone = [array[head].copy() for array in into]
        kernels.attention_merge(isa, head_dim, *(array[head].copy() for array in part), *alone)
        for one, all_heads in zip(alone, together, strict=True):
            assert one.tobytes() == all_heads[head].tobytes()


@pytest.mark.parametrize("place", range(6))
def test_nan_reaches_the_output(place: int, isa: str) -> None:
    rng = np.random.default_rng(4)
    arrays = [*partial(rng, 2, 20), *partial(rng, 2, 20)]
    arrays[place][1] = np.nan
    kernels.attention_merge(isa, 20, *arrays)
    out = np.empty((2, 20), np.float32)
    kernels.attention_finish(isa, arrays[4], arrays[5], out)
    assert np.isfinite(out[0]).all()
    assert np.isnan(out[1]).all()
