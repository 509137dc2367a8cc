"""The decoder against the float64 oracle, for each thing that architectures differ in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import native
import numpy as np
import pytest
from arrays import on_cache_lines
from golden.files import relative_error
from reference import grouped
from tolerances import GOLDEN_HIDDEN, GOLDEN_LOGITS, GOLDEN_MARGIN
from twins import Shape, Twins, twins

from ryzanstein import QuantizationError, ValidationError, _core

if TYPE_CHECKING:
    from ryzanstein._core import F32Array, HeadKind

DENSE = Shape()
TERNARY = Shape(kinds=("ternary",) * 7)
INT4 = Shape(kinds=("int4",) * 7)
# Kinds whose activations pass a quantiser.
QUANTISED = {"ternary", "int8", "int4", "int2"}
CAPPED = Shape(attention_softcap=3.0, final_softcap=3.0, gain=3.0)
GEMMA2 = Shape(
    kinds=("bf16",) * 7,
    head_dim=256,
    heads=2,
    kv_heads=1,
    output_norms=True,
    windows=(20, 0),
    activation="gelu_tanh",
    embedding_scale=48**0.5,
    attention_scale=224**-0.5,
    attention_softcap=50.0,
    final_softcap=30.0,
)
SHAPES = {
    "f32": DENSE,
    "f16": Shape(kinds=("f16",) * 7),
    "bf16": Shape(kinds=("bf16",) * 7),
    "ternary": TERNARY,
    "int8": Shape(kinds=("int8",) * 7),
    "int4": INT4,
    "int2": Shape(kinds=("int2",) * 7),
    "several grouped kinds": Shape(
        kinds=("int4", "int8", "ternary", "int2", "bf16", "int4", "int8")
    ),
    "several kinds": Shape(kinds=("ternary", "bf16", "ternary", "f32", "f16", "ternary", "bf16")),
    "one kind, then another": Shape(kinds=("f16", "f32", "ternary", *TERNARY.kinds[3:])),
    "biases": replace(DENSE, biases=True),
    "biases of ternary linears": replace(TERNARY, biases=True),
    "norms of linears": replace(DENSE, linear_norms=True),
    "norms of ternary linears": replace(TERNARY, linear_norms=True),
    "norms of grouped linears": replace(
        INT4, linear_norms=True, sub_norms=True, output_norms=True, biases=True
    ),
    "norms of heads": replace(DENSE, head_norms=True),
    "sub-norms": replace(DENSE, sub_norms=True),
    "sub-norms of ternary linears": replace(TERNARY, sub_norms=True, linear_norms=True),
    "norms of outputs": replace(DENSE, output_norms=True),
    "norms of ternary outputs": replace(TERNARY, output_norms=True, biases=True),
    "relu2": replace(DENSE, activation="relu2"),
    "gelu": replace(DENSE, activation="gelu_tanh"),
    "gelu of ternary linears": replace(TERNARY, activation="gelu_tanh"),
    "scales": replace(DENSE, embedding_scale=3.3, attention_scale=0.1),
    "soft caps": CAPPED,
    "two rotary tables": replace(DENSE, ropes=(1, 0), layers=3),
    "a window of one": replace(DENSE, windows=(1,)),
    "windows": replace(DENSE, windows=(7, 0, 33), layers=3),
    "windows with sinks": replace(DENSE, windows=(7, 1, 20), sinks=(4, 1, 23), layers=3),
    "a wide head": replace(DENSE, head_dim=256),
    "gemma2": GEMMA2,
    "gemma3": replace(
        GEMMA2, attention_softcap=0.0, final_softcap=0.0, head_norms=True, ropes=(1, 0)
    ),
    "qwen2": replace(DENSE, biases=True, kv_heads=4),
    "qwen3": replace(DENSE, head_norms=True, head_dim=32),
}


def run(pair: Twins, tokens: np.ndarray, rope_set: int = 0) -> tuple[F32Array, F32Array]:
    """Return hidden states [L + 1, T, hidden] and logits [T, V] of one sequence."""
    count = len(tokens)
    blocks = -(-count // 32)
    positions = np.arange(count, dtype=np.int32)
    hidden = np.empty((pair.shape.layers + 1, count, pair.shape.hidden), np.float32)
    logits = pair.native.decoder.step(
        tokens,
        positions,
        np.array([0, count], np.int32),
        positions,
        np.arange(blocks, dtype=np.int32)[None],
        positions,
        pair.native.cache(blocks, "f32"),
        hidden,
        rope_sets=np.array([rope_set], np.int32),
    )
    return hidden, logits


def compare(shape: Shape, count: int, isa: str, threads: int, rope_set: int = 0) -> None:
    tokens = np.random.default_rng(count).integers(0, shape.vocab, count).astype(np.int32)
    # One whose activations all round to the same integers in float32.
    for seed in range(20):
        pair = twins(seed, shape, isa=isa, threads=threads)
        trace = pair.oracle.forward(tokens, rope_set)
        if trace.margin > GOLDEN_MARGIN:
            break
    hidden, logits = run(pair, tokens, rope_set)
    assert trace.margin > GOLDEN_MARGIN
    assert relative_error(hidden, trace.hidden) < GOLDEN_HIDDEN
    assert relative_error(logits, trace.logits) < GOLDEN_LOGITS


@pytest.mark.parametrize("name", SHAPES)
def test_each_feature(name: str, isa: str) -> None:
    shape = SHAPES[name]
    compare(shape, 6 if QUANTISED & set(shape.kinds) else 45, isa, threads=1)


@pytest.mark.parametrize("rope_set", [0, 1, 2])
def test_each_rope_set(rope_set: int, isa: str) -> None:
    compare(replace(DENSE, ropes=(1, 0)), 45, isa, threads=1, rope_set=rope_set)


@pytest.mark.parametrize(
    "name", ["several kinds", "norms of ternary outputs", "norms of grouped linears", "gemma2"]
)
def test_more_threads_than_tokens(name: str, isa: str) -> None:
    compare(SHAPES[name], 2, isa, threads=3)


@pytest.mark.parametrize(
    ("window", "sinks"),
    [
        *((window, 0) for window in (1, 31, 32, 33, 200, 255, 256, 257, 280, 600)),
        *((window, sinks) for window in (1, 33, 250, 280) for sinks in (1, 4, 257)),
    ],
)
@pytest.mark.parametrize("threads", [1, 3])
def test_windows_over_several_splits(threads: int, window: int, sinks: int, isa: str) -> None:
    """With three threads and few heads, the splits of 256 keys are shared."""
    shape = replace(DENSE, windows=(window,), sinks=(sinks,), layers=1, heads=2, kv_heads=1)
    compare(shape, 560, isa, threads)


def test_caps_are_felt() -> None:
    """Else these tests would show nothing: scores and logits reach well into the curve."""
    tokens = np.arange(45)
    capped = twins(0, CAPPED).oracle.forward(tokens)
    plain = twins(0, replace(CAPPED, attention_softcap=0.0, final_softcap=0.0))
    assert np.abs(capped.logits).max() > 2.9
    assert np.abs(plain.oracle.forward(tokens).logits).max() > 9
    softer = twins(0, replace(CAPPED, attention_softcap=0.0)).oracle.forward(tokens)
    assert relative_error(softer.logits, capped.logits) > 0.1


@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize(("kind", "bits"), [("int8", 8), ("int4", 4)])
def test_grouped_heads(kind: HeadKind, bits: int, softcap: float, isa: str) -> None:
    """Logits of the stored head's codes, and of hidden states in blocks."""
    shape = Shape(vocab=161, final_softcap=softcap)
    pair = twins(3, shape, isa=isa, threads=2, head_kind=kind)
    hidden, logits = run(pair, np.arange(7, dtype=np.int32))
    coded = _core.GroupedMatrix(shape.vocab, shape.hidden, bits)
    coded.pack_float(0, pair.oracle.head.astype(np.float32))
    q, scales = grouped.quantize_blocks(hidden[-1])
    expected = grouped.grouped_linear(q, scales, coded.dequantize().astype(np.float64))
    if softcap:
        expected = softcap * np.tanh(expected / softcap)
    assert relative_error(logits, expected) < GOLDEN_LOGITS
    counters = pair.native.decoder.head_counters()
    assert counters["full_rows"] == 7
    assert pair.native.decoder.weight_bytes()["screen"] == coded.nbytes


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_grouped_head_made_before(kind: str) -> None:
    made = native.decoder(head_kind=kind)
    arrays = {name: on_cache_lines(array) for name, array in made.coded_head_arrays().items()}
    again = native.decoder(head_kind=kind, coded_head=arrays)
    batch = native.batch()
    expected = batch.run(made, native.cache())
    assert batch.run(again, native.cache()).tobytes() == expected.tobytes()


