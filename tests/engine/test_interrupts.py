"""Ctrl-C by real signals: held back where pages change hands, let in where it may take long."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import (
    END_TOKEN,
    Guesses,
    SteadyTimes,
    byte_level,
    draft_with,
    letter_constraints,
    make_sequence,
    random_tokens,
    tiny_decoder,
    tiny_engine,
)

from ryzanstein import SamplingParams, engine
from ryzanstein.engine.beam_request import BeamRequest
from ryzanstein.engine.beam_search import BeamSearch
from ryzanstein.engine.interrupts import Interruptible, Uninterrupted
from ryzanstein.engine.request import Request
from ryzanstein.engine.sequence import Sequence
from ryzanstein.engine.shared import SharedEngine
from ryzanstein.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from ryzanstein._core import F32Array, I32Array

MODEL = tiny_decoder(3)
TOKENIZER = Tokenizer(byte_level())
CONSTRAINTS = letter_constraints()
PACKAGE = str(Path(engine.__path__[0]))


@pytest.fixture(autouse=True)
def handler() -> Iterator[Callable[..., Any]]:
    """Python's own handler, which workers of the test runner may lack."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@contextmanager
def interrupted() -> Iterator[None]:
    """Expect what runs within to end by an interrupt."""
    with pytest.raises(KeyboardInterrupt):
        yield


def test_it_waits_for_the_end() -> None:
    done = []
    with interrupted(), Uninterrupted():
        interrupt()
        interrupt()
        done.append("all")
    assert done == ["all"]
    with Uninterrupted():
        pass


def test_it_is_let_in_at_once() -> None:
    done = []
    with Uninterrupted():
        with interrupted(), Interruptible():
            interrupt()
            done.append("not reached")
        with interrupted():
            interrupt()
            with Interruptible():
                done.append("nor this")
    assert done == []
    with Interruptible(), interrupted():  # outside it changes nothing
        interrupt()


def test_contexts_nest() -> None:
    done = []
    with interrupted(), Uninterrupted():
        with Uninterrupted(), Interruptible():
            interrupt()
            done.append("held back by the one around")
        done.append("and until its end")
    assert len(done) == 2
    with Uninterrupted():
        with interrupted(), Interruptible(), Uninterrupted(), Interruptible():
            interrupt()
            done.append("not reached")
        with interrupted(), Interruptible(), Uninterrupted():
            interrupt()
            done.append("reached")
    assert len(done) == 3


def test_what_cleans_up_behind_one_is_not_interrupted_by_the_next() -> None:
    freed = []
    with interrupted(), Uninterrupted():
        try:
            with Interruptible():
                interrupt()
        finally:
            interrupt()
            freed.append("all")
    assert freed == ["all"]


def test_the_handler_that_is_installed_is_called() -> None:
    seen: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: seen.append((number, frame)))
    with Uninterrupted():
        interrupt()
        assert seen == []
        with Interruptible():
            assert len(seen) == 1
            interrupt()
            interrupt()  # one that does not raise is called again
            assert len(seen) == 3
        interrupt()
        assert len(seen) == 3
    assert [number for number, _ in seen] == [signal.SIGINT] * 4
    assert all(frame is not None for _, frame in seen)
    interrupt()
    assert len(seen) == 5
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_asyncio_cancels_its_task() -> None:
    reached = []

    async def work() -> None:
        with Uninterrupted():
            interrupt()
            reached.append("end")
        await asyncio.sleep(60)

    with interrupted():
        asyncio.run(work())
    assert reached == ["end"]


@pytest.mark.parametrize("how", [signal.SIG_IGN, signal.SIG_DFL])
def test_what_python_does_not_handle_is_left_alone(how: signal.Handlers) -> None:
    signal.signal(signal.SIGINT, how)
    with Uninterrupted(), Interruptible():
        assert signal.getsignal(signal.SIGINT) is how
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_another_thread_holds_nothing_back() -> None:
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        with Uninterrupted(), Interruptible():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(10)
    with interrupted():
        interrupt()
    with interrupted(), Uninterrupted():
        interrupt()  # the other's opening is not this one's
        leave.set()
        thread.join()


