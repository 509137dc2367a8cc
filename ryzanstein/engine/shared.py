"""One engine for many callers: threads take turns, and their sequences share the steps."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ryzanstein.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from collections.abc import Sequence as ABCSequence

    from ryzanstein._core import F32Array, I32Array
    from ryzanstein.engine.engine import Engine
    from ryzanstein.engine.request import Request
    from ryzanstein.engine.result import Piece
    from ryzanstein.engine.sequence import Sequence

__all__ = ["SharedEngine"]


class SharedEngine:
    """Runs requests to their end, together with those of other threads and open streams."""

    def __init__(self, engine: Engine) -> None:
        self._engine: Engine | None = engine
        self._lock = threading.Lock()
        self._released: deque[Sequence] = deque()

    @property
    def context_length(self) -> int:
        """Return the most tokens one sequence may have."""
        return self._live().config.context_length

    @property
    def num_free_blocks(self) -> int:
        """Return the KV pages that no sequence owns."""
        return self._live().blocks.num_free

    def close(self) -> None:
        """Let go of weights and cache."""
        self._engine = None

    def run(self, requests: ABCSequence[Request]) -> Generator[tuple[int, Piece], None, None]:
        """Yield (index of the request, its next piece) until all are done.

        However the generator ends, the sequences of these requests are freed.

        Raises:
            ContextLengthError: a request could never fit.
            DistributionError: a request has no token to draw.
        """
        try:
            with self._exclusive() as engine:
                for request in requests:
                    engine.add(request.sequence)
            pending = dict(enumerate(requests))
            while pending:
                yield from self._advance(pending)
        finally:
            self._release(requests)

    def logits(self, token_ids: I32Array) -> Iterator[tuple[int, F32Array]]:
        """Yield (first position, logits float32 [n, V]); nothing else runs until the end."""
        with self._exclusive() as engine:
            yield from engine.logits(token_ids)

    def _advance(self, pending: dict[int, Request]) -> list[tuple[int, Piece]]:
        with self._exclusive() as engine:
            # Another thread's step may have moved these requests already.
            if not any(request.has_news for request in pending.values()):
                engine.step()
            news = [
                (index, piece)
                for index, request in pending.items()
                if request.has_news and (piece := request.take()) is not None
            ]
            for index, piece in news:
                if piece.finish_reason is not None:
                    engine.release(pending.pop(index).sequence)
        return news

    def _release(self, requests: ABCSequence[Request]) -> None:
        # The garbage collector may finalise an abandoned generator in the middle of a step of this
        # very thread: then the lock is taken, and the next step does the work.
        self._released.extend(request.sequence for request in requests)
        if self._lock.acquire(blocking=False):
            try:
                self._forget_released()
            finally:
                self._lock.release()

    @contextmanager
    def _exclusive(self) -> Iterator[Engine]:
        with self._lock:
            engine = self._live()
            self._forget_released()
            yield engine

    def _forget_released(self) -> None:
        while self._released:
            sequence = self._released.popleft()
            if self._engine is not None:
                self._engine.release(sequence)

    def _live(self) -> Engine:
        if self._engine is None:
            raise ValidationError("this LLM is closed; make a new one")
        return self._engine
