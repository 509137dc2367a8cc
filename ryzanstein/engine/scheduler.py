"""Who runs in the next step.

There are no phases: a sequence has tokens that are computed and tokens that are pending. Each step
has one token budget. Sequences with a single pending token (decoding) go first, so a long prompt
never stalls them; prompts fill the rest, in chunks that end with a page. When pages run out, the
sequence that ranks last gives its pages back and is recomputed later, less what is still cached.
A fork waits with the pages it begins with, which count as a running sequence's do.
Guesses at what a decoding sequence says next take only tokens and pages that nobody else wants.

A rank is the step of arrival, less what a policy grants: so many steps per level of priority, or
per cached page. Whoever comes that much later ranks behind, so nobody starves.
"""

from __future__ import annotations

import time
from bisect import insort
from typing import TYPE_CHECKING

import numpy as np

from ryzanstein.engine.batch import Chunk
from ryzanstein.engine.interrupts import Interruptible
from ryzanstein.engine.prefix_cache import NO_MATCH
from ryzanstein.errors import ContextLengthError
from ryzanstein.sampling.screening import EVERY_LOGIT

if TYPE_CHECKING:
    from collections.abc import Sequence as ABCSequence

    from ryzanstein.config import EngineConfig
    from ryzanstein.engine.block_manager import BlockManager
    from ryzanstein.engine.prefix_cache import PrefixMatch
    from ryzanstein.engine.sequence import Sequence

__all__ = ["Scheduler"]

_STEPS_PER_PRIORITY = 64
_STEPS_PER_CACHED_PAGE = 1
# Waiting sequences that are compared by their cached pages: looking them up takes time.
_LOOK_AHEAD = 8
# The share of the pool that admission leaves to the sequences that run already.
_WATERMARK = 0.01


