"""What the timelines of `bench.concurrency` amount to, as tables and as a chart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

from bench.contest_report import markdown_of, table_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.table import Table

    from bench.concurrency_traces import Request

__all__ = ["METRICS", "Row", "Run", "compare", "make_table", "save_chart", "to_markdown"]

# Field -> what tables call it. All are seconds but the first, the only one where more is better.
METRICS = {
    "tokens_per_second": "tok/s",
    "first_p50": "first token, p50",
    "first_p99": "first token, p99",
    "latency_p50": "request, p50",
    "latency_p99": "request, p99",
    "between_p50": "between tokens, p50",
    "between_p99": "between tokens, p99",
    "between_max": "between tokens, most",
}
_HEADER = ("trace", "engine", *METRICS.values())
_PANEL_INCHES = (8.5, 2.2)
_DPI = 100


@dataclass(frozen=True, slots=True)
class Run:
    """When the requests of a trace arrived, and when each of their tokens did, in seconds."""

    arrivals: list[float]
    tokens: list[list[float]]


@dataclass(frozen=True, slots=True)
class Row:
    """One engine's result of one trace.

    Args:
        trace: its name.
        engine: name, build and what else decides its speed.
        metrics: `METRICS` -> median over the repetitions.
        ratios: `METRICS` -> median over the repetitions of how many times as good the first engine
            was; none for that one.
        samples: the metrics of each repetition.
    """

    trace: str
    engine: str
    metrics: dict[str, float]
    ratios: dict[str, float]
    samples: tuple[dict[str, float], ...]


def _metrics(trace: Sequence[Request], run: Run) -> dict[str, float]:
    """Return the `METRICS` of a run.

    Where a request arrives later than others, the time between tokens is that of the others from
    then to its first token, and each gap counts that falls into this time at least in part.
    """
    arrivals, tokens = run.arrivals, run.tokens
    late = [i for i, request in enumerate(trace) if request.after]
    begin = min((arrivals[i] for i in late), default=0.0)
    end = max((tokens[i][0] for i in late), default=math.inf)
    others = (came for i, came in enumerate(tokens) if i not in late)
    gaps = [b - a for came in others for a, b in pairwise(came) if b > begin and a < end]
    first = [came[0] - at for came, at in zip(tokens, arrivals, strict=True)]
    latency = [came[-1] - at for came, at in zip(tokens, arrivals, strict=True)]
    return {
        "tokens_per_second": sum(map(len, tokens)) / max(came[-1] for came in tokens),
        "first_p50": _percentile(first, 50),
        "first_p99": _percentile(first, 99),
        "latency_p50": _percentile(latency, 50),
        "latency_p99": _percentile(latency, 99),
        "between_p50": _percentile(gaps, 50),
        "between_p99": _percentile(gaps, 99),
        "between_max": max(gaps),
    }


def compare(
    name: str, trace: Sequence[Request], engines: Sequence[str], runs: Sequence[Sequence[Run]]
) -> list[Row]:
    """Return a row per engine; the runs of each are in the order of the repetitions."""
    samples = [[_metrics(trace, run) for run in done] for done in runs]
    return [
        Row(
            trace=name,
            engine=engine,
            metrics={field: median(sample[field] for sample in own) for field in METRICS},
            ratios={} if own is samples[0] else _ratios(samples[0], own),
            samples=tuple(own),
        )
        for engine, own in zip(engines, samples, strict=True)
    ]


def make_table(rows: Sequence[Row]) -> Table:
    """Return the figures for a terminal."""
    return table_of(_HEADER, _lines(rows))


def to_markdown(rows: Sequence[Row]) -> str:
    """Return the figures as a table in Markdown."""
    return markdown_of(_HEADER, _lines(rows))


def save_chart(rows: Sequence[Row], path: Path, caption: str) -> None:
    """Draw how many times as good this engine is as the other, a panel per trace.

    Args:
        rows: of `compare`, with a peer.
        path: the file; its suffix is the format.
        caption: what was measured.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    peers = [row for row in rows if row.ratios]
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width, height * len(peers) + 0.6), layout="constrained")
    grid = figure.subplots(len(peers), 1, squeeze=False, sharex=True)[:, 0].tolist()
    for axes, row in zip(grid, peers, strict=True):
        bars = axes.barh([*METRICS.values()], [row.ratios[field] for field in METRICS], 0.7)
        axes.bar_label(bars, fmt="%.1fx", padding=4, fontsize=8)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.axvline(1, color="black", linewidth=0.8, linestyle="--")
        axes.set_title(row.trace, loc="left", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.margins(x=0.1)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    grid[-1].set_xlabel("times as good as the peer: more tokens, less time")
    figure.suptitle(f"{caption}\n{rows[0].engine}, beside {peers[0].engine}", fontsize=7)
    with rc_context({"svg.fonttype": "none"}):  # text as text, a third of the size
        figure.savefig(path, dpi=_DPI)


def _lines(rows: Sequence[Row]) -> list[list[str]]:
    """Return a line per row, and behind a peer's the ratios."""
    lines = []
    for row in rows:
        speed, *seconds = (row.metrics[field] for field in METRICS)
        lines.append([row.trace, row.engine, f"{speed:.1f}", *map(_duration, seconds)])
        if row.ratios:
            ratios = [f"{row.ratios[field]:.2f}x" for field in METRICS]
            lines.append([row.trace, "ryzanstein over it", *ratios])
    return lines


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.0f} ms"


def _percentile(values: Sequence[float], percent: int) -> float:
    """Return the least value that so many percent of all do not exceed."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def _ratios(
    ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    return {
        field: median(
            a[field] / b[field] if field == "tokens_per_second" else b[field] / a[field]
            for a, b in zip(ours, theirs, strict=True)
        )
        for field in METRICS
    }
