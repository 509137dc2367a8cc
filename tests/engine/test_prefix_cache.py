from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from ryzanstein.engine.block_manager import BlockManager, BlockTable
from ryzanstein.engine.eviction import make_policy
from ryzanstein.engine.prefix_cache import PageChain, PrefixCache
from ryzanstein.errors import OutOfMemoryError

PAGE = 3


def make(num_blocks: int) -> BlockManager:
    return BlockManager(num_blocks, PAGE, PrefixCache(make_policy("lru", num_blocks), num_blocks))


def chain(tokens: list[int], namespace: bytes = b"") -> PageChain:
    return PageChain(np.array(tokens, np.int32), PAGE, namespace)


def run(manager: BlockManager, tokens: list[int], namespace: bytes = b"") -> tuple[int, str]:
    """Compute tokens as a sequence would; return the pages found and why there were no more."""
    ours = chain(tokens, namespace)
    table = manager.allocate()
    match = manager.match(ours, len(tokens))
    manager.attach(table, match)
    manager.append(table, len(tokens) - table.num_tokens)
    manager.share(table, ours, len(tokens))
    manager.free(table)
    manager.check()
    return len(match.pages), match.reason


def test_reasons_of_a_miss() -> None:
    manager = make(8)
    assert run(manager, [1, 2, 3, 4, 5, 6, 7]) == (0, "new")
    assert run(manager, [1, 2, 3, 4, 5, 6, 7]) == (2, "short")
    assert run(manager, [1, 2, 3, 9, 5, 6, 7]) == (1, "diverged")
    assert run(manager, [1, 2, 3]) == (0, "short"), "the last token is always computed"
    assert run(manager, [1, 2, 3, 4, 5, 6]) == (1, "short")
    assert run(manager, list(range(20, 41))) == (0, "new")  # takes all but one page
    assert run(manager, [1, 2, 3, 4, 5, 6, 7]) == (1, "evicted")


def test_a_salt_keeps_apart() -> None:
    manager = make(8)
    run(manager, [1, 2, 3, 4], b"a")
    assert run(manager, [1, 2, 3, 4], b"b") == (0, "new")
    assert run(manager, [1, 2, 3, 4], b"a") == (1, "short")


def test_equal_pages_computed_side_by_side_become_one() -> None:
    manager = make(8)
    tokens = [1, 2, 3, 4, 5, 6, 7]
    ours = chain(tokens)
    tables = [manager.allocate(), manager.allocate()]
    for table in tables:
        manager.append(table, 7)
    assert manager.num_free == 2
    for table in tables:
        manager.share(table, ours, 7)
        manager.check()
    assert tables[0].block_ids[:2] == tables[1].block_ids[:2]
    assert tables[0].block_ids[2] != tables[1].block_ids[2]
    assert manager.num_free == 4


def test_a_hash_collision_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    class Colliding:
        def __init__(self, data: bytes, digest_size: int) -> None:
            self.size = digest_size

        def digest(self) -> bytes:
            return bytes(self.size)

    monkeypatch.setattr("hashlib.blake2b", Colliding)
    manager = make(8)
    assert run(manager, [1, 2, 3, 4]) == (0, "new")
    assert run(manager, [4, 3, 2, 1])[0] == 0
    assert run(manager, [1, 2, 3, 4], b"salt")[0] == 0
    assert run(manager, [1, 2, 3, 4]) == (1, "short")


def test_a_prefix_is_given_up_from_its_end() -> None:
    manager = make(4)
    run(manager, list(range(12)))
    run(manager, [50, 51])
    assert run(manager, list(range(11)))[0] == 3


def content(tokens: list[int]) -> bytes:
    """What the last token's keys and values depend on: all tokens up to it."""
    return hashlib.sha256(repr(tokens).encode()).digest()


class PrefixMachine(RuleBasedStateMachine):
    """Sequences over two tokens, so that they share much, with contents written for real."""

    tables: Bundle[BlockTable] = Bundle("tables")

    def __init__(self) -> None:
        super().__init__()
        self.manager = make(9)
        self.memory = [b""] * (9 * PAGE)
        self.tokens: dict[BlockTable, list[int]] = {}

    @rule(target=tables, tokens=st.lists(st.integers(0, 1), min_size=1, max_size=14))
    def begin(self, tokens: list[int]) -> BlockTable | MultipleResults[BlockTable]:
        match = self.manager.match(chain(tokens), len(tokens))
        assert len(match.pages) * PAGE < len(tokens)
        if self.manager.num_free < self.manager.blocks_for(len(tokens)):
            return multiple()
        table = self.manager.allocate()
        self.manager.attach(table, match)
        self.tokens[table] = tokens[: table.num_tokens]
        self.every_table_reads_its_own_tokens()
        self.write(table, tokens[table.num_tokens :])
        return table

    @rule(table=tables, tokens=st.lists(st.integers(0, 1), max_size=8))
    def append(self, table: BlockTable, tokens: list[int]) -> None:
        if self.manager.blocks_needed(table, len(tokens)) > self.manager.num_free:
            with pytest.raises(OutOfMemoryError):
                self.manager.append(table, len(tokens))
            return
        self.write(table, tokens)

    def write(self, table: BlockTable, tokens: list[int]) -> None:
        reservation = self.manager.append(table, len(tokens))
        for source, target in reservation.copies:
            start, end = target * PAGE, source * PAGE
            self.memory[start : start + PAGE] = self.memory[end : end + PAGE]
        for token, slot in zip(tokens, reservation.slots.tolist(), strict=True):
            self.tokens[table].append(token)
            self.memory[slot] = content(self.tokens[table])

    @rule(table=tables, data=st.data())
    def share(self, table: BlockTable, data: st.DataObject) -> None:
        settled = data.draw(st.integers(0, table.num_tokens))
        self.manager.share(table, chain(self.tokens[table]), settled)

    @rule(target=tables, table=tables)
    def fork(self, table: BlockTable) -> BlockTable:
        child = self.manager.fork(table)
        self.tokens[child] = list(self.tokens[table])
        return child

    @rule(table=tables, data=st.data())
    def truncate(self, table: BlockTable, data: st.DataObject) -> None:
        keep = data.draw(st.integers(0, table.num_tokens))
        self.manager.truncate(table, keep)
        del self.tokens[table][keep:]

    @rule(table=consumes(tables))
    def free(self, table: BlockTable) -> None:
        self.manager.free(table)
        del self.tokens[table]

    @invariant()
    def every_table_reads_its_own_tokens(self) -> None:
        for table, tokens in self.tokens.items():
            for position in range(table.num_tokens):
                slot = table.block_ids[position // PAGE] * PAGE + position % PAGE
                assert self.memory[slot] == content(tokens[: position + 1])

    @invariant()
    def books_balance(self) -> None:
        self.manager.check()

    def teardown(self) -> None:
        for table in self.tokens:
            self.manager.free(table)
        assert self.manager.num_free == self.manager.num_blocks


TestPrefixMachine = PrefixMachine.TestCase
TestPrefixMachine.settings = settings(max_examples=100, stateful_step_count=40)
