"""One draw from 128256 logits, for the chains people use and distributions from narrow to flat.

The text so far has 8192 tokens.

    python -m pytest bench/bench_sampling.py

`flat` has tens of thousands of likely tokens, which no trained model has: it is the worst case.
Each case asserts that the draws are those of a sampler made anew, and, where times are taken, that
99 of 100 draws take less than 0.5 ms; the 99th percentile is in the report of --benchmark-json, of
which `bench.sampling_report` makes a table. The same holds for the log-probabilities of a token and
the 20 highest, and for what a sequence does around a draw. Times are the thread's own: a draw has
one thread, and a process that takes its core meanwhile is not its cost.
"""

from __future__ import annotations

from itertools import count
from time import thread_time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ryzanstein import SamplingParams
from ryzanstein._core import log_probs, resolve_isa
from ryzanstein.engine.sequence import Sequence
from ryzanstein.sampling.sampler import make_sampler
from ryzanstein.sampling.words import Words

if TYPE_CHECKING:
    from ryzanstein._core import F32Array

_VOCAB = 128256
_TARGET_US = 500.0
_LLAMA_CPP: dict[str, Any] = {
    "order": "llama.cpp",
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
}
_PENALTIES = {"repetition_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": 0.1}
_CHAINS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top-k": {"temperature": 0.8, "top_k": 40, "top_p": 0.95},
    "top-k 5000": {"temperature": 0.8, "top_k": 5000},
    "top-p": {"temperature": 0.8, "top_p": 0.9},
    "min-p": {"min_p": 0.05},
    "top-p min-p": {"top_p": 0.95, "min_p": 0.05},
    "everything of hf": {"top_k": 50, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1},
    "llama.cpp": _LLAMA_CPP,
    "llama.cpp without top-k": _LLAMA_CPP | {"top_k": 0},
    "everything of llama.cpp": _LLAMA_CPP
    | _PENALTIES
    | {"dry_multiplier": 0.8, "top_n_sigma": 3.0, "typical_p": 0.98, "xtc_probability": 0.5},
    "penalties": {"temperature": 0.0} | _PENALTIES,
    "dry": {"temperature": 0.0, "dry_multiplier": 0.8},
    "biases and bans": {
        "temperature": 0.0,
        "logit_bias": dict.fromkeys(range(10_000), 1.0),
        "min_tokens": 10_000,
    },
    "typical": {"typical_p": 0.9},
    "top-n-sigma": {"top_n_sigma": 1.0},
    "top-n-sigma 3": {"top_n_sigma": 3.0},
    "xtc": {"min_p": 0.02, "xtc_probability": 0.5},
    "dynamic temperature": {"dynatemp_range": 0.5},
    "dynamic temperature, top-p": {"dynatemp_range": 0.5, "top_p": 0.9},
    "mirostat": {"mirostat": 2},
}
_ROWS = ("narrow", "zipf", "flat")

pytestmark = pytest.mark.benchmark(timer=thread_time)


def _logits(kind: str) -> F32Array:
    rng = np.random.default_rng(0)
    if kind == "zipf":
        return rng.permutation(-1.2 * np.log(np.arange(1, _VOCAB + 1))).astype(np.float32)
    row = rng.normal(size=_VOCAB).astype(np.float32)
    if kind == "narrow":
        row[rng.integers(0, _VOCAB, 5)] += 15
    return row


def _check_p99(benchmark: Any, **extra_info: str) -> None:
    if benchmark.enabled:
        benchmark.extra_info.update(extra_info, isa=resolve_isa())
        p99 = float(np.percentile(benchmark.stats.stats.data, 99)) * 1e6
        benchmark.extra_info["p99_us"] = p99
        assert p99 < _TARGET_US


@pytest.mark.parametrize("kind", _ROWS)
@pytest.mark.parametrize("chain", _CHAINS)
def test_sample(benchmark: Any, chain: str, kind: str) -> None:
    params = SamplingParams(**_CHAINS[chain])
    words = Words(breakers=tuple(range(0, _VOCAB, 100)))
    logits = _logits(kind)
    # Half of it new, half repeated, as DRY is made for.
    half = np.random.default_rng(1).integers(0, _VOCAB, 4096).astype(np.int32)
    history = np.tile(half, 2)
    sampler = make_sampler(params, seed=1, prompt_length=500, words=words)
    positions = count()
    drawn: list[int] = []

    def draw() -> None:
        drawn.append(sampler.sample(logits, history, next(positions)))

    benchmark.pedantic(draw, rounds=300, warmup_rounds=20)
    again = make_sampler(params, seed=1, prompt_length=500, words=words)
    assert drawn == [again.sample(logits, history, position) for position in range(len(drawn))]
    _check_p99(benchmark, chain=chain, row=kind)


@pytest.mark.parametrize("kind", _ROWS)
def test_log_probs(benchmark: Any, kind: str) -> None:
    logits = _logits(kind)
    own, top = benchmark.pedantic(log_probs, args=(logits, 7, 20), rounds=300, warmup_rounds=20)
    wide = logits.astype(np.float64)
    normaliser = np.log(np.sum(np.exp(wide)))
    assert own == pytest.approx(wide[7] - normaliser, abs=1e-6)
    assert top[0] == (int(np.argmax(logits)), pytest.approx(wide.max() - normaliser, abs=1e-6))
    _check_p99(benchmark, chain="20 log-probabilities", row=kind)


def test_extend(benchmark: Any) -> None:
    """What Python adds to a draw: a row so short that the draw itself takes next to nothing."""
    logits = np.zeros(8, np.float32)
    prompt = np.zeros(8192, np.int32)
    sequence = Sequence.create(prompt, SamplingParams(temperature=0.0), max_tokens=400)
    benchmark.pedantic(sequence.extend, args=(logits,), rounds=300, warmup_rounds=20)
    assert sequence.num_tokens == len(prompt) + 320
    _check_p99(benchmark)
