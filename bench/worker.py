"""The loops of a process that times one engine.

A worker is a process of its own per engine, because two engines in one process share thread pools
and caches. It answers each line on stdin (a job in JSON) with one line of JSON on stdout. Only the
standard library is used here: workers run in the peer's environment too, which has no ryzanstein.
"""

from __future__ import annotations

import json
import random
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Engine", "Job", "answer_lines", "random_tokens", "serve"]


@dataclass(frozen=True, slots=True)
class Job:
    """The fields of a `ryzanstein.bench.workload.Workload`, as they travel."""

    prompt: int
    generate: int
    depth: int
    sequences: int


class Engine(Protocol):
    """What a worker must offer; `run` is timed, `prepare` is not."""

    def describe(self) -> str:
        """Return name and version."""

    def prepare(self, job: Job) -> None:
        """Bring the cache to the job's depth and nothing more."""

    def run(self, job: Job) -> object:
        """Process the job's tokens and wait for the result."""


def random_tokens(count: int, vocab: int) -> list[int]:
    """Return token ids: as scattered as those of a text, and the same every time."""
    return random.Random(0).choices(range(vocab), k=count)


def serve(engine: Engine) -> None:
    """Answer jobs on stdin with their seconds until it closes; the first run of each warms up."""
    warm: set[Job] = set()

    def run(fields: dict[str, Any]) -> dict[str, Any]:
        job = Job(**fields)
        if job not in warm:
            warm.add(job)
            engine.prepare(job)
            engine.run(job)
        engine.prepare(job)
        begin = time.perf_counter()
        engine.run(job)
        return {"seconds": time.perf_counter() - begin}

    answer_lines(engine.describe(), run)


def answer_lines(engine: str, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Say who answers, then answer each line of JSON on stdin with one until it closes."""
    print(json.dumps({"engine": engine}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
