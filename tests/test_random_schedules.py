"""The exactness contract over everything at once: random schedules on random engines.

Requests of every kind arrive, for one text, for several or for those that a beam search finds, are
cancelled, preempted and interrupted, check guesses and move to another engine with the cached
pages. Each text has the bits that it has alone, one token at a time, in an engine without any of
that. `pytest --hypothesis-profile=thorough` draws many more schedules.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import (
    END_TOKEN,
    Guesses,
    SteadyTimes,
    TinyModel,
    byte_level,
    draft_with,
    finish,
    letter_constraints,
    random_tokens,
    tiny_decoder,
    tiny_engine,
)

from ryzanstein import SamplingParams, _core
from ryzanstein.engine.beam_request import BeamRequest
from ryzanstein.engine.beam_search import BeamSearch
from ryzanstein.engine.request import Request
from ryzanstein.engine.sequence import Sequence
from ryzanstein.speculative.draft_model import DraftModelProposer
from ryzanstein.speculative.drafter import PROPOSERS
from ryzanstein.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence as ABCSequence

    from ryzanstein._core import F32Array, I32Array
    from ryzanstein.config import KVDtype
    from ryzanstein.engine.engine import Engine
    from ryzanstein.engine.result import FinishReason, TokenLogprob
    from ryzanstein.sampling.params import LogitsProcessor
    from ryzanstein.speculative.proposer import Draft, Proposer

CONSTRAINTS = letter_constraints()
TOKENIZER = Tokenizer(byte_level())
MODEL_SEED = 7
# Prompts begin with so many tokens of one text and end with so many of another. Some part in the
# middle of a page, some with its last token, and two have equal pages behind different ones.
TEXT, OTHER = random_tokens(90, 128), random_tokens(91, 64)
LENGTHS = [(0, 1), (0, 40), (31, 1), (31, 50), (32, 33), (63, 20), (64, 20), (97, 31), (128, 5)]
PROMPTS = [np.concatenate([TEXT[:first], OTHER[:second]]) for first, second in LENGTHS]
PROMPTS.append(np.concatenate([OTHER[32:], OTHER[:33]]))
# Longer sequences are rotated by other frequencies, and some shift where this is full.
ROPE_LIMITS, CONTEXT_LENGTH = (70, 110), 140
PATTERN = "(AB|CD){3}[0-9]{4}(E{35}|F{3})[a-m]{2,6}G"


def avoid_repeats(tokens: I32Array, logits: F32Array) -> None:
    logits[tokens[-5:]] -= 2.0


# With and without log-probabilities: these keep the head from being screened.
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "greedy, shown": {"temperature": 0, "logprobs": 2},
    "sampled": {"temperature": 1.3, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "logprobs": 2},
    "penalised": {"top_k": 5, "repetition_penalty": 1.4, "frequency_penalty": 0.3},
    "dry": {"temperature": 0, "dry_multiplier": 2.0, "dry_allowed_length": 1},
    "typical": {"typical_p": 0.9, "xtc_probability": 0.3, "logprobs": 0},
    "mirostat": {"mirostat": 2, "mirostat_tau": 3.0},
    "stops": {"top_k": 30, "stop_token_ids": list(range(9)), "min_tokens": 6},
    "processor": {"top_k": 30, "logits_processor": avoid_repeats},
    "scored": {"temperature": 0, "prompt_logprobs": 1, "logprobs": 1},
    "shift": {"temperature": 0, "context_shift": 8, "logprobs": 1},
    "regex": {"regex": PATTERN, "logprobs": 1},
    "regex, greedy": {"regex": PATTERN, "temperature": 0},
    "several": {"n": 3, "top_k": 30, "logprobs": 1},
    "several, shift": {"n": 2, "top_k": 30, "context_shift": 8, "prompt_logprobs": 0},
    "several, regex": {"n": 2, "regex": PATTERN},
    "best": {"n": 1, "best_of": 2, "top_k": 5, "logits_processor": avoid_repeats, "logprobs": 0},
    "beams": {"stop_token_ids": list(range(4))},
}
BEAM_WIDTH = 3


@dataclass(frozen=True, slots=True)
class Kind:
    """What a request asks for, which determines its tokens."""

    prompt: int
    sampling: str
    max_tokens: int

    def sequence(self, choice: int | None = None) -> Sequence:
        """Return the sequence with all its choices, or that of one choice alone."""
        options = dict(SAMPLINGS[self.sampling])
        if choice is not None:
            options |= {"n": 1, "best_of": None}
        params = SamplingParams(seed=self.prompt + (choice or 0), **options)
        output = params.structured_output
        return Sequence.create(
            PROMPTS[self.prompt],
            params,
            max_tokens=self.max_tokens,
            context_length=CONTEXT_LENGTH,
            eos_token_ids=[END_TOKEN],
            constraint=None if output is None else CONSTRAINTS.compile(output),
        )

    def request(self) -> Request | BeamRequest:
        sequence = self.sequence()
        if self.sampling != "beams":
            return Request(sequence, SamplingParams(**SAMPLINGS[self.sampling]), TOKENIZER)
        search = BeamSearch(BEAM_WIDTH, self.max_tokens, stop_ids=sequence.stop_ids)
        return BeamRequest(sequence, search, TOKENIZER)


@dataclass(frozen=True, slots=True)
class Visit:
    """A request in a schedule; times are steps. `source` makes guesses, or is their right share."""

    kind: Kind
    arrival: int
    cancelled: int | None
    source: str | float | None
    salt: str
    priority: int


Text: TypeAlias = "tuple[tuple[int, ...], float | None]"


@dataclass(frozen=True, slots=True)
class Alone:
    """What a request says when nothing else happens."""

    tokens: list[int]
    logprobs: list[TokenLogprob]
    prompt_logprobs: list[TokenLogprob | None]
    reason: FinishReason | None


@functools.cache
def decoder(isa: str, threads: int) -> TinyModel:
    return tiny_decoder(MODEL_SEED, isa=isa, threads=threads)


@functools.cache
def alone(kind: Kind, choice: int, isa: str, kv_dtype: KVDtype) -> Alone:
    sequence = kind.sequence(choice)
    (tokens,) = finish(plain_engine(isa, kv_dtype), [sequence])
    return Alone(tokens, sequence.logprobs, sequence.prompt_logprobs, sequence.finish_reason)


@functools.cache
def searched_alone(kind: Kind, isa: str, kv_dtype: KVDtype) -> list[Text]:
    request = kind.request()
    assert isinstance(request, BeamRequest)
    engine = plain_engine(isa, kv_dtype)
    engine.add(request.sequences[0])
    while not request.has_news:
        engine.step()
    return texts(request)


def plain_engine(isa: str, kv_dtype: KVDtype) -> Engine:
    model = decoder(isa, 1)
    return tiny_engine(model, prefix_cache=False, kv_dtype=kv_dtype, rope_limits=ROPE_LIMITS)


def texts(request: BeamRequest) -> list[Text]:
    """Return what a search found, with log-probabilities, the best first."""
    (piece,) = request.take()
    assert piece.completion is not None
    return [(choice.token_ids, choice.cumulative_logprob) for choice in piece.completion.choices]


kinds = st.builds(
    Kind,
    st.integers(0, len(PROMPTS) - 1),
    st.sampled_from(sorted(SAMPLINGS)),
    st.sampled_from([1, 12, 45]),
)
visits = st.builds(
    Visit,
    kind=kinds,
    arrival=st.integers(0, 12),
    cancelled=st.none() | st.integers(1, 30),
    source=st.sampled_from([None, *PROPOSERS, "draft model", 0.0, 0.7, 1.0, 1.0]),
    salt=st.sampled_from(["", "", "", "other"]),
    priority=st.integers(-1, 1),
)


@st.composite
def engines(draw: st.DrawFn) -> dict[str, Any]:
    """Draw limits and policies of an engine that still fits the longest request."""
    sequences = draw(st.integers(1, 7))
    return {
        "max_sequences": sequences,
        "token_budget": draw(st.integers(sequences, 150)),
        "num_blocks": draw(st.integers(7, 30)),
        "context_length": 224,
        "rope_limits": ROPE_LIMITS,
        "prefix_cache": draw(st.sampled_from([True, True, False])),
        "eviction": draw(st.sampled_from(["lru", "lfu", "fifo", "cost", "arc"])),
        "scheduling": draw(st.sampled_from(["fcfs", "priority", "prefix"])),
        "threads": draw(st.integers(1, 3)),
    }


# What may happen before a step: interrupts of it, and a prompt whose logits need pages at once.
EVENTS = [
    "before the arithmetic",
    "after the arithmetic",
    "while processing",
    "while guessing",
    "logits",
]


class Fuse:
    """Raises KeyboardInterrupt once, at the place that it is set for."""

    def __init__(self) -> None:
        self.place = ""

    def pass_by(self, place: str) -> None:
        if self.place == place:
            self.place = ""
            raise KeyboardInterrupt


class FusedDecoder:
    def __init__(self, decoder: _core.Decoder, fuse: Fuse) -> None:
        self._decoder, self._fuse = decoder, fuse

    def step(self, *arguments: Any, **options: Any) -> F32Array:
        self._fuse.pass_by("before the arithmetic")
        logits = self._decoder.step(*arguments, **options)
        self._fuse.pass_by("after the arithmetic")
        return logits


class FusedProposer:
    def __init__(self, proposer: Proposer, fuse: Fuse) -> None:
        self._proposer, self._fuse = proposer, fuse

    @property
    def guess_seconds(self) -> float:
        return self._proposer.guess_seconds

    def extend(self, token_ids: ABCSequence[int]) -> None:
        self._proposer.extend(token_ids)

    def propose(self, max_tokens: int) -> Draft:
        self._fuse.pass_by("while guessing")
        return self._proposer.propose(max_tokens)


def fused(processor: LogitsProcessor | None, fuse: Fuse) -> LogitsProcessor:
    def process(tokens: I32Array, logits: F32Array) -> F32Array | None:
        fuse.pass_by("while processing")
        return None if processor is None else processor(tokens, logits)

    return process


class World:
    """An engine, replaced by another now and then, and the requests that visit it."""

    def __init__(self, isa: str, kv_dtype: KVDtype, folder: Path) -> None:
        self.isa, self.kv_dtype = isa, kv_dtype
        self._file = folder / "prefixes"
        self._fuse = Fuse()
        self.engine: Engine | None = None
        self.present: dict[Visit, Request | BeamRequest] = {}
        self.ended: dict[Visit, Request | BeamRequest] = {}

    def move(self, options: dict[str, Any]) -> None:
        """Go on in a new engine, with the unfinished requests of the last.

        Where both cache pages, with those too.
        """
        options = dict(options)
        native: Any = FusedDecoder(decoder(self.isa, options.pop("threads")).decoder, self._fuse)
        engine = tiny_engine(TinyModel(native), kv_dtype=self.kv_dtype, **options)
        engine.step_times = SteadyTimes(32, options["token_budget"])
        if self.engine is not None:
            if self.engine.prefixes is not None and engine.prefixes is not None:
                self.engine.save_prefixes(self._file)
                engine.load_prefixes(self._file)
            for request in self.present.values():
                for sequence in request.sequences:
                    self.engine.release(sequence)
                to_come = request.sequences[0].branches
                for sequence in request.sequences:
                    if not sequence.is_finished and sequence not in to_come:
                        engine.add(sequence)
            self.check_empty(self.engine)
        self.engine = engine

    def arrive(self, visit: Visit) -> None:
        request = visit.kind.request()
        for choice, sequence in enumerate(request.sequences):
            sequence.cache_salt, sequence.priority = visit.salt, visit.priority
            sequence.logits_processor = fused(sequence.logits_processor, self._fuse)
            if visit.source is not None and sequence.beams is None:
                proposer = self._proposer(visit, choice, sequence)
                draft_with(sequence, FusedProposer(proposer, self._fuse))
        assert self.engine is not None
        self.engine.add(request.sequences[0])
        self.present[visit] = request

    def cancel(self, visit: Visit) -> None:
        request = self.present.pop(visit)
        assert self.engine is not None
        for sequence in request.sequences:
            if not sequence.is_finished:
                sequence.ended = "cancelled"
            self.engine.release(sequence)
        self.ended[visit] = request

    def step(self, event: str | None) -> None:
        assert self.engine is not None
        if event == "logits":
            for _ in self.engine.logits(TEXT[:70]):
                pass
        elif event is not None:
            self._fuse.place = event
        try:
            self.engine.step()
        except KeyboardInterrupt:
            assert not self._fuse.place
        self._fuse.place = ""
        self.engine.blocks.check()
        for visit, request in list(self.present.items()):
            if isinstance(request, BeamRequest):
                over = request.has_news
            else:
                over = all(sequence.is_finished for sequence in request.sequences)
            if over:
                self.ended[visit] = self.present.pop(visit)

    def check_empty(self, engine: Engine) -> None:
        engine.blocks.check()
        assert not engine.scheduler.has_work
        assert not engine.scheduler.held
        assert engine.blocks.num_free == engine.blocks.num_blocks

    def _proposer(self, visit: Visit, choice: int, sequence: Sequence) -> Proposer:
        source = visit.source
        if source == "draft model":
            model = decoder(self.isa, 1)
            return DraftModelProposer(model.decoder, model.vocab_size, model.cache(7))
        if isinstance(source, str):
            return PROPOSERS[source]()
        assert source is not None
        course = alone(visit.kind, choice, self.isa, self.kv_dtype).tokens
        prompt = sequence.buffer[: sequence.num_prompt_tokens]
        return Guesses(np.append(prompt, np.array(course, np.int32)), source)


@pytest.mark.parametrize("isa", _core.available_isas())
@pytest.mark.parametrize("kv_dtype", ["f16", "f32", "int8"])
@settings(max_examples=settings().max_examples // 8)
@given(data=st.data())
def test_whatever_happens_each_request_is_as_if_alone(
    isa: str, kv_dtype: KVDtype, data: st.DataObject
) -> None:
    schedule = data.draw(st.lists(visits, min_size=1, max_size=8, unique=True), "visits")
    moves = data.draw(st.dictionaries(st.integers(1, 25), engines(), max_size=2), "moves")
    moves[0] = data.draw(engines(), "first engine")
    events = data.draw(
        st.dictionaries(st.integers(0, 30), st.sampled_from(EVENTS), max_size=4), "events"
    )
    with TemporaryDirectory() as folder:
        world = World(isa, kv_dtype, Path(folder))
        for step in itertools.count():
            if step in moves:
                world.move(moves[step])
            for visit in schedule:
                if visit.arrival == step:
                    world.arrive(visit)
                if visit.cancelled == step and visit in world.present:
                    world.cancel(visit)
            if len(world.ended) == len(schedule):
                break
            assert step < 1000, "somebody starves"
            world.step(events.get(step))
        assert world.engine is not None
        world.check_empty(world.engine)
    for visit, request in world.ended.items():
        if isinstance(request, BeamRequest):
            if request.has_news:
                assert texts(request) == searched_alone(visit.kind, isa, kv_dtype)
            continue
        for choice, sequence in enumerate(request.sequences):
            check(sequence, alone(visit.kind, choice, isa, kv_dtype), scored=choice == 0)


def check(sequence: Sequence, expected: Alone, *, scored: bool) -> None:
    """Compare a sequence, cancelled or not, with what it says alone."""
    tokens = sequence.generated.tolist()
    assert tokens == expected.tokens[: len(tokens)]
    assert sequence.logprobs == expected.logprobs[: len(tokens)]
    num_scored = len(sequence.prompt_logprobs) if scored else 0
    assert sequence.prompt_logprobs[:num_scored] == expected.prompt_logprobs[:num_scored]
    if sequence.finish_reason != "cancelled":
        assert len(tokens) == len(expected.tokens)
        assert num_scored == len(expected.prompt_logprobs) or not scored
        assert sequence.finish_reason == expected.reason
