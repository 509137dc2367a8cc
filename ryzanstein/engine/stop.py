"""Stop strings, found wherever the token borders fall."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["StopMatcher"]


class StopMatcher:
    """Passes text through until a stop string is complete.

    Text that could be the beginning of a stop string is held back. The stop string that is complete
    first wins (of several that end together, the longest), so the result does not depend on how the
    text was cut into pieces.

    Args:
        stops: non-empty strings.

    Example:
        >>> matcher = StopMatcher(["END"])
        >>> matcher.feed("one E"), matcher.feed("ND two"), matcher.matched
        ('one ', '', True)
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched = False

    def feed(self, text: str) -> str:
        """Return the text that is certain not to belong to a stop string."""
        if self.matched:
            return ""
        self._held += text
        found = [(at + len(s), at) for s in self._stops if (at := self._held.find(s)) >= 0]
        if found:
            self.matched = True
            settled, self._held = self._held[: min(found)[1]], ""
            return settled
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        settled, self._held = self._held[:cut], self._held[cut:]
        return settled

    def flush(self) -> str:
        """Return what was held back; the text is over."""
        rest, self._held = self._held, ""
        return rest

    def _overlap(self, stop: str) -> int:
        """Return the longest proper prefix of `stop` that the held text ends with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
