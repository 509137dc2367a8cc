"""One engine for many callers: threads take turns, and their sequences share the steps."""

from __future__ import annotations

from collections import deque
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, TypeVar

from ryzanstein.engine.fair_lock import FairLock
from ryzanstein.engine.interrupts import Uninterrupted
from ryzanstein.engine.result import Piece
from ryzanstein.errors import RyzansteinError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from collections.abc import Sequence as ABCSequence
    from pathlib import Path

    from ryzanstein import _core
    from ryzanstein._core import F32Array, I32Array
    from ryzanstein.engine.beam_request import BeamRequest
    from ryzanstein.engine.engine import Engine
    from ryzanstein.engine.request import Request

__all__ = ["SharedEngine"]

_AnyRequest = TypeVar("_AnyRequest", bound="Request | BeamRequest")


class SharedEngine:
    """Runs requests to their end, together with those of other threads and open streams."""

    def __init__(self, engine: Engine) -> None:
        self._engine: Engine | None = engine
        self._lock = FairLock()
        self._released: deque[Request | BeamRequest] = deque()

    @property
    def context_length(self) -> int:
        """Return the most tokens one sequence may have."""
        return self._live().config.context_length

    def rope_set(self, capacity: int) -> int:
        """As `EngineConfig.rope_set`."""
        return self._live().config.rope_set(capacity)

    @property
    def num_free_blocks(self) -> int:
        """Return the KV pages that no sequence owns."""
        return self._live().blocks.num_free

    @property
    def decoder(self) -> _core.Decoder:
        """Return what computes."""
        return self._live().decoder

    def close(self) -> None:
        """Let go of weights and cache."""
        self._engine = None

    def run(
        self, requests: ABCSequence[Request | BeamRequest]
    ) -> Generator[tuple[int, Piece], None, None]:
        """Yield (index of the request, its next piece) until all are done.

        However the generator ends, the sequences of these requests are freed.

        Raises:
            ContextLengthError: a request could never fit.
            DistributionError: a request has no token to draw.
        """
        try:
            self.add(requests)
            pending = dict(enumerate(requests))
            while pending:
                for index, outcome in self.advance(pending):
                    if isinstance(outcome, RyzansteinError):
                        raise outcome
                    yield index, outcome
        finally:
            # One call of C: Python looks for signals behind it and not before, so whatever is
            # interrupted here, the next step frees them.
            self._released.extend(requests)
            self._forget_if_free()

    def add(self, requests: Iterable[Request | BeamRequest]) -> None:
        """Queue requests, which have to be advanced until they end, or released.

        Raises:
            ContextLengthError: a request could never fit; those before it are queued.
        """
        with self._exclusive() as engine:
            for request in requests:
                engine.add(request.sequences[0])

    def save_prefixes(self, path: Path, texts: ABCSequence[I32Array] | None = None) -> int:
        """As `Engine.save_prefixes`."""
        with self._exclusive() as engine:
            return engine.save_prefixes(path, texts)

    def load_prefixes(self, path: Path) -> int:
        """As `Engine.load_prefixes`."""
        with self._exclusive() as engine:
            return engine.load_prefixes(path)

    def logits(self, token_ids: I32Array, take: Callable[[int, F32Array], None]) -> None:
        """Call `take` with what `Engine.logits` yields; nothing else runs until the end.

        Raises:
            As `Engine.logits`.
        """
        with self._exclusive() as engine, closing(engine.logits(token_ids)) as chunks:
            for start, logits in chunks:
                take(start, logits)

    def advance(self, pending: dict[int, _AnyRequest]) -> list[tuple[int, Piece | RyzansteinError]]:
        """Return what is new of these requests, after a step if nothing is; take out what ended."""
        with self._exclusive() as engine:
            # Another thread's step may have moved these requests already.
            if not any(request.has_news for request in pending.values()):
                engine.step()
            news: list[tuple[int, Piece | RyzansteinError]] = []
            for index, request in pending.items():
                if not request.has_news:
                    continue
                try:
                    news += ((index, piece) for piece in request.take())
                except RyzansteinError as error:
                    news.append((index, error))
            for index, outcome in news:
                request = pending[index]
                if isinstance(outcome, Piece) and outcome.completion is None:
                    if outcome.finish_reason is not None:
                        engine.release(request.sequences[outcome.index])
                    continue
                for sequence in request.sequences:
                    engine.release(sequence)
                del pending[index]
        return news

    def release(self, requests: Iterable[Request | BeamRequest]) -> None:
        """Forget requests, ended or not, and free their pages, now or before the next step."""
        self._released.extend(requests)
        self._forget_if_free()

    def _forget_if_free(self) -> None:
        # The garbage collector may finalise an abandoned generator in the middle of a step of this
        # very thread: then the lock is taken, and the next step does the work.
        with Uninterrupted():
            if self._lock.acquire(blocking=False):
                try:
                    self._forget_released()
                finally:
                    self._lock.release()

    @contextmanager
    def _exclusive(self) -> Iterator[Engine]:
        """Keep other threads out, and Ctrl-C but where the engine lets it in."""
        with Uninterrupted(), self._lock:
            engine = self._live()
            self._forget_released()
            yield engine

    def _forget_released(self) -> None:
        while self._released:
            request = self._released.popleft()
            if self._engine is not None:
                for sequence in request.sequences:
                    self._engine.release(sequence)

    def _live(self) -> Engine:
        if self._engine is None:
            raise ValidationError("this LLM is closed; make a new one")
        return self._engine
