"""One draw from 128256 logits, for the chains people use and distributions from narrow to flat.

    python -m pytest bench/bench_sampling.py

`flat` has tens of thousands of likely tokens, which no trained model has: it is the worst case.
Each case asserts that the draws are those of a sampler made anew.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ryzanstein._core import Sampler, log_probs

if TYPE_CHECKING:
    from ryzanstein._core import F32Array

_VOCAB = 128256
_CHAINS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top-k": {"temperature": 0.8, "top_k": 40, "top_p": 0.95},
    "top-p": {"temperature": 0.8, "top_p": 0.9},
    "min-p": {"min_p": 0.05},
    "top-p min-p": {"top_p": 0.95, "min_p": 0.05},
    "everything": {"top_k": 50, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1},
}
_ROWS = ("narrow", "zipf", "flat")


def _logits(kind: str) -> F32Array:
    rng = np.random.default_rng(0)
    if kind == "zipf":
        return rng.permutation(-1.2 * np.log(np.arange(1, _VOCAB + 1))).astype(np.float32)
    row = rng.normal(size=_VOCAB).astype(np.float32)
    if kind == "narrow":
        row[rng.integers(0, _VOCAB, 5)] += 15
    return row


@pytest.mark.parametrize("kind", _ROWS)
@pytest.mark.parametrize("chain", _CHAINS)
def test_sample(benchmark: Any, chain: str, kind: str) -> None:
    options = _CHAINS[chain]
    logits = _logits(kind)
    history = np.random.default_rng(1).integers(0, _VOCAB, 2000).astype(np.int32)
    sampler = Sampler(seed=1, **options)  # type: ignore[arg-type]
    positions = count()
    drawn: list[int] = []

    def draw() -> None:
        drawn.append(sampler.sample(logits, history, next(positions)))

    benchmark.pedantic(draw, rounds=300, warmup_rounds=20)
    again = Sampler(seed=1, **options)  # type: ignore[arg-type]
    assert drawn == [again.sample(logits, history, position) for position in range(len(drawn))]
    if benchmark.enabled:
        times = benchmark.stats.stats.data
        benchmark.extra_info["p99_us"] = float(np.percentile(times, 99)) * 1e6


@pytest.mark.parametrize("kind", _ROWS)
def test_log_probs(benchmark: Any, kind: str) -> None:
    logits = _logits(kind)
    own, top = benchmark.pedantic(log_probs, args=(logits, 7, 5), rounds=100, warmup_rounds=5)
    wide = logits.astype(np.float64)
    normaliser = np.log(np.sum(np.exp(wide)))
    assert own == pytest.approx(wide[7] - normaliser, abs=1e-6)
    assert top[0] == (int(np.argmax(logits)), pytest.approx(wide.max() - normaliser, abs=1e-6))