def test_a_head_that_is_not_finite_is_refused() -> None:
    table = native.embedding()
    table[3, 5] = np.nan
    with pytest.raises(QuantizationError, match="row 3 holds a NaN or an infinity"):
        native.decoder(embedding=table, head_kind="int4", threads=2)


def in_groups(packed: int = native.VOCAB, bits: int = 4) -> _core.GroupedMatrix:
    """Return rows for tokens as codes, some of them packed."""
    matrix = _core.GroupedMatrix(native.VOCAB, native.HIDDEN, bits)
    matrix.pack_float(0, native.embedding()[:packed])
    return matrix


def steps(table: Any, isa: str, threads: int = 1, **options: Any) -> tuple[F32Array, F32Array]:
    """Return hidden states and logits of a decoder whose embedding and head are one."""
    config = native.config(embedding_scale=3.3, **options.pop("config", {}))
    decoder = native.decoder(
        config=config, embedding=table, isa=isa, threads=threads, small_step=0, **options
    )
    hidden = np.empty((2, 8, native.HIDDEN), np.float32)
    logits = native.batch().run(decoder, native.cache(), hidden_states=hidden)
    return hidden, logits


@pytest.mark.parametrize("threads", [1, 3])
def test_a_vocabulary_in_groups(threads: int, isa: str) -> None:
    """Codes are looked up as their values are, to the bit, and multiply as these do."""
    capped = {"final_softcap": 3.0}
    hidden, logits = steps(in_groups(), isa, threads, config=capped)
    expected = steps(in_groups().dequantize(), isa, config=capped)
    assert hidden.tobytes() == expected[0].tobytes()
    assert relative_error(logits, expected[1]) < GOLDEN_LOGITS


