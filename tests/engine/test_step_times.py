from __future__ import annotations

import pytest

from ryzanstein.engine.step_times import StepTimes


@pytest.mark.parametrize(("num_decoding", "cut"), [(0, 0), (1, 32), (16, 32)])
def test_each_chunk_is_tried_the_largest_first(num_decoding: int, cut: int) -> None:
    times = StepTimes(32, 128)
    tried = []
    for _ in range(3):
        tried.append(times.chunk(num_decoding))
        # Decodes take their share of the budget, which costs the largest chunk a page.
        times.record(min(num_decoding + tried[-1], 128 - cut + num_decoding), 1.0)
    assert tried == [128, 64, 32]
    assert times.chunk(num_decoding) in tried


def test_prompts_that_fall_short_of_a_page_try_it_too() -> None:
    times = StepTimes(32, 64)
    times.record(50, 1.0)
    assert times.chunk(0) == 32
    times.record(30, 1.0)
    assert times.chunk(0) == 64


CURVES = [
    ({32: 0.32, 64: 0.64, 128: 1.28}, 32, 32),  # nothing is gained by more
    ({32: 0.36, 64: 0.68, 128: 1.28}, 128, 32),  # what little is gained is not worth the delay
    ({32: 0.60, 64: 0.66, 128: 1.28}, 128, 64),  # the weights take that long to read
    ({32: 0.60, 64: 0.62, 128: 0.70}, 128, 128),
]


@pytest.mark.parametrize(("seconds", "alone", "beside"), CURVES)
def test_the_cheapest_chunk_or_beside_decodes_one_that_delays_them_little(
    seconds: dict[int, float], alone: int, beside: int
) -> None:
    times = StepTimes(32, 128)
    for num_tokens, value in seconds.items():
        times.record(num_tokens, value)
    assert times.chunk(0) == alone
    assert times.chunk(4) == beside


def test_one_slow_step_does_not_count() -> None:
    times = StepTimes(32, 32)
    for seconds in (1.0, 50.0):
        times.record(32, seconds)
    assert times(32) == pytest.approx(1.02)


def test_the_estimate_follows_what_steps_take() -> None:
    times = StepTimes(32, 32)
    times.record(8, 9.0)
    times.record(8, 1.0)  # the first was a disturbance
    assert times(8) == 1.0
    for _ in range(60):
        times.record(8, 2.0)
    assert times(8) == pytest.approx(2.0)


def test_fewer_tokens_take_no_longer() -> None:
    times = StepTimes(32, 32)
    for num_tokens, seconds in ((1, 1.0), (3, 8.0), (4, 9.0), (6, 2.0)):
        times.record(num_tokens, seconds)
    assert [times(n) for n in (1, 2, 3, 4, 6)] == [1.0, 1.5, 2.0, 2.0, 2.0]


def test_the_curve() -> None:
    times = StepTimes(32, 64)
    assert times(5) == 0.0
    times.record(1, 1.0)
    times.record(5, 2.0)
    assert [times(n) for n in (1, 3, 5, 10)] == [1.0, 1.5, 2.0, 4.0]
