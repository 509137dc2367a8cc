from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import (
    Guesses,
    SteadyTimes,
    TinyModel,
    copy_embedded,
    draft_with,
    finish,
    make_sequence,
    random_tokens,
    tiny_decoder,
    tiny_engine,
)

from ryzanstein import LLM, SamplingParams, ValidationError
from ryzanstein.engine.request import Request
from ryzanstein.errors import DistributionError
from ryzanstein.speculative.draft_length import DraftLength
from ryzanstein.speculative.drafter import PROPOSERS, Drafter
from ryzanstein.speculative.proposer import Draft

if TYPE_CHECKING:
    from pathlib import Path

    from ryzanstein._core import F32Array, I32Array
    from ryzanstein.engine.sequence import Sequence

PROMPT = random_tokens(3, 45)
REPETITIVE = "def f(x):\n    return x\n\n" * 8


def avoid_repeats(tokens: I32Array, logits: F32Array) -> None:
    logits[tokens[-5:]] -= 2.0


CHAINS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "top-k": {"temperature": 1.2, "top_k": 20, "top_p": 0.9},
    "min-p": {"min_p": 0.02},
    "everything": {"temperature": 1.0, "typical_p": 0.9, "xtc_probability": 0.3},
    "penalties": {"temperature": 0, "repetition_penalty": 1.5, "frequency_penalty": 0.4},
    "window": {"top_k": 9, "presence_penalty": 1.0, "penalty_last_n": 6},
    "dry": {"top_k": 9, "dry_multiplier": 2.0, "dry_allowed_length": 1},
    "mirostat": {"mirostat": 2, "mirostat_tau": 3.0},
    "bias": {"temperature": 0, "logit_bias": {7: 3.0, 9: -3.0}},
    "stops": {"top_k": 30, "stop_token_ids": list(range(20)), "min_tokens": 11},
    "processor": {"top_k": 30, "logits_processor": avoid_repeats},
    "logprobs": {"temperature": 0.7, "logprobs": 2},
}


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return tiny_decoder(7)


def drawn(model: TinyModel, chain: str, guesses: Guesses | None) -> tuple[Sequence, I32Array]:
    sequence = make_sequence(PROMPT, 60, seed=5, **CHAINS[chain])
    if guesses is not None:
        draft_with(sequence, guesses)
    finish(tiny_engine(model), [sequence])
    return sequence, sequence.generated


@pytest.mark.parametrize("chain", CHAINS)
def test_no_chain_draws_anything_else(chain: str, model: TinyModel) -> None:
    plain, expected = drawn(model, chain, None)
    whole = np.concatenate((PROMPT, expected))
    for right in (1.0, 0.8, 0.0):
        sequence, tokens = drawn(model, chain, Guesses(whole, right))
        assert tokens.tolist() == expected.tolist()
        assert sequence.logprobs == plain.logprobs
        assert sequence.finish_reason == plain.finish_reason
        drafter = sequence.drafter
        assert drafter is not None
        assert drafter.num_drafted > 0
        if right == 0.0:
            assert drafter.num_accepted == 0
        elif len(expected) > 1:
            assert drafter.num_accepted > 0


class Strays(Guesses):
    """The third of its guesses is no token."""

    stray = 0

    def propose(self, max_tokens: int) -> Draft:
        draft = super().propose(max_tokens)
        guesses = [self.stray if i == 2 else token for i, token in enumerate(draft.token_ids)]
        return Draft(guesses, draft.probabilities, draft.evidence)


@pytest.mark.parametrize("stray", [-1, 73, 1 << 40])
def test_a_guess_that_is_no_token_ends_the_draft(model: TinyModel, stray: int) -> None:
    _, expected = drawn(model, "greedy", None)
    guesses = Strays(np.concatenate((PROMPT, expected)), 1.0)
    guesses.stray = stray
    engine = tiny_engine(model)
    engine.step_times = SteadyTimes(32, 64)
    engine._make_proposer = lambda capacity: guesses
    sequence = make_sequence(PROMPT, 60, seed=5, **CHAINS["greedy"])
    assert finish(engine, [sequence]) == [expected.tolist()]
    assert sequence.drafter is not None
    assert sequence.drafter.num_accepted == sequence.drafter.num_drafted > 30


