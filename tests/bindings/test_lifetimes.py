"""The decoder reads its embedding and head in place, and so must keep them; nothing else may."""

from __future__ import annotations

import gc
import sys
import weakref

import native
import numpy as np
from arrays import on_cache_lines

from ryzanstein import _core


def churn() -> None:
    """Reuse whatever memory has been given back."""
    gc.collect()
    for _ in range(50):
        np.full((native.VOCAB, native.HIDDEN), np.nan, np.float32)


def test_the_decoder_keeps_embedding_and_head() -> None:
    embedding, head = native.embedding(), native.embedding(3)
    kept = weakref.ref(embedding), weakref.ref(head)
    decoder = native.decoder(embedding=embedding, lm_head=head)
    cache = native.cache()
    before = native.batch().run(decoder, cache).tobytes()
    del embedding, head
    churn()
    assert all(reference() is not None for reference in kept)
    assert native.batch().run(decoder, cache).tobytes() == before
    del decoder
    gc.collect()
    assert all(reference() is None for reference in kept)


def test_a_view_keeps_its_owner() -> None:
    owner = np.vstack([native.embedding(4), native.embedding()])
    decoder = native.decoder(embedding=owner[native.VOCAB :])
    expected = native.batch().run(native.decoder(), native.cache()).tobytes()
    del owner
    churn()
    assert native.batch().run(decoder, native.cache()).tobytes() == expected


def test_a_decoder_that_was_refused_keeps_nothing() -> None:
    embedding = native.embedding()
    count = sys.getrefcount(embedding)
    for threads in (0, 2000):
        try:
            native.decoder(embedding=embedding, threads=threads)
        except ValueError:
            continue
        raise AssertionError
    gc.collect()
    assert sys.getrefcount(embedding) == count


def test_weights_outlive_their_python_objects() -> None:
    matrix = _core.TernaryMatrix(native.HIDDEN, native.INNER)
    codes = np.ones((native.HIDDEN, native.INNER), np.int8)
    matrix.pack_codes(0, codes, np.ones(native.HIDDEN, np.float32))
    layers = [native.layer(down_proj=_core.Linear(matrix))]
    decoder = native.decoder(layers=layers)
    before = native.batch().run(decoder, native.cache()).tobytes()
    del matrix, codes, layers
    churn()
    assert native.batch().run(decoder, native.cache()).tobytes() == before


def test_dense_linears_keep_their_arrays() -> None:
    weights = np.random.default_rng(1).standard_normal((native.HIDDEN, native.INNER))
    array = weights.astype(np.float32)
    kept = weakref.ref(array)
    layers = [native.layer(down_proj=_core.Linear(_core.DenseMatrix(array)))]
    decoder = native.decoder(layers=layers)
    before = native.batch().run(decoder, native.cache()).tobytes()
    del array, layers
    churn()
    assert kept() is not None
    assert native.batch().run(decoder, native.cache()).tobytes() == before
    del decoder
    gc.collect()
    assert kept() is None


def test_stored_arrays_are_kept_and_let_go() -> None:
    built = native.decoder(head_kind="exact")
    expected = native.batch().run(built, native.cache()).tobytes()
    matrix = _core.TernaryMatrix(native.HIDDEN, native.INNER)
    codes = np.random.default_rng(1).integers(-1, 2, (native.HIDDEN, native.INNER))
    matrix.pack_codes(0, codes.astype(np.int8), np.full(native.HIDDEN, 0.2, np.float32))
    arrays = {name: on_cache_lines(array) for name, array in matrix.arrays().items()}
    screen = {name: on_cache_lines(array) for name, array in built.coded_head_arrays().items()}
    owners = [array.base for array in (*arrays.values(), *screen.values())]
    kept = [weakref.ref(owner) for owner in owners if owner is not None]
    assert len(kept) == 5
    mapped = _core.TernaryMatrix(native.HIDDEN, native.INNER, arrays=arrays)
    layers = [native.layer(down_proj=_core.Linear(mapped))]
    decoder = native.decoder(layers=layers, head_kind="exact", coded_head=screen)
    del matrix, built, arrays, screen, owners, mapped, layers
    churn()
    assert all(reference() is not None for reference in kept)
    assert native.batch().run(decoder, native.cache()).tobytes() == expected
    del decoder
    gc.collect()
    assert all(reference() is None for reference in kept)


def test_views_of_packed_weights_keep_them() -> None:
    decoder = native.decoder(head_kind="exact")
    matrix = _core.TernaryMatrix(native.HIDDEN, native.INNER)
    views = [*matrix.arrays().values(), *decoder.coded_head_arrays().values()]
    before = [view.tobytes() for view in views]
    del matrix, decoder
    churn()
    assert [view.tobytes() for view in views] == before
    assert not any(view.flags.writeable for view in views)


def test_norms_are_copied() -> None:
    gain = np.ones(native.HIDDEN, np.float32)
    decoder = native.decoder(layers=[native.layer(input_norm=gain)], final_norm=gain)
    before = native.batch().run(decoder, native.cache()).tobytes()
    gain[:] = np.nan
    assert native.batch().run(decoder, native.cache()).tobytes() == before


def test_steps_and_packing_hold_on_to_nothing() -> None:
    decoder, cache, batch = native.decoder(), native.cache(), native.batch()
    hidden = np.empty((2, 8, native.HIDDEN), np.float32)
    codes, scales = np.zeros((4, 8), np.int8), np.ones(4, np.float32)
    held = [*vars(batch).values(), cache, hidden, codes, scales]
    counts = [sys.getrefcount(thing) for thing in held]
    for _ in range(20):
        batch.run(decoder, cache, hidden_states=hidden)
        _core.TernaryMatrix(4, 8).pack_codes(0, codes, scales)
    assert [sys.getrefcount(thing) for thing in held] == counts


def test_results_belong_to_the_caller() -> None:
    decoder, cache = native.decoder(), native.cache()
    first = native.batch().run(decoder, cache)
    copy = first.copy()
    native.batch(token_ids=native.batch().token_ids + 9).run(decoder, cache)
    del decoder, cache
    churn()
    assert first.tobytes() == copy.tobytes()
