"""Progress bars over bytes, on standard error and only on a terminal."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["byte_progress"]


@contextmanager
def byte_progress(title: str, total: int, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Yield a function that moves a progress bar by so many bytes."""
    if not shown:
        yield lambda _: None
        return
    # Imported here because it costs 50 ms that quiet work need not pay.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(title, total=total)
        yield lambda nbytes: bar.advance(task, nbytes)
