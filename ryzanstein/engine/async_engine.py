"""Streams for asyncio: one thread runs the steps, each stream awaits its pieces."""

from __future__ import annotations

import asyncio
import itertools
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from ryzanstein.errors import RyzansteinError, ValidationError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from ryzanstein.engine.request import Request
    from ryzanstein.engine.result import Piece
    from ryzanstein.engine.shared import SharedEngine

__all__ = ["AsyncEngine"]

_Outcome: TypeAlias = "Piece | BaseException"


class AsyncEngine:
    """Serves many streams at once on the event loop they were asked for from.

    Args:
        engine: does the work; threads may use it at the same time.
        make_request: turns the arguments of `stream` into a request, or raises.

    Example:
        >>> async with llm.serve() as engine:
        ...     async for piece in engine.stream("Hello"):
        ...         print(piece.text, end="")
    """

    def __init__(self, engine: SharedEngine, make_request: Callable[..., Request]) -> None:
        self._engine = engine
        self._make_request = make_request
        self._changed = threading.Condition()
        self._arrived: list[tuple[Request, Callable[[_Outcome], None]]] = []
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="ryzanstein-engine", daemon=True)
        self._thread.start()

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def stream(self, *prompt: object, **options: object) -> AsyncGenerator[Piece, None]:
        """Yield pieces of text as they are generated; the arguments are those of `LLM.stream`.

        Leaving the loop, closing the generator or cancelling its task ends the generation at the
        next step and frees its pages.

        Raises:
            ValidationError: the engine was closed.
            As `LLM.stream`, before the first piece.
        """
        request = self._make_request(*prompt, **options)
        loop = asyncio.get_running_loop()
        outcomes: asyncio.Queue[_Outcome] = asyncio.Queue()

        def deliver(outcome: _Outcome) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(outcomes.put_nowait, outcome)

        with self._changed:
            if self._closing:
                raise ValidationError("this engine is closed; make a new one")
            self._arrived.append((request, deliver))
            self._changed.notify()
        try:
            while True:
                outcome = await outcomes.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                yield outcome
                if outcome.completion is not None:
                    return
        finally:
            request.cancel()

    async def close(self) -> None:
        """End what still runs, as "cancelled", and the thread. Closing twice is fine."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        """Advance every stream until closed and idle."""
        numbers = itertools.count()
        requests: dict[int, Request] = {}
        deliver: dict[int, Callable[[_Outcome], None]] = {}
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._arrived or requests or self._closing)
                arrived, self._arrived = self._arrived, []
                closing = self._closing
            for (request, to_stream), number in zip(arrived, numbers, strict=False):
                requests[number], deliver[number] = request, to_stream
                try:
                    self._engine.add([request])
                except RyzansteinError as error:
                    del requests[number]
                    deliver.pop(number)(error)
            if closing:
                for request in requests.values():
                    request.cancel()
                if not requests:
                    return
            news: Sequence[tuple[int, _Outcome]]
            try:
                news = self._engine.advance(requests)
            except BaseException as error:
                # Whatever stops a step stops every stream that waits for it; the engine goes on.
                self._engine.release(requests.values())
                news = [(number, error) for number in requests]
                requests.clear()
            for number, outcome in news:
                deliver[number](outcome)
            for number in deliver.keys() - requests.keys():
                del deliver[number]
