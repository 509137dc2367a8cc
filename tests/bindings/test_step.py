"""Whatever a batch holds, a step computes or refuses; it never reads or writes out of bounds."""

from __future__ import annotations

from typing import Any

import native
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native import HEAD_DIM, HIDDEN, KV_HEADS, PAGE, VOCAB, ints

from ryzanstein import ValidationError

LOW, HIGH = -(1 << 31), (1 << 31) - 1
DECODER = native.decoder(threads=2)


def put(array: Any, index: Any, value: int) -> Any:
    changed = array.copy()
    changed[index] = value
    return changed


BASE = native.batch()
TABLES = BASE.block_tables
CASES: list[tuple[dict[str, Any], str]] = [
    *(
        ({"token_ids": put(BASE.token_ids, 6, bad)}, rf"token id {bad} is outside a vocab.* of 50")
        for bad in (-1, VOCAB, LOW, HIGH)
    ),
    ({"token_ids": ints(1, 2)}, "differ in length|must run from 0"),
    ({"positions": BASE.positions[:7]}, "differ in length"),
    ({"slots": np.append(BASE.slots, ints(0))}, "differ in length"),
    ({"positions": put(BASE.positions, 0, 29)}, "sequence 0 has positions that do not ascend"),
    ({"positions": put(BASE.positions, 3, 32)}, "sequence 0 has positions that do not ascend"),
    ({"positions": put(BASE.positions, 4, 33)}, "sequence 0 has positions that do not ascend"),
    ({"positions": put(BASE.positions, 7, HIGH)}, "sequence 1"),
    ({"positions": put(BASE.positions, 7, LOW)}, "sequence 1"),
    ({"positions": put(BASE.positions, 5, HIGH)}, "sequence 1"),
    ({"positions": put(BASE.positions, 5, 1_000_000)}, "sequence 1"),
    ({"positions": put(BASE.positions, 5, LOW)}, "sequence 1 starts at a negative position"),
    ({"positions": np.arange(-1, 7, dtype=np.int32)}, "sequence 0 starts at a negative position"),
    ({"positions": BASE.positions + ints(32)}, "sequence 0 reaches position 66 beyond its block"),
    *(
        ({"slots": put(BASE.slots, 5, bad)}, "sequence 1 writes position 0 to a slot that its bloc")
        for bad in (-1, 0, 7 * PAGE + 1, 8 * PAGE, LOW, HIGH)
    ),
    *(
        ({"block_tables": put(TABLES, (0, 1), bad)}, rf"sequence 0 lists block {bad}, cache has 8")
        for bad in (-1, 8, LOW, HIGH)
    ),
    ({"block_tables": put(TABLES, (0, 0), 8)}, "sequence 0 lists block 8, cache has 8"),
    ({"block_tables": TABLES[:1]}, "does not have one row per sequence"),
    ({"block_tables": np.vstack([TABLES, TABLES])}, "does not have one row per sequence"),
    ({"block_tables": TABLES.reshape(-1)}, r"block_tables has shape \[4\], expected 2 dimensions"),
    ({"block_tables": np.empty((2, 0), np.int32)}, "beyond its block table"),
    ({"seq_starts": ints(1, 5, 8)}, "must run from 0 to the number of tokens"),
    ({"seq_starts": ints(0, 5, 7)}, "must run from 0 to the number of tokens"),
    ({"seq_starts": ints(0, 5, 9)}, "must run from 0 to the number of tokens"),
    ({"seq_starts": ints(0, 0, 8)}, "seq_starts must ascend: sequence 0 has no tokens"),
    ({"seq_starts": ints(0, 8, 8)}, "seq_starts must ascend: sequence 1 has no tokens"),
    ({"seq_starts": ints(0, HIGH, 8)}, "seq_starts must ascend|sequence 0"),
    ({"seq_starts": ints(0, -1, 8)}, "seq_starts must ascend"),
    ({"seq_starts": ints(0)}, "seq_starts needs at least two entries"),
    ({"seq_starts": ints()}, "seq_starts needs at least two entries"),
    ({"seq_starts": ints(0, 5, 8)[None]}, r"seq_starts has shape \[1, 3\], expected 1 dimension"),
    *(
        ({"logit_rows": put(BASE.logit_rows, 1, bad)}, rf"logit row {bad} is outside a batch of 8")
        for bad in (-1, 8, LOW, HIGH)
    ),
]


@pytest.mark.parametrize(("changes", "message"), CASES)
def test_wrong_batches_are_refused(changes: dict[str, Any], message: str) -> None:
    cache = native.cache()
    BASE.run(DECODER, cache)
    before = [array.tobytes() for block in range(8) for array in cache.read(0, block)]
    with pytest.raises(ValidationError, match=message):
        native.batch(**changes).run(DECODER, cache)
    after = [array.tobytes() for block in range(8) for array in cache.read(0, block)]
    assert after == before


def test_an_empty_batch_is_refused() -> None:
    empty = ints()
    nothing = native.Batch(empty, empty, ints(0, 0), empty, np.empty((1, 1), np.int32), empty)
    with pytest.raises(ValidationError, match="the batch is empty"):
        nothing.run(DECODER, native.cache())


@pytest.mark.parametrize(
    "changes",
    [{"num_layers": 2}, {"num_kv_heads": KV_HEADS + 1}, {"head_dim": HEAD_DIM * 2}],
)
def test_a_cache_of_another_shape_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="the cache was made for another model shape"):
        BASE.run(DECODER, native.cache(**changes))


