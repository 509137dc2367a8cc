"""Who runs in the next step.

There are no phases: a sequence has tokens that are computed and tokens that are pending. Each step
has one token budget. Sequences with a single pending token (decoding) go first, so a long prompt
never stalls them; prompts fill the rest, in chunks. Sequences run in order of arrival. When pages
run out, the latest arrival gives its pages back and is recomputed later.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from ryzanstein.engine.batch import Chunk
from ryzanstein.errors import ContextLengthError

if TYPE_CHECKING:
    from ryzanstein.config import EngineConfig
    from ryzanstein.engine.block_manager import BlockManager
    from ryzanstein.engine.sequence import Sequence

__all__ = ["Scheduler"]


class Scheduler:
    """First come, first served, over a pool of pages and a token budget."""

    def __init__(self, blocks: BlockManager, config: EngineConfig) -> None:
        self._blocks = blocks
        self._max_sequences = config.max_sequences
        self._token_budget = config.token_budget
        self._capacity = min(config.context_length, blocks.num_blocks * blocks.block_tokens)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        """Return whether any sequence is unfinished."""
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            ContextLengthError: it could never fit, even alone.
        """
        if sequence.capacity > self._capacity:
            raise ContextLengthError(
                f"{sequence.num_prompt_tokens} prompt tokens and up to "
                f"{sequence.capacity - sequence.num_prompt_tokens} generated ones need a context "
                f"of {sequence.capacity}, but the context is {self._capacity}"
            )
        self.waiting.append(sequence)

    def schedule(self) -> list[tuple[Sequence, Chunk]]:
        """Reserve pages for the next step and return what it computes, decodes first."""
        shares, budget = self._share_budget()
        while sum(self._needed(s, n) for s, n in shares) > self._blocks.num_free:
            victim = self._preempt_latest()
            shares = [share for share in shares if share[0] is not victim]
        shares += self._admit(budget)
        return [(sequence, self._reserve(sequence, n)) for sequence, n in shares]

    def retire(self) -> None:
        """Let finished sequences go and free their pages."""
        for sequence in [s for s in self.running if s.is_finished]:
            self.release(sequence)

    def make_room(self, num_blocks: int) -> None:
        """Preempt until so many pages are free, or nothing runs."""
        while self.running and self._blocks.num_free < num_blocks:
            self._preempt_latest()

    def release(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its pages."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._free(sequence)

    def rollback(self) -> None:
        """Forget reservations of a step that did not complete."""
        for sequence in self.running:
            if sequence.table is not None and sequence.table.num_tokens > sequence.num_computed:
                self._blocks.truncate(sequence.table, sequence.num_computed)

    def _share_budget(self) -> tuple[list[tuple[Sequence, int]], int]:
        budget = self._token_budget
        shares: list[tuple[Sequence, int]] = []
        # An unfinished prompt took what was left of the budget, so nothing was admitted behind it:
        # it is the last that runs, and decodes (one pending token) come first.
        for sequence in self.running:
            n = min(budget, sequence.num_pending)
            if n:
                shares.append((sequence, n))
                budget -= n
        return shares, budget

    def _admit(self, budget: int) -> list[tuple[Sequence, int]]:
        shares: list[tuple[Sequence, int]] = []
        # Running prompts were admitted on the promise of pages for all their tokens.
        spare = self._blocks.num_free - sum(self._needed(s, s.num_pending) for s in self.running)
        while self.waiting and budget and len(self.running) < self._max_sequences:
            sequence = self.waiting[0]
            spare -= self._blocks.blocks_for(sequence.num_tokens)
            if spare < 0:
                break
            sequence.table = self._blocks.allocate()
            sequence.mark_admitted()
            self.running.append(self.waiting.popleft())
            n = min(budget, sequence.num_pending)
            shares.append((sequence, n))
            budget -= n
        return shares

    def _reserve(self, sequence: Sequence, n: int) -> Chunk:
        assert sequence.table is not None
        start = sequence.num_computed
        reservation = self._blocks.append(sequence.table, n)
        return Chunk(
            token_ids=sequence.buffer[start : start + n],
            start=start,
            slots=reservation.slots,
            block_ids=sequence.table.block_ids,
            num_logit_rows=int(start + n == sequence.num_tokens),
            screening=sequence.screening,
            seen=sequence.known,
            copies=reservation.copies,
        )

    def _needed(self, sequence: Sequence, n: int) -> int:
        assert sequence.table is not None
        return self._blocks.blocks_needed(sequence.table, n)

    def _preempt_latest(self) -> Sequence:
        victim = self.running.pop()
        self._free(victim)
        victim.num_computed = 0
        self.waiting.appendleft(victim)
        return victim

    def _free(self, sequence: Sequence) -> None:
        if sequence.table is not None:
            self._blocks.free(sequence.table)
            sequence.table = None
