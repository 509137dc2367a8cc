"""Output that is whole or not there: written beside its place, synced, then named."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ryzanstein.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["new_output"]


@contextmanager
def new_output(path: Path) -> Iterator[Path]:
    """Yield where to write a file or directory, which gets its name once all went well.

    Raises:
        ValidationError: there is something of that name, or no directory to hold it.
    """
    if os.path.lexists(path):
        raise ValidationError(f"{path} exists and is not overwritten; delete it, or name another")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise ValidationError(f"{parent} is not a directory; create it first")
    temporary = parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        yield temporary
        for written in (*_children(temporary), temporary):
            _sync(written)
        if os.path.lexists(path):  # made meanwhile
            raise ValidationError(f"{path} exists and is not overwritten; delete it")
        temporary.rename(path)
        _sync(parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def _children(path: Path) -> list[Path]:
    return list(path.iterdir()) if path.is_dir() else []


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
