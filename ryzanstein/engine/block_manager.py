"""Who owns which page of the KV cache.

Pages hold `block_tokens` tokens. A sequence has a table of page ids in order of position. Pages are
shared by reference counts after a fork; a sequence writes only to pages that it alone owns, so the
shared last page of a fork is copied before the first write to it.

With a prefix cache, full pages whose tokens are settled are shared with every sequence that begins
alike. They are never written again, and stay cached when nobody owns them, until a page is needed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ryzanstein.config import check_integer
from ryzanstein.engine.prefix_cache import NO_MATCH
from ryzanstein.errors import OutOfMemoryError, ValidationError

if TYPE_CHECKING:
    from ryzanstein._core import I32Array
    from ryzanstein.engine.prefix_cache import CachedPage, PageChain, PrefixCache, PrefixMatch

__all__ = ["BlockCopy", "BlockManager", "BlockTable", "Reservation"]


class BlockCopy(NamedTuple):
    """A page to copy, in every layer, before the next write."""

    source: int
    target: int


@dataclass(slots=True, eq=False)
class BlockTable:
    """The pages of one sequence. Only a BlockManager changes it.

    The first `num_shared` pages are in the prefix cache.
    """

    block_ids: list[int] = field(default_factory=list)
    num_tokens: int = 0
    num_shared: int = 0


@dataclass(frozen=True, slots=True)
class Reservation:
    """Where appended tokens go.

    Args:
        slots: int32 [n], page id * block_tokens + offset, one per token.
        copies: pages to copy first (at most one).
    """

    slots: I32Array
    copies: tuple[BlockCopy, ...]


class BlockManager:
    """Hands out pages; every operation costs O(1) per page touched, O(log pages) per eviction.

    Args:
        num_blocks: pages in the pool.
        block_tokens: tokens per page.
        cache: where settled pages are shared; None shares nothing.

    Example:
        >>> manager = BlockManager(num_blocks=4, block_tokens=32)
        >>> table = manager.allocate()
        >>> manager.append(table, 2).slots.tolist()
        [0, 1]
    """

    def __init__(
        self, num_blocks: int, block_tokens: int, cache: PrefixCache | None = None
    ) -> None:
        self.num_blocks = check_integer("num_blocks", num_blocks, 1)
        self.block_tokens = check_integer("block_tokens", block_tokens, 1)
        self._ref_counts = [0] * num_blocks
        # Last freed, first reused: the pool's resident memory stays at its high-water mark.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._tables: dict[int, BlockTable] = {}
        self._cache = cache
        self._cached: dict[int, CachedPage] = {}

    @property
    def num_free(self) -> int:
        """Return the pages that no sequence owns, cached ones included."""
        return len(self._free) + (self._cache.num_idle if self._cache else 0)

    def blocks_for(self, num_tokens: int) -> int:
        """Return the pages that `num_tokens` tokens fill or begin."""
        return -(-num_tokens // self.block_tokens)

    def blocks_needed(self, table: BlockTable, num_tokens: int) -> int:
        """Return the free pages that appending `num_tokens` would take, copies included."""
        if num_tokens == 0:
            return 0
        grown = self.blocks_for(table.num_tokens + num_tokens) - len(table.block_ids)
        return grown + self._last_is_shared(table)

    def allocate(self) -> BlockTable:
        """Return an empty table."""
        table = BlockTable()
        self._tables[id(table)] = table
        return table

    def append(self, table: BlockTable, num_tokens: int) -> Reservation:
        """Make room for `num_tokens` more tokens and say where they go.

        Raises:
            OutOfMemoryError: too few free pages; nothing has changed.
            ValidationError: the table was freed, or num_tokens is negative.
        """
        self._require_live(table)
        check_integer("num_tokens", num_tokens, 0)
        needed = self.blocks_needed(table, num_tokens)
        if needed > self.num_free:
            raise OutOfMemoryError(
                f"{num_tokens} more tokens need {needed} KV pages, but only {self.num_free} of "
                f"{self.num_blocks} are free; lower context_length or run fewer sequences at once"
            )
        start = table.num_tokens
        unshare = num_tokens > 0 and self._last_is_shared(table)
        copies = (self._unshare_last(table),) if unshare else ()
        table.num_tokens += num_tokens
        while len(table.block_ids) * self.block_tokens < table.num_tokens:
            table.block_ids.append(self._take())
        return Reservation(self._slots(table, start), copies)

    def match(self, chain: PageChain | None, num_tokens: int) -> PrefixMatch:
        """Return the cached pages that `num_tokens` tokens begin with, for `attach`."""
        if self._cache is None or chain is None:
            return NO_MATCH
        return self._cache.match(chain, num_tokens, self.block_tokens)

    def attach(self, table: BlockTable, match: PrefixMatch) -> None:
        """Begin an empty table with cached pages; nothing else may happen after `match`."""
        self._require_live(table)
        assert table.num_tokens == 0
        for page in match.pages:
            assert self._cache is not None
            self._hold(page)
            self._cache.hit(page)
            table.block_ids.append(page.block_id)
            table.num_tokens += self.block_tokens
            table.num_shared += 1

    def share(self, table: BlockTable, chain: PageChain | None, num_tokens: int) -> None:
        """Put the full pages among the first `num_tokens` tokens, all settled, into the cache.

        Where the cache has such a page already, the table takes that one and frees its own.
        """
        if self._cache is None or chain is None:
            return
        while (table.num_shared + 1) * self.block_tokens <= num_tokens:
            index = table.num_shared
            parent = self._cached[table.block_ids[index - 1]] if index else None
            own = table.block_ids[index]
            page = self._cache.insert(chain, parent, own)
            if page is None:
                return
            if page.block_id == own:
                self._cached[own] = page
            else:
                self._hold(page)
                table.block_ids[index] = page.block_id
                self._release(own)
            table.num_shared = index + 1

    def fork(self, table: BlockTable) -> BlockTable:
        """Return a table with the same tokens, sharing every page."""
        self._require_live(table)
        child = self.allocate()
        for block_id in table.block_ids:
            self._ref_counts[block_id] += 1
        child.block_ids = list(table.block_ids)
        child.num_tokens = table.num_tokens
        child.num_shared = table.num_shared
        return child

    def truncate(self, table: BlockTable, num_tokens: int) -> None:
        """Keep the first `num_tokens` tokens and give back the pages behind them.

        Raises:
            ValidationError: num_tokens is not in 0..table.num_tokens.
        """
        self._require_live(table)
        check_integer("num_tokens", num_tokens, 0, table.num_tokens)
        self._cut(table, num_tokens)

    def free(self, table: BlockTable) -> None:
        """Give back every page of the table; it may not be used again.

        Raises:
            ValidationError: it was freed.
        """
        self._require_live(table)
        self._cut(table, 0)
        del self._tables[id(table)]

    def check(self) -> None:
        """Assert the invariants: for tests, O(pages)."""
        edges = Counter(b for table in self._tables.values() for b in table.block_ids)
        used = {b for b, count in enumerate(self._ref_counts) if count}
        idle = {b for b in self._cached if b not in used}
        assert edges == Counter(dict(enumerate(self._ref_counts))), "references equal table entries"
        assert len(set(self._free)) == len(self._free), "a page is free at most once"
        assert used.isdisjoint(self._free), "a used page is not free"
        assert idle.isdisjoint(self._free), "a cached page is not free"
        assert len(used) + len(idle) + len(self._free) == self.num_blocks, "no page is lost"
        for table in self._tables.values():
            assert len(table.block_ids) == self.blocks_for(table.num_tokens), "no spare page"
            assert len(set(table.block_ids)) == len(table.block_ids), "no page twice in a table"
            shared = [self._cached[b] for b in table.block_ids[: table.num_shared]]
            for parent, page in zip([None, *shared], shared, strict=False):
                assert page.parent is parent, "shared pages are a prefix in the cache"
        if self._cache is not None:
            pages = self._cache.pages
            assert {p.block_id: p for p in pages} == self._cached, "cache and manager agree"
            assert len(idle) == self._cache.num_idle, "idle pages are counted"
            for page in pages:
                assert page.in_use == (page.block_id in used), "the cache knows who is in use"
                parent = page.parent
                assert parent is None or parent.in_use or not page.in_use, "parents are in use"
                assert parent is None or self._cached[parent.block_id] is parent, "no orphans"
            children = Counter(id(p.parent) for p in pages)
            assert all(p.num_children == children[id(p)] for p in pages), "children are counted"

    def _require_live(self, table: BlockTable) -> None:
        if id(table) not in self._tables:
            raise ValidationError("the block table was freed, or belongs to another manager")

    def _cut(self, table: BlockTable, num_tokens: int) -> None:
        keep = self.blocks_for(num_tokens)
        table.num_shared = min(table.num_shared, num_tokens // self.block_tokens)
        while len(table.block_ids) > keep:
            self._release(table.block_ids.pop())
        table.num_tokens = num_tokens

    def _last_is_shared(self, table: BlockTable) -> bool:
        if table.num_tokens % self.block_tokens == 0:
            return False
        last = table.block_ids[-1]
        return self._ref_counts[last] > 1 or last in self._cached

    def _unshare_last(self, table: BlockTable) -> BlockCopy:
        source, target = table.block_ids[-1], self._take()
        table.block_ids[-1] = target
        self._release(source)
        return BlockCopy(source, target)

    def _slots(self, table: BlockTable, start: int) -> I32Array:
        first_block = start // self.block_tokens
        if table.num_tokens == start + 1:  # decoding: a quarter of the time
            offset = start - first_block * self.block_tokens
            return np.array([table.block_ids[-1] * self.block_tokens + offset], np.int32)
        ids = np.asarray(table.block_ids[first_block:], np.int32)
        offsets = np.arange(
            start - first_block * self.block_tokens,
            table.num_tokens - first_block * self.block_tokens,
            dtype=np.int32,
        )
        size = np.int32(self.block_tokens)
        slots: I32Array = ids[offsets // size] * size + offsets % size
        return slots

    def _take(self) -> int:
        if self._free:
            block_id = self._free.pop()
        else:
            assert self._cache is not None
            block_id = self._cache.evict().block_id
            del self._cached[block_id]
        self._ref_counts[block_id] = 1
        return block_id

    def _hold(self, page: CachedPage) -> None:
        if not page.in_use:
            assert self._cache is not None
            self._cache.hold(page)
        self._ref_counts[page.block_id] += 1

    def _release(self, block_id: int) -> None:
        self._ref_counts[block_id] -= 1
        if self._ref_counts[block_id]:
            return
        page = self._cached.get(block_id)
        if page is None:
            self._free.append(block_id)
        else:
            assert self._cache is not None
            self._cache.drop(page)
