from __future__ import annotations

from functools import cache
from typing import Any, get_args

import pytest

from bench.prefix_cache import Request, Timings, replay, requests, sizes
from bench.prefix_traces import TRACES
from ryzanstein import LLM
from ryzanstein.config import Eviction


def answer(prompt: list[int], count: int) -> list[int]:
    return [(sum(prompt) + i) % 500 for i in range(count)]


@cache
def trace(name: str) -> list[Request]:
    return requests(TRACES[name](), answer)


@pytest.mark.parametrize(("name", "least"), [("chat", 0.85), ("shared", 0.85), ("agents", 0.85)])
def test_with_room_for_all_most_of_the_prompts_is_served(name: str, least: float) -> None:
    everything = sizes(trace(name))[-1]
    shares = {replay(trace(name), everything, policy) for policy in (*get_args(Eviction), "Belady")}
    assert len(shares) == 1, "nothing is evicted"
    assert shares.pop() >= least


def test_independent_prompts_find_nothing() -> None:
    assert replay(trace("independent"), sizes(trace("independent"))[-1], "arc") == 0


@pytest.mark.parametrize("name", ["chat", "shared"])
def test_no_policy_beats_the_one_that_knows_the_future(name: str) -> None:
    small = sizes(trace(name))[1]
    best = replay(trace(name), small, "Belady")
    for policy in get_args(Eviction):
        assert 0 < replay(trace(name), small, policy) <= best


def test_histories_are_continued_and_taken_over() -> None:
    played = trace("agents")
    beginnings = {request.prompt[:300] for request in played}
    assert len(beginnings) == 1
    longest = max(played, key=lambda request: len(request.prompt))
    assert any(
        request is not longest and longest.prompt[: len(request.prompt)] == request.prompt
        for request in played
    )


def test_engines_take_turns_at_going_first(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    generate = LLM.generate

    def noted(self: LLM, *args: Any, **options: Any) -> Any:
        order.append(self)
        return generate(self, *args, **options)

    monkeypatch.setattr(LLM, "generate", noted)
    options: dict[str, Any] = {"threads": 1, "context_length": 256}
    with LLM(prefix_cache=False, **options) as plain, LLM(**options) as caching:
        timings = Timings(plain, caching)
        prompt = [5] * 70
        first, second, third = (timings.answer(prompt, 2) for _ in range(3))
    assert order == [plain, caching, caching, plain, plain, caching]
    assert first == second == third
    assert [len(seconds) for seconds in timings.seconds] == [3, 3]
    assert timings.cached_tokens > 0
