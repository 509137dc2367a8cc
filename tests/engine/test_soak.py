"""Hundreds of requests arrive, are cancelled and preempted in a pool far too small for them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import byte_level, make_sequence, random_tokens, tiny_decoder, tiny_engine

from ryzanstein import SamplingParams
from ryzanstein.engine.request import Request
from ryzanstein.engine.shared import SharedEngine
from ryzanstein.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ryzanstein.config import Scheduling
    from ryzanstein.engine.sequence import Sequence

MODEL = tiny_decoder(3)
TOKENIZER = Tokenizer(byte_level())
SHARED = random_tokens(50, 96)
LIMITS: dict[str, Any] = {
    "num_blocks": 12,
    "context_length": 200,
    "max_sequences": 6,
    "token_budget": 80,
}


def random_sequence(rng: np.random.Generator) -> Sequence:
    prompt = np.concatenate(
        [SHARED[: rng.integers(97)], random_tokens(9, int(rng.integers(1, 50)))]
    )
    seed = int(rng.integers(4))
    sequence = make_sequence(prompt, int(rng.integers(1, 40)), temperature=1.0, seed=seed)
    sequence.priority = int(rng.integers(3))
    sequence.cache_salt = "other" if rng.random() < 0.2 else ""
    return sequence


@pytest.mark.parametrize("scheduling", ["fcfs", "priority", "prefix"])
def test_every_request_ends_with_a_reason(scheduling: Scheduling) -> None:
    rng = np.random.default_rng(1)
    engine = tiny_engine(MODEL, scheduling=scheduling, **LIMITS)
    expected: dict[tuple[bytes, int], list[int]] = {}
    alive: list[Sequence] = []
    ended: list[Sequence] = []
    arrived = preemptions = 0
    while arrived < 300 or alive:
        if arrived < 300 and len(alive) < 20:
            for _ in range(min(int(rng.integers(4)), 300 - arrived)):
                alive.append(random_sequence(rng))
                engine.add(alive[-1])
                arrived += 1
        running = set(map(id, engine.scheduler.running))
        engine.step()
        engine.blocks.check()
        preempted = [s for s in engine.scheduler.waiting if id(s) in running]
        preemptions += len(preempted)
        if alive and rng.random() < 0.1:
            victim = alive[rng.integers(len(alive))]
            if not victim.is_finished:
                victim.ended = "cancelled"
            engine.release(victim)
        ended += [s for s in alive if s.is_finished]
        alive = [s for s in alive if not s.is_finished]
    assert len(ended) == 300
    assert preemptions > 20
    reasons = [s.finish_reason for s in ended]
    assert set(reasons) == {"length", "cancelled"}
    assert not engine.scheduler.has_work
    assert engine.blocks.num_free == engine.blocks.num_blocks
    # Equal requests have equal tokens, however they were treated.
    for sequence in ended:
        key = sequence.buffer[: sequence.num_prompt_tokens].tobytes(), sequence.seed
        longest = expected.setdefault(key, [])
        tokens = sequence.generated.tolist()
        shorter = min(len(longest), len(tokens))
        assert longest[:shorter] == tokens[:shorter]
        expected[key] = max(longest, tokens, key=len)


def test_threads_that_come_and_go() -> None:
    """Each thread runs requests of its own, some of which it abandons, on one engine."""
    engine = SharedEngine(tiny_engine(MODEL, **LIMITS))
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
