from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import finish, make_sequence, random_tokens, tiny_decoder, tiny_engine

from ryzanstein import ContextLengthError
from ryzanstein.config import EngineConfig
from ryzanstein.engine.block_manager import BlockManager
from ryzanstein.engine.scheduler import Scheduler

if TYPE_CHECKING:
    from ryzanstein.config import Scheduling
    from ryzanstein.engine.batch import Chunk
    from ryzanstein.engine.sequence import Sequence

PAGE = 4


def make(num_blocks: int = 100, **options: Any) -> tuple[Scheduler, BlockManager]:
    blocks = BlockManager(num_blocks, PAGE)
    limits = {"context_length": 1000, "token_budget": 16, "max_sequences": 4} | options
    return Scheduler(blocks, EngineConfig(num_blocks=num_blocks, **limits)), blocks


def request(prompt_tokens: int, max_tokens: int = 1) -> Sequence:
    return make_sequence(np.zeros(prompt_tokens, np.int32), max_tokens)


def sizes(planned: list[tuple[Sequence, Chunk]]) -> list[tuple[int, int, int]]:
    return [(c.start, len(c.token_ids), c.num_logit_rows) for _, c in planned]


def execute(scheduler: Scheduler, planned: list[tuple[Sequence, Chunk]]) -> None:
    """What the engine does with a plan, with token 1 always drawn."""
    for sequence, chunk in planned:
        if chunk.num_logit_rows:
            sequence.buffer[sequence.num_tokens] = 1
            sequence.num_tokens += 1
        sequence.num_computed = chunk.start + len(chunk.token_ids)
    scheduler.retire()


def test_long_prompts_are_chunked_and_decodes_go_first() -> None:
    scheduler, _ = make()
    long, short = request(40, 5), request(3, 5)
    scheduler.add(long)
    planned = scheduler.schedule()
    assert sizes(planned) == [(0, 16, 0)]
    execute(scheduler, planned)
    scheduler.add(short)
    planned = scheduler.schedule()
    assert sizes(planned) == [(16, 16, 0)]
    execute(scheduler, planned)
    planned = scheduler.schedule()
    assert sizes(planned) == [(32, 8, 1), (0, 3, 1)]
    execute(scheduler, planned)
    scheduler.add(request(50))
    planned = scheduler.schedule()
    assert [s for s, _ in planned[:2]] == [long, short]
    assert sizes(planned) == [(40, 1, 1), (3, 1, 1), (0, 12, 0)]
    execute(scheduler, planned)
    assert sizes(scheduler.schedule()) == [(41, 1, 1), (4, 1, 1), (12, 12, 0)]


def test_at_most_max_sequences_run() -> None:
    scheduler, _ = make()
    for _ in range(6):
        scheduler.add(request(1, 3))
    assert len(scheduler.schedule()) == 4
    assert len(scheduler.waiting) == 2


def test_admission_counts_pages_promised_to_running_prompts() -> None:
    scheduler, blocks = make(num_blocks=12)
    scheduler.add(request(40))  # 10 pages, 4 of them in the first step
    planned = scheduler.schedule()
    assert blocks.num_free == 8
    execute(scheduler, planned)
    scheduler.add(request(12))  # 3 pages, but only 2 are not spoken for
    planned = scheduler.schedule()
    assert len(planned) == 1
    assert len(scheduler.waiting) == 1


@pytest.mark.parametrize(("num_pages", "admitted"), [(296, False), (295, True)])
def test_admission_leaves_a_share_of_the_pool_to_those_who_run(
    num_pages: int, admitted: bool
) -> None:
    scheduler, _ = make(num_blocks=300, context_length=1200)
    scheduler.add(request(PAGE, PAGE))
    execute(scheduler, scheduler.schedule())  # has a page and is promised the next
    arriving = request(num_pages * PAGE - 1)
    scheduler.add(arriving)
    scheduler.schedule()
    assert (arriving in scheduler.running) == admitted
    for sequence in [*scheduler.running]:
        scheduler.release(sequence)
    if not admitted:
        scheduler.schedule()
        assert arriving in scheduler.running, "alone it may take all"


def test_the_latest_gives_way_when_pages_run_out() -> None:
    scheduler, blocks = make(num_blocks=4)
    first, second = request(8, 8), request(8, 8)
    scheduler.add(first)
    scheduler.add(second)
    execute(scheduler, scheduler.schedule())
    assert blocks.num_free == 0
    planned = scheduler.schedule()
    assert [s for s, _ in planned] == [first]
    assert list(scheduler.waiting) == [second]
    assert (second.num_computed, second.num_tokens, second.table) == (0, 9, None)
    blocks.check()


