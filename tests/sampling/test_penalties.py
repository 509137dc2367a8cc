"""Biases, bans and penalties, seen through greedy draws and against the oracle."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference import sampling as oracle

from ryzanstein import _core
from ryzanstein.errors import DistributionError, ValidationError

if TYPE_CHECKING:
    from ryzanstein._core import F32Array, I32Array

SIZE = 12


def history(*tokens: int) -> I32Array:
    return np.array(tokens, np.int32)


def edited(text: I32Array, size: int = SIZE, base: float = 0.0, **options: Any) -> F32Array:
    """Return what a sampler makes of equal logits, to 0.01, by biasing each token to the top."""
    found = np.empty(size, np.float32)
    for token in range(size):
        # The bias at which greedy decoding changes to the token.
        low, high = -200.0, 200.0
        while high - low > 0.005:
            middle = (low + high) / 2
            logits = np.full(size + 1, base, np.float32)
            logits[size] = middle  # a token that is in no text
            keep = [(other, -math.inf) for other in range(size) if other != token]
            native = _core.Sampler(temperature=0.0, logit_bias=keep, **options)
            if native.sample(logits, text, 0) == size:
                high = middle
            else:
                low = middle
        found[token] = low
    return found


def test_frequency_and_presence_count_generated_tokens_only() -> None:
    text = history(0, 0, 1, 2, 2, 2, 3)
    found = edited(text, size=5, frequency_penalty=0.5, presence_penalty=2.0, prompt_length=3)
    np.testing.assert_allclose(found, [0, 0, -3.5, -2.5, 0], atol=0.01)


def test_repetition_counts_the_prompt_and_comes_first() -> None:
    text = history(0, 1, 1)
    found = edited(
        text, size=3, base=4.0, repetition_penalty=2.0, frequency_penalty=1.0, prompt_length=1
    )
    np.testing.assert_allclose(found, [2, 0, 4], atol=0.01)


def test_a_window_counts_the_prompt_for_all_three() -> None:
    text = history(0, 1, 1, 2)
    options = {"frequency_penalty": 1.0, "presence_penalty": 0.5, "prompt_length": 3}
    found = edited(text, size=3, penalty_last_n=3, **options)
    np.testing.assert_allclose(found, [0, -2.5, -1.5], atol=0.01)
    found = edited(text, size=3, penalty_last_n=0, **options)
    np.testing.assert_allclose(found, [0, 0, 0], atol=0.01)


@given(
    prompt=st.lists(st.integers(0, 9), max_size=8),
    generated=st.lists(st.integers(0, 9), max_size=8),
    repetition=st.floats(0.5, 2.0),
    frequency=st.floats(-1.0, 1.0),
    presence=st.floats(-1.0, 1.0),
    last_n=st.sampled_from([-1, 0, 3, 100]),
    noise=st.integers(0, 2**32 - 1),
)
@settings(max_examples=200, deadline=None)
def test_penalties_follow_the_oracle(
    prompt: list[int],
    generated: list[int],
    repetition: float,
    frequency: float,
    presence: float,
    last_n: int,
    noise: int,
) -> None:
    logits = np.random.default_rng(noise).normal(scale=2.0, size=10).astype(np.float32)
    text = prompt + generated
    seen = text if last_n < 0 else text[max(len(text) - last_n, 0) :]
    counted = generated if last_n < 0 else seen
    native = _core.Sampler(
        temperature=0.0,
        repetition_penalty=repetition,
        frequency_penalty=frequency,
        presence_penalty=presence,
        penalty_last_n=last_n,
        prompt_length=len(prompt),
    )
    expected = oracle.penalise(logits, seen, repetition, counted, frequency, presence)
    best = np.sort(expected)[-2:]
    assume(best[1] - best[0] > 1e-5)
    assert native.sample(logits, history(*text), len(text)) == int(np.argmax(expected))


def test_penalties_leave_no_trace_for_the_next_row() -> None:
    logits = np.array([2.0, 1.0, 1.5], np.float32)
    native = _core.Sampler(temperature=0.0, presence_penalty=1.2)
    assert native.sample(logits, history(0, 0), 2) == 2
    assert native.sample(logits, history(), 0) == 0


def test_biases_add_and_ban() -> None:
    logits = np.array([3.0, 2.0, 1.0], np.float32)

    def greedy(*bias: tuple[int, float]) -> int:
        return _core.Sampler(temperature=0.0, logit_bias=bias).sample(logits, history(), 0)

    assert greedy((1, 1.5)) == 1
    assert greedy((0, -math.inf)) == 1
    assert greedy((0, -math.inf), (1, -5.0)) == 2
    with pytest.raises(DistributionError, match="no token is left"):
        greedy(*((token, -math.inf) for token in range(3)))
    with pytest.raises(ValidationError, match=r"logit_bias\[0\] is 3, outside the vocabulary"):
        greedy((3, 1.0))


def test_end_tokens_are_banned_until_min_tokens() -> None:
    logits = np.array([3.0, 2.0, 1.0], np.float32)
    native = _core.Sampler(temperature=0.0, min_tokens=2, stop_ids=[0], prompt_length=1)
    assert [native.sample(logits, history(*([1] * n)), n) for n in range(1, 5)] == [1, 1, 0, 0]


def test_bad_words_are_banned_where_they_would_be_completed() -> None:
    logits = np.array([3.0, 2.0, 1.0], np.float32)
    native = _core.Sampler(temperature=0.0, bad_words=[[1, 2, 0], [1]], prompt_length=2)
    assert native.sample(logits, history(1, 2), 2) == 0  # the prompt does not count
    assert native.sample(logits, history(9 % 3, 1, 1, 2), 4) == 2
    assert native.sample(logits, history(0, 0, 2, 2), 4) == 0


def dry(text: list[int], **options: Any) -> F32Array:
    return edited(history(*text), dry_multiplier=1.0, dry_base=2.0, **options)


def test_dry_by_hand() -> None:
    """The example of llama.cpp: `a b c c b c y a b c`."""
    a, b, c, y = range(4)
    found = dry([a, b, c, c, b, c, y, a, b, c], dry_allowed_length=2)
    expected = np.zeros(SIZE)
    expected[c] = -2.0  # abc -> abcc: 3 long
    expected[y] = -1.0  # bc -> bcy: 2 long
    np.testing.assert_allclose(found, expected, atol=0.01)


texts = st.lists(st.integers(0, 3), max_size=24)


@given(text=texts, allowed=st.integers(1, 4), breakers=st.sets(st.integers(0, 3), max_size=2))
@settings(max_examples=40, deadline=None)
def test_dry_follows_the_oracle(text: list[int], allowed: int, breakers: set[int]) -> None:
    """All penalties at once: an exactly compensated token ties, and the lowest id wins."""
    penalties = oracle.dry_penalties(text, 1.0, 1.5, allowed, breakers)
    native = {
        "dry_multiplier": 1.0,
        "dry_base": 1.5,
        "dry_allowed_length": allowed,
        "dry_breakers": sorted(breakers),
    }
    for token in range(4):
        logits = np.array([-1e9] * 5, np.float32)
        logits[token] = 10.0
        for offset, expected in ((-1e-2, token), (1e-2, 4)):
            logits[4] = min(10.0 - penalties.get(token, 0.0) + offset, 1e9)
            sampler = _core.Sampler(temperature=0.0, **native)  # type: ignore[arg-type]
            assert sampler.sample(logits, history(*text), 0) == expected


def test_dry_looks_at_its_window_only() -> None:
    text = [0, 1, 2, 5, 6, 0, 1]
    assert dry(text)[2] == pytest.approx(-1.0, abs=0.01)
    assert dry(text, dry_penalty_last_n=4)[2] == pytest.approx(0.0, abs=0.01)


def test_dry_of_a_long_repeat_stays_finite() -> None:
    logits = np.array([1.0, -1e30], np.float32)
    native = _core.Sampler(temperature=0.0, dry_multiplier=1.0, dry_base=10.0)
    text = np.zeros(5000, np.int32)
    assert native.sample(logits, text, 5000) == 1
    only = _core.Sampler(
        temperature=0.0, dry_multiplier=1.0, dry_base=10.0, logit_bias=[(1, -math.inf)]
    )
    assert only.sample(logits, text, 5000) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frequency_penalty": math.inf}, "frequency_penalty is inf"),
        ({"presence_penalty": math.nan}, "presence_penalty is nan"),
        ({"penalty_last_n": -2}, "penalty_last_n is -2"),
        ({"dry_multiplier": -1.0}, "dry_multiplier is -1"),
        ({"dry_base": 0.5}, "dry_base is 0.5"),
        ({"dry_allowed_length": 0}, "dry_allowed_length is 0"),
        ({"dry_penalty_last_n": -2}, "dry_penalty_last_n is -2"),
        ({"min_tokens": -1}, "min_tokens is -1"),
        ({"min_keep": 0}, "min_keep is 0"),
        ({"prompt_length": -1}, "prompt_length is -1"),
        ({"logit_bias": [(0, math.inf)]}, "logit_bias is inf"),
        ({"bad_words": [[]]}, "length of a bad word is 0"),
        ({"typical_p": 0.0}, "typical_p is 0"),
        ({"top_n_sigma": -1.0}, "top_n_sigma is -1"),
        ({"xtc_probability": 1.5}, "xtc_probability is 1.5"),
        ({"xtc_threshold": 0.0}, "xtc_threshold is 0"),
        ({"dynatemp_range": -1.0}, "dynatemp_range is -1"),
        ({"dynatemp_exponent": math.nan}, "dynatemp_exponent is nan"),
        ({"mirostat": 1}, "mirostat is 1"),
        ({"mirostat_tau": -1.0}, "mirostat_tau is -1"),
        ({"mirostat_eta": math.inf}, "mirostat_eta is inf"),
        ({"mirostat_mu": math.nan}, "mirostat_mu is nan"),
        ({"order": ["top_q"]}, "no filter 'top_q'"),
        ({"order": ["top_k", "top_k"]}, "'top_k' twice"),
    ],
)
def test_parameters_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=rf"\[sampler\].*{message}"):
        _core.Sampler(**options)  # type: ignore[arg-type]
