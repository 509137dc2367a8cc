"""A beam search on its way through the engine: a sequence per beam, forked as the beams are."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ryzanstein import _core
from ryzanstein.engine.request import make_completion, make_timings
from ryzanstein.engine.result import Choice, Piece
from ryzanstein.tokenizer import Detokenizer

if TYPE_CHECKING:
    from ryzanstein._core import F32Array
    from ryzanstein.engine.beam_search import Beam, BeamSearch, Candidates
    from ryzanstein.engine.result import Completion
    from ryzanstein.engine.sequence import Sequence
    from ryzanstein.tokenizer import Tokenizer

__all__ = ["BeamRequest"]


@dataclass(frozen=True, slots=True)
class _Round:
    search: BeamSearch
    forks: list[tuple[Sequence, Sequence]]


class BeamRequest:
    """Follows the beams of one search to its completion.

    Each beam is a sequence, computed until its next tokens are known and then set aside until those
    of all are. The next beams are forks of these.

    Args:
        sequence: the prompt, which is the first beam.
        search: chooses the beams.
        tokenizer: turns tokens into text.
    """

    def __init__(self, sequence: Sequence, search: BeamSearch, tokenizer: Tokenizer) -> None:
        self._prompt = sequence
        # One assignment takes a round to the next, so an interrupt leaves no half of one.
        self._round = _Round(search, [(sequence, sequence)])
        self._tokenizer = tokenizer
        self._created = time.perf_counter()
        self._first_token: float | None = None
        sequence.beams = self

    @property
    def forks(self) -> list[tuple[Sequence, Sequence]]:
        """Return the sequence of each beam, and that of the round before which it is a fork of."""
        return self._round.forks

    @property
    def sequences(self) -> list[Sequence]:
        """Return all sequences that the engine may hold for this request."""
        return [sequence for pair in self.forks for sequence in pair]

    @property
    def has_news(self) -> bool:
        """Return whether `take` has something to return or to raise."""
        return self._round.search.done or any(s.error is not None for s, _ in self.forks)

    @property
    def is_ready(self) -> bool:
        """Return whether the next tokens of every beam are known."""
        return not self._round.search.done and all(s.is_held for s, _ in self.forks)

    def candidates(self, logits: F32Array) -> Candidates:
        """Return what the search has to know of float32 [V] logits.

        Raises:
            DistributionError: they are not numbers.
        """
        _, top = _core.log_probs(logits, 0, min(self._round.search.num_candidates, len(logits)))
        return top

    def advance(self) -> None:
        """Choose the next beams, and fork those that they lengthen."""
        search = copy.copy(self._round.search)
        parents = search.advance([sequence.candidates or () for sequence, _ in self.forks])
        self._first_token = self._first_token or time.perf_counter()
        forks: list[tuple[Sequence, Sequence]] = []
        for beam, parent in zip(search.beams, parents, strict=True):
            origin, _ = self.forks[parent]
            fork = origin.fork(origin.seed)
            fork.append(beam.token_ids[-1])
            forks.append((fork, origin))
        self._round = _Round(search, [] if search.done else forks)

    def take(self) -> list[Piece]:
        """Return the completion in a piece without text, once the search is done.

        Raises:
            DistributionError: a beam's logits were not numbers.
        """
        for sequence, _ in self.forks:
            if sequence.error is not None:
                raise sequence.error
        return [Piece("", (), completion=self._complete())]

    def _complete(self) -> Completion:
        now = time.perf_counter()
        first = self._first_token or now
        found = self._round.search.found
        num_rounds = max(len(beam.token_ids) for _, beam in found)
        prompt = self._prompt
        return make_completion(
            [self._choice(index, beam) for index, (_, beam) in enumerate(found)],
            prompt,
            sum(len(beam.token_ids) for _, beam in found),
            make_timings(prompt, self._created, first, now, num_rounds - 1),
        )

    def _choice(self, index: int, beam: Beam) -> Choice:
        prompt = self._prompt
        detokenizer = Detokenizer(
            self._tokenizer, prompt.buffer[: prompt.num_prompt_tokens].tolist()
        )
        *before, last = beam.token_ids
        stopped = last in self._round.search.stop_ids
        shown = before if stopped else beam.token_ids
        return Choice(
            index=index,
            text="".join(map(detokenizer.push, shown)) + detokenizer.flush(),
            token_ids=beam.token_ids,
            logprobs=None,
            cumulative_logprob=beam.logprob,
            finish_reason="stop" if stopped else "length",
            seed=prompt.seed,
        )
