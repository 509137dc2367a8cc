"""Oracle of the sampling chain: numpy and float64, sorting everything, one step after the other.

Each filter is written from its paper or first description, named there. Ties go to the lowest id.
Nothing here may import the native module.
"""

from __future__ import annotations

from collections import Counter
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
    """The parameters of `_core.Sampler` without its seed, as far as the oracle goes."""

    order: tuple[str, ...] = (
        "temperature",
        "top_n_sigma",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "xtc",
    )
    temperature: float = 1.0
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_n_sigma: float = 0.0
    top_k: int = 0
    typical_p: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    min_keep: int = 1
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class Distribution:
    """What may be drawn: ids in descending order, probabilities, and how sure the cuts are.

    `margin` is how near, in mass, a cut came to keeping one token more or less.
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


def uniform(seed: int, position: int, purpose: int = 0) -> float:
    """Return the number in [0, 1) that decides the draw (0) or XTC (1) at `position`."""
    counter = [position & _MASK, position >> 32, purpose, 0]
    low, high, *_ = philox4x32(counter, [seed & _MASK, seed >> 32])
    return float((high << 32 | low) >> 11) * 2.0**-53


def penalise(
    logits: NDArray[Any],
    seen: Iterable[int],
    repetition: float,
    counted: Iterable[int] = (),
    frequency: float = 0.0,
    presence: float = 0.0,
) -> F64:
    """Return logits of seen tokens divided if positive, multiplied if not (arXiv:1909.05858).

    From those of counted tokens goes the frequency penalty per occurrence and the presence penalty
    once (the OpenAI API). In float32, as transformers does: a penalised logit is a float32 again,
    and its rounding decides which logits tie.
    """
    result = logits.astype(np.float32)
    factor = np.float32(repetition)
    for token in set(seen):
        value = result[token]
        result[token] = value / factor if value > 0 else value * factor
    for token, count in Counter(counted).items():
        result[token] -= np.float32(count) * np.float32(frequency) + np.float32(presence)
    return result.astype(np.float64)


@dataclass(slots=True)
class State:
    """Candidates in descending order between two filters."""

    ids: I64
    logits: F64
    temperature: float = 1.0
    margin: float = 1.0

    @property
    def probabilities(self) -> F64:
        """Return the softmax over the candidates at the current temperature."""
        with np.errstate(over="ignore"):
            weights = np.exp((self.logits - self.logits[0]) / self.temperature)
        result: F64 = weights / np.sum(weights)
        return result

    def keep(self, kept: Any) -> None:
        """Keep a slice, or those that a mask or indices name."""
        self.ids, self.logits = self.ids[kept], self.logits[kept]

    def entropy(self) -> float:
        """Return that of the candidates' distribution, in nats."""
        p = self.probabilities
        p = p[p > 0]
        return float(-np.sum(p * np.log(p)))

    def count_to(self, probabilities: F64, share: float) -> int:
        """Return how many it takes to reach a share, and remember how near it was."""
        mass = np.cumsum(probabilities)
        self.margin = min(self.margin, float(np.min(np.abs(mass - share))))
        return min(int(np.searchsorted(mass, share, side="left")) + 1, len(mass))

    def near(self, values: F64, border: float) -> None:
        """Remember how near, relatively, a value came to a border."""
        distance = np.abs(values - border) / max(abs(border), 1e-300)
        self.margin = min(self.margin, float(np.min(distance, initial=1.0)))


def _temperature(state: State, chain: Chain, _: float) -> None:
    state.temperature = chain.temperature
    finite = int(np.sum(np.isfinite(state.logits)))
    if chain.dynatemp_range > 0 and finite > 1:
        # EntropyDynamicTemp of llama.cpp (temp_ext): between the bounds, by normalised entropy.
        state.temperature = 1.0
        share = state.entropy() / np.log(finite)
        low = max(0.0, chain.temperature - chain.dynatemp_range)
        high = chain.temperature + chain.dynatemp_range
        state.temperature = low + (high - low) * share**chain.dynatemp_exponent
    elif chain.dynatemp_range > 0:
        state.temperature = 1.0


def _top_n_sigma(state: State, chain: Chain, _: float) -> None:
    """arXiv:2411.07641: logits within n standard deviations of the highest."""
    if chain.top_n_sigma > 0:
        deviation = np.std(state.logits[np.isfinite(state.logits)])
        floor = float(state.logits[0] - chain.top_n_sigma * deviation)
        state.near(state.logits, floor)
        state.keep(state.logits >= floor)


