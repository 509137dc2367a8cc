from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from arrays import guarded, misaligned
from reference import ops
from tolerances import ATTENTION, ATTENTION_INT8, roundings

from ryzanstein._core import PAGE_TOKENS, PagedCache
from ryzanstein._core import ops as kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ryzanstein._core import F32Array, I32Array

Format = Literal["f16", "f32", "int8"]
FORMATS: list[Format] = ["f16", "f32", "int8"]
HEAD_DIMS = [2, 20, 64, 100, 128, 256]
COUNTS = [1, 2, 31, 32, 33, 64, 97, 257]


def padded(head_dim: int) -> int:
    """Return the row length of unfinished outputs."""
    return -(-head_dim // 16) * 16


class Keys:
    """Random keys and values of one sequence, in pages dealt out of order among stale ones."""

    def __init__(
        self,
        isa: str,
        count: int,
        head_dim: int,
        dtype: Format,
        *,
        kv_heads: int = 1,
        seed: int = 1,
    ) -> None:
        rng = np.random.default_rng(seed)
        blocks = -(-count // PAGE_TOKENS)
        shape = (2, count, kv_heads, head_dim)
        self.keys, self.values = rng.standard_normal(shape).astype(np.float32)
        self.cache = PagedCache(1, kv_heads, head_dim, blocks + 3, dtype)
        self.table: I32Array = rng.permutation(blocks + 3)[:blocks].astype(np.int32)
        self.isa, self.dtype = isa, dtype
        # What earlier owners left behind: an unused slot may hold anything.
        for slot, stale in enumerate(np.resize([np.nan, np.inf, -np.inf, 6e4], PAGE_TOKENS)):
            row = np.full(kv_heads * head_dim, stale, np.float32)
            for block in range(blocks + 3):
                kernels.kv_write(isa, self.cache, block, slot, row, row)
        self.write(range(count))

    def write(self, positions: range) -> None:
        for j in positions:
            block, offset = int(self.table[j // PAGE_TOKENS]), j % PAGE_TOKENS
            rows = self.keys[j].reshape(-1), self.values[j].reshape(-1)
            kernels.kv_write(self.isa, self.cache, block, offset, *rows)

    def part(
        self,
        q: F32Array,
        begin: int,
        end: int,
        *,
        position: int | None = None,
        scale: float | None = None,
        kv_head: int = 0,
        softcap: float = 0.0,
        window: int = 0,
        sinks: int = 0,
    ) -> tuple[F32Array, F32Array, F32Array]:
        """Return max, sum and unfinished output [rows, padded D] over keys [begin, end).

        q is [group, D] of one token, or [tokens, group, D] of several from `position` on.
        """
        queries = q.reshape(-1, *q.shape[-2:])
        tokens, group, head_dim = queries.shape
        top, total = guarded(tokens * group), guarded(tokens * group, offset=3)
        out = guarded((tokens * group, padded(head_dim)))
        kernels.attention(
            self.isa,
            self.cache,
            kv_head,
            self.table,
            end - 1 if position is None else position,
            begin,
            end,
            misaligned(queries),
            head_dim**-0.5 if scale is None else scale,
            top.array,
            total.array,
            out.array,
            softcap,
            window,
            sinks,
        )
        for array in (top, total, out):
            array.check()
        return top.array, total.array, out.array

    def attend(self, q: F32Array, **options: Any) -> F32Array:
        """Return float32 [group, D]."""
        _, total, out = self.part(q, 0, len(self.keys), **options)
        return finish(self.isa, total, out, q.shape[1])

    def expected(self, q: F32Array, kv_head: int = 0, **options: Any) -> NDArray[np.float64]:
        """Return the oracle's float64 [group, D], on keys and values as the pages hold them."""
        pages = [self.cache.read(0, int(block)) for block in self.table]
        keys, values = (
            np.concatenate(parts)[: len(self.keys), kv_head, None]
            for parts in zip(*pages, strict=True)
        )
        position = np.array([len(keys) - 1])
        return ops.attention(q[None], keys, values, position, **options).reshape(q.shape)

    def assert_close(self, found: F32Array, expected: NDArray[Any]) -> None:
        error = ATTENTION * np.abs(expected).max()
        if self.dtype == "int8":
            error = ATTENTION_INT8 * np.abs(self.values).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=error)


def finish(isa: str, total: F32Array, unfinished: F32Array, head_dim: int) -> F32Array:
    out = guarded((len(total), head_dim))
    kernels.attention_finish(isa, total, unfinished, out.array)
    out.check()
    return out.array


def queries(group: int, head_dim: int, seed: int = 2) -> F32Array:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((group, head_dim)).astype(np.float32)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5])
def test_against_the_oracle(group: int, head_dim: int, dtype: Format, isa: str) -> None:
    for count in COUNTS:
        keys = Keys(isa, count, head_dim, dtype, seed=count)
        q = queries(group, head_dim)
        expected = keys.expected(q)
        error = np.abs(keys.attend(q) - expected).max()
        assert (
            error <= (ATTENTION_INT8 if dtype == "int8" else ATTENTION) * np.abs(keys.values).max()
        )


@pytest.mark.parametrize("dtype", FORMATS)
def test_each_kv_head_reads_its_own_pages(dtype: Format, isa: str) -> None:
    keys = Keys(isa, 70, 20, dtype, kv_heads=3)
    for head in range(3):
        q = queries(2, 20, seed=head)
        keys.assert_close(keys.attend(q, kv_head=head), keys.expected(q, head))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_heads_of_a_group_do_not_depend_on_each_other(
    head_dim: int, dtype: Format, isa: str
) -> None:
    keys = Keys(isa, 100, head_dim, dtype)
    q = queries(5, head_dim)
    alone = np.concatenate([keys.attend(q[i : i + 1]) for i in range(5)])
    for group in (1, 2, 3, 4, 5):
        assert keys.attend(q[:group]).tobytes() == alone[:group].tobytes()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("group", "head_dim"), [(4, 64), (3, 20), (1, 2)])
