"""The rows of `bench.contest` as a table for a terminal or a document, and as a chart."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING, TypeAlias

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from bench.contest import Row

__all__ = [
    "TARGETS",
    "Targets",
    "make_table",
    "markdown_of",
    "save_chart",
    "table_of",
    "to_markdown",
]

Targets: TypeAlias = "Mapping[str, Mapping[str, float]]"

# Preset -> tier -> test -> how many times as fast as llama.cpp this engine is to be.
TARGETS: dict[str, Targets] = {
    "2b-4t": {
        "avx512": {"tg64": 3.5, "tg32@d2048": 3.5, "tg32xb8": 6.5, "pp512": 5.6},
        "avx2": {"tg64": 1.5, "pp512": 1.5},
    },
    "gemma-2b": {tier: {"tg64": 1.0, "pp512": 1.5} for tier in ("avx512", "avx2")},
}
_BAR_INCHES = 0.24
_PANEL_INCHES = 0.5  # besides its bars
_WIDTH_INCHES = 8.5
_DPI = 100
_NAME_COLUMNS = 30


def make_table(rows: Sequence[Row]) -> Table:
    """Return the figures for a terminal."""
    return table_of(_header(rows), [_cells(row) for row in rows])


def to_markdown(rows: Sequence[Row]) -> str:
    """Return the figures as a table in Markdown."""
    return markdown_of(_header(rows), [_cells(row) for row in rows])


def table_of(header: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """Return a table for a terminal: two columns of names, then figures."""
    table = Table()
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index < 2 else "right")
    for cells in lines:
        table.add_row(*cells)
    return table


def markdown_of(header: Sequence[str], lines: Sequence[Sequence[str]], names: int = 2) -> str:
    """Return the same in Markdown, after so many columns of names."""
    rule = ["---"] * names + ["---:"] * (len(header) - names)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, rule, *lines))


def save_chart(rows: Sequence[Row], path: Path, caption: str, targets: Targets) -> None:
    """Draw each variant's ratio to each peer: a panel per test, the targets as marks.

    Args:
        rows: of `bench.contest.measure`.
        path: the file; its suffix is the format.
        caption: what was measured.
        targets: variant -> test -> the ratio to mark.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    tests = {row.test: [other for other in rows if other.test == row.test] for row in rows}
    heights = [
        sum(len(row.ratios) for row in members if row.variant is None) * _BAR_INCHES + _PANEL_INCHES
        for members in tests.values()
    ]
    figure = Figure(figsize=(_WIDTH_INCHES, sum(heights) + 1.2), layout="constrained")
    grid = figure.subplots(
        len(tests), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights}
    )
    for axes, (test, members) in zip(grid.ravel().tolist(), tests.items(), strict=True):
        _draw(axes, test, members, targets)
    marks = [targets.get(ours, {}).get(row.test, 0.0) for row in rows for ours in row.ratios]
    longest = max(marks + [ratio for row in rows for ratio in row.ratios.values()])
    grid[-1, 0].set_xlim(0, longest * 1.4)  # room for the figures behind the bars
    grid[-1, 0].set_xlabel("times as fast as the peer; red: the target")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    figure.suptitle(caption, fontsize=9)
    with rc_context({"svg.fonttype": "none"}):  # text as text, a third of the size
        figure.savefig(path, dpi=_DPI)


def _header(rows: Sequence[Row]) -> list[str]:
    return ["test", "engine", "tok/s", "spread", *(f"{ours} over it" for ours in rows[0].ratios)]


def _cells(row: Row) -> list[str]:
    ratios = [f"{ratio:.2f}x" for ratio in row.ratios.values()]
    return [row.test, row.engine, f"{row.tokens_per_second:.1f}", f"{row.spread:.0%}", *ratios]


def _draw(axes: Axes, test: str, members: Sequence[Row], targets: Targets) -> None:
    """Draw the bars of one test, those of a peer together."""
    own = {row.variant: row for row in members if row.variant is not None}
    peers = [row for row in members if row.variant is None]
    for index, (variant, ours) in enumerate(own.items()):
        places = [place * (len(own) + 0.5) + index for place in range(len(peers))]
        ratios = [peer.ratios[variant] for peer in peers]
        axes.barh(places, ratios, 0.85, label=ours.engine)
        target = targets.get(variant, {}).get(test, 0.0)
        for place, ratio, peer in zip(places, ratios, peers, strict=True):
            if target:
                axes.plot([target] * 2, [place - 0.42, place + 0.42], color="red", linewidth=2)
            speeds = f"{ours.tokens_per_second:.0f} : {peer.tokens_per_second:.0f} tok/s"
            axes.annotate(
                f"{ratio:.2f}x  ({speeds})",
                (max(ratio, target), place),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
    middles = [place * (len(own) + 0.5) + (len(own) - 1) / 2 for place in range(len(peers))]
    axes.set_yticks(middles, [fill(peer.engine, _NAME_COLUMNS) for peer in peers], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set_title(test, loc="left", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
