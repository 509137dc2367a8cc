"""Traces of requests that run at the same time, and when their tokens came.

Only the standard library is used here: the peer's environment has no ryzanstein.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

__all__ = ["TRACES", "WARM_UP", "Request", "Timeline", "length", "make_prompts"]


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asks for.

    Args:
        prompt: tokens of the prompt.
        generate: tokens to generate; no token ends the answer before.
        after: it arrives once every request before it has generated so many tokens. Engines differ
            in speed by several times: at a time of the clock one would be done and another not have
            begun.
    """

    prompt: int
    generate: int
    after: int = 0


def _burst(count: int) -> tuple[Request, ...]:
    """Return requests that arrive together: prompts of 32 to 512 tokens, most of them short."""
    rng = random.Random(count)
    return tuple(
        Request(round(32 * 16 ** rng.random()), rng.randint(64, 128)) for _ in range(count)
    )


TRACES = {
    "burst-8": _burst(8),
    "burst-32": _burst(32),
    # Seven sequences decode when a long prompt arrives, and until it is read.
    "long-prompt": (*(Request(64, 128) for _ in range(7)), Request(2048, 32, after=16)),
}
# Long enough for this engine to try every size of a prompt's pieces.
WARM_UP = (Request(1024, 2), Request(32, 8, after=1))


def length(trace: tuple[Request, ...]) -> int:
    """Return the tokens of the longest request, prompt and answer."""
    return max(request.prompt + request.generate for request in trace)


def make_prompts(trace: tuple[Request, ...], vocab: int, seed: str) -> list[list[int]]:
    """Return token ids for each prompt: as scattered as those of a text, and with none in common.

    Another seed gives other prompts, of which a prefix cache has seen nothing.
    """
    rng = random.Random(seed)
    return [rng.choices(range(vocab), k=request.prompt) for request in trace]


class Timeline:
    """When the requests of a trace arrived, and when each of their tokens did, in seconds."""

    def __init__(self, trace: tuple[Request, ...]) -> None:
        self._trace = trace
        self._began = time.perf_counter()
        self._awaited = list(range(len(trace)))
        self.arrivals = [0.0] * len(trace)
        self.tokens: list[list[float]] = [[] for _ in trace]

    def arrive(self) -> list[int]:
        """Return the requests whose time has come, each once."""
        now = time.perf_counter() - self._began
        due = [index for index in self._awaited if self._is_due(index)]
        for index in due:
            self._awaited.remove(index)
            self.arrivals[index] = now
        return due

    def add(self, index: int, count: int) -> None:
        """Note that so many tokens of a request came, now."""
        self.tokens[index] += [time.perf_counter() - self._began] * count

    def to_json(self) -> dict[str, object]:
        """Return both, as they travel."""
        return {"arrivals": self.arrivals, "tokens": self.tokens}

    def _is_due(self, index: int) -> bool:
        after = self._trace[index].after
        return all(len(tokens) >= after for tokens in self.tokens[:index])
