"""Ctrl-C, held back while pages change hands.

Python calls the handler of SIGINT, which mostly raises KeyboardInterrupt, between any two of its
instructions. No order of assignments survives that everywhere, so the bookkeeping around a step is
`Uninterrupted`. What may take long is `Interruptible` within it, and has to leave nothing half
done that the code around does not undo.

Only the main thread runs handlers, so in other threads neither does anything.
"""

from __future__ import annotations

import inspect
import threading

# As in `signal`, but without turning numbers into enums, which would take 10 us per step.
from _signal import getsignal, signal  # type: ignore[import-not-found]
from signal import SIGINT
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ["Interruptible", "Uninterrupted"]


class _Innermost(threading.local):
    context: Uninterrupted | None = None


_innermost = _Innermost()


class Uninterrupted:
    """A context in which SIGINT waits; at its end the handler that was there is called.

    Contexts nest. Where SIGINT is ignored, ends the process or is handled outside Python, it stays
    so.

    Example:
        >>> with Uninterrupted():
        ...     pages = take_pages()
        ...     with Interruptible():
        ...         compute(pages)
    """

    __slots__ = ("_handler", "_is_open", "_outer", "_waits")

    def __init__(self) -> None:
        self._handler: Callable[[int, FrameType | None], object] | None = None
        self._is_open = False
        self._waits = False

    def __enter__(self) -> None:
        if threading.get_ident() != threading.main_thread().ident:
            return
        handler = getsignal(SIGINT)
        if not callable(handler):
            return
        self._handler = handler
        self._outer = _innermost.context
        signal(SIGINT, self._on_signal)
        _innermost.context = self

    def __exit__(self, *error: object) -> None:
        if self._handler is None:
            return
        _innermost.context = self._outer
        signal(SIGINT, self._handler)
        if self._waits:
            self._handler(SIGINT, inspect.currentframe())

    def open(self) -> None:
        """Let SIGINT in, first of all one that waits."""
        self._is_open = True
        if self._waits:
            self._waits = False
            self._on_signal(SIGINT, inspect.currentframe())

    def close(self) -> None:
        """Hold SIGINT back again."""
        self._is_open = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._is_open:
            self._waits = True
            return
        assert self._handler is not None
        # Closed before the handler raises: the next interrupt waits for what undoes and frees.
        self._is_open = False
        self._handler(number, frame)
        self._is_open = True


class Interruptible:
    """A context within `Uninterrupted` that lets SIGINT in; it may come at any place."""

    __slots__ = ("_context",)

    def __enter__(self) -> None:
        self._context = _innermost.context
        if self._context is not None:
            self._context.open()

    def __exit__(self, *error: object) -> None:
        if self._context is not None:
            self._context.close()
