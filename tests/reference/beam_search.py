"""Beam search over a function from a text to the log-probabilities of its next token.

Written from transformers' rules (generation/utils.py, `_beam_search`), on whole arrays as it is
there, with every text computed from its beginning.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from numpy.typing import NDArray

__all__ = ["beam_search", "likeliest_texts"]

Text = tuple[int, ...]
_NONE = -1e9


def beam_search(
    log_probs: Callable[[Text], NDArray[np.float64]],
    width: int,
    max_tokens: int,
    *,
    length_penalty: float = 1.0,
    early_stopping: Any = False,
    stop_ids: Collection[int] = (),
) -> list[tuple[float, Text]]:
    """Return (score, text), the best first, of a text's log-probabilities float64 [V]."""
    running: list[Text] = [()] * width
    running_scores = np.full(width, _NONE)
    running_scores[0] = 0.0
    found: list[Text] = [()] * width
    found_scores = np.full(width, _NONE)
    for length in range(1, max_tokens + 1):
        sums = np.stack([log_probs(text) for text in running]) + running_scores[:, None]
        count = max(2, 1 + len(stop_ids)) * width
        best = np.argsort(-sums.reshape(-1), kind="stable")[:count]
        texts = [(*running[i // sums.shape[1]], int(i % sums.shape[1])) for i in best]
        scores = sums.reshape(-1)[best]
        hits = np.array([t[-1] in stop_ids or length == max_tokens for t in texts])
        order = np.argsort(-(scores + hits * _NONE), kind="stable")[:width]
        full = bool((found_scores > _NONE / 2).all())
        ended = hits & (np.arange(len(best)) < width) & ~(full and early_stopping is True)
        both = np.concatenate(
            (found_scores, np.where(ended, scores / length**length_penalty, _NONE))
        )
        kept = np.argsort(-both, kind="stable")[:width]
        found, found_scores = [(found + texts)[i] for i in kept], both[kept]
        running, running_scores = [texts[i] for i in order], (scores + hits * _NONE)[order]
        at = max_tokens if early_stopping == "never" and length_penalty > 0 else length
        full = bool((found_scores > _NONE / 2).all())
        if full and (
            early_stopping is True or running_scores[0] / at**length_penalty <= found_scores[-1]
        ):
            break
    return [(float(s), t) for s, t in zip(found_scores, found, strict=True) if s > _NONE / 2]


def likeliest_texts(
    log_probs: Callable[[Text], NDArray[np.float64]],
    vocab_size: int,
    max_tokens: int,
    *,
    length_penalty: float,
    stop_ids: Collection[int],
) -> list[tuple[float, Text]]:
    """Return (score, text) of every text that can be, the best first."""
    texts = []
    for length in range(1, max_tokens + 1):
        for text in itertools.product(range(vocab_size), repeat=length):
            ends = [token in stop_ids for token in text]
            if any(ends[:-1]) or not (ends[-1] or length == max_tokens):
                continue
            total = sum(log_probs(text[:i])[token] for i, token in enumerate(text))
            texts.append((float(total / length**length_penalty), text))
    return sorted(texts, reverse=True)