def _top_k(state: State, chain: Chain, _: float) -> None:
    if chain.top_k > 0:
        state.keep(slice(chain.top_k))


def _typical_p(state: State, chain: Chain, _: float) -> None:
    """arXiv:2202.00666: nearest to the entropy in surprise, up to a mass."""
    if chain.typical_p < 1:
        p = state.probabilities
        with np.errstate(divide="ignore"):
            distance = np.abs(-np.log(p) - state.entropy())
        ranked = np.argsort(distance, kind="stable")
        count = max(state.count_to(p[ranked], chain.typical_p), min(chain.min_keep, len(p)))
        reach = distance[ranked[count - 1]]
        others = distance[ranked[count:]]
        others = np.abs(others[np.isfinite(others)] - reach)
        state.margin = min(state.margin, float(np.min(others, initial=1.0)))
        state.keep(distance <= reach)


def _top_p(state: State, chain: Chain, _: float) -> None:
    """arXiv:1904.09751: the smallest set that reaches p."""
    if chain.top_p < 1:
        state.keep(slice(max(state.count_to(state.probabilities, chain.top_p), chain.min_keep)))


def _min_p(state: State, chain: Chain, _: float) -> None:
    """arXiv:2407.01082: at least a share of the most likely one's probability."""
    if chain.min_p > 0:
        p = state.probabilities
        state.keep(slice(max(int(np.sum(p >= chain.min_p * p[0])), chain.min_keep)))


def _xtc(state: State, chain: Chain, chance: float) -> None:
    """text-generation-webui#6335: without the likely ones, but for the least likely of them."""
    if chance < chain.xtc_probability:
        p = state.probabilities
        state.near(p, chain.xtc_threshold)
        likely = int(np.sum(p >= chain.xtc_threshold))
        if likely >= 2 and len(p) - likely + 1 >= chain.min_keep:
            state.keep(slice(likely - 1, None))


FILTERS = {
    "temperature": _temperature,
    "top_n_sigma": _top_n_sigma,
    "top_k": _top_k,
    "typical_p": _typical_p,
    "top_p": _top_p,
    "min_p": _min_p,
    "xtc": _xtc,
}


def in_order(logits: NDArray[Any]) -> State:
    """Return all tokens as candidates."""
    wide = np.asarray(logits, np.float64)
    ids = np.lexsort((np.arange(len(wide)), -wide))
    return State(ids, wide[ids])


def distribution(
    logits: NDArray[Any], history: Iterable[int], chain: Chain, chance: float = 1.0
) -> Distribution:
    """Return the exact distribution that a draw follows; temperature must not be 0.

    `chance` is the number in [0, 1) that decides whether XTC acts.
    """
    state = in_order(penalise(logits, history, chain.repetition_penalty))
    for name in chain.order:
        FILTERS[name](state, chain, chance)
    return Distribution(state.ids, state.probabilities, state.margin)


def mirostat(state: State, mu: float) -> State:
    """Cut as Mirostat v2 does (arXiv:2007.14966, Algorithm 2): surprise at most mu bits."""
    p = state.probabilities
    with np.errstate(divide="ignore"):
        surprise = -np.log2(p)
    state.near(surprise, mu)
    state.keep(slice(max(int(np.sum(surprise <= mu)), 1)))
    return state


def dry_penalties(
    text: list[int], multiplier: float, base: float, allowed: int, breakers: set[int]
) -> dict[int, float]:
    """Return what DRY takes off (text-generation-webui#5677), by trying every earlier place."""
    longest: dict[int, int] = {}
    for end in range(1, len(text)):  # text[:end] ended somewhere, text[end] followed
        length = 0
        while length < end and text[end - 1 - length] == text[len(text) - 1 - length]:
            if text[len(text) - 1 - length] in breakers:
                break
            length += 1
        if length >= allowed and text[end] not in breakers:
            longest[text[end]] = max(longest.get(text[end], 0), length)
    return {token: multiplier * base ** (length - allowed) for token, length in longest.items()}


def log_softmax(logits: NDArray[Any]) -> F64:
    """Return log softmax over the last axis."""
    wide = logits.astype(np.float64)
    shifted = wide - np.max(wide, axis=-1, keepdims=True)
    result: F64 = shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
    return result
