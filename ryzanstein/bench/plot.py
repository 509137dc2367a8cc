"""Sweeps as pictures: speed over threads, depth, sequences or tokens."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ryzanstein.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from ryzanstein.bench.result import Row

__all__ = ["check_plot", "save_plot", "sweeps"]

_SUFFIXES = (".pdf", ".png", ".svg")
# What may be swept: field of a row -> axis label, and how titles and legends write a value.
_AXES = {
    "n_threads": ("threads", "threads {}"),
    "depth": ("tokens in the cache before", "depth {}"),
    "n_seqs": ("sequences at once", "sequences {}"),
    "n_prompt": ("prompt tokens", "pp{}"),
    "n_gen": ("generated tokens", "tg{}"),
}
_PANEL_INCHES = (4.6, 3.9)
_DPI = 150
_MOST_TICKS = 8
_LOG_RANGE = 8  # from here on, last over first value


class _Sweep(NamedTuple):
    """A panel: rows of one kind ("prefill" or "decode") over a field with several values."""

    kind: str
    field: str
    rows: list[Row]


def check_plot(file: str) -> Path:
    """Return the path of a plot that could be saved there.

    Raises:
        ValidationError: matplotlib is missing, the format is unknown, or there is no such folder.
    """
    path = Path(file)
    if find_spec("matplotlib") is None:
        raise ValidationError("--plot needs matplotlib: pip install 'ryzanstein[bench]'")
    if path.suffix not in _SUFFIXES:
        raise ValidationError(f"--plot {path}: the name must end in one of {', '.join(_SUFFIXES)}")
    if not path.resolve().parent.is_dir():
        raise ValidationError(f"--plot {path}: there is no such folder")
    return path


def sweeps(rows: Sequence[Row]) -> list[_Sweep]:
    """Return what the rows show as curves: for prompts and for decoding, each field that varies."""
    kinds = {
        "prefill": [row for row in rows if row.n_prompt],
        "decode": [row for row in rows if row.n_gen],
    }
    return [
        _Sweep(kind, field, members)
        for kind, members in kinds.items()
        for field in _AXES
        if len({getattr(row, field) for row in members}) > 1
    ]


def save_plot(rows: Sequence[Row], path: Path) -> None:
    """Draw one panel per sweep, or bars if nothing varies; error bars are standard deviations.

    Beside each curve runs the limit that the machine set it when it was measured.

    Raises:
        ValidationError: the file cannot be written.
    """
    # Through the figure class and not pyplot: no window system, no global state.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = sweeps(rows)
    columns = max(1, min(len(panels), 3))
    lines = -(-max(1, len(panels)) // columns)
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * columns, height * lines + 0.6), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
    for axes, sweep in zip(grid, panels, strict=False):
        _draw(axes, sweep)
    if not panels:
        _draw_bars(grid[0], rows)
    for axes in grid[max(1, len(panels)) :]:
        axes.set_visible(False)
    first = rows[0]
    built = f"ryzanstein {first.version} ({first.commit}), {first.isa}, {first.kv_dtype} cache"
    figure.suptitle(
        f"{Path(first.model).name} on {first.cpu}, {first.time[:10]}\n{built}", fontsize=9
    )
    try:
        # Text as text: a third of the size, and it can be searched.
        with rc_context({"svg.fonttype": "none"}):
            figure.savefig(path, dpi=_DPI)
    except OSError as error:
        raise ValidationError(f"--plot {path}: {error.strerror}") from error


def _draw(axes: Axes, sweep: _Sweep) -> None:
    others = [field for field in _AXES if field != sweep.field]
    varying = [field for field in others if len({getattr(row, field) for row in sweep.rows}) > 1]
    curves: dict[str, list[Row]] = {}
    for row in sweep.rows:
        curves.setdefault(_values(row, varying), []).append(row)
    for label, members in curves.items():
        members.sort(key=lambda row: int(getattr(row, sweep.field)))
        _draw_curve(axes, sweep.field, members, label, with_shares=len(curves) == 1)
    # A grey entry for the dashed lines of every colour.
    axes.plot([], [], color="grey", linestyle="--", label="limit of memory or multiply-add")
    axes.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
    _scale(axes, sorted({int(getattr(row, sweep.field)) for row in sweep.rows}))
    fixed = [field for field in others if field not in varying]
    axes.set_title(f"{sweep.kind}: {_values(sweep.rows[0], fixed)}", loc="left", fontsize=9)
    axes.set_xlabel(_AXES[sweep.field][0])
    axes.set_ylabel("tokens per second")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.1)
    _style(axes)


def _draw_curve(
    axes: Axes, field: str, members: Sequence[Row], label: str, *, with_shares: bool
) -> None:
    """Draw speeds, and dashed what the nearer limit of each allows."""
    places = [getattr(row, field) for row in members]
    rates = [row.tokens_per_second for row in members]
    errors = [row.stddev for row in members]
    points = axes.errorbar(
        places, rates, yerr=errors, marker="o", markersize=4, capsize=3, label=label or "measured"
    )
    shares = [row.limit[1] for row in members]
    limits = [row.median / share for row, share in zip(members, shares, strict=True)]
    axes.plot(places, limits, color=points[0].get_color(), linestyle="--", linewidth=1, alpha=0.7)
    if with_shares:
        for place, rate, share in zip(places, rates, shares, strict=True):
            axes.annotate(
                f"{share:.0%}",
                (place, rate),
                (5, -10),
                textcoords="offset points",
                fontsize=7,
            )


def _scale(axes: Axes, values: list[int]) -> None:
    """Put ticks at few values; powers of two stand equally far apart."""
    if values[0] > 0 and values[-1] >= _LOG_RANGE * values[0]:
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
    if len(values) <= _MOST_TICKS:
        axes.set_xticks(values, [str(value) for value in values])


def _values(row: Row, names: list[str]) -> str:
    """Return the values of these fields in words, less the prompt or generation that is none."""
    pairs = [(_AXES[name][1], getattr(row, name)) for name in names]
    return ", ".join(form.format(value) for form, value in pairs if value or form == "depth {}")


def _draw_bars(axes: Axes, rows: Sequence[Row]) -> None:
    names = [row.test for row in rows]
    rates = [row.tokens_per_second for row in rows]
    axes.barh(names, rates, xerr=[row.stddev for row in rows], height=0.6, capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel("tokens per second")
    _style(axes)


def _style(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
