"""Beam search: which beginnings to follow, and which texts they found.

The rules are those of transformers (`generate` with `num_beams`). Each round, of all ways to
lengthen a beam by a token the likeliest are looked at, enough that `width` of them do not end the
text. Among the first `width` those that do are found: they score their log-probability over their
length to the power of the length penalty, and the best `width` are kept. The first `width` others
are the beams of the next round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection
    from collections.abc import Sequence as ABCSequence

__all__ = ["Beam", "BeamSearch", "Candidates", "EarlyStopping"]

EarlyStopping: TypeAlias = 'bool | Literal["never"]'
# The likeliest next tokens with their log-probabilities, descending.
Candidates: TypeAlias = "ABCSequence[tuple[int, float]]"


@dataclass(frozen=True, slots=True)
class Beam:
    """A beginning, or a text.

    Args:
        token_ids: those generated.
        logprob: the sum of their log-probabilities.
    """

    token_ids: tuple[int, ...] = ()
    logprob: float = 0.0


class BeamSearch:
    """The state of one search.

    `beams` are followed, the likeliest first; `found` holds (score, text), the best first. When
    `done`, no text to come would be among them.

    Args:
        width: beams to follow, and texts to find.
        max_tokens: of a text.
        length_penalty: above 0, longer texts score higher; below, lower.
        early_stopping: when to stop, once `width` texts are found. True: at once. False: when the
            best beam, if it ended now, would not score higher than the worst of them. "never": when
            it would not even at its longest, with a positive length penalty.
        stop_ids: tokens that end a text.

    Example:
        >>> search = BeamSearch(2, max_tokens=8, stop_ids={0})
        >>> search.advance([[(5, -0.1), (3, -2.4), (0, -5.0)]])
        [0, 0]
        >>> search.beams[1].token_ids
        (3,)
    """

    def __init__(
        self,
        width: int,
        max_tokens: int,
        length_penalty: float = 1.0,
        early_stopping: EarlyStopping = False,
        stop_ids: Collection[int] = (),
    ) -> None:
        self.width = width
        self.max_tokens = max_tokens
        self._length_penalty = length_penalty
        self._early_stopping = early_stopping
        self.stop_ids = frozenset(stop_ids)
        self.beams = [Beam()]
        self.found: list[tuple[float, Beam]] = []
        self.done = False

    @property
    def num_candidates(self) -> int:
        """Return how many of a beam's next tokens `advance` can come to look at."""
        return max(2, 1 + len(self.stop_ids)) * self.width

    def advance(self, candidates: ABCSequence[Candidates]) -> list[int]:
        """Take the next tokens of each beam; return which beam each of the next ones lengthens."""
        ways = [
            (beam.logprob + logprob, index, token)
            for index, beam in enumerate(self.beams)
            for token, logprob in candidates[index]
        ]
        ways.sort(key=lambda way: -way[0])
        parents: list[int] = []
        beams: list[Beam] = []
        found = list(self.found)
        for rank, (logprob, index, token) in enumerate(ways[: self.num_candidates]):
            beam = Beam((*self.beams[index].token_ids, token), logprob)
            if token in self.stop_ids or len(beam.token_ids) == self.max_tokens:
                if rank < self.width:
                    found.append((self._score(logprob, len(beam.token_ids)), beam))
            elif len(beams) < self.width:
                beams.append(beam)
                parents.append(index)
        found.sort(key=lambda scored: -scored[0])
        self.found = found[: self.width]
        self.beams = beams
        self.done = not self._can_improve()
        return parents

    def _score(self, logprob: float, length: int) -> float:
        scale: float = float(length) ** self._length_penalty
        return logprob / scale

    def _can_improve(self) -> bool:
        if not self.beams:
            return False
        if len(self.found) < self.width:
            return True
        if self._early_stopping is True:
            return False
        best = self.beams[0]
        at_longest = self._early_stopping == "never" and self._length_penalty > 0.0
        length = self.max_tokens if at_longest else len(best.token_ids)
        return self._score(best.logprob, length) > self.found[-1][0]
