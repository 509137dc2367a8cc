"""Drafts for one sequence: a source of guesses, and how many of them to check."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeAlias

from ryzanstein.speculative.ngram import NgramProposer
from ryzanstein.speculative.proposer import NO_DRAFT, Draft
from ryzanstein.speculative.suffix import SuffixProposer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ryzanstein._core import I32Array
    from ryzanstein.speculative.draft_length import DraftLength
    from ryzanstein.speculative.proposer import Proposer

__all__ = ["PROPOSERS", "Drafter", "MakeProposer"]

# From the most tokens that a sequence may have to its source of guesses.
MakeProposer: TypeAlias = "Callable[[int], Proposer]"

# Those that need nothing but the sequence, by name. "auto" is the one that fares best over all.
PROPOSERS: dict[str, Callable[[], Proposer]] = {
    "ngram": NgramProposer,
    "suffix": SuffixProposer,
    "auto": SuffixProposer,
}

# Making guesses takes time too: no more are asked for than these, and twice those last checked.
_LEAST_ASKED, _MOST_ASKED = 4, 24
# After each draft that is not worth checking, twice as many steps go by without one, up to this.
_LONGEST_PAUSE = 8


class Drafter:
    """Guesses at one sequence's next tokens, as many as are worth checking.

    `num_drafted` and `num_accepted` count the guesses that steps checked and those that were right.
    `saved_seconds` is what the steps would have taken that right guesses spared, and `cost_seconds`
    what making guesses took and checking them added to steps: both by the curve of step times, but
    for the making, which is measured.

    Args:
        proposer: guesses.
        length: chooses how many of them to check.
        vocab_size: a guess that is no token below it ends the draft.

    Example:
        >>> drafter = Drafter(SuffixProposer(), DraftLength(step_times), vocab_size=4096)
        >>> draft = drafter.draft(tokens, most=8, step_tokens=1)
        >>> drafter.learn(accepted=2)
    """

    def __init__(self, proposer: Proposer, length: DraftLength, vocab_size: int) -> None:
        self._proposer: Proposer | None = proposer
        self._length = length
        self._vocab_size = vocab_size
        self._num_known = 0
        self._draft: Draft = NO_DRAFT
        self._num_checked = 0
        self._num_asked = _LEAST_ASKED
        self._pause = self._steps_to_pause = 0
        self._step_tokens = 0
        self.num_drafted = 0
        self.num_accepted = 0
        self.saved_seconds = 0.0
        self.cost_seconds = 0.0

    def draft(self, token_ids: I32Array, most: int, step_tokens: int) -> Sequence[int]:
        """Return the tokens to check next.

        Args:
            token_ids: int32 [n], the whole sequence.
            most: tokens to return at most.
            step_tokens: those that the step computes anyway.
        """
        began = time.perf_counter()
        self._step_tokens = step_tokens
        tokens = self._next(token_ids, most, step_tokens)
        self.cost_seconds += time.perf_counter() - began
        return tokens

    def _next(self, token_ids: I32Array, most: int, step_tokens: int) -> Sequence[int]:
        proposer = self._proposer
        if proposer is None or most < 1:
            return ()
        if self._steps_to_pause:
            self._steps_to_pause -= 1
            return ()
        # One that fails or is interrupted is in no known state: from then on there is none.
        self._proposer = None
        proposer.extend(token_ids[self._num_known :].tolist())
        self._num_known = len(token_ids)
        self._draft = self._propose(proposer, min(most, self._num_asked), step_tokens)
        self._proposer = proposer
        if not self._draft.token_ids:
            return ()
        self._num_checked = self._length.choose(self._draft, step_tokens)
        self._pause = 0 if self._num_checked else min(2 * self._pause + 1, _LONGEST_PAUSE)
        self._steps_to_pause = self._pause
        self._num_asked = min(max(_LEAST_ASKED, 2 * self._num_checked), _MOST_ASKED)
        return self._draft.token_ids[: self._num_checked]

    def learn(self, accepted: int) -> None:
        """Take note of how many of the last draft's tokens were right."""
        self._length.learn(self._draft, self._num_checked, accepted)
        self.num_drafted += self._num_checked
        self.num_accepted += accepted
        step_seconds = self._length.step_seconds
        plain = step_seconds(self._step_tokens)
        self.saved_seconds += accepted * plain
        self.cost_seconds += max(0.0, step_seconds(self._step_tokens + self._num_checked) - plain)

    def _propose(self, proposer: Proposer, most: int, step_tokens: int) -> Draft:
        if proposer.guess_seconds:
            # Guesses that take time are made only where they are expected to gain it back.
            sure = Draft(range(most), [1.0] * most, evidence=1)
            most = self._length.choose(sure, step_tokens, proposer.guess_seconds)
        return self._sound(proposer.propose(most)) if most else NO_DRAFT

    def _sound(self, draft: Draft) -> Draft:
        """Return the guesses before the first that no step could compute."""
        tokens = draft.token_ids
        if all(0 <= token < self._vocab_size for token in tokens):
            return draft
        n = next(i for i, token in enumerate(tokens) if not 0 <= token < self._vocab_size)
        return Draft(tokens[:n], draft.probabilities[:n], draft.evidence)
