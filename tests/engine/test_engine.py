from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import TinyModel, finish, make_sequence, random_tokens, tiny_decoder, tiny_engine

from ryzanstein import ContextLengthError, DistributionError, _core
from ryzanstein.engine import batch
from ryzanstein.engine import engine as engine_module

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ryzanstein._core import F32Array, I32Array
    from ryzanstein.config import KVDtype
    from ryzanstein.engine.batch import Chunk

MODEL = tiny_decoder(3)


def greedy_by_hand(prompt: I32Array, count: int) -> list[int]:
    tokens = prompt
    for _ in range(count):
        (piece,) = [logits for _, logits in tiny_engine(MODEL).logits(tokens)][-1:]
        tokens = np.append(tokens, np.argmax(piece[-1]).astype(np.int32))
    return [int(token) for token in tokens[len(prompt) :]]


def test_greedy_follows_the_logits() -> None:
    prompt = random_tokens(1, 40)
    (tokens,) = finish(tiny_engine(MODEL), [make_sequence(prompt, 5, temperature=0)])
    assert tokens == greedy_by_hand(prompt, 5)


def test_stop_token_ends_and_is_kept() -> None:
    prompt = random_tokens(1, 40)
    expected = greedy_by_hand(prompt, 6)
    sequence = make_sequence(prompt, 6, temperature=0, stop_token_ids=[expected[3]])
    (tokens,) = finish(tiny_engine(MODEL), [sequence])
    first = expected.index(expected[3])
    assert tokens == expected[: first + 1]
    assert sequence.finish_reason == "stop"


def test_logprobs_describe_the_logits() -> None:
    prompt = random_tokens(2, 33)
    sequence = make_sequence(prompt, 3, temperature=1.5, seed=4, logprobs=5)
    (tokens,) = finish(tiny_engine(MODEL), [sequence])
    text = np.append(prompt, tokens[:-1]).astype(np.int32)
    rows = np.concatenate([logits for _, logits in tiny_engine(MODEL).logits(text)])[-3:]
    rows = rows.astype(np.float64)
    expected = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    for token, entry, row in zip(tokens, sequence.logprobs, expected, strict=True):
        assert entry.token_id == token
        assert entry.logprob == pytest.approx(row[token], abs=1e-5)
        assert [i for i, _ in entry.top] == np.argsort(-row)[:5].tolist()
        assert [p for _, p in entry.top] == pytest.approx(np.sort(row)[::-1][:5], abs=1e-5)


def test_a_sequence_without_a_distribution_leaves_its_neighbours_alone() -> None:
    model = tiny_decoder(3, nan_token=70)
    broken = make_sequence(np.append(random_tokens(5, 9), 70).astype(np.int32), 4, seed=1)
    prompts = [random_tokens(i, 9) % 70 for i in (6, 7)]
    expected = [greedy_by_hand(prompt, 4) for prompt in prompts]
    assert 70 not in expected[0] + expected[1]
    sound = [make_sequence(prompt, 4, temperature=0) for prompt in prompts]
    assert finish(tiny_engine(model), [sound[0], broken, sound[1]]) == [
        expected[0],
        [],
        expected[1],
    ]
    assert isinstance(broken.error, DistributionError)
    assert broken.finish_reason is None


def test_logits_come_in_bounded_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = random_tokens(8, 100)
    (_, first), (_, rest), *more = tiny_engine(MODEL, token_budget=99).logits(tokens)
    assert (len(first), len(rest), more) == (1, 99, [])
    whole = np.concatenate([first, rest])
    row_bytes = whole.itemsize * whole.shape[1]
    monkeypatch.setattr(engine_module, "_LOGITS_BYTES_PER_STEP", 10 * row_bytes)
    pieces: list[F32Array] = []
    for start, logits in tiny_engine(MODEL).logits(tokens):
        assert start == sum(map(len, pieces))
        pieces.append(logits)
    assert max(map(len, pieces)) == 10
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


def test_logits_make_room_and_give_it_back() -> None:
    engine = tiny_engine(MODEL, num_blocks=4, context_length=128)
    sequence = make_sequence(random_tokens(9, 60), 20, temperature=0)
    expected = greedy_by_hand(random_tokens(9, 60), 20)
    engine.add(sequence)
    engine.step()
    assert sum(len(logits) for _, logits in engine.logits(random_tokens(10, 120))) == 120
    while not sequence.is_finished:
        engine.step()
    assert sequence.generated.tolist() == expected
    assert engine.blocks.num_free == 4