def test_what_never_fits_is_refused_at_once() -> None:
    scheduler, _ = make(num_blocks=2)
    with pytest.raises(
        ContextLengthError, match=r"6 prompt tokens and up to 3 generated .* of 9, but .* is 8"
    ):
        scheduler.add(request(6, 3))
    scheduler, _ = make(context_length=8)
    with pytest.raises(ContextLengthError):
        scheduler.add(request(6, 3))
    assert not scheduler.has_work


def test_release_wherever_it_is() -> None:
    scheduler, blocks = make(max_sequences=1)
    running, waiting = request(8), request(8)
    scheduler.add(running)
    scheduler.add(waiting)
    scheduler.schedule()
    for sequence in (waiting, running, running):
        scheduler.release(sequence)
    assert not scheduler.has_work
    assert blocks.num_free == blocks.num_blocks


def test_rollback_returns_to_what_was_computed() -> None:
    scheduler, blocks = make()
    sequence = request(20, 2)
    scheduler.add(sequence)
    scheduler.schedule()
    scheduler.rollback()
    assert blocks.num_free == blocks.num_blocks
    planned = scheduler.schedule()
    assert sizes(planned) == [(0, 16, 0)]
    execute(scheduler, planned)
    scheduler.schedule()
    scheduler.rollback()
    assert sequence.table is not None
    assert sequence.table.num_tokens == sequence.num_computed == 16


def test_make_room_preempts_the_latest_first() -> None:
    scheduler, blocks = make(num_blocks=6)
    for _ in range(3):
        scheduler.add(request(5))
    scheduler.schedule()
    assert blocks.num_free == 0
    scheduler.make_room(3)
    assert (len(scheduler.running), len(scheduler.waiting), blocks.num_free) == (1, 2, 4)
    scheduler.make_room(100)
    assert blocks.num_free == 6


@settings(max_examples=200)
@given(
    requests=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=12),
    num_blocks=st.integers(11, 30),
    token_budget=st.integers(4, 40),
    arrivals=st.integers(1, 4),
)
def test_every_request_ends_within_the_limits(
    requests: list[tuple[int, int]], num_blocks: int, token_budget: int, arrivals: int
) -> None:
    scheduler, blocks = make(num_blocks=num_blocks, token_budget=token_budget)
    sequences = [request(*r) for r in requests]
    todo = list(sequences)
    ended: list[Sequence] = []
    for _ in range(2000):
        for sequence in todo[:arrivals]:
            scheduler.add(sequence)
        del todo[:arrivals]
        if not (scheduler.has_work or todo):
            break
        planned = scheduler.schedule()
        assert planned
        assert sum(len(chunk.token_ids) for _, chunk in planned) <= token_budget
        assert len(scheduler.running) <= 4
        decodes = [0 < chunk.start == s.num_tokens - 1 for s, chunk in planned]
        assert decodes == sorted(decodes, reverse=True), "decodes come first"
        slots = np.concatenate([chunk.slots for _, chunk in planned])
        assert len(set(slots.tolist())) == len(slots)
        blocks.check()
        execute(scheduler, planned)
        ended += [s for s in sequences if s.is_finished and s not in ended]
    assert all(s.num_tokens == s.capacity for s in sequences)
    assert len(ended) == len(sequences)
    assert blocks.num_free == num_blocks
    if len({r[0] + r[1] for r in requests}) == 1 == len({r[0] for r in requests}):
        assert ended == sequences, "equal requests end in order of arrival"


@pytest.mark.parametrize(
    ("scheduling", "least", "most"),
    # Behind what came before; behind 64 steps' arrivals; behind those of a step per cached page.
    [("fcfs", 1, 2), ("priority", 64, 66), ("prefix", 3, 6)],
)
def test_nobody_starves(scheduling: Scheduling, least: int, most: int) -> None:
    """A request that everybody else is preferred to waits for so many of those who come later."""
    engine = tiny_engine(tiny_decoder(3), scheduling=scheduling, max_sequences=1)
    popular = random_tokens(1, 100)
    finish(engine, [make_sequence(popular, 1)])
    unpopular = make_sequence(random_tokens(2, 40), 1)
    engine.add(make_sequence(popular, 1))
    engine.add(unpopular)
    waited = 0
    while unpopular.admitted_at is None:
        rival = make_sequence(popular, 1)
        rival.priority = 1
        engine.add(rival)
        engine.step()
        waited += 1
        assert waited < 500, "it starves"
    assert least <= waited <= most
