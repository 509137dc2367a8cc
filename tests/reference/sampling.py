"""Oracle of the sampling chain: numpy and float64, sorting everything, one step after the other.

The chain is that of transformers (`generation/logits_process.py`): repetition penalty, temperature,
top-k, top-p, min-p. Ties go to the lowest id. Nothing here may import the native module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from reference.ops import F64, I64

_MASK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """The parameters of `_core.Sampler` without its seed."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class Distribution:
    """What may be drawn: ids in descending order, probabilities, and how sure the cut is.

    `margin` is how near, in mass, the top-p cut came to keeping one token more or less.
    """

    ids: I64
    probabilities: F64
    margin: float

    def draw(self, uniform: float) -> tuple[int, float]:
        """Return the token and how near, in mass, its neighbours came to being drawn."""
        edges = np.cumsum(self.probabilities)
        index = min(int(np.searchsorted(edges, uniform, side="right")), len(edges) - 1)
        return int(self.ids[index]), float(np.min(np.abs(edges[:-1] - uniform), initial=1.0))


def philox4x32(counter: list[int], key: list[int]) -> list[int]:
    """Return ten rounds of Philox4x32 (Salmon et al., SC 2011)."""
    for _ in range(10):
        first = 0xD2511F53 * counter[0]
        second = 0xCD9E8D57 * counter[2]
        counter = [
            (second >> 32) ^ counter[1] ^ key[0],
            second & _MASK,
            (first >> 32) ^ counter[3] ^ key[1],
            first & _MASK,
        ]
        key = [(key[0] + 0x9E3779B9) & _MASK, (key[1] + 0xBB67AE85) & _MASK]
    return counter


def uniform(seed: int, position: int) -> float:
    """Return the number in [0, 1) that decides the draw at `position`."""
    counter = [position & _MASK, position >> 32, 0, 0]
    low, high, *_ = philox4x32(counter, [seed & _MASK, seed >> 32])
    return float((high << 32 | low) >> 11) * 2.0**-53


def penalise(logits: NDArray[Any], history: Iterable[int], penalty: float) -> F64:
    """Return logits of seen tokens divided if positive, multiplied if not (arXiv:1909.05858).

    In float32, as transformers does: a penalised logit is a float32 again, and its rounding decides
    which logits tie.
    """
    result = logits.astype(np.float32)
    factor = np.float32(penalty)
    for token in set(history):
        value = result[token]
        result[token] = value / factor if value > 0 else value * factor
    return result.astype(np.float64)


def distribution(logits: NDArray[Any], history: Iterable[int], chain: Chain) -> Distribution:
    """Return the exact distribution that a draw follows; temperature must not be 0."""
    scaled = penalise(logits, history, chain.repetition_penalty)
    ids = np.lexsort((np.arange(len(scaled)), -scaled))
    if chain.top_k > 0:
        ids = ids[: chain.top_k]
    with np.errstate(over="ignore"):
        weights = np.exp((scaled[ids] - scaled[ids[0]]) / chain.temperature)
    mass = np.cumsum(weights) / np.sum(weights)
    keep, margin = len(ids), 1.0
    if chain.top_p < 1.0:
        keep = int(np.searchsorted(mass, chain.top_p, side="left")) + 1
        margin = float(np.min(np.abs(mass - chain.top_p)))
    kept = weights[:keep]
    kept = kept[kept >= chain.min_p * kept[0]]
    return Distribution(ids[: len(kept)], kept / np.sum(kept), margin)


def log_softmax(logits: NDArray[Any]) -> F64:
    """Return log softmax over the last axis."""
    wide = logits.astype(np.float64)
    shifted = wide - np.max(wide, axis=-1, keepdims=True)
    result: F64 = shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
    return result