@pytest.mark.parametrize("first", [0, 229])
def test_tokens_of_a_pass_do_not_depend_on_each_other(
    first: int, group: int, head_dim: int, dtype: Format, isa: str
) -> None:
    """Nor on keys that only later tokens see, whatever these hold."""
    tokens = 41  # over page borders, and over the end of a split
    keys = Keys(isa, first + tokens, head_dim, dtype)
    keys.keys[first + 30], keys.values[first + 30] = np.nan, np.nan
    keys.write(range(first + 30, first + 31))
    q = np.random.default_rng(3).standard_normal((tokens, group, head_dim)).astype(np.float32)
    alone = [keys.part(row, 0, first + t + 1) for t, row in enumerate(q)]
    assert np.isfinite(np.concatenate([out for _, _, out in alone[:30]])).all()
    for count in (1, 2, 3, 17, 30, 41):
        together = keys.part(q[:count], 0, first + count, position=first)
        for parts, whole in zip(zip(*alone[:count], strict=True), together, strict=True):
            assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("dtype", FORMATS)
def test_splits_fold_as_parts_merge(dtype: Format, isa: str) -> None:
    """What lets threads share a long context: parts of 256 keys give the bits of one call."""
    keys = Keys(isa, 600, 64, dtype)
    q = np.random.default_rng(3).standard_normal((20, 4, 64)).astype(np.float32)
    into = keys.part(q, 0, 600, position=580)
    merged = keys.part(q, 0, 256, position=580)
    for begin in (256, 512):
        part = keys.part(q, begin, min(begin + 256, 600), position=580)
        kernels.attention_merge(isa, 64, *part, *merged)
    for found, expected in zip(merged, into, strict=True):
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", FORMATS)
def test_where_pages_lie_does_not_show(dtype: Format, isa: str) -> None:
    q = queries(3, 64)
    keys = Keys(isa, 100, 64, dtype, seed=1)
    first = keys.attend(q).tobytes()
    for _ in range(5):
        keys.table = np.random.default_rng(3).permutation(keys.table)
        keys.write(range(100))
        assert keys.attend(q).tobytes() == first


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_padding_of_the_output_is_zero(head_dim: int, isa: str) -> None:
    _, _, out = Keys(isa, 40, head_dim, "f16").part(queries(5, head_dim), 0, 40)
    assert not out[:, head_dim:].any()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("cuts", [(32,), (64, 96), (32, 64, 96, 128, 160, 192)])