def test_drafts_that_are_not_worth_it_are_made_ever_more_rarely() -> None:
    proposer = Guesses(np.arange(1000, dtype=np.int32), 1.0)
    drafter = Drafter(proposer, DraftLength(float), 1000)  # every token costs a step
    asked = []
    for num_tokens in range(1, 101):
        before = proposer.num_proposed
        assert not drafter.draft(np.arange(num_tokens, dtype=np.int32), 8, 1)
        asked.append(proposer.num_proposed > before)
    assert asked[:6] == [True, False, True, False, False, False]
    assert 5 < sum(asked) < 20


def test_gain_and_cost_are_read_off_the_step_times() -> None:
    proposer = Guesses(np.arange(1000, dtype=np.int32), 1.0)
    drafter = Drafter(proposer, DraftLength(lambda n: 10.0 + 0.0625 * n), 1000)
    tokens = np.arange(20, dtype=np.int32)
    assert len(drafter.draft(tokens, 4, 3)) == 4
    making = drafter.cost_seconds
    assert 0.0 < making < 1.0
    drafter.learn(accepted=3)
    assert drafter.saved_seconds == 3 * 10.1875
    assert drafter.cost_seconds == pytest.approx(making + 4 * 0.0625)


def test_right_guesses_save_their_steps(model: TinyModel) -> None:
    _, expected = drawn(model, "greedy", None)
    sequence = make_sequence(PROMPT, 60, temperature=0)
    draft_with(sequence, Guesses(np.concatenate((PROMPT, expected)), 1.0))
    engine = tiny_engine(model)
    engine.add(sequence)
    steps = 0
    while not sequence.is_finished:
        engine.step()
        steps += 1
    drafter = sequence.drafter
    assert drafter is not None
    # The prompt's step draws a token too; every other one draws its own and what was accepted.
    assert steps + drafter.num_accepted == 60
    assert drafter.num_accepted > 40


def test_guesses_never_enter_the_prefix_cache(model: TinyModel) -> None:
    sequence, expected = drawn(model, "greedy", None)
    wrong = Guesses(np.concatenate((PROMPT, expected)), 0.0)
    engine = tiny_engine(model)
    sequence = make_sequence(PROMPT, 60, temperature=0)
    draft_with(sequence, wrong)
    finish(engine, [sequence])
    assert engine.prefixes is not None
    cached = sorted(engine.prefixes.pages, key=lambda page: page.depth)
    tokens = np.concatenate([np.frombuffer(page.tokens, np.int32) for page in cached])
    assert tokens.tolist() == sequence.buffer[: len(tokens)].tolist()
    assert len(tokens) == (len(PROMPT) + 59) // 32 * 32


def test_guesses_take_only_what_others_leave(model: TinyModel) -> None:
    """A full budget or pool leaves no draft, and nobody is preempted for one."""
    sequences = [make_sequence(random_tokens(i, 20), 30, temperature=0) for i in range(4)]
    for sequence in sequences:
        draft_with(sequence, Guesses(np.zeros(60, np.int32), 1.0))
    engine = tiny_engine(model, token_budget=4, max_sequences=4)
    finish(engine, sequences[:4])
    alone = make_sequence(random_tokens(0, 20), 30, temperature=0)
    finish(tiny_engine(model), [alone])
    assert sequences[0].generated.tolist() == alone.generated.tolist()
    together = [make_sequence(random_tokens(i, 20), 10, temperature=0) for i in range(2)]
    for sequence in together:
        draft_with(sequence, Guesses(np.zeros(60, np.int32), 1.0))
    engine = tiny_engine(model, num_blocks=2, context_length=64)
    for sequence in together:
        engine.add(sequence)
    while engine.scheduler.has_work:
        engine.step()
        assert sum(s.num_pending > 1 for s in engine.scheduler.running) == 0


