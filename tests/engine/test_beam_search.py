"""Beam search: the rules against two oracles, then the engine's beams against the rules."""

from __future__ import annotations

import functools
import itertools
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.beam_search import beam_search, likeliest_texts
from support import (
    Workbench,
    byte_level,
    make_sequence,
    random_tokens,
    tiny_decoder,
    tiny_engine,
)

from ryzanstein import DistributionError, SamplingParams
from ryzanstein.engine.beam_request import BeamRequest
from ryzanstein.engine.beam_search import BeamSearch
from ryzanstein.engine.request import Request
from ryzanstein.engine.sequence import Sequence
from ryzanstein.engine.shared import SharedEngine
from ryzanstein.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from ryzanstein import Completion
    from ryzanstein.engine.engine import Engine

MODEL = tiny_decoder(3)
TOKENIZER = Tokenizer(byte_level())
PROMPT = random_tokens(1, 75)
Text = tuple[int, ...]


def language(seed: int, vocab_size: int, spread: float) -> Callable[[Text], NDArray[np.float64]]:
    """A random distribution of the next token for every text."""

    @functools.cache
    def log_probs(text: Text) -> NDArray[np.float64]:
        logits = np.random.default_rng((seed, *text)).standard_normal(vocab_size) * spread
        return np.asarray(logits - np.log(np.exp(logits).sum()))

    return log_probs


def search_in(
    log_probs: Callable[[Text], NDArray[np.float64]], search: BeamSearch
) -> list[tuple[float, Text]]:
    while not search.done:
        rows = []
        for beam in search.beams:
            row = log_probs(beam.token_ids)
            likeliest = np.argsort(-row, kind="stable")[: search.num_candidates]
            rows.append([(int(token), float(row[token])) for token in likeliest])
        search.advance(rows)
    return [(score, beam.token_ids) for score, beam in search.found]


RULES = st.fixed_dictionaries(
    {
        "length_penalty": st.sampled_from([-1.0, 0.0, 0.6, 1.0, 2.0]),
        "early_stopping": st.sampled_from([True, False, "never"]),
        "stop_ids": st.sampled_from([(), (0,), (0, 3), (1, 2, 5)]),
    }
)


@settings(max_examples=150)
@given(
    seed=st.integers(0, 1000),
    spread=st.sampled_from([0.3, 1.0, 3.0]),
    width=st.integers(1, 6),
    max_tokens=st.integers(1, 8),
    rules=RULES,
)
def test_the_rules_are_those_of_transformers(
    seed: int, spread: float, width: int, max_tokens: int, rules: dict[str, Any]
) -> None:
    log_probs = language(seed, 24, spread)
    ours = search_in(log_probs, BeamSearch(width, max_tokens, **rules))
    theirs = beam_search(log_probs, width, max_tokens, **rules)
    assert [text for _, text in ours] == [text for _, text in theirs]
    np.testing.assert_allclose([s for s, _ in ours], [s for s, _ in theirs], rtol=1e-12)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("stop_ids", [(), (2,)])
def test_a_search_wide_enough_finds_the_likeliest_of_all_texts(
    length_penalty: float, stop_ids: tuple[int, ...]
) -> None:
    log_probs = language(1, 4, 1.5)
    expected = likeliest_texts(log_probs, 4, 4, length_penalty=length_penalty, stop_ids=stop_ids)
    search = BeamSearch(len(expected), 4, length_penalty, "never", stop_ids)
    found = search_in(log_probs, search)
    assert [text for _, text in found] == [text for _, text in expected]
    np.testing.assert_allclose([s for s, _ in found], [s for s, _ in expected], rtol=1e-12)


def request(
    max_tokens: int = 12, width: int = 4, prompt: Any = PROMPT, **rules: Any
) -> BeamRequest:
    sequence = Sequence.create(prompt, SamplingParams(logprobs=0), max_tokens=max_tokens)
    return BeamRequest(sequence, BeamSearch(width, max_tokens, **rules), TOKENIZER)


def run(engine: Engine, beams: BeamRequest) -> Completion:
    pieces = [piece for _, piece in SharedEngine(engine).run([beams])]
    engine.blocks.check()
    assert engine.blocks.num_free == engine.blocks.num_blocks
    assert not engine.scheduler.held
    assert len(pieces) == 1
    assert pieces[0].completion is not None
    return pieces[0].completion


