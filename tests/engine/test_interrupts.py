"""Ctrl-C at every place of the scheduler at which Python looks for it."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING

from support import SteadyTimes, random_tokens, tiny_decoder, tiny_engine

from ryzanstein import SamplingParams
from ryzanstein.engine import prefix_cache, scheduler
from ryzanstein.engine.sequence import Sequence

if TYPE_CHECKING:
    from types import FrameType

    from ryzanstein.engine.engine import Engine

MODEL = tiny_decoder(3)
FILES = {scheduler.__file__: "", prefix_cache.__file__: "insert"}


class Interrupt:
    """A profiler that raises KeyboardInterrupt at a place, the `turn`-th time it is passed.

    Python looks for signals where a function begins and where one written in C has returned.
    """

    def __init__(self, place: tuple[str, int, str] | None = None, turn: int = 1) -> None:
        self.place, self.turn = place, turn
        self.passed: Counter[tuple[str, int, str]] = Counter()

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        wanted = FILES.get(code.co_filename)
        # A second interrupt, while the first is made good, may cost pages.
        if wanted is None or wanted not in code.co_name or _is_within("rollback", frame):
            return
        if event in ("call", "c_return"):
            here = (code.co_qualname, frame.f_lineno, event)
            self.passed[here] += 1
            if here == self.place and self.passed[here] == self.turn:
                sys.setprofile(None)
                raise KeyboardInterrupt


def _is_within(name: str, frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_name != name:
        frame = frame.f_back
    return frame is not None


def make() -> tuple[Engine, list[Sequence]]:
    """Three requests, of four texts in all, in half the pages that they need."""
    engine = tiny_engine(MODEL, num_blocks=5, context_length=128, token_budget=48, max_sequences=3)
    engine.step_times = SteadyTimes(32, 48)
    sequences = []
    for i in range(3):
        params = SamplingParams(temperature=1.0, seed=i, n=1 + (i == 1), context_shift=4)
        prompt = random_tokens(i, 20 + 30 * i)
        sequences.append(Sequence.create(prompt, params, max_tokens=24, context_length=82))
    everyone = [each for sequence in sequences for each in (sequence, *sequence.branches)]
    for sequence in sequences:
        engine.add(sequence)
    return engine, everyone


def run(engine: Engine, interrupt: Interrupt) -> int:
    """Return how often the engine was interrupted."""
    count = 0
    for _ in range(400):
        if not engine.scheduler.has_work:
            break
        sys.setprofile(None if count else interrupt)
        try:
            engine.step()
        except KeyboardInterrupt:
            count += 1
        finally:
            sys.setprofile(None)
    return count


def test_no_place_loses_a_sequence_or_a_page() -> None:
    engine, sequences = make()
    record = Interrupt()
    assert run(engine, record) == 0
    expected = [sequence.generated.tolist() for sequence in sequences]
    assert {"Scheduler._preempt_last", "Scheduler._admit"} <= {name for name, _, _ in record.passed}
    assert any(sequence.num_dropped for sequence in sequences)
    for place, times in record.passed.items():
        engine, sequences = make()
        assert run(engine, Interrupt(place, (times + 1) // 2)) == 1, place
        assert [sequence.generated.tolist() for sequence in sequences] == expected, place
        engine.blocks.check()
        assert engine.blocks.num_free == engine.blocks.num_blocks, place