@contextmanager
def soon() -> Iterator[None]:
    """Interrupt this process in a moment, and expect that to end what runs then."""
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    with interrupted():
        yield
    assert time.monotonic() - began < 5
    timer.join()


def test_a_processor_that_hangs_is_interrupted() -> None:
    """For a branch, for the sequence it belongs to, and behind a guess that was right."""

    def hang(tokens: I32Array, logits: F32Array) -> None:
        if hangs_at and len(tokens) == hangs_at[0]:
            hangs_at.pop(0)
            time.sleep(60)

    options: dict[str, Any] = {"temperature": 1.0, "seed": 1, "n": 2, "logits_processor": hang}
    hangs_at: list[int] = []

    def family() -> Request:
        sequence = make_sequence(random_tokens(1, 40), 20, **options)
        return Request(sequence, SamplingParams(**options), TOKENIZER)

    expected = family()
    list(SharedEngine(tiny_engine(MODEL)).run([expected]))
    course = expected.sequences[0].buffer
    hangs_at = [40, 40, 45, 47]
    shared = SharedEngine(tiny_engine(MODEL))
    request = family()
    draft_with(request.sequences[0], Guesses(course, 1.0))
    shared.add([request])
    pending = {0: request}
    while hangs_at:
        with soon():
            while pending:
                shared.advance(pending)
        assert shared._engine is not None
        shared._engine.blocks.check()
    while pending:
        shared.advance(pending)
    assert shared.num_free_blocks == 64
    ours, theirs = (each.sequences for each in (request, expected))
    assert [s.generated.tolist() for s in ours] == [s.generated.tolist() for s in theirs]


def test_the_requests_of_others_go_on() -> None:
    def request(seed: int, **options: Any) -> Request:
        sequence = make_sequence(random_tokens(seed, 40), 30, seed=seed, **options)
        return Request(sequence, SamplingParams(), TOKENIZER)

    def strike(tokens: I32Array, logits: F32Array) -> None:
        if len(tokens) == 50:
            interrupt()

    expected, other = request(1), request(1)
    list(SharedEngine(tiny_engine(MODEL)).run([expected]))
    shared = SharedEngine(tiny_engine(MODEL))
    stream = shared.run([other])
    next(stream)
    with interrupted():
        list(shared.run([request(2, logits_processor=strike)]))
    list(stream)
    assert other.sequences[0].generated.tolist() == expected.sequences[0].generated.tolist()
    assert shared.num_free_blocks == 64


def test_waiting_for_another_thread_is_interrupted() -> None:
    shared = SharedEngine(tiny_engine(MODEL))
    held, leave = threading.Event(), threading.Event()

    def work() -> None:
        with shared._exclusive():
            held.set()
            leave.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    held.wait(10)
    with soon():
        shared.logits(random_tokens(1, 5), lambda start, logits: None)
    leave.set()
    thread.join()
    shared.logits(random_tokens(1, 5), lambda start, logits: None)
    assert shared.num_free_blocks == 64


class Signals:
    """A tracer that interrupts when armed, at the next line of the engine that had no turn yet."""

    def __init__(self) -> None:
        self.places: set[tuple[str, int]] = set()
        self.last: tuple[str, int] | None = None

    def __call__(self, frame: FrameType, event: str, argument: object) -> Signals | None:
        file = frame.f_code.co_filename
        if not file.startswith(PACKAGE):
            return None
        place = (file, frame.f_lineno)
        if event == "line" and self.last is None and place not in self.places:
            self.places.add(place)
            self.last = place
            interrupt()
        return self

    @contextmanager
    def armed(self) -> Iterator[None]:
        self.last = None
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(before)


