"""Every kernel by itself, on one thread, at the sizes of BitNet b1.58 2B-4T.

    python -m pytest bench/bench_ops.py
    RYZANSTEIN_ISA=avx2 python -m pytest bench/bench_ops.py -k ternary

Every case asserts its result against the numpy oracle of the tests: exactly where the arithmetic is
in integers, within the tests' tolerances elsewhere. The bytes and products per second of a case are
in the `extra_info` of --benchmark-json. A ternary matrix stays in the caches from round to round:
its figures show what the instructions allow, not the memory. What the bindings check and allocate
in each call is included: some 4 us of a ternary linear, 10 us of a product over selected columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from arrays import widen
from reference import grouped as oracle_grouped
from reference import ops as oracle
from tolerances import ATTENTION, ATTENTION_INT8, reduction, roundings

from bench.shapes import PRESETS
from ryzanstein import _core
from ryzanstein._core import ops
from ryzanstein.tuning import format_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ryzanstein._core import DenseArray, F32Array, I8Array, I32Array, TernaryFormat
    from ryzanstein.config import KVDtype

_SHAPE = PRESETS["2b-4t"]
_GROUP = _SHAPE.heads // _SHAPE.kv_heads
_KEYS = 2048
# An eighth of the vocabulary: larger than the caches, small enough to check in numpy.
_HEAD_ROWS = _SHAPE.vocab // 8
_ROW_PADDING = 320  # a multiple of every ternary format's block
_LINEARS = {
    "qkv": ((_SHAPE.heads + 2 * _SHAPE.kv_heads) * _SHAPE.head_dim, _SHAPE.hidden),
    "o": (_SHAPE.hidden, _SHAPE.heads * _SHAPE.head_dim),
    "gate_up": (2 * _SHAPE.ffn, _SHAPE.hidden),
    "down": (_SHAPE.hidden, _SHAPE.ffn),
}
_ISA = _core.resolve_isa()


def _random(*shape: int, seed: int = 0) -> F32Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _record(benchmark: Any, *, nbytes: int = 0, products: int = 0) -> None:
    if benchmark.enabled:
        seconds = benchmark.stats.stats.median
        benchmark.extra_info["gigabytes_per_second"] = nbytes / seconds / 1e9
        benchmark.extra_info["giga_multiply_adds_per_second"] = products / seconds / 1e9


def _random_ternary(
    rows: int, columns: int, kind: TernaryFormat
) -> tuple[_core.TernaryMatrix, I8Array, F32Array]:
    """Return a matrix, its codes and its row scales."""
    rng = np.random.default_rng(0)
    codes: I8Array = rng.integers(-1, 2, (rows, columns), dtype=np.int8)
    row_scales = rng.uniform(0.5, 2, rows).astype(np.float32)
    matrix = _core.TernaryMatrix(rows, columns, kind)
    matrix.pack_codes(0, codes, row_scales)
    return matrix, codes, row_scales


@pytest.mark.parametrize("tokens", [1, 4, 8, 128])
@pytest.mark.parametrize("kernel", _core.ternary_kernels())
@pytest.mark.parametrize("name", _LINEARS)
def test_ternary_linear(benchmark: Any, name: str, kernel: str, tokens: int) -> None:
    rows, columns = _LINEARS[name]
    rng = np.random.default_rng(1)
    matrix, codes, row_scales = _random_ternary(rows, columns, format_of(kernel))
    q = np.zeros((tokens, -(-columns // _ROW_PADDING) * _ROW_PADDING), np.int8)
    q[:, :columns] = rng.integers(-127, 128, (tokens, columns))
    act_scale = rng.uniform(0.5, 2, tokens).astype(np.float32)
    act_sum = q.sum(axis=1, dtype=np.int32)
    out = np.empty((tokens, rows), np.float32)
    benchmark(ops.ternary_linear, _ISA, matrix, q, act_scale, act_sum, out, None, kernel)
    # Sums of integers below 2^53 are exact in float64, and its matrix product is fast.
    sums = q[:, :columns].astype(np.float64) @ codes.T.astype(np.float64)
    expected = sums.astype(np.float32) * (row_scales[None, :] * act_scale[:, None])
    assert np.array_equal(out, expected)
    _record(benchmark, nbytes=matrix.nbytes, products=tokens * rows * columns)


_FOUR_BIT = PRESETS["gemma-2b"]
_GROUPED = {
    "qkv": ((_FOUR_BIT.heads + 2 * _FOUR_BIT.kv_heads) * _FOUR_BIT.head_dim, _FOUR_BIT.hidden),
    "gate_up": (2 * _FOUR_BIT.ffn, _FOUR_BIT.hidden),
    "down": (_FOUR_BIT.hidden, _FOUR_BIT.ffn),
}


def _quantized_blocks(x: F32Array) -> tuple[I8Array, I32Array]:
    """Return codes [blocks, T, 32] and the blocks' numbers [blocks, T, 4]."""
    tokens, columns = x.shape
    q = np.empty((columns // 32, tokens, 32), np.int8)
    blocks = np.empty((columns // 32, tokens, 4), np.int32)
    ops.quantize_blocks(_ISA, x, q, blocks)
    return q, blocks


# Bits, tokens and kernel: more tokens than one have the tier's products only.
_GROUPED_CASES = [
    (bits, tokens, kernel)
    for bits in (1, 2, 3, 4, 8)
    for tokens in (1, 4, 8, 128)
    for kernel in _core.grouped_kernels(bits=bits)[: None if tokens == 1 else 1]
]


@pytest.mark.parametrize(("bits", "tokens", "kernel"), _GROUPED_CASES)
@pytest.mark.parametrize("name", _GROUPED)
def test_grouped_linear(benchmark: Any, name: str, bits: int, tokens: int, kernel: str) -> None:
    rows, columns = _GROUPED[name]
    rng = np.random.default_rng(1)
    matrix = _core.GroupedMatrix(rows, columns, bits)
    codes = rng.integers(0, 1 << bits, (rows, columns), dtype=np.uint8)
    matrix.pack_codes(0, codes, np.ones((rows, columns // 32), np.float32))
    q, blocks = _quantized_blocks(_random(tokens, columns))
    out = np.empty((tokens, rows), np.float32)
    benchmark(ops.grouped_linear, _ISA, matrix, q, blocks, out, None, kernel)
    scales = blocks[:, :, 0].copy().view(np.float32)
    x = (q * scales[:, :, None]).swapaxes(0, 1).reshape(tokens, columns)
    weights = codes.astype(np.float32) - oracle_grouped.zero_point(bits)
    magnitude = np.abs(x) @ np.abs(weights).T
    assert np.all(np.abs(out - x @ weights.T) <= 2 * reduction(columns) * magnitude)
    _record(benchmark, nbytes=matrix.nbytes, products=tokens * rows * columns)


def test_selected_rows(benchmark: Any) -> None:
    matrix, codes, row_scales = _random_ternary(_SHAPE.ffn, _SHAPE.hidden, "five_trit")
    weights = _core.TernaryRows.of_rows(matrix, 0, _SHAPE.ffn)
    selected = _half(_SHAPE.ffn)
    q: I8Array = np.random.default_rng(1).integers(-127, 128, _SHAPE.hidden, dtype=np.int8)
    out = np.zeros(_SHAPE.ffn, np.float32)
    call = (_ISA, weights, row_scales, selected, q, 0.5, int(q.sum(dtype=np.int32)), out)
    benchmark(ops.selected_rows, *call)
    expected = np.zeros_like(out)
    sums = (codes.astype(np.float64) @ q.astype(np.float64)).astype(np.float32)
    expected[selected] = (sums * (row_scales * np.float32(0.5)))[selected]
    assert np.array_equal(out, expected)
    _record(benchmark, nbytes=weights.nbytes // 2, products=codes.size // 2)


def test_selected_columns(benchmark: Any) -> None:
    matrix, codes, row_scales = _random_ternary(_SHAPE.hidden, _SHAPE.ffn, "five_trit")
    weights = _core.TernaryRows.of_columns(matrix)
    selected = _half(_SHAPE.ffn)
    q = np.zeros(_SHAPE.ffn, np.int8)
    q[selected] = np.random.default_rng(1).integers(1, 128, len(selected))
    residual, out = _random(_SHAPE.hidden), np.empty(_SHAPE.hidden, np.float32)
    units = -(-_SHAPE.hidden // _ROW_PADDING)
    scalars = (0.5, int(q.sum(dtype=np.int32)))
    call = (_ISA, weights, row_scales, selected, q, *scalars, 0, units, residual, out)
    benchmark(ops.selected_columns, *call)
    sums = (codes.astype(np.float64) @ q.astype(np.float64)).astype(np.float32)
    assert np.array_equal(out, residual + sums * (row_scales * np.float32(0.5)))
    _record(benchmark, nbytes=weights.nbytes // 2, products=codes.size // 2)


def _half(size: int) -> I32Array:
    return np.sort(np.random.default_rng(2).permutation(size)[: size // 2]).astype(np.int32)


@pytest.mark.parametrize("kind", ["bf16", "f16", "f32"])
def test_dense_linear(benchmark: Any, kind: str) -> None:
    values = _random(_HEAD_ROWS, _SHAPE.hidden)
    bits: NDArray[np.uint16] = (values.view(np.uint32) >> 16).astype(np.uint16)
    kinds: dict[str, DenseArray] = {"bf16": bits, "f16": values.astype(np.float16), "f32": values}
    weights = kinds[kind]
    x = _random(1, _SHAPE.hidden, seed=1)
    out = np.empty((1, _HEAD_ROWS), np.float32)
    benchmark(ops.dense_linear, _ISA, weights, x, out)
    wide = widen(weights)
    magnitude = np.abs(x) @ np.abs(wide).T
    expected = x.astype(np.float64) @ wide.T.astype(np.float64)
    assert np.all(np.abs(out - expected) <= reduction(_SHAPE.hidden) * magnitude)
    _record(benchmark, nbytes=weights.nbytes, products=weights.size)


# Errors of the codes relative to the spread of the logits: what their bits allow, of Gaussian rows.
_HIGH_ERROR = 0.055
_BOTH_ERROR = 0.022


@pytest.mark.parametrize("tokens", [1, 4, 8])
def test_screen_linear(benchmark: Any, tokens: int) -> None:
    weights = _random(_HEAD_ROWS, _SHAPE.hidden)
    coded = ops.ScreenMatrix(weights)
    x = _random(tokens, _SHAPE.hidden, seed=1)
    out = np.empty((tokens, _HEAD_ROWS), np.float32)
    benchmark(ops.screen_linear, _ISA, coded, x, out)
    exact = x.astype(np.float64) @ weights.T.astype(np.float64)
    assert np.std(out - exact) < _HIGH_ERROR * np.std(exact)
    assert np.all(np.abs(out - exact) <= ops.screen_slack(coded, x)[0])
    _record(benchmark, nbytes=weights.size * 5 // 8, products=2 * tokens * weights.size)


@pytest.mark.parametrize("share", [0.03, 1.0])
def test_screen_rest(benchmark: Any, share: float) -> None:
    weights = _random(_HEAD_ROWS, _SHAPE.hidden)
    coded = ops.ScreenMatrix(weights)
    x = _random(1, _SHAPE.hidden, seed=1)
    chosen = np.random.default_rng(2).random(_HEAD_ROWS) < share
    rows = np.flatnonzero(chosen).astype(np.int32)
    out = np.zeros((1, _HEAD_ROWS), np.float32)
    ops.screen_linear(_ISA, coded, x, out)
    ops.screen_rest(_ISA, coded, x, rows, out[0])
    exact = x.astype(np.float64) @ weights.T.astype(np.float64)
    assert np.std((out - exact)[0, rows]) < _BOTH_ERROR * np.std(exact)
    benchmark(ops.screen_rest, _ISA, coded, x, rows, out[0])  # adds the same again
    nbytes = len(rows) * _SHAPE.hidden // 4
    _record(benchmark, nbytes=nbytes, products=2 * len(rows) * _SHAPE.hidden)


@pytest.mark.parametrize("size", [_SHAPE.hidden, _SHAPE.ffn])
def test_rms_norm(benchmark: Any, size: int) -> None:
    x, gain, out = _random(size), _random(size, seed=1), np.empty(size, np.float32)
    benchmark(ops.rms_norm, _ISA, x, gain, 1e-5, out)
    expected = oracle.rms_norm(x, gain, 1e-5)
    assert np.allclose(out, expected, rtol=reduction(size), atol=0)
    _record(benchmark, nbytes=3 * x.nbytes)


@pytest.mark.parametrize("size", [_SHAPE.hidden, _SHAPE.ffn])
def test_quantize(benchmark: Any, size: int) -> None:
    x, q = _random(size), np.empty(-(-size // _ROW_PADDING) * _ROW_PADDING, np.int8)
    scale, total = benchmark(ops.quantize, _ISA, x, q)
    _, expected_scale, _ = oracle.quantize_rows(x[None])
    assert scale == pytest.approx(float(expected_scale[0]), rel=roundings(2))
    # Half a step, and what rounding the scaled value in float32 may add to it.
    assert np.all(np.abs(q[:size] - oracle.scaled_activations(x)) <= 0.5 + 127 * roundings(2))
    assert total == q.sum(dtype=np.int64)
    assert not q[size:].any()
    _record(benchmark, nbytes=x.nbytes + q.nbytes)


@pytest.mark.parametrize("size", [_FOUR_BIT.hidden, _FOUR_BIT.ffn])
def test_quantize_blocks(benchmark: Any, size: int) -> None:
    x = _random(1, size)
    q, blocks = benchmark(_quantized_blocks, x)
    codes, scales = oracle_grouped.quantize_blocks(x)
    assert np.allclose(blocks[:, 0, 0].copy().view(np.float32), scales[0], rtol=roundings(2))
    assert np.all(np.abs(q.reshape(1, -1).astype(np.int32) - codes) <= 1)
    _record(benchmark, nbytes=x.nbytes + q.nbytes + blocks.nbytes)


@pytest.mark.parametrize("activation", ["relu2", "silu"])
def test_gate(benchmark: Any, activation: Literal["relu2", "silu"]) -> None:
    gate, up = _random(_SHAPE.ffn), _random(_SHAPE.ffn, seed=1)
    out = np.empty_like(gate)
    benchmark(ops.gate, _ISA, activation, gate, up, out)
    assert np.allclose(out, oracle.gate(activation, gate, up), rtol=1e-6, atol=0)
    _record(benchmark, nbytes=3 * gate.nbytes)


@pytest.mark.parametrize("activation", ["relu2", "silu"])
def test_gate_quantize(benchmark: Any, activation: Literal["relu2", "silu"]) -> None:
    gate, up, gain = (_random(_SHAPE.ffn, seed=seed) for seed in range(3))
    out, q = np.empty_like(gate), np.empty(-(-_SHAPE.ffn // _ROW_PADDING) * _ROW_PADDING, np.int8)
    call = (_ISA, activation, gate, up, out, q, gain)
    scale, total = benchmark(ops.gate_quantize, *call)
    gated = oracle.gate(activation, gate, up)
    assert np.allclose(out, gated, rtol=1e-6, atol=0)
    normed = oracle.rms_norm(out, gain, 1e-5)
    _, expected_scale, _ = oracle.quantize_rows(normed[None])
    error = reduction(_SHAPE.ffn)
    assert scale == pytest.approx(float(expected_scale[0]), rel=error)
    assert np.all(np.abs(q[: _SHAPE.ffn] - oracle.scaled_activations(normed)) <= 0.5 + 127 * error)
    assert total == q.sum(dtype=np.int64)
    assert not q[_SHAPE.ffn :].any()
    _record(benchmark, nbytes=3 * gate.nbytes + q.nbytes)


def test_rope(benchmark: Any) -> None:
    x = _random(_SHAPE.heads + _SHAPE.kv_heads, _SHAPE.head_dim)
    frequencies = _SHAPE.rope_theta ** (-np.arange(0, _SHAPE.head_dim, 2) / _SHAPE.head_dim)
    angles = _KEYS * frequencies
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    once = x.copy()
    ops.rope(_ISA, once, cos, sin)
    expected = oracle.rope(x[None], np.array([_KEYS]), frequencies, 1.0)[0]
    assert np.allclose(once, expected, rtol=0, atol=8 * roundings(4))
    benchmark(ops.rope, _ISA, x, cos, sin)  # in place, turning on and on
    _record(benchmark, nbytes=2 * x.nbytes)


@pytest.mark.parametrize("kind", ["f16", "f32"])
def test_kv_write(benchmark: Any, kind: KVDtype) -> None:
    cache = _core.PagedCache(1, _SHAPE.kv_heads, _SHAPE.head_dim, 1, kind)
    stored = {"f16": np.float16, "f32": np.float32}[kind]
    key, value = _random(_SHAPE.kv_heads * _SHAPE.head_dim), _random(640, seed=1)
    benchmark(ops.kv_write, _ISA, cache, 0, 5, key, value)
    keys, values = cache.read(0, 0)
    assert np.array_equal(keys[5].ravel(), key.astype(stored))
    assert np.array_equal(values[5].ravel(), value.astype(stored))
    _record(benchmark, nbytes=key.nbytes + value.nbytes)


def _filled_cache(dtype: KVDtype) -> tuple[_core.PagedCache, F32Array, F32Array]:
    """Return a cache of one kv head with _KEYS tokens, and what it holds, [n, 1, D] each."""
    pages = _KEYS // _core.PAGE_TOKENS
    cache = _core.PagedCache(1, 1, _SHAPE.head_dim, pages, dtype)
    rows = _random(_KEYS, 2, _SHAPE.head_dim)
    for position, (key, value) in enumerate(rows):
        ops.kv_write(_ISA, cache, *divmod(position, _core.PAGE_TOKENS), key, value)
    read = [cache.read(0, page) for page in range(pages)]
    return cache, np.concatenate([k for k, _ in read]), np.concatenate([v for _, v in read])


@pytest.mark.parametrize("dtype", ["f16", "int8"])
@pytest.mark.parametrize("tokens", [1, 32])
def test_attention(benchmark: Any, tokens: int, dtype: KVDtype) -> None:
    cache, keys, values = _filled_cache(dtype)
    table = np.arange(cache.num_blocks, dtype=np.int32)
    first = _KEYS - tokens
    q = _random(tokens, _GROUP, _SHAPE.head_dim, seed=2)
    rows = tokens * _GROUP
    highest, total = np.empty(rows, np.float32), np.empty(rows, np.float32)
    out = np.empty((rows, _SHAPE.head_dim), np.float32)
    scale = _SHAPE.head_dim**-0.5
    benchmark(ops.attention, _ISA, cache, 0, table, first, 0, _KEYS, q, scale, highest, total, out)
    positions = first + np.arange(tokens)
    expected = oracle.attention(q, keys, values, positions).reshape(out.shape)
    error = ATTENTION if dtype == "f16" else ATTENTION_INT8
    assert np.allclose(out / total[:, None], expected, rtol=0, atol=error)
    _record(benchmark, nbytes=cache.nbytes, products=2 * (first + 1) * q.size)


def test_attention_merge(benchmark: Any) -> None:
    highest, total = _random(_GROUP), np.abs(_random(_GROUP, seed=1)) + 1
    out = _random(_GROUP, _SHAPE.head_dim, seed=2)
    part = (_random(_GROUP, seed=3), total.copy(), _random(_GROUP, _SHAPE.head_dim, seed=4))
    top = np.maximum(highest, part[0]).astype(np.float64)
    ours, theirs = np.exp(highest - top), np.exp(part[0] - top)
    expected_total = total * ours + part[1] * theirs
    expected = out * ours[:, None] + part[2] * theirs[:, None]
    into = (highest, total, out)
    ops.attention_merge(_ISA, _SHAPE.head_dim, *part, *into)
    assert np.array_equal(highest, top)
    assert np.allclose(total, expected_total, rtol=ATTENTION, atol=0)
    assert np.allclose(out, expected, rtol=0, atol=ATTENTION)
    benchmark(ops.attention_merge, _ISA, _SHAPE.head_dim, *part, *into)  # grows by the same part
    _record(benchmark, nbytes=3 * out.nbytes)


def test_attention_finish(benchmark: Any) -> None:
    total = np.abs(_random(_GROUP)) + 1
    rows = _random(_GROUP, _SHAPE.head_dim, seed=1)
    out = np.empty_like(rows)
    benchmark(ops.attention_finish, _ISA, total, rows, out)
    assert np.allclose(out, rows / total[:, None].astype(np.float64), rtol=roundings(2), atol=0)
    _record(benchmark, nbytes=2 * rows.nbytes)


def test_embed(benchmark: Any) -> None:
    weights = np.random.default_rng(0).integers(0, 1 << 15, (1000, _SHAPE.hidden), np.uint16)
    out = np.empty(_SHAPE.hidden, np.float32)
    benchmark(ops.embed, _ISA, weights, 567, out)
    assert np.array_equal(out.view(np.uint32), weights[567].astype(np.uint32) << np.uint32(16))
    _record(benchmark, nbytes=out.nbytes * 3 // 2)
