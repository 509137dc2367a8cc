"""Timing engines in turns, so that what the machine does meanwhile falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.progress import Progress

    from ryzanstein.bench.workload import Workload

__all__ = ["Contestant", "Row", "let_threads_park", "measure"]

_PARK_S = 0.1


def let_threads_park() -> None:
    """Wait: idle threads spin for some milliseconds, and the next engine must not compete."""
    time.sleep(_PARK_S)


class Contestant(Protocol):
    """An engine in another process."""

    name: str

    def seconds(self, workload: Workload) -> float | None:
        """Return how long the workload took, or None if the engine does not offer it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One engine's result of one test.

    Args:
        test: as `tg64@d2048`.
        engine: name, build and what else decides its speed.
        variant: of this engine, tier and head, or None for a peer.
        tokens_per_second: median over the repetitions.
        spread: their range over the median.
        ratios: variant of this engine -> median over repetitions of its speed over this row's.
        samples: one figure per repetition.
        n_threads: of every engine.
    """

    test: str
    engine: str
    variant: str | None
    tokens_per_second: float
    spread: float
    ratios: dict[str, float]
    samples: tuple[float, ...]
    n_threads: int


def measure(
    ours: Mapping[str, Contestant],
    peers: Sequence[Contestant],
    workloads: Sequence[Workload],
    *,
    repetitions: int,
    threads: int,
    progress: Progress,
) -> list[Row]:
    """Time every workload on every engine, in turns.

    Args:
        ours: this engine by variant; each gets a ratio in every row.
        peers: what to compare with.
        workloads: what to time.
        repetitions: runs of each.
        threads: recorded in the rows; the engines were started with it.
        progress: where to show how far it is.
    """
    contestants: list[tuple[str | None, Contestant]] = [*ours.items()]
    contestants += [(None, peer) for peer in peers]
    rows = []
    task = progress.add_task("", total=len(workloads) * repetitions * len(contestants))
    for workload in workloads:
        samples: list[list[float]] = [[] for _ in contestants]
        for repetition in range(repetitions):
            order = list(zip(contestants, samples, strict=True))
            for (_, contestant), rates in order if repetition % 2 == 0 else order[::-1]:
                progress.update(task, description=f"{workload.name} {contestant.name}")
                let_threads_park()
                seconds = contestant.seconds(workload)
                if seconds is not None:
                    rates.append(workload.tokens / seconds)
                progress.advance(task)
        own = dict(zip(ours, samples, strict=False))
        rows += [
            _row(workload, contestant.name, variant, rates, own, threads)
            for (variant, contestant), rates in zip(contestants, samples, strict=True)
            if rates
        ]
    return rows


def _row(
    workload: Workload,
    engine: str,
    variant: str | None,
    rates: list[float],
    own: Mapping[str, list[float]],
    threads: int,
) -> Row:
    median = statistics.median(rates)
    return Row(
        test=workload.name,
        engine=engine,
        variant=variant,
        tokens_per_second=median,
        spread=(max(rates) - min(rates)) / median,
        ratios={
            ours: statistics.median(a / b for a, b in zip(our_rates, rates, strict=True))
            for ours, our_rates in own.items()
        },
        samples=tuple(rates),
        n_threads=threads,
    )