def test_logits_beyond_the_context() -> None:
    with pytest.raises(ContextLengthError, match="129 tokens do not fit in a context of 128"):
        next(tiny_engine(MODEL, context_length=128).logits(random_tokens(1, 129)))


def test_a_closed_logits_iterator_frees_its_pages() -> None:
    engine = tiny_engine(MODEL)
    iterator = engine.logits(random_tokens(1, 70))
    next(iterator)
    assert engine.blocks.num_free < engine.blocks.num_blocks
    del iterator
    assert engine.blocks.num_free == engine.blocks.num_blocks


class InterruptedDecoder:
    """Every third step is interrupted, before or after the arithmetic."""

    def __init__(self, decoder: _core.Decoder, *, after: bool) -> None:
        self.decoder = decoder
        self.after = after
        self.calls = 0

    def step(self, *arguments: Any, **options: Any) -> F32Array:
        self.calls += 1
        logits = None
        if self.calls % 3 != 0 or self.after:
            logits = self.decoder.step(*arguments, **options)
        if self.calls % 3 == 0:
            raise KeyboardInterrupt
        assert logits is not None
        return logits


@pytest.mark.parametrize("where", ["before", "after", "processing"])
def test_an_interrupted_step_costs_nothing(where: str) -> None:
    prompts = [random_tokens(i, 30 * i) for i in (1, 2, 3)]
    options: dict[str, Any] = {"temperature": 1.0, "seed": 3, "logprobs": 1}
    plain = [make_sequence(prompt, 9, **options) for prompt in prompts]
    expected = finish(tiny_engine(MODEL), plain)
    draws = itertools.count(1)

    def interrupt_third(tokens: I32Array, logits: F32Array) -> None:
        """Come with part of the batch already extended."""
        if where == "processing" and next(draws) % 3 == 0:
            raise KeyboardInterrupt

    options["logits_processor"] = interrupt_third
    sequences = [make_sequence(prompt, 9, **options) for prompt in prompts]
    model: Any = MODEL
    if where != "processing":
        decoder: Any = InterruptedDecoder(MODEL.decoder, after=where == "after")
        model = TinyModel(decoder)
    engine = tiny_engine(model)
    for sequence in sequences:
        engine.add(sequence)
    interrupts = 0
    while engine.scheduler.has_work:
        try:
            engine.step()
        except KeyboardInterrupt:
            interrupts += 1
        engine.blocks.check()
    assert interrupts > 2
    assert [sequence.generated.tolist() for sequence in sequences] == expected
    assert [s.logprobs for s in sequences] == [s.logprobs for s in plain]
    assert engine.blocks.num_free == engine.blocks.num_blocks


@pytest.mark.parametrize("kv_dtype", ["f16", "int8"])
def test_an_interrupt_before_a_shared_page_is_copied_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, kv_dtype: KVDtype
) -> None:
    prompt = random_tokens(1, 45)
    options = {"temperature": 1.0, "logprobs": 1}
    plain = [make_sequence(prompt, 9, seed=seed, **options) for seed in (1, 2)]
    expected = finish(tiny_engine(MODEL, kv_dtype=kv_dtype), plain)

    forked = [make_sequence(prompt, 9, seed=seed, **options) for seed in (1, 2)]
    engine = tiny_engine(MODEL, kv_dtype=kv_dtype)
    for sequence in forked:
        engine.add(sequence)
        engine.step()
    first, second = forked
    assert first.table is not None
    assert second.table is not None
    engine.blocks.free(second.table)
    second.table = engine.blocks.fork(first.table)
    engine.blocks.truncate(second.table, second.num_computed)

    interrupted: list[Sequence[Chunk]] = []

    def run_step(
        decoder: _core.Decoder, cache: _core.PagedCache, chunks: Sequence[Chunk]
    ) -> F32Array:
        if not interrupted and any(chunk.copies for chunk in chunks):
            interrupted.append(chunks)
            raise KeyboardInterrupt
        return batch.run_step(decoder, cache, chunks)

    monkeypatch.setattr(engine_module, "run_step", run_step)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    engine.blocks.check()
    while engine.scheduler.has_work:
        engine.step()
        engine.blocks.check()
    assert [sequence.generated.tolist() for sequence in forked] == expected
    assert [s.logprobs for s in forked] == [s.logprobs for s in plain]


def test_a_step_without_work_does_nothing() -> None:
    engine = tiny_engine(MODEL)
    engine.step()
    assert engine.blocks.num_free == engine.blocks.num_blocks
