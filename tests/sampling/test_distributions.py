"""What each strategy makes of one row of logits: draws are counted, and compared with exact shares.

The draws are those of whole sequences, from the parameters that a user writes to the token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pytest
from reference import sampling as oracle
from reference.sampling import Chain
from support import END_TOKEN, letter_constraints

from ryzanstein import SamplingParams
from ryzanstein.engine.sequence import Sequence
from ryzanstein.sampling.strategies import STRATEGIES
from ryzanstein.sampling.words import NO_WORDS, Words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ryzanstein._core import F32Array, I32Array

F64: TypeAlias = "NDArray[np.float64]"
Probabilities: TypeAlias = Callable[[F64], F64]

VOCAB, DRAWS = END_TOKEN + 1, 3000
LOGITS: F32Array = np.random.default_rng(5).normal(scale=1.5, size=VOCAB).astype(np.float32)
# The likely tokens, so that what is done to them shows; those of the prompt come first.
LIKELY: list[int] = np.argsort(-LOGITS)[:6].tolist()
A, B, C, D, E, F = LIKELY
PROMPT, GENERATED = [A, 1, B], [C, D, C, D, E, C, D]
CONSTRAINTS = letter_constraints()


def softmax(logits: F64) -> F64:
    shares: F64 = np.exp(logits - logits.max())
    shares /= shares.sum()
    return shares


def changed(logits: F64, changes: dict[int, float]) -> F64:
    """Return the shares after adding to single logits."""
    result = logits.copy()
    for token, change in changes.items():
        result[token] += change
    return softmax(result)


def cut(chain: Chain) -> Probabilities:
    """Return what the oracle of the filters makes of logits, XTC acting now and then."""

    def probabilities(logits: F64) -> F64:
        result = np.zeros(VOCAB)
        xtc = chain.xtc_probability
        for chance, weight in ((0.0, xtc), (1.0, 1 - xtc)):
            exact = oracle.distribution(logits, (), chain, chance)
            result[exact.ids] += weight * exact.probabilities
        return result

    return probabilities


def penalised(logits: F64) -> F64:
    return softmax(oracle.penalise(logits, PROMPT + GENERATED, 1.3, GENERATED, 0.4, 0.5))


def kept_by_mirostat(logits: F64) -> F64:
    state = oracle.mirostat(oracle.in_order(logits), 2 * 2.0)
    result = np.zeros(VOCAB)
    result[state.ids] = state.probabilities
    return result


def favour_thirds(tokens: I32Array, logits: F32Array) -> None:
    logits[::3] += 1.0


@dataclass(frozen=True)
class Case:
    options: dict[str, Any]
    exact: Probabilities
    words: Words = field(default=NO_WORDS)


CASES = {
    "logits_processor": Case(
        {"logits_processor": favour_thirds},
        lambda x: softmax(x + (np.arange(VOCAB) % 3 == 0)),
    ),
    "structured_output": Case(
        {"regex": "[A-Za-f]{20}"},
        lambda x: changed(x, {t: -math.inf for t in range(VOCAB) if not letter(t)}),
    ),
    "logit_bias": Case(
        {"logit_bias": {B: -2.0, F: 1.5, A: -math.inf}},
        lambda x: changed(x, {B: -2.0, F: 1.5, A: -math.inf}),
    ),
    "bad_words": Case(
        {"bad_words": ["two words"]},
        lambda x: changed(x, {A: -math.inf}),
        Words(bad=((C, D, A), (E, B))),
    ),
    "min_tokens": Case(
        {"min_tokens": 8, "stop_token_ids": [A, C]},
        lambda x: changed(x, {A: -math.inf, C: -math.inf}),
    ),
    "penalties": Case(
        {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.5}, penalised
    ),
    "dry": Case(
        {"dry_multiplier": 0.7, "dry_base": 1.5, "dry_allowed_length": 1},
        lambda x: changed(
            x,
            {
                token: -penalty
                for token, penalty in oracle.dry_penalties(
                    PROMPT + GENERATED, 0.7, 1.5, 1, set()
                ).items()
            },
        ),
    ),
    "temperature": Case({"temperature": 0.6}, lambda x: softmax(x / 0.6)),
    "top_n_sigma": Case({"top_n_sigma": 1.2}, cut(Chain(top_n_sigma=1.2))),
    "top_k": Case({"top_k": 9}, cut(Chain(top_k=9))),
    "top_p": Case({"top_p": 0.7}, cut(Chain(top_p=0.7))),
    "min_p": Case({"min_p": 0.1}, cut(Chain(min_p=0.1))),
    "typical_p": Case({"typical_p": 0.5}, cut(Chain(typical_p=0.5))),
    "xtc": Case(
        {"xtc_probability": 0.5, "xtc_threshold": 0.05},
        cut(Chain(xtc_probability=0.5, xtc_threshold=0.05)),
    ),
    "mirostat": Case({"mirostat": 2, "mirostat_tau": 2.0}, kept_by_mirostat),
    "greedy": Case({"temperature": 0.0}, lambda x: np.eye(VOCAB)[np.argmax(x)]),
}


def letter(token: int) -> bool:
    character = chr(48 + token)
    return "A" <= character <= "Z" or "a" <= character <= "f"


def draw(case: Case, seed: int) -> int:
    """Return the token after `GENERATED`, whose logits are `LOGITS`."""
    params = SamplingParams(seed=seed, **case.options)
    output = params.structured_output
    constraint = None if output is None else CONSTRAINTS.compile(output)
    generated = [] if constraint else GENERATED
    sequence = Sequence.create(
        np.array(PROMPT, np.int32),
        params,
        max_tokens=20,
        eos_token_ids=[END_TOKEN],
        words=case.words,
        constraint=constraint,
    )
    end = len(PROMPT) + len(generated)
    sequence.buffer[len(PROMPT) : end] = generated
    sequence.num_tokens = end
    sequence.extend(LOGITS)
    return int(sequence.buffer[end])


def test_every_strategy_has_a_case_in_which_it_shows() -> None:
    assert list(CASES) == list(STRATEGIES)
    logits = LOGITS.astype(np.float64)
    for name, case in CASES.items():
        assert abs(case.exact(logits) - softmax(logits)).sum() > 0.1, name


@pytest.mark.parametrize("strategy", CASES)
def test_frequencies_follow_the_exact_distribution(strategy: str) -> None:
    """A chi-square test; the seeds are fixed, so it either always passes or never."""
    case = CASES[strategy]
    probabilities = case.exact(LOGITS.astype(np.float64))
    counts = np.bincount([draw(case, seed) for seed in range(DRAWS)], minlength=VOCAB)
    assert not counts[probabilities == 0].any()
    expected = probabilities * DRAWS
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    statistic = float(np.sum((observed - wanted) ** 2 / np.maximum(wanted, 1e-9)))
    freedom = len(wanted) - 1
    assert statistic <= freedom + 4 * math.sqrt(2 * freedom)
