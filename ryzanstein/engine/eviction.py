"""Which cached page to give up when a new one is needed.

A policy hears of every page that is stored or hit, and of every page that nothing depends on: no
sequence holds it and no longer prefix is cached behind it. Only of those it names a victim, so a
prefix is always given up from its end, whatever the policy.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from ryzanstein.config import Eviction
    from ryzanstein.engine.prefix_cache import CachedPage

__all__ = ["Arc", "CostAware", "EvictionPolicy", "Fifo", "Lfu", "Lru", "make_policy"]

# Computing a token costs its linears, and attention to all tokens before it: for a model of
# billions of weights the latter is as much as the former some thousands of tokens, or a hundred
# pages, in.
_PAGES_THAT_DOUBLE_THE_COST = 128


class EvictionPolicy(Protocol):
    """What the prefix cache asks of a policy."""

    def used(self, page: CachedPage) -> None:
        """Note that a page was stored (`page.hits` is 0) or hit."""

    def offer(self, page: CachedPage) -> None:
        """Note that a page may be evicted from now on."""

    def withdraw(self, page: CachedPage) -> None:
        """Note that an offered page may not be evicted any more."""

    def evict(self) -> CachedPage:
        """Return the offered page to give up, which is offered no longer. There is at least one."""


class _Queue:
    """Offered pages, the least rank first. Withdrawing costs nothing but a stale entry."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, CachedPage]] = []
        self._tickets: dict[CachedPage, int] = {}
        self._next_ticket = 0

    def __bool__(self) -> bool:
        return bool(self._tickets)

    def push(self, page: CachedPage, rank: float) -> None:
        self._next_ticket += 1
        self._tickets[page] = self._next_ticket
        heapq.heappush(self._heap, (rank, self._next_ticket, page))
        if len(self._heap) > 2 * len(self._tickets) + 16:
            self._heap = [entry for entry in self._heap if self._is_live(entry)]
            heapq.heapify(self._heap)

    def remove(self, page: CachedPage) -> None:
        del self._tickets[page]

    def pop(self) -> tuple[CachedPage, float]:
        """Take the page of the least rank, of equals the one offered first."""
        while True:
            entry = heapq.heappop(self._heap)
            if self._is_live(entry):
                del self._tickets[entry[2]]
                return entry[2], entry[0]

    def _is_live(self, entry: tuple[float, int, CachedPage]) -> bool:
        return self._tickets.get(entry[2]) == entry[1]


class _Ranked(ABC):
    """Evicts the page of the least rank, which changes only when the page is used.

    The age of the cache is the highest rank of a victim so far.
    """

    def __init__(self) -> None:
        self._age = 0.0
        self._ranks: dict[CachedPage, float] = {}
        self._offered = _Queue()

    def used(self, page: CachedPage) -> None:
        self._ranks[page] = self._rank(page)

    def offer(self, page: CachedPage) -> None:
        self._offered.push(page, self._ranks[page])

    def withdraw(self, page: CachedPage) -> None:
        self._offered.remove(page)

    def evict(self) -> CachedPage:
        page, rank = self._offered.pop()
        del self._ranks[page]
        self._age = max(self._age, rank)
        return page

    @abstractmethod
    def _rank(self, page: CachedPage) -> float: ...


class Lru(_Ranked):
    """Gives up the page that was used longest ago."""

    def __init__(self) -> None:
        super().__init__()
        self._clock = 0

    def _rank(self, page: CachedPage) -> float:
        self._clock += 1
        return self._clock


class Fifo(_Ranked):
    """Gives up the page that was stored longest ago."""

    def __init__(self) -> None:
        super().__init__()
        self._clock = 0

    def _rank(self, page: CachedPage) -> float:
        self._clock += 1
        return self._ranks.get(page, self._clock)


class Lfu(_Ranked):
    """Gives up the page used least often, counted from the age of the cache when it was last used.

    So what was popular once goes in the end (LFU with dynamic ageing).
    """

    def _rank(self, page: CachedPage) -> float:
        return self._age + page.hits + 1


class CostAware(Lfu):
    """Gives up what is cheapest to compute again, as often as it was used (GreedyDual-Size)."""

    def _rank(self, page: CachedPage) -> float:
        return self._age + (page.hits + 1) * (1 + page.depth / _PAGES_THAT_DOUBLE_THE_COST)


class Arc:
    """Balances pages used once against pages used again, by which of them were given up too early.

    Recency decides within each kind. A page that is stored again soon after it was evicted raises
    the share of its kind (adaptive replacement cache, Megiddo and Modha 2003).

    Args:
        capacity: pages there can be.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._clock = 0
        self._target = 0.0  # pages used once that are worth keeping
        self._used_at: dict[CachedPage, int] = {}
        self._again: set[CachedPage] = set()
        self._once_offered, self._again_offered = _Queue(), _Queue()
        self._once_ghosts: OrderedDict[bytes, None] = OrderedDict()
        self._again_ghosts: OrderedDict[bytes, None] = OrderedDict()

    def used(self, page: CachedPage) -> None:
        """Note that a page was stored or hit."""
        self._clock += 1
        self._used_at[page] = self._clock
        if page.hits or self._returns(page.key):
            self._again.add(page)

    def offer(self, page: CachedPage) -> None:
        """Note that a page may be evicted from now on."""
        self._queue(page).push(page, self._used_at[page])

    def withdraw(self, page: CachedPage) -> None:
        """Note that an offered page may not be evicted any more."""
        self._queue(page).remove(page)

    def evict(self) -> CachedPage:
        """Return the offered page to give up."""
        num_once = len(self._used_at) - len(self._again)
        from_once = bool(self._once_offered) and (
            num_once > self._target or not self._again_offered
        )
        page, _ = (self._once_offered if from_once else self._again_offered).pop()
        ghosts = self._once_ghosts if from_once else self._again_ghosts
        ghosts[page.key] = None
        if len(ghosts) > self._capacity:
            ghosts.popitem(last=False)
        del self._used_at[page]
        self._again.discard(page)
        return page

    def _returns(self, key: bytes) -> bool:
        once, again = len(self._once_ghosts), len(self._again_ghosts)
        if key in self._once_ghosts:
            del self._once_ghosts[key]
            self._target = min(self._capacity, self._target + max(1.0, again / once))
            return True
        if key in self._again_ghosts:
            del self._again_ghosts[key]
            self._target = max(0.0, self._target - max(1.0, once / again))
            return True
        return False

    def _queue(self, page: CachedPage) -> _Queue:
        return self._again_offered if page in self._again else self._once_offered


def make_policy(name: Eviction, capacity: int) -> EvictionPolicy:
    """Return a policy by name for a cache of so many pages."""
    makers: dict[Eviction, Callable[[], EvictionPolicy]] = {
        "lru": Lru,
        "lfu": Lfu,
        "fifo": Fifo,
        "cost": CostAware,
        "arc": lambda: Arc(capacity),
    }
    return makers[name]()
