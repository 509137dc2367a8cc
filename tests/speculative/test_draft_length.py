from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryzanstein.speculative.draft_length import DraftLength
from ryzanstein.speculative.proposer import Draft


def draft(n: int, evidence: int = 4, probability: float = 1.0) -> Draft:
    return Draft(list(range(n)), [probability] * n, evidence)


def flat(_: int) -> float:
    return 1.0


def linear(n: int) -> float:
    return float(n)


def test_free_guesses_are_all_checked() -> None:
    assert DraftLength(flat).choose(draft(8), 1) == 8


def test_guesses_that_cost_a_step_each_are_never_checked() -> None:
    assert DraftLength(linear).choose(draft(8), 1) == 0


def test_a_knee_in_the_cost_ends_the_draft() -> None:
    choice = DraftLength(lambda n: 1.0 if n <= 4 else 4.0)
    assert choice.choose(draft(8), 1) == 3
    assert choice.choose(draft(8), 3) == 1


def test_guesses_pay_for_what_they_delay() -> None:
    """Twice the tokens of one sequence do not pay for a step that takes half as long again."""
    choice = DraftLength(lambda n: 1.0 + 0.1 * (n - 1))
    assert choice.choose(draft(8), 1) > 0
    assert choice.choose(draft(8), 12) == 0


def test_what_guesses_take_counts() -> None:
    assert DraftLength(flat).choose(draft(8), 1, guess_seconds=0.01) > 0
    assert DraftLength(flat).choose(draft(8), 1, guess_seconds=0.7) == 0


def test_before_the_first_step_nothing_is_checked() -> None:
    assert DraftLength(lambda _: 0.0).choose(draft(8), 1) == 0


def test_unlikely_guesses_are_left_out() -> None:
    def seconds(n: int) -> float:
        return 1.0 + 0.2 * (n - 1)

    assert DraftLength(seconds).choose(draft(4, probability=0.2), 1) == 0
    assert DraftLength(seconds).choose(draft(4, probability=1.0), 1) > 0


def test_failures_end_a_source_and_it_is_tried_again() -> None:
    choice = DraftLength(lambda n: 1.0 + 0.1 * (n - 1))
    tried = 0
    for _ in range(2000):
        checked = choice.choose(draft(4), 1)
        tried += checked
        choice.learn(draft(4), checked, 0)
    assert 0 < tried < 60  # of 8000


def test_successes_lengthen_drafts_of_like_evidence_only() -> None:
    choice = DraftLength(lambda n: 1.0 + 0.2 * (n - 1))
    before = choice.choose(draft(16, evidence=8), 1)
    others = choice.choose(draft(16, evidence=2), 1)
    for _ in range(20):
        choice.learn(draft(16, evidence=9), 16, 16)
    assert choice.choose(draft(16, evidence=8), 1) > before
    assert choice.choose(draft(16, evidence=2), 1) == others


def test_what_continues_a_long_match_is_trusted_first() -> None:
    choice = DraftLength(lambda n: 1.0 + 0.5 * (n - 1))
    assert choice.choose(draft(8, evidence=16), 1) > choice.choose(draft(8, evidence=2), 1)


@given(
    st.lists(st.floats(0.01, 1.0), max_size=12),
    st.lists(st.floats(0.0, 3.0), min_size=14, max_size=14),
    st.integers(1, 2),
)
def test_the_length_chosen_has_the_best_rate(
    claimed: list[float], steps: list[float], step_tokens: int
) -> None:
    costs = 1.0 + np.cumsum(steps)
    choice = DraftLength(lambda n: float(costs[n - 1]))
    found = choice.choose(Draft(list(range(len(claimed))), claimed, 1), step_tokens)

    reach = np.cumprod([min(0.98, 0.6 * p) for p in claimed])
    settled = step_tokens + np.concatenate([[0.0], np.cumsum(reach)])
    seconds = costs[step_tokens - 1 : step_tokens + len(claimed)]
    gains = settled / step_tokens * seconds[0] / seconds
    best = float(gains.max())
    if best <= 1.1:
        assert found == 0
    else:
        assert gains[found] == pytest.approx(best)