def test_tokens_drawn_before_a_failure_are_read_first(model: TinyModel) -> None:
    _, expected = drawn(model, "greedy", None)

    def fail_late(tokens: I32Array, logits: F32Array) -> None:
        if len(tokens) >= len(PROMPT) + 6:
            raise RuntimeError("late")

    params = SamplingParams(temperature=0, logits_processor=fail_late)
    with LLM(threads=1) as llm:
        tokenizer = llm.tokenizer
    sequence = make_sequence(PROMPT, 60, temperature=0, logits_processor=fail_late)
    draft_with(sequence, Guesses(np.concatenate((PROMPT, expected)), 1.0))
    request = Request(sequence, params, tokenizer)
    engine = tiny_engine(model)
    engine.add(sequence)
    read: list[int] = []

    def read_all() -> None:
        while True:
            if not request.has_news:
                engine.step()
            for piece in request.take():
                read.extend(piece.token_ids)

    with pytest.raises(ValidationError, match="late"):
        read_all()
    assert sequence.generated.tolist() == expected[:6].tolist()
    assert read
    assert read == expected[: len(read)].tolist()
    engine.release(sequence)
    assert engine.blocks.num_free == engine.blocks.num_blocks


def test_no_token_to_draw_ends_a_sequence_that_guesses(model: TinyModel) -> None:
    def forbid(tokens: I32Array, logits: F32Array) -> None:
        logits[:] = np.nan

    sequence = make_sequence(PROMPT, 60, temperature=0, logits_processor=forbid)
    draft_with(sequence, Guesses(np.zeros(200, np.int32), 1.0))
    finish(tiny_engine(model), [sequence])
    assert isinstance(sequence.error, DistributionError)


@pytest.mark.parametrize("source", ["ngram", "suffix", "auto", "draft"])
def test_the_embedded_model_says_the_same(source: str) -> None:
    with LLM(threads=1) as plain:
        options: dict[str, Any] = {"speculative": plain if source == "draft" else source}
        with LLM(threads=1, **options) as llm:
            for params in (
                SamplingParams(max_tokens=60, temperature=0, stop="def g"),
                SamplingParams(max_tokens=60, temperature=0.5, seed=2),
                SamplingParams(max_tokens=60, temperature=0, min_tokens=20, logprobs=1),
            ):
                prompts = [REPETITIVE, "import os\n"]
                ours, theirs = llm.generate(prompts, params), plain.generate(prompts, params)
                for a, b in zip(ours, theirs, strict=True):
                    assert (a.text, a.token_ids, a.logprobs) == (b.text, b.token_ids, b.logprobs)
                    assert a.finish_reason == b.finish_reason
                    assert b.timings.drafted_tokens == 0
                    assert b.timings.acceptance is None
                    assert b.timings.speculation_gain_s == 0
                    assert 0 <= a.timings.accepted_tokens <= a.timings.drafted_tokens


@pytest.mark.parametrize("source", PROPOSERS)
def test_a_text_that_repeats_itself_is_guessed(source: str) -> None:
    params = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
    with LLM(threads=1) as llm:
        expected = llm.generate(REPETITIVE, params)
        request = llm._make_request(REPETITIVE, params, 0, "")
        draft_with(request.sequences[0], PROPOSERS[source]())
        pieces = [piece for _, piece in llm._engine.run([request])]
    completion = pieces[-1].completion
    assert completion is not None
    assert completion.token_ids == expected.token_ids
    timings = completion.timings
    assert timings.accepted_tokens > 10
    assert timings.acceptance == timings.accepted_tokens / timings.drafted_tokens
    saved, cost = timings.speculation_saved_s, timings.speculation_cost_s
    assert min(saved, cost) > 0
    assert timings.speculation_gain_s == saved - cost


def test_a_draft_model_has_the_same_tokens(tmp_path: Path) -> None:
    directory = copy_embedded(tmp_path / "other")
    path = directory / "tokenizer.json"
    stored = json.loads(path.read_text())
    ids = stored["model"]["vocab"]
    first, second = [token for token in ids if len(token) == 1][:2]
    ids[first], ids[second] = ids[second], ids[first]
    path.write_text(json.dumps(stored))
    with (
        LLM(directory, threads=1) as other,
        pytest.raises(ValidationError, match="vocabularies differ"),
    ):
        LLM(threads=1, speculative=other)


def test_unknown_sources_are_refused() -> None:
    with pytest.raises(ValidationError, match="speculative must be one of"):
        LLM(threads=1, speculative="tea leaves")  # type: ignore[arg-type]
