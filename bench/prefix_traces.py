"""Traces of requests, for the prefix cache: who asks what after whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TRACES", "Turn"]

_VOCABULARY = 512


@dataclass(frozen=True, slots=True)
class Turn:
    """One request: a session's history so far, and something new.

    Args:
        session: whose history it continues; the answer is appended to it too.
        new: tokens that are appended to the history.
        answer: tokens that are generated.
        begins_as: the session whose history a new one takes over.
    """

    session: int
    new: tuple[int, ...]
    answer: int
    begins_as: int | None = None


def _tokens(rng: np.random.Generator, low: int, high: int) -> tuple[int, ...]:
    return tuple(rng.integers(1, _VOCABULARY, rng.integers(low, high + 1)).tolist())


def _interleave(rng: np.random.Generator, tasks: list[list[Turn]], num_open: int) -> list[Turn]:
    """Return the turns of all tasks, each in its order, with so many tasks under way at a time."""
    turns = []
    left = [list(reversed(task)) for task in tasks]
    while left:
        task = left[int(rng.integers(min(num_open, len(left))))]
        turns.append(task.pop())
        left = [task for task in left if task]
    return turns


def chat(seed: int = 0) -> list[Turn]:
    """Return 24 conversations of 10 turns with a common system prompt, six open at a time."""
    rng = np.random.default_rng(seed)
    system = _tokens(rng, 100, 100)

    def conversation(session: int) -> list[Turn]:
        begins = [system] + [()] * 9
        return [
            Turn(session, begin + _tokens(rng, 10, 40), int(rng.integers(20, 61)))
            for begin in begins
        ]

    return _interleave(rng, [conversation(session) for session in range(24)], 6)


def shared(seed: int = 0) -> list[Turn]:
    """Return 120 questions behind one of three system prompts, the first much more popular."""
    rng = np.random.default_rng(seed)
    systems = [_tokens(rng, 600, 700) for _ in range(3)]
    chosen = rng.choice(3, 120, p=[0.7, 0.2, 0.1])
    return [
        Turn(i, systems[which] + _tokens(rng, 20, 80), int(rng.integers(10, 31)))
        for i, which in enumerate(chosen)
    ]


def agents(seed: int = 0) -> list[Turn]:
    """Return 12 tasks of 8 tool calls, each with two helpers that start from its first steps.

    Four tasks are under way at a time.
    """
    rng = np.random.default_rng(seed)
    tools = _tokens(rng, 300, 300)

    def task(number: int) -> list[Turn]:
        own = 3 * number
        turns = [Turn(own, tools + _tokens(rng, 20, 60), 20)]
        for step in range(8):
            turns.append(Turn(own, _tokens(rng, 10, 60), int(rng.integers(10, 25))))
            if step in (2, 4):
                helper = own + step // 2
                turns.append(Turn(helper, _tokens(rng, 20, 40), 20, begins_as=own))
                turns.append(Turn(helper, _tokens(rng, 10, 40), 20))
        return turns

    return _interleave(rng, [task(number) for number in range(12)], 4)


def independent(seed: int = 0) -> list[Turn]:
    """Return 60 prompts that have nothing in common."""
    rng = np.random.default_rng(seed)
    return [Turn(i, _tokens(rng, 100, 600), 20) for i in range(60)]


TRACES: dict[str, Callable[[], list[Turn]]] = {
    "chat": chat,
    "shared": shared,
    "agents": agents,
    "independent": independent,
}
