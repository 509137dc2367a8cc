"""Rows kept in an SQLite file, one table that grows from run to run."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import fields
from typing import TYPE_CHECKING

from ryzanstein.bench.report import flatten
from ryzanstein.bench.result import Row
from ryzanstein.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["append_rows"]

_FIELDS = [field.name for field in fields(Row)]
# In brackets: `commit` is a keyword, and what is merely quoted may be read as a string.
_COLUMNS = ", ".join(f"[{name}]" for name in _FIELDS)
_VALUES = ", ".join(f":{name}" for name in _FIELDS)


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Append rows to the table `bench`, which is made if it has to be. No rows: only check it.

    Columns are the fields of `Row`; lists and mappings are JSON.

    Raises:
        ValidationError: the file cannot be written, is no database, or its table has other columns.
    """
    try:
        with closing(sqlite3.connect(path)) as database, database:
            database.execute(f"CREATE TABLE IF NOT EXISTS bench ({_COLUMNS})")
            database.execute(f"SELECT {_COLUMNS} FROM bench LIMIT 0")
            database.executemany(
                f"INSERT INTO bench ({_COLUMNS}) VALUES ({_VALUES})", map(flatten, rows)
            )
    except sqlite3.Error as error:
        raise ValidationError(f"--sqlite {path}: {error}") from error
