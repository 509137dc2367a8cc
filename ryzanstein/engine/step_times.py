"""How long a step of so many tokens takes on this machine, learnt from the steps themselves."""

from __future__ import annotations

from bisect import bisect, bisect_left, insort

__all__ = ["StepTimes"]

# A chunk is worth doubling if the step takes at most so many times as long: prompts are read
# faster by more than decoding sequences become slower.
_WORTH_DOUBLING = 2**0.5
# A chunk is known from steps of at least and at most so many times its tokens: decodes fill its
# steps up, and the end of a page or the token budget cuts it off.
_LEAST_TOKENS, _MOST_TOKENS = 0.75, 1.5
# A later measurement counts as at least and at most so much of what was known: the estimate stays
# with the faster steps of those seen, and neither the best nor a slow one decides.
_LEAST, _MOST = 0.95, 1.02


class StepTimes:
    """The curve T(n), and the chunk of a prompt that follows from it.

    Each multiple of the page that may be a chunk is tried by the first prompts that are long
    enough. What is chosen shows in the time only: results do not depend on the cutting.

    Args:
        page_tokens: chunks are a power of two times so many tokens.
        most_tokens: the largest chunk.

    Example:
        >>> times = StepTimes(32, 64)
        >>> times.record(32, 0.5)
        >>> times.record(64, 0.7)
        >>> times.chunk(num_decoding=0), times(48)
        (64, 0.6)
    """

    def __init__(self, page_tokens: int, most_tokens: int) -> None:
        self._page_tokens = page_tokens
        self._chunks = [page_tokens]
        while self._chunks[-1] * 2 <= most_tokens:
            self._chunks.append(self._chunks[-1] * 2)
        self._seconds: dict[int, float] = {}
        self._lengths: list[int] = []  # the keys of that, ascending

    def record(self, num_tokens: int, seconds: float) -> None:
        """Learn from a step."""
        known = self._seconds.get(num_tokens)
        if known is not None and seconds > known / 2:  # else what was known was a disturbance
            seconds = min(max(seconds, known * _LEAST), known * _MOST)
        self._seconds[num_tokens] = seconds
        if known is None:
            insort(self._lengths, num_tokens)
        # Fewer tokens take no longer: where they seemed to, something else ran meanwhile.
        for n in reversed(self._lengths[: bisect_left(self._lengths, num_tokens)]):
            if self._seconds[n] <= seconds:
                break
            self._seconds[n] = seconds

    def chunk(self, num_decoding: int) -> int:
        """Return how many tokens of prompts to put into a step beside so many decodes.

        Where nobody decodes and waits for the step, it is the cheapest per token.
        """
        untried = next((n for n in reversed(self._chunks) if not self._is_known(n)), None)
        if untried is not None:
            return untried
        if num_decoding == 0:
            return min(self._chunks, key=lambda n: self(n) / n)
        chosen = self._chunks[0]
        for n in self._chunks[1:]:
            if self(num_decoding + n) > self(num_decoding + chosen) * _WORTH_DOUBLING:
                break
            chosen = n
        return chosen

    def _is_known(self, chunk: int) -> bool:
        i = bisect(self._lengths, chunk * _LEAST_TOKENS)
        return i < len(self._lengths) and self._lengths[i] <= chunk * _MOST_TOKENS

    def __call__(self, num_tokens: int) -> float:
        """Return the seconds of a step, in proportion between those measured; 0 if none was."""
        measured = self._seconds.get(num_tokens)
        if measured is not None:
            return measured
        lengths = self._lengths
        i = bisect(lengths, num_tokens)
        if not lengths:
            return 0.0
        if i == 0:  # below the least, a step costs no less
            return self._seconds[lengths[0]]
        below = lengths[i - 1]
        if i == len(lengths):  # beyond the largest, tokens cost what they cost there
            return self._seconds[below] * num_tokens / below
        above = lengths[i]
        share = (num_tokens - below) / (above - below)
        return self._seconds[below] * (1 - share) + self._seconds[above] * share