def make_requests() -> list[Request | BeamRequest]:
    """Branches, beams, guesses, a grammar, a scored prompt and context shifts."""

    def keep(tokens: I32Array, logits: F32Array) -> None:
        pass

    samplings: list[dict[str, Any]] = [
        {"n": 3, "seed": 1, "context_shift": 4, "logits_processor": keep},
        {"regex": "(AB|CD){3}E{35}[a-m]{2,6}G", "seed": 2, "logprobs": 1},
        {"temperature": 0, "prompt_logprobs": 1},
        {"seed": 3, "n": 2, "logits_processor": keep},
    ]
    requests: list[Request | BeamRequest] = []
    for i, options in enumerate(samplings):
        params = SamplingParams(**options)
        output = params.structured_output
        sequence = Sequence.create(
            random_tokens(i % 2, 20 + 30 * i),
            params,
            max_tokens=30,
            context_length=82,
            eos_token_ids=[END_TOKEN],
            constraint=None if output is None else CONSTRAINTS.compile(output),
        )
        requests.append(Request(sequence, params, TOKENIZER))
    guesses = Guesses(random_tokens(5, 200), 0.5)
    draft_with(requests[3].sequences[0], guesses)
    prompt = make_sequence(random_tokens(1, 70), 12, temperature=0)
    requests.append(BeamRequest(prompt, BeamSearch(3, 12), TOKENIZER))
    return requests


def outcome(request: Request | BeamRequest) -> Any:
    if isinstance(request, BeamRequest):
        (piece,) = request.take()
        assert piece.completion is not None
        return [
            (choice.token_ids, choice.cumulative_logprob) for choice in piece.completion.choices
        ]
    return [(s.generated.tolist(), s.logprobs, s.prompt_logprobs) for s in request.sequences]


def run(signals: Signals | None) -> tuple[list[Any], int]:
    """Return what the requests say in half the pages that they need, and count interrupts."""
    limits: dict[str, Any] = {"token_budget": 48, "max_sequences": 4, "context_length": 160}
    engine = tiny_engine(MODEL, num_blocks=8, **limits)
    engine.step_times = SteadyTimes(32, 48)
    shared = SharedEngine(engine)
    requests = make_requests()
    pending = dict(enumerate(requests))
    shared.add(requests)
    count = 0
    for _ in range(3000):
        if not pending:
            break
        try:
            if signals is None:
                shared.advance(pending)
            else:
                with signals.armed():
                    shared.advance(pending)
        except KeyboardInterrupt:
            count += 1
        else:
            assert signals is None or signals.last is None, f"{signals.last} was swallowed"
        engine.blocks.check()
    assert not pending, "somebody is lost"
    assert not engine.scheduler.has_work
    assert not engine.scheduler.held
    assert engine.blocks.num_free == engine.blocks.num_blocks
    return [outcome(request) for request in requests], count


def test_no_line_of_the_engine_loses_a_sequence_or_a_page() -> None:
    expected, count = run(None)
    assert count == 0
    signals, total = Signals(), 0
    while count or not total:
        found, count = run(signals)
        assert found == expected
        total += count
    assert total == len(signals.places) > 400


def test_a_stream_given_up_while_interrupted_is_freed() -> None:
    """Wherever Python looks for signals: where functions begin, and behind calls of C."""

    def profile(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event not in ("call", "c_return") or not code.co_filename.startswith(PACKAGE):
            return
        if event == "call" and code.co_flags & inspect.CO_GENERATOR:
            return  # a generator that is closed has none there, and ends for good if one is raised
        place = (code.co_qualname, frame.f_lineno, event)
        if place not in places:
            places.add(place)
            sys.setprofile(None)
            interrupt()

    places: set[tuple[str, int, str]] = set()
    shared = SharedEngine(tiny_engine(MODEL))
    count, num_places = 0, -1
    while len(places) > num_places:
        num_places = len(places)
        sequence = make_sequence(random_tokens(1, 9), 40, temperature=1.0)
        stream = shared.run([Request(sequence, SamplingParams(), TOKENIZER)])
        next(stream)
        sys.setprofile(profile)
        try:
            stream.close()
        except KeyboardInterrupt:
            count += 1
        finally:
            sys.setprofile(None)
        assert shared._engine is not None
        shared._engine.blocks.check()
        shared.logits(random_tokens(1, 5), lambda start, logits: None)
        assert shared.num_free_blocks == 64
    assert count == num_places > 10
