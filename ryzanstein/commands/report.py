"""A command's result, as JSON or for a reader."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["count_of", "format_bytes", "print_report"]


def print_report(report: Mapping[str, object], as_json: bool) -> None:
    """Print named values, nested ones indented."""
    if as_json:
        typer.echo(json.dumps(report, indent=2, default=str))
        return
    _print_table(report, "")


def count_of(count: int, noun: str) -> str:
    """Return a count of things for a reader.

    Example:
        >>> count_of(1, "file"), count_of(2, "file")
        ('1 file', '2 files')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def format_bytes(count: int) -> str:
    """Return a size for a reader.

    Example:
        >>> format_bytes(1_187_801_280)
        '1.19 GB'
    """
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if round(size) < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _print_table(table: Mapping[str, object], indent: str) -> None:
    width = max((len(key) for key in table), default=0) + 2
    for key, value in table.items():
        label = f"{indent}{key.replace('_', ' ') + ':':<{width}}"
        if not isinstance(value, dict):
            typer.echo(label + _shown(value))
        elif all(isinstance(item, bool) for item in value.values()):
            typer.echo(label + " ".join(name for name, on in value.items() if on))
        else:
            typer.echo(label.rstrip())
            _print_table(value, indent + "  ")


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
