"""Several samples of one prompt: computed once, forked, and each as if it were alone."""

from __future__ import annotations

import itertools
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import (
    Guesses,
    byte_level,
    draft_with,
    finish,
    make_sequence,
    random_tokens,
    tiny_decoder,
    tiny_engine,
)

from ryzanstein import DistributionError, SamplingParams, ValidationError
from ryzanstein.engine.request import Request
from ryzanstein.engine.shared import SharedEngine
from ryzanstein.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ryzanstein._core import F32Array, I32Array
    from ryzanstein.config import KVDtype
    from ryzanstein.engine.engine import Engine
    from ryzanstein.engine.sequence import Sequence

MODEL = tiny_decoder(3)
# Two pages and a part.
PROMPT = random_tokens(1, 75)
SAMPLED: dict[str, Any] = {"temperature": 1.3, "top_k": 40, "logprobs": 2}


def family(prompt: I32Array, count: int, **options: Any) -> list[Sequence]:
    """The sequences of one request."""
    sequence = make_sequence(prompt, count, **options)
    return [sequence, *sequence.branches]


def run(engine: Engine, sequences: list[Sequence]) -> list[tuple[list[int], Any]]:
    """Run a request whose first sequence brings its branches."""
    finish(engine, sequences[:1])
    assert all(sequence.is_finished for sequence in sequences)
    return [(s.generated.tolist(), s.logprobs) for s in sequences]


def alone(
    prompt: I32Array, count: int, seed: int, kv_dtype: KVDtype = "f16", **options: Any
) -> tuple[list[int], Any]:
    engine = tiny_engine(MODEL, prefix_cache=False, kv_dtype=kv_dtype)
    (result,) = run(engine, family(prompt, count, seed=seed, **options))
    return result


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_each_is_what_its_seed_gives_alone(prefix_cache: bool) -> None:
    sequences = family(PROMPT, 20, n=5, seed=7, **SAMPLED)
    results = run(tiny_engine(MODEL, prefix_cache=prefix_cache), sequences)
    assert [sequence.seed for sequence in sequences] == [7, 8, 9, 10, 11]
    assert results == [alone(PROMPT, 20, seed, **SAMPLED) for seed in range(7, 12)]
    assert len({tuple(tokens) for tokens, _ in results}) == 5


def test_seeds_wrap_around() -> None:
    assert [s.seed for s in family(PROMPT, 1, n=3, seed=2**64 - 2)] == [2**64 - 2, 2**64 - 1, 0]


def test_the_prompt_is_computed_once_and_its_pages_are_shared() -> None:
    engine = tiny_engine(MODEL, token_budget=40, prefix_cache=False)
    sequences = family(PROMPT, 20, n=4, seed=1, **SAMPLED)
    engine.add(sequences[0])
    computed = 0
    while not len(sequences[0].generated):
        before = sequences[0].num_computed
        engine.step()
        computed += sequences[0].num_computed - before
    assert computed == len(PROMPT)
    assert all(len(s.generated) == 1 for s in sequences), "drawn from the same logits"
    assert engine.blocks.num_blocks - engine.blocks.num_free == 3
    engine.step()
    # The two full pages stay shared; the last one is copied for all but one that writes to it.
    assert all(len(s.generated) == 2 for s in sequences)
    assert engine.blocks.num_blocks - engine.blocks.num_free == 2 + 4
    tables = [s.table.block_ids for s in sequences if s.table is not None]
    assert len({tuple(table[:2]) for table in tables}) == 1
    assert len({table[2] for table in tables}) == 4


def test_forks_wait_with_their_pages() -> None:
    engine = tiny_engine(MODEL, max_sequences=2, prefix_cache=False)
    sequences = family(PROMPT, 6, n=5, seed=1, **SAMPLED)
    engine.add(sequences[0])
    widest = 0
    computed = {id(s): 0 for s in sequences}
    while engine.scheduler.has_work:
        engine.step()
        widest = max(widest, len(engine.scheduler.running))
        for sequence in sequences:
            assert sequence.num_computed >= computed[id(sequence)] or sequence.is_finished
            computed[id(sequence)] = sequence.num_computed
    assert widest == 2
    assert engine.blocks.num_free == engine.blocks.num_blocks


def test_pages_that_forks_hold_go_to_who_ranks_higher() -> None:
    options: dict[str, Any] = {"num_blocks": 5, "context_length": 160, "prefix_cache": False}
    engine = tiny_engine(MODEL, scheduling="priority", max_sequences=1, **options)
    sequences = family(PROMPT, 20, n=4, seed=1, **SAMPLED)
    engine.add(sequences[0])
    while not len(sequences[0].generated):
        engine.step()
    urgent = make_sequence(random_tokens(2, 120), 20, seed=1, **SAMPLED)
    urgent.priority = 9
    engine.add(urgent)
    while engine.scheduler.has_work:
        engine.step()
        engine.blocks.check()
    assert urgent.generated.tolist() == alone(random_tokens(2, 120), 20, 1, **SAMPLED)[0]
    for sequence in sequences:
        assert sequence.generated.tolist() == alone(PROMPT, 20, sequence.seed, **SAMPLED)[0]
    assert engine.blocks.num_free == engine.blocks.num_blocks


