"""What to time, named as llama-bench names it, and the loop of a worker process that times it.

`pp512` is a prompt of 512 tokens in one go, `tg64` 64 tokens one after the other; `@d2048` puts
2048 tokens in the cache first, `xb8` runs 8 sequences at once. Tokenising and sampling are left
out.

A worker is a process of its own per engine, because two engines in one process share thread pools
and caches. It answers each line on stdin (a test name) with one line of JSON on stdout. Only the
standard library is used here: workers run in the peer's environment too.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Engine", "Workload", "random_tokens", "serve"]

_NAME = re.compile(r"(pp|tg)([1-9]\d*)(?:@d(\d+))?(?:xb([1-9]\d*))?")


@dataclass(frozen=True, slots=True)
class Workload:
    """One test: either a prompt or a number of decode steps."""

    prompt: int
    generate: int
    depth: int = 0
    sequences: int = 1

    @classmethod
    def parse(cls, name: str) -> Workload:
        """Return the workload that `name` stands for, as in ``tg64@d2048xb8``."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"test {name!r} is not of the form pp512, tg64, tg64@d2048 or tg64xb8")
        kind, count, depth, sequences = match.groups()
        prompt = int(count) if kind == "pp" else 0
        generate = int(count) if kind == "tg" else 0
        return cls(prompt, generate, int(depth or 0), int(sequences or 1))

    @property
    def name(self) -> str:
        """Return the canonical name."""
        kind = f"pp{self.prompt}" if self.prompt else f"tg{self.generate}"
        depth = f"@d{self.depth}" if self.depth else ""
        return kind + depth + (f"xb{self.sequences}" if self.sequences > 1 else "")

    @property
    def tokens(self) -> int:
        """Return how many tokens the timed part processes, over all sequences."""
        return (self.prompt + self.generate) * self.sequences

    @property
    def length(self) -> int:
        """Return the tokens of one sequence at the end."""
        return self.depth + self.prompt + self.generate


class Engine(Protocol):
    """What a worker must offer; `run` is timed, `prepare` is not."""

    def describe(self) -> str:
        """Return name and version."""

    def prepare(self, workload: Workload) -> None:
        """Bring the cache to the workload's depth and nothing more."""

    def run(self, workload: Workload) -> object:
        """Process the workload's tokens and wait for the result."""


def random_tokens(count: int, vocab: int) -> list[int]:
    """Return token ids, the same in every worker: embedding rows are then equally scattered."""
    return random.Random(0).choices(range(vocab), k=count)


def serve(engine: Engine) -> None:
    """Answer test names on stdin with their seconds until it closes; the first run warms up."""
    print(json.dumps({"engine": engine.describe()}), flush=True)
    warm: set[str] = set()
    for line in sys.stdin:
        workload = Workload.parse(line.strip())
        if workload.name not in warm:
            warm.add(workload.name)
            engine.prepare(workload)
            engine.run(workload)
        engine.prepare(workload)
        begin = time.perf_counter()
        engine.run(workload)
        print(json.dumps({"seconds": time.perf_counter() - begin}), flush=True)
