"""A smaller model with the same tokens, asked to guess greedily."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from ryzanstein import _core
from ryzanstein.speculative.proposer import NO_DRAFT, Draft

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DraftModelProposer"]

# What was measured once in good conditions fades by so much per later measurement.
_FADE = 1.02
_GREEDY = (np.ones(1, np.int32), np.zeros(1, np.float32))  # what a head need show: the top logit


class DraftModelProposer:
    """Guesses what a second decoder would say, in a cache of its own.

    Args:
        decoder: the smaller model; its vocabulary is that of the model it guesses for, of which it
            may lack the last tokens: behind one of these it guesses no more.
        vocab_size: its tokens.
        cache: pages for one sequence, of the decoder's shape.
        rope_set: which of the decoder's frequencies rotate that sequence.
    """

    def __init__(
        self, decoder: _core.Decoder, vocab_size: int, cache: _core.PagedCache, rope_set: int = 0
    ) -> None:
        self._decoder = decoder
        self._vocab_size = vocab_size
        self._knows_all = True
        self._cache = cache
        self._rope_sets = np.array([rope_set], np.int32)
        self._capacity = cache.num_blocks * _core.PAGE_TOKENS
        self._blocks = np.arange(cache.num_blocks, dtype=np.int32)[np.newaxis]
        self._tokens: list[int] = []
        self.guess_seconds = 0.0  # not known before the first
        self._computed: list[int] = []  # what the cache holds; its last tokens may be guesses

    def extend(self, token_ids: Sequence[int]) -> None:
        """Take tokens that follow those taken before."""
        self._tokens.extend(token_ids)
        self._knows_all = self._knows_all and all(t < self._vocab_size for t in token_ids)

    def propose(self, max_tokens: int) -> Draft:
        """Return the draft model's next tokens, as many as its cache has room for."""
        room = min(max_tokens, self._capacity - len(self._tokens))
        if room < 1 or not self._tokens or not self._knows_all:
            return NO_DRAFT
        self._forget_wrong_guesses()
        pending = self._tokens[len(self._computed) :]
        guesses: list[int] = []
        for _ in range(room):
            began = time.perf_counter()
            guesses.append(self._next(pending))
            if len(pending) == 1:
                self._learn(time.perf_counter() - began)
            pending = guesses[-1:]
        return Draft(guesses, [1.0] * room, 1)

    def _learn(self, seconds: float) -> None:
        known = self.guess_seconds
        self.guess_seconds = min(seconds, known * _FADE) if known else seconds

    def _forget_wrong_guesses(self) -> None:
        """Keep what of the cache agrees with the sequence, short of its last token."""
        agreed = 0
        for computed, token in zip(self._computed, self._tokens[:-1], strict=False):
            if computed != token:
                break
            agreed += 1
        del self._computed[agreed:]

    def _next(self, pending: Sequence[int]) -> int:
        start, n = len(self._computed), len(pending)
        positions = np.arange(start, start + n, dtype=np.int32)
        logits = self._decoder.step(
            np.array(pending, np.int32),
            positions,
            np.array([0, n], np.int32),
            positions,  # page i holds the i-th run of tokens, so a token's slot is its position
            self._blocks,
            np.array([n - 1], np.int32),
            self._cache,
            screen_top=_GREEDY[0],
            screen_margin=_GREEDY[1],
            rope_sets=self._rope_sets,
        )
        self._computed.extend(pending)
        return int(logits[0].argmax())