def test_parts_merge_into_the_whole(
    cuts: tuple[int, ...], head_dim: int, dtype: Format, isa: str
) -> None:
    count = 201
    keys = Keys(isa, count, head_dim, dtype)
    q = queries(4, head_dim)
    bounds = [0, *cuts, count]
    parts = [keys.part(q, begin, end) for begin, end in pairwise(bounds)]
    top, total, out = guarded(4), guarded(4, offset=3), guarded((4, padded(head_dim)))
    for into, first in zip((top, total, out), parts[0], strict=True):
        into.array[...] = first
    for part in parts[1:]:
        kernels.attention_merge(isa, head_dim, *part, top.array, total.array, out.array)
    for array in (top, total, out):
        array.check()
    merged = finish(isa, total.array, out.array, head_dim)
    keys.assert_close(merged, keys.expected(q))
    keys.assert_close(merged, keys.attend(q))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("sign", [1, -1])
def test_huge_scores(sign: int, dtype: Format, isa: str) -> None:
    """Scores far beyond what exp can take: the largest takes all."""
    keys = Keys(isa, 70, 20, dtype)
    keys.keys[:] = 0
    keys.keys[:, 0, 0] = sign * np.arange(1, 71) * 100
    keys.write(range(70))
    q = np.zeros((3, 20), np.float32)
    q[:, 0] = [1e30, 1e10, 1e4]
    best = 69 if sign > 0 else 0
    expected = keys.cache.read(0, int(keys.table[best // PAGE_TOKENS]))[1][best % PAGE_TOKENS]
    # int8 leaves through weight times scale, rounded twice.
    error = roundings(4) if dtype == "int8" else 0
    np.testing.assert_allclose(keys.attend(q), np.tile(expected, (3, 1)), rtol=error, atol=0)


@pytest.mark.parametrize("dtype", FORMATS)
def test_equal_scores_average(dtype: Format, isa: str) -> None:
    keys = Keys(isa, 45, 16, dtype)
    keys.keys[:] = 0
    keys.write(range(45))
    keys.assert_close(keys.attend(queries(2, 16)), keys.expected(queries(2, 16)))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("position", [0, 40, 69])
def test_nan_reaches_the_output(position: int, dtype: Format, isa: str) -> None:
    q = queries(5, 20)
    for which in ("keys", "values"):
        keys = Keys(isa, 70, 20, dtype)
        getattr(keys, which)[position, 0, 3] = np.nan
        keys.write(range(position, position + 1))
        bad = np.isnan(keys.attend(q))
        # A key decides how much of every value is taken, a value only its own column; an int8 row
        # shares its scale.
        whole = which == "keys" or dtype == "int8"
        assert bad.all() if whole else np.array_equal(bad.all(0), np.arange(20) == 3)
    q[2, 7] = np.nan
    bad = np.isnan(Keys(isa, 70, 20, dtype).attend(q))
    np.testing.assert_array_equal(bad, np.tile(np.arange(5)[:, None] == 2, 20))


def test_nan_survives_a_merge(isa: str) -> None:
    keys = Keys(isa, 96, 20, "f32")
    keys.keys[:, 0, 0] = np.where(np.arange(96) == 40, np.nan, 1)
    keys.write(range(96))
    q = queries(3, 20)
    bounds = [(0, 32), (32, 64), (64, 96)]
    for first in range(3):
        parts = [keys.part(q, *bounds[(first + i) % 3]) for i in range(3)]
        top, total, out = parts[0]
        for part in parts[1:]:
            kernels.attention_merge(isa, 20, *part, top, total, out)
        assert np.isnan(finish(isa, total, out, 20)).all()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("softcap", [0.5, 50.0])
def test_soft_caps_against_the_oracle(softcap: float, dtype: Format, isa: str) -> None:
    for count in COUNTS:
        keys = Keys(isa, count, 20, dtype, seed=count)
        q = queries(3, 20)
        keys.assert_close(keys.attend(q, softcap=softcap), keys.expected(q, softcap=softcap))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("window", [1, 2, 31, 32, 33, 70, 256, 300, 1000])
def test_windows_against_the_oracle(window: int, dtype: Format, isa: str) -> None:
    for count in (1, 33, 64, 97, 257, 320):
        keys = Keys(isa, count, 20, dtype, seed=count)
        q = queries(3, 20)
        keys.assert_close(keys.attend(q, window=window), keys.expected(q, window=window))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("window", [1, 30, 33, 240, 280])
def test_what_a_window_hides_does_not_show(window: int, dtype: Format, isa: str) -> None:
    """Neither in pages that are read, whatever they hold, nor in splits that are left out."""
    tokens, count = 41, 560
    keys = Keys(isa, count, 20, dtype)
    first = count - tokens
    q = np.random.default_rng(3).standard_normal((tokens, 3, 20)).astype(np.float32)
    together = keys.part(q, 0, count, position=first, window=window)
    # What only the first token of the tile sees poisons nobody else.
    oldest = first + 1 - window
    keys.keys[: oldest + 1], keys.values[: oldest + 1] = np.nan, np.nan
    keys.write(range(oldest + 1))
    again = keys.part(q, 0, count, position=first, window=window)
    assert np.isnan(again[2][:3, :20]).all()
    for before, after in zip(together, again, strict=True):
        assert after[3:].tobytes() == before[3:].tobytes()
    for t in (1, 20, 40):
        end = first + t + 1
        begin = max(0, end - window) // 256 * 256
        alone = keys.part(q[t], begin, end, window=window)
        for one, all_of_them in zip(alone, together, strict=True):
            assert one.tobytes() == all_of_them[3 * t : 3 * t + 3].tobytes()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("sinks", [1, 4, 31, 33, 64, 70, 300])
@pytest.mark.parametrize("window", [1, 30, 33, 257])
def test_sinks_against_the_oracle(window: int, sinks: int, dtype: Format, isa: str) -> None:
    for count, softcap in ((1, 0.0), (33, 3.0), (64, 0.0), (97, 3.0), (320, 0.0), (600, 3.0)):
        keys = Keys(isa, count, 20, dtype)
        q = queries(3, 20)
        options: Any = {"window": window, "sinks": sinks, "softcap": softcap}
        keys.assert_close(keys.attend(q, **options), keys.expected(q, **options))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("window", "sinks"), [(1, 1), (30, 4), (33, 33), (70, 31), (240, 270)])
def test_what_lies_between_sinks_and_window_does_not_show(
    window: int, sinks: int, dtype: Format, isa: str
) -> None:
    tokens, count = 41, 900
    keys = Keys(isa, count, 20, dtype)
    first = count - tokens
    q = np.random.default_rng(3).standard_normal((tokens, 3, 20)).astype(np.float32)
    options: Any = {"window": window, "sinks": sinks}
    together = keys.part(q, 0, count, position=first, **options)
    hidden = slice(sinks, first + 1 - window)
    keys.keys[hidden], keys.values[hidden] = np.nan, np.nan
    keys.write(range(hidden.start, hidden.stop))
    again = keys.part(q, 0, count, position=first, **options)
    for before, after in zip(together, again, strict=True):
        assert after.tobytes() == before.tobytes()
    for t in (0, 20, 40):
        alone = keys.part(q[t], 0, first + t + 1, **options)
        for one, all_of_them in zip(alone, together, strict=True):
            assert one.tobytes() == all_of_them[3 * t : 3 * t + 3].tobytes()


def test_a_token_whose_window_is_elsewhere_sees_nothing(isa: str) -> None:
    keys = Keys(isa, 300, 20, "f32")
    q = np.random.default_rng(3).standard_normal((20, 3, 20)).astype(np.float32)
    top, total, out = keys.part(q, 0, 256, position=280, window=30)
    # Keys 251 to 255 are left to the first token, and one fewer to each that follows.
    assert np.isfinite(top[:15]).all()
    assert (top[15:] == -np.inf).all()
    assert not total[15:].any()
    assert not out[15:].any()
