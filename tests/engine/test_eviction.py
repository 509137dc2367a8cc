"""Each policy against its definition, written as a search over all pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryzanstein.engine.eviction import make_policy
from ryzanstein.engine.prefix_cache import CachedPage

if TYPE_CHECKING:
    from collections.abc import Callable

    from ryzanstein.config import Eviction

CAPACITY = 5


class Oracle:
    """A list of everything that happened; victims are looked for in it from the beginning."""

    def __init__(self) -> None:
        self.events: list[int] = []  # pages in the order of their uses
        self.stored: list[int] = []
        self.ranks: dict[int, float] = {}
        self.age = 0.0

    def use(self, name: int, page: CachedPage, cost: float) -> None:
        self.events.append(name)
        if page.hits == 0:
            self.stored.append(name)
        self.ranks[name] = self.age + (page.hits + 1) * cost

    def lru(self, offered: list[int]) -> int:
        return min(offered, key=lambda n: len(self.events) - self.events[::-1].index(n))

    def fifo(self, offered: list[int]) -> int:
        return min(offered, key=lambda n: len(self.stored) - self.stored[::-1].index(n))

    def least_rank(self, offered: list[int]) -> int:
        # Of equals the one that was offered first.
        victim = min(offered, key=lambda n: self.ranks[n])
        self.age = max(self.age, self.ranks[victim])
        return victim


def cached_page(name: int, depth: int) -> CachedPage:
    return CachedPage(bytes([name]), b"", b"", None, name, depth)


def one(depth: int) -> float:
    return 1.0


ORACLES: dict[Eviction, tuple[Callable[[Oracle], Any], Callable[[int], float]]] = {
    "lru": (lambda oracle: oracle.lru, one),
    "fifo": (lambda oracle: oracle.fifo, one),
    "lfu": (lambda oracle: oracle.least_rank, one),
    "cost": (lambda oracle: oracle.least_rank, lambda depth: 1 + depth / 128),
}


@pytest.mark.parametrize("eviction", ORACLES)
@given(uses=st.lists(st.integers(0, 11), max_size=120))
def test_victims(eviction: Eviction, uses: list[int]) -> None:
    """Pages are used one by one, offered after each use, and evicted when there are too many."""
    policy, oracle = make_policy(eviction, CAPACITY), Oracle()
    choose, cost = ORACLES[eviction]
    pages: dict[int, CachedPage] = {}
    offered: list[int] = []
    for name in uses:
        page = pages.get(name)
        if page is None:
            if len(pages) == CAPACITY:
                expected = choose(oracle)(offered)
                assert policy.evict() is pages.pop(expected)
                offered.remove(expected)
            page = pages[name] = cached_page(name, depth=name * 40)
        else:
            policy.withdraw(page)
            offered.remove(name)
            page.hits += 1
        policy.used(page)
        oracle.use(name, page, cost(page.depth))
        policy.offer(page)
        offered.append(name)


class ArcByTheBook:
    """ARC(c) of Megiddo and Modha, figure 4, over plain lists, the least recently used first.

    Lists of ghosts are each bounded by c, as ours are.
    """

    def __init__(self) -> None:
        self.t1: list[int] = []
        self.t2: list[int] = []
        self.b1: list[int] = []
        self.b2: list[int] = []
        self.p = 0.0

    def request(self, name: int) -> int | None:
        victim = None
        held = name in self.t1 or name in self.t2
        if not held and len(self.t1) + len(self.t2) == CAPACITY:
            source, ghosts = self.t2, self.b2
            if self.t1 and (len(self.t1) > self.p or not self.t2):
                source, ghosts = self.t1, self.b1
            victim = source.pop(0)
            ghosts.append(victim)
            del ghosts[:-CAPACITY]
        if name in self.b1:
            self.p = min(CAPACITY, self.p + max(1, len(self.b2) / len(self.b1)))
        elif name in self.b2:
            self.p = max(0, self.p - max(1, len(self.b1) / len(self.b2)))
        known = [names for names in (self.t1, self.t2, self.b1, self.b2) if name in names]
        for names in known:
            names.remove(name)
        (self.t2 if known else self.t1).append(name)
        return victim


@given(uses=st.lists(st.integers(0, 11), max_size=150))
def test_arc(uses: list[int]) -> None:
    policy, book = make_policy("arc", CAPACITY), ArcByTheBook()
    pages: dict[int, CachedPage] = {}
    for name in uses:
        expected = book.request(name)
        page = pages.get(name)
        if page is None:
            if len(pages) == CAPACITY:
                assert expected is not None
                assert policy.evict() is pages.pop(expected)
            page = pages[name] = cached_page(name, depth=0)
        else:
            policy.withdraw(page)
            page.hits += 1
        policy.used(page)
        policy.offer(page)


@pytest.mark.parametrize("eviction", [*ORACLES, "arc"])
@given(steps=st.lists(st.tuples(st.integers(0, 7), st.booleans()), max_size=80))
def test_only_what_is_offered_goes(eviction: Eviction, steps: list[tuple[int, bool]]) -> None:
    policy = make_policy(eviction, 8)
    pages = [cached_page(name, name) for name in range(8)]
    offered: set[int] = set()
    for page in pages:
        policy.used(page)
    for name, hit in steps:
        if name in offered:
            policy.withdraw(pages[name])
            if hit:
                pages[name].hits += 1
                policy.used(pages[name])
        else:
            policy.offer(pages[name])
        offered ^= {name}
    assert {policy.evict().block_id for _ in range(len(offered))} == offered
