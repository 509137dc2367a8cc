from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
from arrays import at_fence, misaligned
from reference import ops
from tolerances import roundings

from ryzanstein._core import PAGE_TOKENS, PagedCache, kv_block_bytes
from ryzanstein._core import ops as kernels

if TYPE_CHECKING:
    from ryzanstein.config import KVDtype

Format = Literal["f16", "f32"]
FORMATS: list[Format] = ["f16", "f32"]
HEAD_DIMS = [1, 2, 7, 16, 17, 20, 31, 33, 64, 100, 128]


def stored(values: np.ndarray, dtype: Format) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype({"f16": np.float16, "f32": np.float32}[dtype]).astype(np.float32)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_one_slot_and_no_other(head_dim: int, dtype: Format, isa: str) -> None:
    rng = np.random.default_rng(head_dim)
    cache = PagedCache(1, 3, head_dim, 4, dtype)
    expected = np.zeros((2, 4, PAGE_TOKENS, 3, head_dim), np.float32)
    for _ in range(40):
        block, offset = int(rng.integers(4)), int(rng.integers(PAGE_TOKENS))
        rows = (rng.standard_normal((2, 3 * head_dim)) * 100).astype(np.float32)
        kernels.kv_write(isa, cache, block, offset, misaligned(rows[0]), misaligned(rows[1], 3))
        expected[:, block, offset] = stored(rows, dtype).reshape(2, 3, head_dim)
    for block in range(4):
        keys, values = cache.read(0, block)
        np.testing.assert_array_equal(keys, expected[0, block])
        np.testing.assert_array_equal(values, expected[1, block])


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_int8_rows_are_quantised_one_by_one(head_dim: int, isa: str) -> None:
    rng = np.random.default_rng(head_dim)
    cache = PagedCache(1, 3, head_dim, 2, "int8")
    rows = rng.standard_normal((2, 2, PAGE_TOKENS, 3, head_dim)).astype(np.float32)
    rows *= 10.0 ** rng.integers(-3, 4, rows.shape[:-1])[..., None]
    slots = [(block, offset) for block in range(2) for offset in range(PAGE_TOKENS)]
    for block, offset in rng.permutation(slots):
        key, value = rows[:, block, offset].reshape(2, -1)
        kernels.kv_write(isa, cache, int(block), int(offset), misaligned(key), misaligned(value, 3))
    for block in range(2):
        for found, exact in zip(cache.read(0, block), rows[:, block], strict=True):
            flat = exact.reshape(-1, head_dim)
            steps = found.reshape(-1, head_dim) / ops.quantize_rows(flat)[1][:, None]
            np.testing.assert_allclose(steps, np.rint(steps), rtol=0, atol=127 * roundings(4))
            error = np.abs(steps - ops.scaled_activations(flat))
            assert error.max() <= 0.5 + 127 * roundings(4)


def test_int8_rows_that_are_not_finite_read_so(isa: str) -> None:
    cache = PagedCache(1, 1, 20, 1, "int8")
    row = np.ones(20, np.float32)
    for offset, bad in enumerate((np.nan, np.inf, -np.inf)):
        row[7] = bad
        kernels.kv_write(isa, cache, 0, offset, row, row)
        assert not np.isfinite([array[offset, 0] for array in cache.read(0, 0)]).any()


@pytest.mark.parametrize(("dtype", "row"), [("f32", 4 * 256), ("f16", 2 * 256), ("int8", 256 + 8)])
def test_what_a_block_takes(dtype: KVDtype, row: int) -> None:
    """A key and a value of 128 elements, for int8 with a scale each, in every layer and kv head."""
    size = kv_block_bytes(2, 3, 128, dtype)
    assert size == 2 * 3 * PAGE_TOKENS * row
    assert PagedCache(2, 3, 128, 5, dtype).nbytes == 5 * size


@pytest.mark.parametrize("dtype", FORMATS)
def test_values_at_the_edges_of_half(dtype: Format, isa: str) -> None:
    edges = [0.0, -0.0, 65504.0, 65519.9, 65520.0, 1e30, 2.0**-24, 2.0**-25, 2.0**-26, 6.1e-5]
    edges += [1 + 2.0**-11, 1 + 3 * 2.0**-11, np.inf, np.nan, np.nextafter(np.float32(1), 2)]
    row = np.array(edges, np.float32)
    row = np.concatenate([row, -row])
    cache = PagedCache(1, 1, row.size, 1, dtype)
    kernels.kv_write(isa, cache, 0, 5, row, row)
    expected = stored(row, dtype)
    for array in cache.read(0, 0):
        np.testing.assert_array_equal(array[5, 0], expected)
        np.testing.assert_array_equal(np.signbit(array[5, 0]), np.signbit(expected))


def test_rounds_as_numpy_does(isa: str) -> None:
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 1 << 32, (400, 128), dtype=np.uint32)
    cache = PagedCache(1, 1, 128, 1, "f16")
    for row in bits.view(np.float32):
        kernels.kv_write(isa, cache, 0, 0, row, row)
        keys, values = cache.read(0, 0)
        np.testing.assert_array_equal(keys[0, 0], stored(row, "f16"))
        np.testing.assert_array_equal(values[0, 0], stored(row, "f16"))


@pytest.mark.parametrize("dtype", [*FORMATS, "int8"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_reads_nothing_past_its_inputs(head_dim: int, dtype: KVDtype, isa: str) -> None:
    cache = PagedCache(1, 1, head_dim, 1, dtype)
    row = at_fence(np.ones(head_dim, np.float32))
    kernels.kv_write(isa, cache, 0, PAGE_TOKENS - 1, row, row)
    keys, values = cache.read(0, 0)
    np.testing.assert_allclose(keys[-1], 1, rtol=roundings(2))
    np.testing.assert_allclose(values[-1], 1, rtol=roundings(2))