@pytest.mark.parametrize("kind", ["int8", "int7", "int5", "int4"])
def test_a_coded_head_of_a_vocabulary_in_groups(kind: HeadKind, isa: str) -> None:
    found = steps(in_groups(), isa, head_kind=kind)
    expected = steps(in_groups().dequantize(), isa, head_kind=kind)
    assert found[1].tobytes() == expected[1].tobytes()


def many_in_groups(vocab: int, bits: int, group: int, scales: Literal["f16", "f32"]) -> Any:
    """Return rows for more tokens than are worth computing to find the best of them."""
    matrix = _core.GroupedMatrix(vocab, native.HIDDEN, bits, group, scales)
    rows = np.random.default_rng(8).standard_normal((vocab, native.HIDDEN))
    matrix.pack_float(0, rows.astype(np.float32))
    return matrix


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("top", [1, 9])
@pytest.mark.parametrize(
    ("bits", "group", "scales"), [(2, 64, "f16"), (4, 32, "f16"), (8, 32, "f16"), (8, 16, "f32")]
)
def test_an_exact_head_of_a_vocabulary_in_groups(
    bits: int, group: int, scales: Literal["f16", "f32"], top: int, threads: int, isa: str
) -> None:
    """What is read of it has the bits of a dense head; most is not."""
    vocab = 8000  # not whole panels
    table = many_in_groups(vocab, bits, group, scales)
    parts: dict[str, Any] = {"config": native.config(vocab_size=vocab), "embedding": table}
    batch, margins = native.batch(), np.zeros(2, np.float32)
    dense = native.decoder(**parts, isa=isa)
    exact = native.decoder(**parts, isa=isa, threads=threads, head_kind="exact")
    whole = batch.run(dense, native.cache())
    assert batch.run(exact, native.cache()).tobytes() == whole.tobytes()
    known = native.ints(5, 17, 7999)
    some = batch.run(
        exact,
        native.cache(),
        screen_top=native.ints(top, top),
        screen_margin=margins,
        screen_known=[known, known],
    )
    shown = some > -np.inf
    assert some[shown].tobytes() == whole[shown].tobytes()
    assert shown[:, known].all()
    highest = np.argsort(whole, axis=1)[:, -top:]
    assert np.take_along_axis(shown, highest, axis=1).all()
    counters = exact.head_counters()
    assert (counters["screened_rows"], counters["fallback_rows"]) == (2, 0)
    assert counters["candidates"] == shown.sum() < 64


