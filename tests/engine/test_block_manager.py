from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
)

from ryzanstein.engine.block_manager import BlockManager, BlockTable
from ryzanstein.errors import OutOfMemoryError, ValidationError


def test_slots_follow_the_pages() -> None:
    manager = BlockManager(num_blocks=4, block_tokens=4)
    table = manager.allocate()
    assert manager.append(table, 6).slots.tolist() == [0, 1, 2, 3, 4, 5]
    other = manager.allocate()
    assert manager.append(other, 1).slots.tolist() == [8]
    assert manager.append(table, 3).slots.tolist() == [6, 7, 12]
    assert table.block_ids == [0, 1, 3]
    assert manager.num_free == 0
    manager.check()


def test_nothing_to_append() -> None:
    manager = BlockManager(num_blocks=1, block_tokens=4)
    table = manager.allocate()
    assert manager.append(table, 0).slots.tolist() == []
    assert manager.blocks_needed(table, 0) == 0
    assert manager.num_free == 1


def test_fork_copies_only_a_partial_page_and_only_once() -> None:
    manager = BlockManager(num_blocks=8, block_tokens=4)
    parent = manager.allocate()
    manager.append(parent, 6)
    child = manager.fork(parent)
    assert manager.num_free == 6
    assert manager.blocks_needed(child, 1) == 1
    reservation = manager.append(child, 1)
    assert reservation.copies == ((1, 2),)
    assert reservation.slots.tolist() == [10]
    assert manager.append(parent, 1).copies == ()
    assert manager.append(child, 1).copies == ()
    manager.check()


def test_fork_of_full_pages_copies_nothing() -> None:
    manager = BlockManager(num_blocks=8, block_tokens=4)
    parent = manager.allocate()
    manager.append(parent, 8)
    child = manager.fork(parent)
    assert manager.append(child, 1).copies == ()
    assert child.block_ids[:2] == parent.block_ids


def test_exhaustion_changes_nothing() -> None:
    manager = BlockManager(num_blocks=2, block_tokens=4)
    table = manager.allocate()
    manager.append(table, 6)
    child = manager.fork(table)
    for each, count in ((table, 3), (child, 1)):
        with pytest.raises(OutOfMemoryError, match=rf"{count} more tokens need \d KV pages, but"):
            manager.append(each, count)
        assert (each.num_tokens, each.block_ids) == (6, [0, 1])
        manager.check()


def test_misuse_is_reported() -> None:
    manager = BlockManager(num_blocks=2, block_tokens=4)
    table = manager.allocate()
    manager.append(table, 2)
    with pytest.raises(ValidationError, match=r"num_tokens must be in 0\.\.2, got 3"):
        manager.truncate(table, 3)
    with pytest.raises(ValidationError, match="num_tokens must be an integer >= 0, got -1"):
        manager.append(table, -1)
    manager.free(table)
    for use in (manager.fork, manager.free, lambda t: manager.append(t, 1)):
        with pytest.raises(ValidationError, match="was freed, or belongs to another manager"):
            use(table)
    with pytest.raises(ValidationError, match="num_blocks must be"):
        BlockManager(0, 4)


class BlockManagerMachine(RuleBasedStateMachine):
    """The manager against a list of tokens per table, with the pages' contents written for real."""

    tables: Bundle[BlockTable] = Bundle("tables")

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(num_blocks=7, block_tokens=3)
        self.memory = [-1] * (7 * 3)
        self.tokens: dict[BlockTable, list[int]] = {}
        self.next_token = 0

    @rule(target=tables)
    def allocate(self) -> BlockTable:
        table = self.manager.allocate()
        self.tokens[table] = []
        return table

    @rule(table=tables, count=st.integers(0, 8))
    def append(self, table: BlockTable, count: int) -> None:
        free = self.manager.num_free
        needed = self.manager.blocks_needed(table, count)
        if needed > free:
            with pytest.raises(OutOfMemoryError):
                self.manager.append(table, count)
            return
        reservation = self.manager.append(table, count)
        assert free - self.manager.num_free == needed
        assert len(reservation.copies) <= 1
        for source, target in reservation.copies:
            self.memory[target * 3 : target * 3 + 3] = self.memory[source * 3 : source * 3 + 3]
        for slot in reservation.slots.tolist():
            self.memory[slot] = self.next_token
            self.tokens[table].append(self.next_token)
            self.next_token += 1

    @rule(target=tables, table=tables)
    def fork(self, table: BlockTable) -> BlockTable:
        child = self.manager.fork(table)
        self.tokens[child] = list(self.tokens[table])
        return child

    @precondition(lambda self: self.tokens)
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
            slots = [
                table.block_ids[position // 3] * 3 + position % 3
                for position in range(table.num_tokens)
            ]
            assert [self.memory[slot] for slot in slots] == tokens

    @invariant()
    def books_balance(self) -> None:
        self.manager.check()

    def teardown(self) -> None:
        for table in self.tokens:
            self.manager.free(table)
        assert self.manager.num_free == self.manager.num_blocks


TestBlockManagerMachine = BlockManagerMachine.TestCase
TestBlockManagerMachine.settings = settings(max_examples=150, stateful_step_count=40)