@settings(max_examples=40)
@given(
    n=st.integers(2, 6),
    length=st.integers(1, 100),
    count=st.integers(1, 25),
    right=st.sampled_from([None, 0.0, 0.8, 1.0]),
    arrival=st.integers(0, 5),
    engine_options=st.fixed_dictionaries(
        {
            "num_blocks": st.integers(8, 30),
            "max_sequences": st.integers(1, 8),
            "token_budget": st.integers(8, 120),
            "prefix_cache": st.booleans(),
            "kv_dtype": st.sampled_from(["f16", "f32", "int8"]),
            "scheduling": st.sampled_from(["fcfs", "priority", "prefix"]),
        }
    ),
)
def test_nothing_else_shows(
    n: int,
    length: int,
    count: int,
    right: float | None,
    arrival: int,
    engine_options: dict[str, Any],
) -> None:
    """Chunks, neighbours, guesses, cached prefixes and preemption change no token."""
    prompt = PROMPT[:length] if length <= len(PROMPT) else random_tokens(5, length)
    kv_dtype = engine_options["kv_dtype"]
    expected = [alone(prompt, count, seed, kv_dtype, **SAMPLED) for seed in range(n)]
    sequences = family(prompt, count, n=n, seed=0, **SAMPLED)
    others = [make_sequence(PROMPT[: 20 + i], 30, seed=i, **SAMPLED) for i in range(3)]
    engine = tiny_engine(MODEL, context_length=256, **engine_options)
    if right is not None:
        draft_with(sequences[0], Guesses(np.append(prompt, expected[0][0]).astype(np.int32), right))
    for step in itertools.count():
        if step == arrival:
            drafter = sequences[0].drafter
            engine.add(sequences[0])
            sequences[0].drafter = drafter
        if step < 3:
            engine.add(others[step])
        if step > 5 and not engine.scheduler.has_work:
            break
        engine.step()
        engine.blocks.check()
    assert [(s.generated.tolist(), s.logprobs) for s in sequences] == expected
    assert engine.blocks.num_free == engine.blocks.num_blocks


@pytest.mark.parametrize("mirostat", [0, 2])
def test_samplers_with_a_state_go_their_own_way(mirostat: int) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "mirostat": mirostat, "dry_multiplier": 0.5}
    results = run(tiny_engine(MODEL), family(PROMPT, 20, n=3, seed=4, **options))
    assert results == [alone(PROMPT, 20, seed, **options) for seed in (4, 5, 6)]


def test_an_interrupted_draw_is_repeated() -> None:
    """Wherever Ctrl-C came among the choices, none is lost, doubled or different."""
    expected = [alone(PROMPT, 5, seed, **SAMPLED) for seed in range(4)]
    for every in (2, 3, 5):
        calls = itertools.count(1)

        def interrupted(
            tokens: I32Array, logits: F32Array, calls: Any = calls, every: int = every
        ) -> None:
            if next(calls) % every == 0:
                raise KeyboardInterrupt

        options: dict[str, Any] = {**SAMPLED, "logits_processor": interrupted}
        sequences = family(PROMPT, 5, n=4, seed=0, **options)
        engine = tiny_engine(MODEL, prefix_cache=False)
        engine.add(sequences[0])
        while engine.scheduler.has_work:
            with suppress(KeyboardInterrupt):
                engine.step()
            engine.blocks.check()
        assert next(calls) > 4 * 5
        assert [(s.generated.tolist(), s.logprobs) for s in sequences] == expected


def test_a_branch_outlives_the_sequence_it_began_with() -> None:
    """Beside a neighbour that computed the same first page at the same time."""
    engine = tiny_engine(MODEL, token_budget=256, max_sequences=2)
    neighbour = make_sequence(PROMPT[:40], 5, seed=9, **SAMPLED)
    origin, branch = family(PROMPT, 5, n=2, seed=0, **SAMPLED)
    engine.add(neighbour)
    engine.add(origin)
    engine.step()
    engine.release(neighbour)
    engine.release(origin)
    engine.blocks.check()
    while engine.scheduler.has_work:
        engine.step()
        engine.blocks.check()
    assert (branch.generated.tolist(), branch.logprobs) == alone(PROMPT, 5, 1, **SAMPLED)


