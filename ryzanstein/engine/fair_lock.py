"""A lock that is handed over in the order of asking."""

from __future__ import annotations

import threading
from collections import deque

from ryzanstein.engine.interrupts import Interruptible

__all__ = ["FairLock"]


class FairLock:
    """As `threading.Lock`, but whoever lets go and asks again at once comes after those who wait.

    A step takes nearly all the time between two of them, so with a plain lock the thread that steps
    would nearly always win, and others would neither hand in a request nor read their own.

    The main thread has to be `Uninterrupted` from before it asks until it has let go; waiting is
    `Interruptible`.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held = False
        self._queue: deque[threading.Lock] = deque()

    def acquire(self, *, blocking: bool = True) -> bool:
        """Take the lock; return whether that succeeded.

        Without blocking it is safe anywhere, as in a finaliser that interrupts this very class.
        """
        if not self._guard.acquire(blocking=blocking):
            return False
        turn = threading.Lock()
        try:
            if not self._held:
                self._held = True
                return True
            if not blocking:
                return False
            turn.acquire()
            self._queue.append(turn)
        finally:
            self._guard.release()
        try:
            with Interruptible():
                turn.acquire()  # handed over by release
        except BaseException:
            self._give_up(turn)
            raise
        return True

    def release(self) -> None:
        """Hand the lock to who waits longest."""
        with self._guard:
            if self._queue:
                self._queue.popleft().release()
            else:
                self._held = False

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def _give_up(self, turn: threading.Lock) -> None:
        """Leave the queue after an interrupt, which may have come after the lock did."""
        with self._guard:
            waiting = turn in self._queue
            if waiting:
                self._queue.remove(turn)
        if not waiting:
            self.release()