def test_too_many_panels_of_codes_fall_back_to_all(isa: str) -> None:
    vocab = 64 * 64
    matrix = _core.GroupedMatrix(vocab, native.HIDDEN, 8)
    matrix.pack_float(0, np.ones((vocab, native.HIDDEN), np.float32))
    parts: dict[str, Any] = {"config": native.config(vocab_size=vocab), "embedding": matrix}
    exact = native.decoder(**parts, isa=isa, threads=2, head_kind="exact")
    screened = native.batch().run(
        exact, native.cache(), screen_top=native.ints(1, 1), screen_margin=np.zeros(2, np.float32)
    )
    whole = native.batch().run(native.decoder(**parts, isa=isa), native.cache())
    assert screened.tobytes() == whole.tobytes()
    assert exact.head_counters()["fallback_rows"] == 2


def test_what_a_vocabulary_in_groups_cannot_be(isa: str) -> None:
    minima = _core.GroupedMatrix(native.VOCAB, native.HIDDEN, 4, 32, "f32", has_minimum=True)
    codes = np.zeros((native.VOCAB, native.HIDDEN), np.uint8)
    ones = np.ones((native.VOCAB, 1), np.float32)
    minima.pack_codes(0, codes, ones, ones)
    with pytest.raises(ValidationError, match=r"codes without minima; use head_kind='dense'"):
        steps(minima, isa, head_kind="exact")
    for kind in ("dense", "exact"):
        with pytest.raises(ValidationError, match="head of codes has 2, 4 or 8 bits, not 3"):
            steps(in_groups(bits=3), isa, head_kind=kind)
    with pytest.raises(ValidationError, match="embedding has 49 of 50 rows filled"):
        steps(in_groups(49), isa)


@pytest.mark.parametrize("top", [1, 9])
@pytest.mark.parametrize(
    ("softcap", "margin", "is_narrow"),
    [
        (1e-4, 0.0, False),  # of thousands of equal logits any may be the highest
        (3.0, 0.0, True),
        (3.0, 0.5, False),
        (30.0, 0.0, True),
        (30.0, 0.5, True),
        (30.0, np.inf, False),
    ],
)
@pytest.mark.parametrize("in_codes", [False, True])
def test_an_exact_head_with_a_soft_cap(
    in_codes: bool, softcap: float, margin: float, is_narrow: bool, top: int, isa: str
) -> None:
    """Ranks and margins are of capped logits."""
    vocab = 8000
    table = many_in_groups(vocab, 8, 32, "f16")
    parts: dict[str, Any] = {
        "config": native.config(vocab_size=vocab, final_softcap=softcap),
        "embedding": table if in_codes else table.dequantize(),
    }
    batch = native.batch()
    whole = batch.run(native.decoder(**parts, isa=isa), native.cache())
    exact = native.decoder(**parts, isa=isa, threads=3, head_kind="exact")
    margins = np.full(2, margin, np.float32)
    some = batch.run(exact, native.cache(), screen_top=native.ints(top, top), screen_margin=margins)
    shown = some > -np.inf
    assert some[shown].tobytes() == whole[shown].tobytes()
    lowest = np.sort(whole, axis=1)[:, -top]
    assert shown[whole >= (lowest - margins)[:, None]].all()
    assert exact.head_counters()["fallback_rows"] == (0 if is_narrow else 2)
    assert (shown.sum() < 200) == is_narrow


@pytest.mark.parametrize("kind", ["int7", "int5"])
def test_a_coded_head_with_a_soft_cap(kind: HeadKind, isa: str) -> None:
    plain = steps(native.embedding(), isa, head_kind=kind)[1]
    capped = steps(native.embedding(), isa, head_kind=kind, config={"final_softcap": 3.0})[1]
    np.testing.assert_allclose(capped, 3.0 * np.tanh(plain.astype(np.float64) / 3.0), rtol=1e-6)
