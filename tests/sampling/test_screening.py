"""Screening must never change a token, and must leave out what it can."""

from __future__ import annotations

import numpy as np
import pytest
from support import random_tokens, tiny_decoder

from ryzanstein import SamplingParams, _core
from ryzanstein.engine.batch import Chunk, run_step
from ryzanstein.sampling.screening import EVERY_LOGIT, Screening, screening

GREEDY = SamplingParams(temperature=0.0)
CHAINS = [
    GREEDY,
    SamplingParams(top_k=1),
    SamplingParams(top_k=5, temperature=0.7),
    SamplingParams(top_k=40, top_p=0.9, min_p=0.02),
    SamplingParams(min_p=0.1),
    SamplingParams(min_p=0.5, temperature=1.7),
]


def test_chains_that_see_everything_are_not_screened() -> None:
    for params in (
        SamplingParams(),
        SamplingParams(top_p=0.9),
        SamplingParams(top_p=0.9, min_p=0.1),
        SamplingParams(temperature=0.0, repetition_penalty=1.1),
        SamplingParams(temperature=0.0, logprobs=0),
    ):
        assert screening(params) is EVERY_LOGIT


@pytest.mark.parametrize("params", CHAINS, ids=repr)
def test_screened_rows_draw_the_same_tokens(isa: str, params: SamplingParams) -> None:
    model = tiny_decoder(3, isa=isa, threads=2)
    cache = model.cache(8)
    tokens = random_tokens(5, 200, model.vocab_size)
    slots = np.arange(200, dtype=np.int32)

    def logits(asked: Screening) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        chunk = Chunk(tokens, 0, slots, range(8), len(tokens), asked)
        rows: np.ndarray[tuple[int, int], np.dtype[np.float32]] = run_step(
            model.decoder, cache, [chunk]
        )
        return rows

    whole = logits(EVERY_LOGIT)
    screened = logits(screening(params))
    kept = np.isfinite(screened)
    assert kept.sum() < whole.size
    assert np.array_equal(screened[kept], whole[kept])
    sampler = _core.Sampler(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        seed=9,
    )
    history = np.zeros(0, np.int32)
    for position, (row, full) in enumerate(zip(screened, whole, strict=True)):
        assert sampler.sample(row, history, position) == sampler.sample(full, history, position)


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
        post_attention_norm=ones,
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
        inv_freq=np.ones(hidden // 2),
    )
    embedding = np.ones((vocab, hidden), np.float32)
    return _core.Decoder(config, [layer], embedding, ones, screened_head=True, isa=isa)
