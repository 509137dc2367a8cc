"""A beam search on its way through the engine: a sequence per beam, forked as the beams are."""

from __future__ import annotations

import time
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


class BeamRequest:
    """Follows the beams of one search to its completion.

    Each beam is a sequence, computed until its next tokens are known and then set aside until those
    of all are. The next beams are forks of these. `sequences` has that of each beam, in order.

    Args:
        sequence: the prompt, which is the first beam.
        search: chooses the beams.
        tokenizer: turns tokens into text.
    """

    def __init__(self, sequence: Sequence, search: BeamSearch, tokenizer: Tokenizer) -> None:
        self._prompt = sequence
        self._search = search
        self.sequences = [sequence]
        self._tokenizer = tokenizer
        self._created = time.perf_counter()
        self._first_token: float | None = None
        sequence.beams = self

    @property
    def has_news(self) -> bool:
        """Return whether `take` has something to return or to raise."""
        return self._search.done or any(s.error is not None for s in self.sequences)

    @property
    def is_ready(self) -> bool:
        """Return whether the next tokens of every beam are known."""
        return not self._search.done and all(s.is_held for s in self.sequences)

    def candidates(self, logits: F32Array) -> Candidates:
        """Return what the search has to know of float32 [V] logits.

        Raises:
            DistributionError: they are not numbers.
        """
        _, top = _core.log_probs(logits, 0, min(self._search.num_candidates, len(logits)))
        return top

    def advance(self) -> list[tuple[Sequence, Sequence]]:
        """Choose the next beams; return the sequence of each, and that which it is a fork of."""
        parents = self._search.advance([s.candidates or () for s in self.sequences])
        self._first_token = self._first_token or time.perf_counter()
        forks: list[tuple[Sequence, Sequence]] = []
        if not self._search.done:
            for beam, parent in zip(self._search.beams, parents, strict=True):
                origin = self.sequences[parent]
                fork = origin.fork(origin.seed)
                fork.append([beam.token_ids[-1]])
                forks.append((fork, origin))
        self.sequences = [fork for fork, _ in forks]
        return forks

    def take(self) -> list[Piece]:
        """Return the completion in a piece without text, once the search is done.

        Raises:
            DistributionError: a beam's logits were not numbers.
        """
        for sequence in self.sequences:
            if sequence.error is not None:
                raise sequence.error
        return [Piece("", (), completion=self._complete())]

    def _complete(self) -> Completion:
        now = time.perf_counter()
        first = self._first_token or now
        found = self._search.found
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
        stopped = last in self._search.stop_ids
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
