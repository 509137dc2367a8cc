"""How many guesses a step should check: what they are expected to save against what they cost.

A step of n tokens takes T(n). With guesses that are right with probabilities p1, p2, ..., a step
that checks k of them gets done n + p1 + p1 p2 + ... tokens, so the best k maximises that number
over T(n + k): where others fill the step already, guesses have to pay for delaying them. What a
source claims of its guesses is corrected by how its earlier guesses of like evidence fared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from ryzanstein.speculative.proposer import Draft

__all__ = ["DraftLength", "StepSeconds"]

# Seconds a step of so many tokens takes.
StepSeconds: TypeAlias = Callable[[int], float]

# Before anything is known, a guess is right so often, by the binary logarithm of its evidence, said
# with the weight of two tries: what continues a long match is tried even where steps grow fast.
_PRIOR_RATES, _PRIOR_WEIGHT = (0.6, 0.6, 0.75, 0.85, 0.9), 2.0
_TRIED_MEMORY = 0.95  # of what is known per guess tried: the last twenty or so count
_UNTRIED_MEMORY = 0.999  # per draft left alone, so that a source is tried again now and then
_MOST_SURE = 0.98  # no guess is certain
# A step of more tokens has to promise this much: timings are not exact, and guessing takes time.
_LEAST_GAIN = 1.1


@dataclass(slots=True)
class _Record:
    """How often guesses were right, as weights that fade."""

    prior_rate: float
    right: float = 0.0
    tried: float = 0.0

    def rate(self) -> float:
        return (self.right + self.prior_rate * _PRIOR_WEIGHT) / (self.tried + _PRIOR_WEIGHT)

    def fade(self, memory: float) -> None:
        self.right *= memory
        self.tried *= memory


class DraftLength:
    """Chooses draft lengths for one sequence and learns from what became of them.

    Args:
        step_seconds: seconds a step of so many tokens takes.

    Example:
        >>> choice = DraftLength(lambda n: 1.0 + 0.1 * n)
        >>> choice.choose(Draft([1, 2], [1.0, 1.0], evidence=4), step_tokens=1)
        2
    """

    def __init__(self, step_seconds: StepSeconds) -> None:
        self.step_seconds = step_seconds
        self._records: dict[int, _Record] = {}

    def choose(self, draft: Draft, step_tokens: int, guess_seconds: float = 0.0) -> int:
        """Return how many of a draft's tokens to check in a step of `step_tokens` others.

        Where the draft is still to be made, each of its tokens takes `guess_seconds`.
        """
        if not draft.token_ids:
            return 0
        base_seconds = self.step_seconds(step_tokens)
        if base_seconds == 0.0:  # no step was measured yet
            return 0
        record = self._record(draft.evidence)
        rate = record.rate()
        best, best_rate = 0, _LEAST_GAIN * step_tokens / base_seconds
        reach, expected = 1.0, float(step_tokens)
        for n, claimed in enumerate(draft.probabilities, 1):
            reach *= min(_MOST_SURE, rate * claimed)
            expected += reach
            seconds = self.step_seconds(step_tokens + n) + n * guess_seconds
            if expected > best_rate * seconds:
                best, best_rate = n, expected / seconds
        if best == 0:
            record.fade(_UNTRIED_MEMORY)
        return best

    def learn(self, draft: Draft, checked: int, accepted: int) -> None:
        """Take note that of the first `checked` tokens of a draft so many were right."""
        record = self._record(draft.evidence)
        for index in range(min(checked, accepted + 1)):
            record.fade(_TRIED_MEMORY)
            record.tried += draft.probabilities[index]
            record.right += index < accepted

    def _record(self, evidence: int) -> _Record:
        # Evidence counts by its order of magnitude: 1, 2-3, 4-7, 8-15, ...
        order = int(math.log2(evidence)) if evidence else 0
        if order not in self._records:
            self._records[order] = _Record(_PRIOR_RATES[min(order, len(_PRIOR_RATES) - 1)])
        return self._records[order]
