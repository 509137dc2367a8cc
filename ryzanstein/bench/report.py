"""Rows as text: JSON, CSV, Markdown, or a table for a terminal."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from ryzanstein.bench.result import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.table import Table

__all__ = ["FORMATS", "describe", "flatten", "make_table"]

_HEADER = ("test", "threads", "tok/s", "median", "of the limit")


def flatten(row: Row) -> dict[str, str | int | float | None]:
    """Return a row's fields for a table of plain values: lists and mappings become JSON."""
    return {
        name: json.dumps(value) if isinstance(value, dict | list | tuple) else value
        for name, value in asdict(row).items()
    }


def describe(row: Row) -> str:
    """Return what all rows of a run share: the model, the machine and the build."""
    size = row.model_bytes
    read = f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
    kernels = "; ".join(f"{op}: {how}" for op, how in row.kernels.items())
    built = f"ryzanstein {row.version} ({row.commit})"
    return (
        f"{row.model}, {row.num_parameters / 1e6:.0f} M parameters, {read}\n"
        f"{row.cpu}, {row.isa} ({kernels}), {row.kv_dtype} cache\n{built}, {row.time}"
    )


def make_table(rows: Sequence[Row]) -> Table:
    """Return the rows' figures for a terminal."""
    from rich.table import Table  # 50 ms that the other formats need not pay

    table = Table()
    for name in _HEADER:
        table.add_column(name, justify="left" if name == "test" else "right")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _to_json(rows: Sequence[Row]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=2) + "\n"


def _to_csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(flatten, rows))
    return text.getvalue()


def _to_markdown(rows: Sequence[Row]) -> str:
    lines = [describe(rows[0]), "", _line(_HEADER), _line(["---", *["---:"] * (len(_HEADER) - 1)])]
    lines += [_line(_cells(row)) for row in rows]
    return "\n".join(lines) + "\n"


FORMATS: dict[str, Callable[[Sequence[Row]], str]] = {
    "json": _to_json,
    "csv": _to_csv,
    "md": _to_markdown,
}


def _cells(row: Row) -> list[str]:
    limit, share = row.limit
    digits = 1 if row.median < 1000 else 0
    return [
        row.test,
        str(row.n_threads),
        f"{row.tokens_per_second:.{digits}f} ± {row.stddev:.{digits}f}",
        f"{row.median:.{digits}f}",
        f"{share:.0%} {limit}",
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
