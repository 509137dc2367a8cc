"""A suffix automaton: how the longest repeated end of a sequence went on, weighed by frequency.

The automaton (Blumer et al., 1985) knows every substring of the sequence in at most two states a
token. Drafts grow like those of SuffixDecoding (arXiv:2411.04975): along the most frequent
continuation, with its share as probability.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ryzanstein.config import check_integer
from ryzanstein.speculative.proposer import NO_DRAFT, Draft

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SuffixProposer"]

_ROOT = 0
# Occurrences are counted this many suffixes deep per token: it bounds what a token costs where a
# text repeats itself without end, and leaves out only contexts too short to draft from.
_COUNTED_SUFFIXES = 32
# A continuation rarer than this is not worth its place in a step.
_LEAST_PROBABILITY = 0.1


class SuffixProposer:
    """Continues the longest end of the sequence that occurred in it before.

    Args:
        min_length: shortest end worth continuing.

    Raises:
        ValidationError: min_length below 1.

    Example:
        >>> proposer = SuffixProposer(min_length=2)
        >>> proposer.extend([1, 2, 3, 1, 2, 3, 1, 2])
        >>> proposer.propose(3).token_ids
        [3, 1, 2]
    """

    guess_seconds = 0.0

    def __init__(self, min_length: int = 2) -> None:
        self._min_length = check_integer("min_length", min_length, 1)
        self._last = _ROOT
        self._links = [-1]
        self._lengths = [0]
        self._counts = [0]
        self._edges: list[dict[int, int]] = [{}]

    def extend(self, token_ids: Sequence[int]) -> None:
        """Take tokens that follow those taken before; the cost of each is amortised constant."""
        for token in token_ids:
            self._append(token)

    def propose(self, max_tokens: int) -> Draft:
        """Return the likeliest continuation of the longest repeated end, or none."""
        # The link of the whole sequence is its longest end that occurred elsewhere.
        state = self._links[self._last]
        if state < 0 or self._lengths[state] < self._min_length:
            return NO_DRAFT
        evidence = self._lengths[state]
        token_ids: list[int] = []
        probabilities: list[float] = []
        reach = 1.0
        while len(token_ids) < max_tokens:
            edges, counts = self._edges[state], self._counts
            if not edges:  # the end of the sequence itself: what did its longest end go on with?
                state = self._links[state]
                if self._lengths[state] < self._min_length:
                    break
                continue
            if len(edges) == 1:  # most often, and then it needs no counting
                (token,) = edges
                share = 1.0
            else:
                token = max(edges, key=lambda t: counts[edges[t]])
                share = counts[edges[token]] / max(1, sum(counts[s] for s in edges.values()))
            reach *= share
            if reach < _LEAST_PROBABILITY:
                break
            token_ids.append(token)
            probabilities.append(share)
            state = edges[token]
        return Draft(token_ids, probabilities, evidence)

    def _append(self, token: int) -> None:
        links, edges = self._links, self._edges
        new = self._state(self._lengths[self._last] + 1, {}, 0)
        state = self._last
        while state >= 0 and token not in edges[state]:
            edges[state][token] = new
            state = links[state]
        links[new] = _ROOT if state < 0 else self._split(state, token)
        self._last = new
        self._count(new)

    def _split(self, state: int, token: int) -> int:
        """Return the state of `state`'s longest string and `token`, which may have to be made."""
        links, edges, lengths = self._links, self._edges, self._lengths
        target = edges[state][token]
        if lengths[target] == lengths[state] + 1:
            return target
        clone = self._state(lengths[state] + 1, dict(edges[target]), self._counts[target])
        links[clone] = links[target]
        links[target] = clone
        while state >= 0 and edges[state].get(token) == target:
            edges[state][token] = clone
            state = links[state]
        return clone

    def _state(self, length: int, edges: dict[int, int], count: int) -> int:
        self._lengths.append(length)
        self._links.append(_ROOT)
        self._edges.append(edges)
        self._counts.append(count)
        return len(self._links) - 1

    def _count(self, state: int) -> None:
        for _ in range(_COUNTED_SUFFIXES):
            if state <= _ROOT:
                return
            self._counts[state] += 1
            state = self._links[state]