def outcome(completion: Completion) -> list[tuple[Text, float | None, str]]:
    return [(c.token_ids, c.cumulative_logprob, c.finish_reason) for c in completion.choices]


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"length_penalty": 0.3, "stop_ids": (5, 9)},
        {"early_stopping": "never", "stop_ids": (40,)},
    ],
)
def test_the_beams_of_a_model(rules: dict[str, Any]) -> None:
    """Each beam has the log-probabilities of its text computed whole."""
    bench = Workbench(MODEL)

    @functools.cache
    def log_probs(text: Text) -> NDArray[np.float64]:
        tokens = np.concatenate([PROMPT, np.array(text, np.int32)]).astype(np.int32)
        row = bench.whole(tokens)[-1].astype(np.float64)
        return np.asarray(row - np.log(np.exp(row).sum()))

    expected = beam_search(log_probs, 4, 12, **rules)
    completion = run(tiny_engine(MODEL), request(**rules))
    assert [choice.token_ids for choice in completion.choices] == [text for _, text in expected]
    penalty = rules.get("length_penalty", 1.0)
    scores = [(c.cumulative_logprob or 0) / len(c.token_ids) ** penalty for c in completion.choices]
    np.testing.assert_allclose(scores, [score for score, _ in expected], rtol=1e-6)
    for choice in completion.choices:
        stopped = choice.token_ids[-1] in rules.get("stop_ids", ())
        assert choice.finish_reason == ("stop" if stopped else "length")
        shown = choice.token_ids[:-1] if stopped else choice.token_ids
        assert choice.text == TOKENIZER.decode(list(shown))
    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
    assert completion.usage.prompt_tokens == len(PROMPT)
    assert completion.usage.completion_tokens == sum(len(text) for _, text in expected)


def test_beams_share_pages_and_compute_nothing_twice() -> None:
    computed: list[int] = []

    class CountingDecoder:
        def step(self, token_ids: Any, *arguments: Any, **options: Any) -> Any:
            computed.append(len(token_ids))
            return MODEL.decoder.step(token_ids, *arguments, **options)

    engine = tiny_engine(MODEL, prefix_cache=False, num_blocks=11)
    decoder: Any = CountingDecoder()
    engine.decoder = decoder
    most_used = 0
    beams = request(max_tokens=30, width=4)
    engine.add(beams.sequences[0])
    while not beams.has_news:
        engine.step()
        engine.blocks.check()
        most_used = max(most_used, engine.blocks.num_blocks - engine.blocks.num_free)
    assert sum(computed) == len(PROMPT) + 29 * 4
    # Alone, four texts of 105 tokens would fill 16 pages.
    assert most_used < 11


@settings(max_examples=25)
@given(
    options=st.fixed_dictionaries(
        {
            "num_blocks": st.integers(8, 40),
            "max_sequences": st.integers(1, 8),
            "token_budget": st.integers(8, 120),
            "prefix_cache": st.booleans(),
            "scheduling": st.sampled_from(["fcfs", "priority", "prefix"]),
        }
    ),
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    num_others=st.integers(0, 4),
)
def test_nothing_else_shows(options: dict[str, Any], widths: list[int], num_others: int) -> None:
    """Several searches and samples together, held back, preempted or cut into chunks."""
    engine = SharedEngine(tiny_engine(MODEL, context_length=256, **options))
    requests: list[BeamRequest | Request] = [
        request(12, width, random_tokens(width, 50 + width), stop_ids=(7,)) for width in widths
    ]
    for i in range(num_others):
        params: dict[str, Any] = {"temperature": 1.0, "n": 1 + i % 3, "seed": i}
        sequence = make_sequence(random_tokens(i, 60), 30, **params)
        requests.append(Request(sequence, SamplingParams(**params), TOKENIZER))
    done = {i: p.completion for i, p in engine.run(requests) if p.completion is not None}
    for i, width in enumerate(widths):
        assert outcome(done[i]) == searched_alone(width)
    assert engine.num_free_blocks == options["num_blocks"]


@functools.cache
def searched_alone(width: int) -> list[tuple[Text, float | None, str]]:
    prompt = random_tokens(width, 50 + width)
    return outcome(run(tiny_engine(MODEL), request(12, width, prompt, stop_ids=(7,))))


def test_an_interrupted_round_is_repeated() -> None:
    expected = outcome(run(tiny_engine(MODEL), request()))
    for every in (3, 5, 7):
        calls = itertools.count(1)

        def interrupted(
            *arguments: Any, calls: Any = calls, every: int = every, **named: Any
        ) -> Any:
            logits = MODEL.decoder.step(*arguments, **named)
            if next(calls) % every == 0:
                raise KeyboardInterrupt
            return logits

        engine = tiny_engine(MODEL, prefix_cache=False)
        engine.decoder = type("Decoder", (), {"step": staticmethod(interrupted)})()
        beams = request()
        engine.add(beams.sequences[0])
        while not beams.has_news:
            with suppress(KeyboardInterrupt):
                engine.step()
            engine.blocks.check()
        assert next(calls) > every
        (piece,) = beams.take()
        assert piece.completion is not None
        assert outcome(piece.completion) == expected


def test_a_search_given_up_leaves_nothing() -> None:
    engine = tiny_engine(MODEL)
    shared = SharedEngine(engine)
    beams = request(max_tokens=200)
    shared.add([beams])
    for _ in range(5):
        assert shared.advance({0: beams}) == []
    shared.release([beams])
    assert not engine.scheduler.has_work
    assert not engine.scheduler.held
    assert engine.blocks.num_free == engine.blocks.num_blocks


def test_logits_that_are_not_numbers_end_a_search() -> None:
    engine = tiny_engine(tiny_decoder(3, nan_token=70))
    beams = request(prompt=np.append(PROMPT % 70, 70).astype(np.int32))
    with pytest.raises(DistributionError):
        list(SharedEngine(engine).run([beams]))
    assert engine.blocks.num_free == engine.blocks.num_blocks
