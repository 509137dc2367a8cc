"""Thousands of requests arrive, are cancelled and preempted in a pool far too small for them."""

from __future__ import annotations

import gc
import resource
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import (
    END_TOKEN,
    SteadyTimes,
    byte_level,
    draft_with,
    letter_constraints,
    make_sequence,
    random_tokens,
    tiny_decoder,
    tiny_engine,
)

from ryzanstein import SamplingParams
from ryzanstein.engine.block_manager import BlockTable
from ryzanstein.engine.request import Request
from ryzanstein.engine.sequence import Sequence
from ryzanstein.engine.shared import SharedEngine
from ryzanstein.speculative.drafter import Drafter
from ryzanstein.speculative.suffix import SuffixProposer
from ryzanstein.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ryzanstein._core import F32Array, I32Array
    from ryzanstein.config import Scheduling

MODEL = tiny_decoder(3)
TOKENIZER = Tokenizer(byte_level())
SHARED = random_tokens(50, 96)
CONSTRAINTS = letter_constraints()
LIMITS: dict[str, Any] = {
    "num_blocks": 12,
    "context_length": 200,
    "max_sequences": 6,
    "token_budget": 80,
}
REQUESTS = 800  # under each policy


def fail_late(tokens: I32Array, logits: F32Array) -> None:
    if len(tokens) % 32 == 31:
        raise RuntimeError("late")


SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 1.0, "stop_token_ids": range(4)},
    {"temperature": 0, "repetition_penalty": 1.2},
    {"regex": "(AB|CD){4}E{9}[0-9]{2}"},
    {"temperature": 1.0, "logits_processor": fail_late},
]


def random_sequence(rng: np.random.Generator) -> tuple[tuple[bytes, int, int], Sequence]:
    """Return a request and what determines its tokens."""
    prompt = np.concatenate(
        [SHARED[: rng.integers(97)], random_tokens(9, int(rng.integers(1, 50)))]
    )
    seed, sampling = int(rng.integers(4)), int(rng.integers(len(SAMPLINGS)))
    params = SamplingParams(seed=seed, **SAMPLINGS[sampling])
    output = params.structured_output
    sequence = Sequence.create(
        prompt,
        params,
        max_tokens=int(rng.integers(1, 40)),
        eos_token_ids=[END_TOKEN],
        constraint=None if output is None else CONSTRAINTS.compile(output),
        priority=int(rng.integers(3)),
        cache_salt="other" if rng.random() < 0.2 else "",
    )
    if rng.random() < 0.5:
        draft_with(sequence, SuffixProposer())
    return (prompt.tobytes(), seed, sampling), sequence


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def num_alive() -> int:
    """Return how many objects there are that belong to single requests."""
    gc.collect()
    return sum(isinstance(o, Sequence | BlockTable | Drafter) for o in gc.get_objects())


@pytest.mark.parametrize("scheduling", ["fcfs", "priority", "prefix"])
def test_every_request_ends_and_leaves_nothing_behind(scheduling: Scheduling) -> None:
    rng = np.random.default_rng(1)
    engine = tiny_engine(MODEL, scheduling=scheduling, **LIMITS)
    engine.step_times = SteadyTimes(32, LIMITS["token_budget"])  # the clock decides nothing
    alive_before, resident_before = num_alive(), 0
    expected: dict[tuple[bytes, int, int], list[int]] = {}
    present: dict[Sequence, tuple[bytes, int, int]] = {}
    reasons: Counter[str] = Counter()
    arrived = preemptions = 0
    while arrived < REQUESTS or present:
        if len(present) < 20:
            for _ in range(min(int(rng.integers(4)), REQUESTS - arrived)):
                key, sequence = random_sequence(rng)
                engine.add(sequence)
                present[sequence] = key
                arrived += 1
        running = set(engine.scheduler.running)
        engine.step()
        engine.blocks.check()
        preemptions += len(running.intersection(engine.scheduler.waiting))
        if present and rng.random() < 0.1:
            victim = list(present)[rng.integers(len(present))]
            if not victim.is_finished:
                victim.ended = "cancelled"
            engine.release(victim)
        for sequence in [s for s in present if s.is_finished]:
            reasons[sequence.finish_reason or type(sequence.error).__name__] += 1
            # Equal requests have equal tokens, however they were treated.
            longest, tokens = (
                expected.setdefault(present[sequence], []),
                sequence.generated.tolist(),
            )
            shorter = min(len(longest), len(tokens))
            assert longest[:shorter] == tokens[:shorter]
            expected[present.pop(sequence)] = max(longest, tokens, key=len)
        if arrived > REQUESTS // 2:
            resident_before = resident_before or resident_bytes()
    assert reasons.total() == REQUESTS
    assert set(reasons) == {"length", "stop", "cancelled", "ValidationError"}
    assert min(reasons.values()) > 20
    assert preemptions > 50
    assert not engine.scheduler.has_work
    assert engine.blocks.num_free == engine.blocks.num_blocks
    del sequence, victim, running
    assert num_alive() <= alive_before
    assert resident_bytes() - resident_before < 2 << 20


def num_threads() -> int:
    """Return the threads of this process, native ones included."""
    return len(list(Path("/proc/self/task").iterdir()))


def test_threads_that_come_and_go() -> None:
    """Each thread runs requests of its own, some of which it abandons, on one engine."""
    threads_before = num_threads()
    engine = SharedEngine(tiny_engine(tiny_decoder(3, threads=2), **LIMITS))
    alone = SharedEngine(tiny_engine(MODEL, prefix_cache=False, **LIMITS))
    results: dict[tuple[int, int], str] = {}
    prompts = [np.concatenate([SHARED, random_tokens(i, 20)]) % 70 for i in range(3)]

    def request(which: int) -> Request:
        sequence = make_sequence(prompts[which], 30, temperature=1.0, seed=which)
        return Request(sequence, SamplingParams(), TOKENIZER)

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        for turn in range(12):
            which = int(rng.integers(3))
            stream = engine.run([request(which)])
            if rng.random() < 0.3:
                next(stream)
                stream.close()
                results[number, turn] = expected[which]
            else:
                results[number, turn] = "".join(piece.text for _, piece in stream)
                assert results[number, turn] == expected[which]

    expected = ["".join(p.text for _, p in alone.run([request(i)])) for i in range(3)]
    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6 * 12, "a thread that fails loses its results"
    assert engine.num_free_blocks == 12
    engine.close()
    # The system may take a moment to forget a thread that was joined.
    deadline = time.monotonic() + 10
    while num_threads() > threads_before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert num_threads() <= threads_before
