"""What every source of guesses has in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NO_DRAFT", "Draft", "Proposer"]


@dataclass(frozen=True, slots=True)
class Draft:
    """Guessed tokens, in order.

    Args:
        token_ids: the guesses.
        probabilities: for each, how likely the source takes it to be if those before it were right.
        evidence: how much supports the draft, such as the length of the match it continues; drafts
            of like evidence are expected to fare alike.
    """

    token_ids: Sequence[int]
    probabilities: Sequence[float]
    evidence: int


NO_DRAFT = Draft((), (), 0)


class Proposer(Protocol):
    """Guesses how one sequence goes on.

    `guess_seconds` is what a guess takes, 0 where that is next to nothing.
    """

    @property
    def guess_seconds(self) -> float: ...  # noqa: D102

    def extend(self, token_ids: Sequence[int]) -> None:
        """Take tokens that follow those taken before; they are there to stay."""
        ...

    def propose(self, max_tokens: int) -> Draft:
        """Return at most so many tokens that may follow those taken so far."""
        ...