class Scheduler:
    """Ranks sequences, over a pool of pages and a token budget.

    `held` sequences have nothing to compute for now; they keep their pages while there is room.
    `prefill_tokens` limits the prompts' share of a step; it may be changed between steps.
    `drafting_seconds` is what making guesses took in the last one.
    """

    def __init__(self, blocks: BlockManager, config: EngineConfig) -> None:
        self._blocks = blocks
        self._max_sequences = config.max_sequences
        self._token_budget = config.token_budget
        self._capacity = min(config.context_length, blocks.num_blocks * blocks.block_tokens)
        self._watermark = int(blocks.num_blocks * _WATERMARK)
        self._policy = config.scheduling
        self._num_steps = 0
        self._num_added = 0
        self.prefill_tokens = config.token_budget
        self.drafting_seconds = 0.0
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.held: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        """Return whether any sequence is unfinished."""
        return bool(self.running or self.waiting)

    @property
    def num_decoding(self) -> int:
        """Return the running sequences that have a single pending token."""
        return sum(sequence.num_pending == 1 for sequence in self.running)

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
        granted = sequence.priority * _STEPS_PER_PRIORITY if self._policy == "priority" else 0
        self._num_added += 1
        sequence.arrival = (self._num_steps - granted, self._num_added)
        self._wait(sequence)

    def add_fork(self, fork: Sequence, origin: Sequence) -> None:
        """Let a sequence go on from the pages it has, ranked as the one it is a fork of."""
        fork.arrival = origin.arrival
        if fork.is_finished:
            self._free(fork)
        elif fork.table is not None and len(self.running) < self._max_sequences:
            self.running.append(fork)
        else:
            self._wait(fork)

    def schedule(self) -> list[tuple[Sequence, Chunk]]:
        """Reserve pages for the next step and return what it computes, decodes first."""
        self._num_steps += 1
        shares, budget = self._share_budget()
        while sum(self._needed(s, n) for s, n in shares) > self._blocks.num_free:
            victim = self._preempt_last()
            shares = [share for share in shares if share[0] is not victim]
        shares += self._admit(budget)
        began = time.perf_counter()
        with Interruptible():
            drafts = self._draft(shares)
        self.drafting_seconds = time.perf_counter() - began
        return [
            (sequence, self._reserve(sequence, n, draft))
            for (sequence, n), draft in zip(shares, drafts, strict=True)
        ]

    def retire(self) -> None:
        """Let finished sequences go and free their pages, and set those aside that are held."""
        for sequence in [s for s in self.running if s.is_finished]:
            self.release(sequence)
        for sequence in [s for s in self.running if s.is_held]:
            self.running.remove(sequence)
            self.held.append(sequence)

    def shift(self) -> list[Sequence]:
        """Let sequences that fill their context drop tokens, and return them.

        They are recomputed as after a preemption.
        """
        full = [s for s in self.running + self.waiting if not (s.room or s.is_finished)]
        for sequence in full:
            self._preempt(sequence)
            sequence.shift()
        return full

    def make_room(self, num_blocks: int) -> None:
        """Preempt until so many pages are free, or nothing runs."""
        while self._blocks.num_free < num_blocks and self._holders():
            self._preempt_last()

    def release(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its pages."""
        self._free(sequence)
        for queue in (self.running, self.waiting, self.held):
            if sequence in queue:
                queue.remove(sequence)

    def rollback(self) -> None:
        """Forget reservations of a step that did not complete.

        A last page that is not full is given up with them: it may be the target of a copy that was
        never made. Its tokens are computed again.
        """
        for sequence in self.running:
            assert sequence.table is not None
            if sequence.table.num_tokens > sequence.num_computed:
                sequence.num_computed -= sequence.num_computed % self._blocks.block_tokens
                self._blocks.truncate(sequence.table, sequence.num_computed)

    def _share_budget(self) -> tuple[list[tuple[Sequence, int]], int]:
        """Return what the running sequences compute, and what that leaves for prompts to come."""
        budget = min(self._token_budget, self.num_decoding + self.prefill_tokens)
        shares: list[tuple[Sequence, int]] = []
        # Nothing is admitted behind an unfinished prompt, so it is the last that runs. Decodes (one
        # pending token) come first; forced tokens may be pending anywhere among them.
        for sequence in sorted(self.running, key=lambda running: running.num_pending > 1):
            n = self._chunk(sequence, budget)
            if n:
                shares.append((sequence, n))
            budget = 0 if n < sequence.num_pending else budget - n
        return shares, budget

    def _admit(self, budget: int) -> list[tuple[Sequence, int]]:
        shares: list[tuple[Sequence, int]] = []
        # Running prompts were admitted on the promise of pages for all their tokens.
        spare = self._blocks.num_free - sum(self._needed(s, s.num_pending) for s in self.running)
        while self.waiting and budget and len(self.running) < self._max_sequences:
            sequence, prefix = self._next_waiting()
            needed = self._needed_to_begin(sequence, prefix)
            if spare - needed < (self._watermark if self.running else 0):
                # Forks may hold what the first in the queue needs.
                if self.running or not self._holders(but=sequence):
                    break
                self._preempt_last(but=sequence)
                spare = self._blocks.num_free
                continue
            spare -= needed
            if sequence.table is None:
                sequence.table = self._blocks.allocate()
                self._blocks.attach(sequence.table, prefix)
                sequence.num_computed = sequence.table.num_tokens
            sequence.mark_admitted(prefix)
            self.running.append(sequence)
            self.waiting.remove(sequence)
            n = self._chunk(sequence, budget)
            shares.append((sequence, n))
            budget = 0 if n < sequence.num_pending else budget - n
        return shares

    def _next_waiting(self) -> tuple[Sequence, PrefixMatch]:
        if self._policy != "prefix":
            return self.waiting[0], self._match(self.waiting[0])
        found = [(s, self._match(s)) for s in self.waiting[:_LOOK_AHEAD]]
        return min(
            found, key=lambda pair: pair[0].arrival[0] - len(pair[1].pages) * _STEPS_PER_CACHED_PAGE
        )

    def _match(self, sequence: Sequence) -> PrefixMatch:
        # Pages that were computed before show no logits.
        if sequence.table is not None or sequence.is_scoring:
            return NO_MATCH
        return self._blocks.match(sequence.chain, sequence.num_context)

    def _chunk(self, sequence: Sequence, budget: int) -> int:
        """Return the tokens to compute next: all that are pending, or up to the end of a page."""
        if sequence.num_pending <= budget:
            return sequence.num_pending
        beyond_page = (sequence.num_computed + budget) % self._blocks.block_tokens
        return budget - beyond_page if beyond_page < budget else budget

    def _draft(self, shares: list[tuple[Sequence, int]]) -> list[ABCSequence[int]]:
        """Return guesses for each share, from the tokens and pages that the others leave."""
        drafts: list[ABCSequence[int]] = [()] * len(shares)
        decoding = [i for i, (s, n) in enumerate(shares) if n == s.num_pending == 1 and s.drafter]
        if not decoding:
            return drafts
        step_tokens = sum(n for _, n in shares)
        spare = self._blocks.num_free - sum(self._needed(s, n) for s, n in shares)
        for i in decoding:
            sequence = shares[i][0]
            held = self._blocks.blocks_for(sequence.num_context)
            most = min(
                self._token_budget - step_tokens,
                (held + spare) * self._blocks.block_tokens - sequence.num_context,
                sequence.room - 1,  # one more is drawn behind them
            )
            assert sequence.drafter is not None
            tokens = sequence.buffer[: sequence.num_tokens]
            drafts[i] = sequence.drafter.draft(tokens, most, step_tokens)
            step_tokens += len(drafts[i])
            spare -= self._blocks.blocks_for(sequence.num_context + len(drafts[i])) - held
        return drafts

    def _reserve(self, sequence: Sequence, n: int, draft: ABCSequence[int]) -> Chunk:
        assert sequence.table is not None
        start = sequence.num_computed
        token_ids = sequence.context[start : start + n]
        if draft:
            token_ids = np.concatenate((token_ids, np.array(draft, np.int32)))
        reservation = self._blocks.append(sequence.table, len(token_ids))
        return Chunk(
            token_ids=token_ids,
            start=start,
            slots=reservation.slots,
            block_ids=sequence.table.block_ids,
            num_logit_rows=sequence.num_logit_rows(n) + len(draft),
            screening=EVERY_LOGIT if sequence.is_scoring else sequence.screening,
            seen=sequence.known(draft),
            copies=reservation.copies,
            draft=draft,
            rope_set=sequence.rope_set,
        )

    def _needed(self, sequence: Sequence, n: int) -> int:
        assert sequence.table is not None
        return self._blocks.blocks_needed(sequence.table, n)

    def _needed_to_begin(self, sequence: Sequence, prefix: PrefixMatch) -> int:
        if sequence.table is not None:
            return self._needed(sequence, sequence.num_pending)
        in_use = len(prefix.pages) - prefix.num_unused
        return self._blocks.blocks_for(sequence.num_context) - in_use

    def _holders(self, but: Sequence | None = None) -> list[Sequence]:
        """Return the sequences that have pages, those that do not run first."""
        idle = [s for s in (*self.held, *self.waiting) if s.table is not None and s is not but]
        return idle + self.running

    def _preempt_last(self, but: Sequence | None = None) -> Sequence:
        victim = max(self._holders(but), key=lambda sequence: sequence.arrival)
        self._preempt(victim)
        return victim

    def _preempt(self, sequence: Sequence) -> None:
        self._free(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
            self._wait(sequence)

    def _wait(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=lambda waiting: waiting.arrival)

    def _free(self, sequence: Sequence) -> None:
        if sequence.table is not None:
            self._blocks.free(sequence.table)
            sequence.table = None
            sequence.num_computed = 0
