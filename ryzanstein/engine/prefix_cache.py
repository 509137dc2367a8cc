"""Full pages by the tokens they were computed from, kept until their memory is needed.

Keys and values of a page depend on its own tokens and all before them, so a page is found by a hash
chain: the hash of the page before, and its own tokens. The chain begins with a namespace: what
determines the numbers besides tokens (model, KV format, tier, and which frequencies rotate the
sequence), and the caller's salt. Tokens are compared on every hit, so a collision of hashes costs a
miss and no more.

The exactness contract makes a hit invisible: the page holds the bits that computing it again would.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence as ABCSequence

    from ryzanstein._core import I32Array
    from ryzanstein.engine.eviction import EvictionPolicy
    from ryzanstein.engine.result import MissReason

__all__ = ["NO_MATCH", "CachedPage", "PageChain", "PrefixCache", "PrefixMatch"]

_DIGEST_BYTES = 16


class PageChain:
    """The full pages of a growing sequence of tokens, as keys and as bytes.

    Args:
        buffer: int32 [n], whose settled tokens never change.
        page_tokens: tokens per page.
        namespace: what must be equal besides the tokens.
    """

    __slots__ = ("_buffer", "_keys", "_page_tokens", "namespace")

    def __init__(self, buffer: I32Array, page_tokens: int, namespace: bytes) -> None:
        self.namespace = namespace
        self._buffer = buffer
        self._page_tokens = page_tokens
        self._keys = [hashlib.blake2b(namespace, digest_size=_DIGEST_BYTES).digest()]

    def tokens(self, index: int) -> bytes:
        """Return the tokens of a page as bytes."""
        start = index * self._page_tokens
        return self._buffer[start : start + self._page_tokens].tobytes()

    def key(self, index: int) -> bytes:
        """Return the hash of a page and all before it, whose tokens must be settled."""
        while len(self._keys) <= index + 1:
            data = self._keys[-1] + self.tokens(len(self._keys) - 1)
            self._keys.append(hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest())
        return self._keys[index + 1]


@dataclass(slots=True, eq=False)
class CachedPage:
    """A page that holds a prefix's last tokens.

    Args:
        key: the hash of the chain up to this page.
        namespace: of the chain.
        tokens: the page's own tokens.
        parent: the page before; None for the first of a sequence.
        block_id: where its keys and values are.
        depth: pages before it.
        hits: times it was found.
        num_children: cached pages right behind it.
        in_use: whether a sequence holds it.
    """

    key: bytes
    namespace: bytes
    tokens: bytes
    parent: CachedPage | None
    block_id: int
    depth: int
    hits: int = 0
    num_children: int = 0
    in_use: bool = True

    def holds(self, chain: PageChain, parent: CachedPage | None) -> bool:
        """Return whether this is the page behind `parent` in the chain, by its tokens."""
        return (
            self.parent is parent
            and self.namespace == chain.namespace
            and self.tokens == chain.tokens(self.depth)
        )


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """The pages that a prompt begins with, and why there are no more of them."""

    pages: tuple[CachedPage, ...]
    reason: MissReason

    @property
    def num_unused(self) -> int:
        """Return how many of the pages no sequence holds: attaching takes them from the pool."""
        return sum(not page.in_use for page in self.pages)


NO_MATCH = PrefixMatch((), "off")


class PrefixCache:
    """An index of full pages. Who holds a page is the block manager's business, which tells.

    A page in use has a parent in use, so what may be evicted is a leaf of the tree of prefixes.

    Args:
        policy: chooses what to give up.
        max_pages: how many evicted pages are remembered, to tell why a prompt missed.
    """

    def __init__(self, policy: EvictionPolicy, max_pages: int) -> None:
        self._policy = policy
        self._max_pages = max_pages
        self._pages: dict[bytes, CachedPage] = {}
        self._evicted: OrderedDict[bytes, None] = OrderedDict()
        self.num_idle = 0

    def __len__(self) -> int:
        return len(self._pages)

    @property
    def pages(self) -> list[CachedPage]:
        """Return every cached page, parents before their children."""
        return sorted(self._pages.values(), key=lambda page: page.depth)

    def beginnings(self, texts: ABCSequence[I32Array]) -> list[CachedPage]:
        """Return the cached pages that int32 [n] texts begin with, parents before children."""
        everyone = [text.tobytes() for text in texts]
        found: dict[CachedPage, list[bytes]] = {}
        for page in self.pages:
            behind = everyone if page.parent is None else found.get(page.parent, [])
            start = page.depth * len(page.tokens)
            following = [text for text in behind if text.startswith(page.tokens, start)]
            if following:
                found[page] = following
        return list(found)

    def match(self, chain: PageChain, num_tokens: int, page_tokens: int) -> PrefixMatch:
        """Return the longest run of cached pages within the first `num_tokens` - 1 tokens.

        The last token is left out because its logits are wanted.
        """
        limit = (num_tokens - 1) // page_tokens
        found: list[CachedPage] = []
        parent: CachedPage | None = None
        for index in range(limit):
            page = self._pages.get(chain.key(index))
            if page is None or not page.holds(chain, parent):
                return PrefixMatch(tuple(found), self._reason(chain.key(index), parent))
            found.append(page)
            parent = page
        return PrefixMatch(tuple(found), "short")

    def insert(
        self, chain: PageChain, parent: CachedPage | None, block_id: int
    ) -> CachedPage | None:
        """Return the page behind `parent` in the chain: the one that is there, or a new one.

        The new one is in use, and its keys and values are in block `block_id`. None where another
        page has the same hash.
        """
        depth = 0 if parent is None else parent.depth + 1
        key = chain.key(depth)
        known = self._pages.get(key)
        if known is not None:
            return known if known.holds(chain, parent) else None
        page = CachedPage(key, chain.namespace, chain.tokens(depth), parent, block_id, depth)
        self._evicted.pop(key, None)
        self._policy.used(page)
        if parent is not None:
            parent.num_children += 1
        self._pages[key] = page
        return page

    def hit(self, page: CachedPage) -> None:
        """Count a hit."""
        page.hits += 1
        self._policy.used(page)

    def hold(self, page: CachedPage) -> None:
        """Note that a sequence took an idle page."""
        if page.num_children == 0:
            self._policy.withdraw(page)
        page.in_use = True
        self.num_idle -= 1

    def drop(self, page: CachedPage) -> None:
        """Note that the last sequence let go of a page, after those behind it."""
        page.in_use = False
        self.num_idle += 1
        if page.num_children == 0:
            self._policy.offer(page)

    def evict(self) -> CachedPage:
        """Forget an idle page, of which there must be one, and return it."""
        page = self._policy.evict()
        del self._pages[page.key]
        self.num_idle -= 1
        self._evicted[page.key] = None
        if len(self._evicted) > self._max_pages:
            self._evicted.popitem(last=False)
        parent = page.parent
        if parent is not None:
            parent.num_children -= 1
            if parent.num_children == 0 and not parent.in_use:
                self._policy.offer(parent)
        return page

    def _reason(self, key: bytes, parent: CachedPage | None) -> MissReason:
        if key in self._evicted:
            return "evicted"
        return "diverged" if parent is not None and parent.num_children else "new"
