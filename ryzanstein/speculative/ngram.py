"""Prompt lookup: what followed the last few tokens when they last occurred.

The method of https://github.com/apoorvumang/prompt-lookup-decoding with an index instead of a scan,
so that a token costs the same however long the sequence is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ryzanstein.config import check_integer
from ryzanstein.speculative.proposer import NO_DRAFT, Draft

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NgramProposer"]


class NgramProposer:
    """Continues the latest earlier occurrence of the longest known n-gram that ends the sequence.

    Args:
        min_length: shortest n-gram worth continuing.
        max_length: longest n-gram looked up.

    Raises:
        ValidationError: lengths outside 1 <= min_length <= max_length.

    Example:
        >>> proposer = NgramProposer(min_length=2, max_length=3)
        >>> proposer.extend([5, 6, 7, 8, 5, 6])
        >>> proposer.propose(2).token_ids
        [7, 8]
    """

    guess_seconds = 0.0

    def __init__(self, min_length: int = 2, max_length: int = 4) -> None:
        check_integer("min_length", min_length, 1)
        check_integer("max_length", max_length, min_length)
        self._tokens: list[int] = []
        # For each length, from an n-gram to where its latest occurrence with a follower ends.
        self._ends: dict[int, dict[tuple[int, ...], int]] = {
            length: {} for length in range(max_length, min_length - 1, -1)
        }

    def extend(self, token_ids: Sequence[int]) -> None:
        """Take tokens that follow those taken before."""
        tokens = self._tokens
        for token in token_ids:
            end = len(tokens)
            for length, ends in self._ends.items():
                if end >= length:
                    ends[tuple(tokens[end - length : end])] = end
            tokens.append(token)

    def propose(self, max_tokens: int) -> Draft:
        """Return the tokens behind the longest n-gram found, or none."""
        tokens = self._tokens
        for length, ends in self._ends.items():
            end = ends.get(tuple(tokens[-length:])) if len(tokens) >= length else None
            if end is not None:
                guess = tokens[end : end + max_tokens]
                return Draft(guess, [1.0] * len(guess), length)
        return NO_DRAFT