def test_a_branch_without_a_distribution_leaves_the_others_alone() -> None:
    calls = itertools.count()

    def fail_second(tokens: I32Array, logits: F32Array) -> None:
        if next(calls) == 1:
            logits[:] = np.nan

    options: dict[str, Any] = {**SAMPLED, "logits_processor": fail_second}
    sequences = family(PROMPT, 5, n=3, seed=0, **options)
    engine = tiny_engine(MODEL)
    finish(engine, sequences[:1])
    failed = [s for s in sequences if s.error is not None]
    assert len(failed) == 1
    assert isinstance(failed[0].error, DistributionError)
    for sequence in sequences:
        if sequence.error is None:
            assert sequence.generated.tolist() == alone(PROMPT, 5, sequence.seed, **SAMPLED)[0]


def test_an_error_of_one_choice_ends_the_others() -> None:
    calls = itertools.count()

    def fail_third(tokens: I32Array, logits: F32Array) -> None:
        if next(calls) == 2:
            logits[:] = np.nan

    engine = tiny_engine(MODEL)
    params: dict[str, Any] = {"temperature": 1.0, "n": 3, "logits_processor": fail_third}
    sequence = make_sequence(PROMPT % 70, 50, **params)
    request = Request(sequence, SamplingParams(**params), Tokenizer(byte_level()))
    shared, pending = SharedEngine(engine), {0: request}
    shared.add([request])
    while pending:
        news = shared.advance(pending)
    assert isinstance(news[-1][1], DistributionError)
    assert not engine.scheduler.has_work
    assert engine.blocks.num_free == engine.blocks.num_blocks


def test_a_request_released_before_it_branches_leaves_nothing() -> None:
    engine = tiny_engine(MODEL, token_budget=8)
    sequences = family(PROMPT, 5, n=3, seed=0, **SAMPLED)
    engine.add(sequences[0])
    engine.step()
    for sequence in sequences:
        sequence.ended = "cancelled"
        engine.release(sequence)
    assert not engine.scheduler.has_work
    assert engine.blocks.num_free == engine.blocks.num_blocks


def test_prompt_logprobs_are_those_of_the_logits() -> None:
    rows = np.concatenate([logits for _, logits in tiny_engine(MODEL).logits(PROMPT)])
    exact = rows.astype(np.float64)
    expected = exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))
    sequence = make_sequence(PROMPT, 3, temperature=0, prompt_logprobs=4)
    finish(tiny_engine(MODEL), [sequence])
    first, *others = sequence.prompt_logprobs
    assert first is None
    assert len(others) == len(PROMPT) - 1
    for token, row, entry in zip(PROMPT[1:], expected, others, strict=False):
        assert entry is not None
        assert entry.token_id == token
        assert entry.logprob == pytest.approx(row[token], abs=1e-6)
        assert [i for i, _ in entry.top] == np.argsort(-row)[:4].tolist()


@pytest.mark.parametrize("count", [1, 2, 75])
@pytest.mark.parametrize(
    "options",
    [
        {"token_budget": 8},
        {"num_blocks": 4, "context_length": 128},
        {"max_sequences": 1, "token_budget": 33},
    ],
)
def test_prompt_logprobs_do_not_depend_on_the_schedule(options: dict[str, Any], count: int) -> None:
    """Nor on what the prefix cache holds, and asking for them changes no token."""
    prompt = PROMPT[:count]
    params: dict[str, Any] = {**SAMPLED, "n": 2, "seed": 3}
    plain = run(tiny_engine(MODEL), family(prompt, 20, **params))
    expected = family(prompt, 20, **params, prompt_logprobs=2)
    assert run(tiny_engine(MODEL), expected) == plain
    engine = tiny_engine(MODEL, **options)
    for _ in range(2):
        sequences = family(prompt, 20, **params, prompt_logprobs=2)
        other = make_sequence(random_tokens(3, 60), 30, temperature=0)
        engine.add(other)
        engine.add(sequences[0])
        while engine.scheduler.has_work:
            engine.step()
        assert [(s.generated.tolist(), s.logprobs) for s in sequences] == plain
        assert sequences[0].prompt_logprobs == expected[0].prompt_logprobs


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_prompt_preempted_while_it_is_scored_goes_on_where_it_was(steps: int) -> None:
    prompt = random_tokens(6, 140)
    params: dict[str, Any] = {"temperature": 0, "logprobs": 1, "prompt_logprobs": 2}
    expected = make_sequence(prompt, 3, **params)
    finish(tiny_engine(MODEL), [expected])
    engine = tiny_engine(MODEL, token_budget=32)
    sequence = make_sequence(prompt, 3, **params)
    engine.add(sequence)
    for _ in range(steps):
        engine.step()
    engine.scheduler.make_room(engine.blocks.num_blocks)
    assert sequence.num_computed == 0
    while engine.scheduler.has_work:
        engine.step()
    assert sequence.prompt_logprobs == expected.prompt_logprobs
    assert sequence.logprobs == expected.logprobs


def test_how_many_may_be_asked_for() -> None:
    with pytest.raises(ValidationError, match="temperature 0 draws one text only"):
        make_sequence(PROMPT, 3, temperature=0, n=2)