@pytest.mark.parametrize(
    "shape", [(2, 8), (1, 8, HIDDEN), (3, 8, HIDDEN), (2, 7, HIDDEN), (2, 8, HIDDEN + 1)]
)
def test_hidden_states_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="hidden_states has shape"):
        BASE.run(DECODER, native.cache(), hidden_states=np.empty(shape, np.float32))


@pytest.mark.parametrize(
    ("top", "margin", "message"),
    [
        (ints(1, 1), None, "come together"),
        (None, np.zeros(2, np.float32), "come together"),
        (ints(1, 1), np.zeros(3, np.float32), "differ in length"),
        (ints(1), np.zeros(1, np.float32), "one entry per logit row"),
        (ints(1, -1), np.zeros(2, np.float32), "needs top >= 0 and margin >= 0"),
        (ints(1, 1), np.array([0, -1], np.float32), "needs top >= 0 and margin >= 0"),
        (ints(1, 1), np.array([0, np.nan], np.float32), "needs top >= 0 and margin >= 0"),
    ],
)
@pytest.mark.parametrize("kind", ["dense", "exact", "int7"])
def test_wrong_screening_is_refused(kind: str, top: Any, margin: Any, message: str) -> None:
    decoder = native.decoder(head_kind=kind)
    with pytest.raises(ValidationError, match=message):
        BASE.run(decoder, native.cache(), screen_top=top, screen_margin=margin)


@pytest.mark.parametrize(
    ("rope_sets", "message"),
    [
        (ints(0), "one entry per sequence"),
        (ints(0, 1), "rope set 1 is not one of 1"),
        (ints(0, -1), "rope set -1 is not one of 1"),
    ],
)
def test_wrong_rope_sets_are_refused(rope_sets: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BASE.run(DECODER, native.cache(), rope_sets=rope_sets)


def test_the_codes_of_another_head_is_refused() -> None:
    screen = native.decoder(head_kind="exact").coded_head_arrays()
    fewer = dict(list(screen.items())[1:])
    with pytest.raises(ValidationError, match=r"stored array .* has 0 bytes"):
        native.decoder(head_kind="exact", coded_head=fewer)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ([ints(1)], "differ in length"),
        ([ints(1), ints(VOCAB)], "outside the vocabulary"),
        ([ints(-1), ints(1)], "outside the vocabulary"),
    ],
)
def test_wrong_known_tokens_are_refused(known: list[Any], message: str) -> None:
    decoder = native.decoder(head_kind="exact")
    options: dict[str, Any] = {"screen_top": ints(1, 1), "screen_margin": np.zeros(2, np.float32)}
    with pytest.raises(ValidationError, match=message):
        BASE.run(decoder, native.cache(), screen_known=known, **options)


def test_an_unknown_kind_of_head_is_refused() -> None:
    with pytest.raises(ValidationError, match="head_kind 'int3' is not one of"):
        native.decoder(head_kind="int3")


@pytest.mark.parametrize("top", [1, VOCAB - 1, VOCAB, VOCAB + 1, 2048, 2049, HIGH])
@pytest.mark.parametrize("margin", [0.0, 1e30, np.inf])
def test_any_screening_keeps_the_highest(top: int, margin: float) -> None:
    decoder = native.decoder(head_kind="exact")
    whole = BASE.run(decoder, native.cache())
    margins = np.full(2, margin, np.float32)
    some = BASE.run(decoder, native.cache(), screen_top=ints(top, 1), screen_margin=margins)
    shown = some > -np.inf
    assert some[shown].tobytes() == whole[shown].tobytes()
    assert (shown.sum(axis=1) >= [min(top, VOCAB), 1]).all()
    assert (some.max(axis=1) == whole.max(axis=1)).all()


def test_logit_rows_in_any_order() -> None:
    every = native.batch(logit_rows=np.arange(8, dtype=np.int32)).run(DECODER, native.cache())
    rows = ints(7, 0, 7, 3)
    some = native.batch(logit_rows=rows).run(DECODER, native.cache())
    assert some.tobytes() == every[rows].tobytes()
    none = native.batch(logit_rows=ints()).run(DECODER, native.cache())
    assert none.shape == (0, VOCAB)


EDGES = st.sampled_from([LOW, LOW + 1, -33, -1, 0, 1, 2, 7, 8, 31, 32, 63, 64, 255, 256, HIGH])
NUMBERS = st.one_of(EDGES, st.integers(0, 40), st.integers(LOW, HIGH))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_numbers_compute_or_are_refused(data: st.DataObject) -> None:
    """A valid batch with some of its numbers, or of its arrays, replaced by anything."""
    changes: dict[str, Any] = {}
    names = [name for name in vars(BASE) if data.draw(st.booleans(), label=name)]
    for name in names:
        array = getattr(BASE, name).copy()
        if data.draw(st.booleans()):
            for _ in range(data.draw(st.integers(1, 3))):
                array.flat[data.draw(st.integers(0, array.size - 1))] = data.draw(NUMBERS)
        else:
            values = data.draw(st.lists(NUMBERS, max_size=12))
            array = np.array(values, np.int32)
            if name == "block_tables":
                width = data.draw(st.integers(1, 3))
                array = array[: array.size // width * width].reshape(-1, width)
        changes[name] = array
    batch = native.batch(**changes)
    cache = native.cache()
    try:
        logits = batch.run(DECODER, cache)
    except ValidationError:
        return
    assert logits.shape == (len(batch.logit_rows), VOCAB)
