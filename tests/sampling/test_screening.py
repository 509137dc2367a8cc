"""Screening must never change a token, and must leave out what it can."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support import random_tokens, tiny_decoder

from ryzanstein import SamplingParams, _core
from ryzanstein.engine.batch import Chunk, run_step
from ryzanstein.sampling.sampler import make_sampler
from ryzanstein.sampling.screening import EVERY_LOGIT, Screening, screening

if TYPE_CHECKING:
    from ryzanstein.config import HeadKind

GREEDY = SamplingParams(temperature=0.0)
CHAINS = [
    GREEDY,
    SamplingParams(top_k=1),
    SamplingParams(top_k=5, temperature=0.7),
    SamplingParams(top_k=40, top_p=0.9, min_p=0.02),
    SamplingParams(min_p=0.1),
    SamplingParams(min_p=0.5, temperature=1.7),
    SamplingParams(temperature=0.0, repetition_penalty=1.3),
    SamplingParams(temperature=0.0, repetition_penalty=0.8),
    SamplingParams(top_k=5, repetition_penalty=1.5),
    SamplingParams(top_k=5, repetition_penalty=0.7),
    SamplingParams(min_p=0.3, repetition_penalty=2.0),
    SamplingParams(min_p=0.3, repetition_penalty=0.6),
    SamplingParams(temperature=0.0, frequency_penalty=2.0, presence_penalty=-1.0),
    SamplingParams(temperature=0.0, dry_multiplier=3.0, dry_allowed_length=1),
    SamplingParams(temperature=0.0, logit_bias={3: 9.0, 5: -math.inf}),
    SamplingParams(top_k=4, typical_p=0.5, xtc_probability=0.5, dynatemp_range=0.0),
    SamplingParams(order="llama.cpp", min_p=0.2, temperature=2.0),
    SamplingParams(order="llama.cpp", top_k=9, dynatemp_range=0.5),
    SamplingParams(min_p=0.6, min_keep=3),
    SamplingParams(temperature=0.0, min_tokens=900, stop_token_ids=[7]),
]
STOP_IDS = (7, 9)


def test_chains_that_see_everything_are_not_screened() -> None:
    for params in (
        SamplingParams(),
        SamplingParams(top_p=0.9),
        SamplingParams(top_p=0.9, min_p=0.1),
        SamplingParams(repetition_penalty=1.1),
        SamplingParams(temperature=0.0, logprobs=0),
        SamplingParams(temperature=0.0, logits_processor=print),
        SamplingParams(temperature=0.0, regex="a"),
        SamplingParams(dynatemp_range=0.5, min_p=0.1),
        SamplingParams(dynatemp_range=0.5, top_k=5),
        SamplingParams(top_n_sigma=1.0, top_k=5),
        SamplingParams(typical_p=0.5),
        SamplingParams(order="llama.cpp", typical_p=0.5, min_p=0.1),
        SamplingParams(xtc_probability=0.5),
        SamplingParams(mirostat=2),
        SamplingParams(temperature=0.5, xtc_probability=0.5, logit_bias={1: 1.0}),
    ):
        assert screening(params) is EVERY_LOGIT


@pytest.mark.parametrize("params", CHAINS, ids=repr)
def test_screened_rows_draw_the_same_tokens(isa: str, params: SamplingParams) -> None:
    model = tiny_decoder(3, isa=isa, threads=2)
    cache = model.cache(8)
    tokens = random_tokens(5, 200, model.vocab_size)
    slots = np.arange(200, dtype=np.int32)

    # Among these are tokens that penalties take from the top, or bring there.
    history = tokens[:60].repeat(2)

    def logits(asked: Screening) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        known = np.array(asked.known, np.int32)
        seen = np.concatenate((history, known)) if asked.seen else known
        chunk = Chunk(tokens, 0, slots, range(8), len(tokens), asked, seen)
        rows: np.ndarray[tuple[int, int], np.dtype[np.float32]] = run_step(
            model.decoder, cache, [chunk]
        )
        return rows

    whole = logits(EVERY_LOGIT)
    screened = logits(screening(params, stop_ids=STOP_IDS))
    kept = np.isfinite(screened)
    assert kept.sum() < whole.size
    assert np.array_equal(screened[kept], whole[kept])
    sampler = make_sampler(params, seed=9, stop_ids=STOP_IDS)
    for position, (row, full) in enumerate(zip(screened, whole, strict=True)):
        assert sampler.sample(row, history, position) == sampler.sample(full, history, position)


@pytest.mark.parametrize("top", [1, 7])
def test_screened_rows_are_the_same_on_any_number_of_threads(isa: str, top: int) -> None:
    tokens = random_tokens(5, 40, tiny_decoder(3).vocab_size)
    slots = np.arange(40, dtype=np.int32)
    asked, known = Screening(top, 0.1, seen=True), tokens[:9]
    rows = []
    for threads in (1, 2, 3):
        model = tiny_decoder(3, isa=isa, threads=threads)
        chunk = Chunk(tokens, 0, slots, range(2), len(tokens), asked, known)
        rows.append(run_step(model.decoder, model.cache(2), [chunk]))
    assert np.array_equal(rows[0], rows[1])
    assert np.array_equal(rows[0], rows[2])
    assert np.isfinite(rows[0][:, known]).all()


@pytest.mark.parametrize(
    ("kind", "error"), [("int8", 0.01), ("int7", 0.025), ("int5", 0.07), ("int4", 0.12)]
)
def test_coded_heads_give_every_logit_as_exactly_as_their_bits_allow(
    isa: str, kind: HeadKind, error: float
) -> None:
    tokens = random_tokens(5, 40, tiny_decoder(3).vocab_size)
    slots = np.arange(40, dtype=np.int32)

    def logits(kind: HeadKind, threads: int, count: int) -> np.ndarray:
        model = tiny_decoder(3, isa=isa, threads=threads, head_kind=kind)
        cache = model.cache(2)
        rows: list[np.ndarray] = []
        for start in range(0, len(tokens), count):
            part = slice(start, start + count)
            chunk = Chunk(tokens[part], start, slots[part], range(2), count, Screening(1))
            rows.extend(run_step(model.decoder, cache, [chunk]))
        return np.array(rows)

    dense = logits("dense", 1, 40)
    coded = logits(kind, 1, 40)
    assert np.isfinite(coded).all()
    assert 0.2 * error < np.std(coded - dense) / np.std(dense) < error
    for threads, count in ((1, 1), (2, 5), (3, 8)):
        assert np.array_equal(coded, logits(kind, threads, count))


def test_what_is_not_finite_rules_nothing_out(isa: str) -> None:
    model = tiny_decoder(3, isa=isa, nan_token=7)
    tokens = np.array([1, 7], np.int32)
    chunk = Chunk(tokens, 0, np.arange(2, dtype=np.int32), range(1), 2, Screening(3), tokens[:1])
    first, second = run_step(model.decoder, model.cache(1), [chunk])
    assert 3 <= np.isfinite(first).sum() < len(first)
    assert np.isnan(second).all()


def test_every_row_is_counted(isa: str) -> None:
    model = tiny_decoder(3, isa=isa)
    tokens = random_tokens(5, 4, model.vocab_size)
    args = (
        tokens,
        np.arange(4, dtype=np.int32),
        np.array([0, 4], np.int32),
        np.arange(4, dtype=np.int32),
        np.zeros((1, 1), np.int32),
        np.arange(4, dtype=np.int32),
        model.cache(1),
    )
    top = np.array([0, 1, 3, 0], np.int32)
    rows = model.decoder.step(*args, screen_top=top, screen_margin=np.zeros(4, np.float32))
    counters = model.decoder.head_counters()
    assert (counters["full_rows"], counters["screened_rows"]) == (2, 2)
    assert counters["fallback_rows"] == 0
    assert counters["candidates"] == np.isfinite(rows[1:3]).sum() >= 4
    assert np.isfinite(rows[[0, 3]]).all()


def test_too_many_candidates_fall_back_to_the_full_head(isa: str) -> None:
    """A head of equal rows: nothing can be ruled out."""
    hidden, vocab = 32, 4096
    decoder = _uniform_decoder(hidden, vocab, isa)
    args = (
        np.zeros(1, np.int32),
        np.zeros(1, np.int32),
        np.array([0, 1], np.int32),
        np.zeros(1, np.int32),
        np.zeros((1, 1), np.int32),
        np.zeros(1, np.int32),
        _core.PagedCache(1, 1, hidden, 1, "f32"),
    )
    whole = decoder.step(*args)
    top, margin = np.ones(1, np.int32), np.zeros(1, np.float32)
    screened = decoder.step(*args, screen_top=top, screen_margin=margin)
    assert np.array_equal(screened, whole)
    assert decoder.head_counters()["fallback_rows"] == 1


def _uniform_decoder(hidden: int, vocab: int, isa: str) -> _core.Decoder:
    def linear(rows: int) -> _core.Linear:
        matrix = _core.TernaryMatrix(rows, hidden)
        matrix.pack_codes(0, np.zeros((rows, hidden), np.int8), np.ones(rows, np.float32))
        return _core.Linear(matrix)

    ones = np.ones(hidden, np.float32)
    layer = _core.LayerWeights(
        input_norm=ones,
        attn_in=[linear(3 * hidden)],
        o_proj=linear(hidden),
        ffn_norm=ones,
        mlp_in=[linear(2 * hidden)],
        down_proj=linear(hidden),
    )
    config = _core.DecoderConfig(
        hidden_size=hidden,
        num_heads=1,
        num_kv_heads=1,
        head_dim=hidden,
        intermediate_size=hidden,
        vocab_size=vocab,
        rms_norm_eps=1e-5,
        activation="silu",
        inv_freq=np.ones((1, 1, hidden // 2)),
    )
    embedding = np.ones((vocab, hidden), np.float32)
    return _core.Decoder(config, [layer], embedding, ones, head_kind="exact", isa=isa)


def test_ranking_looks_at_every_logit() -> None:
    assert screening(SamplingParams(top_k=5, best_of=2)) == EVERY_LOGIT
    assert screening(SamplingParams(top_k=5, n=2)) != EVERY_LOGIT
