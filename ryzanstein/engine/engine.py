"""The loop body: schedule, run one native step, extend every sequence that has its logits."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

import numpy as np

from ryzanstein import _core
from ryzanstein.engine.batch import Chunk, run_step
from ryzanstein.engine.block_manager import BlockManager
from ryzanstein.engine.eviction import make_policy
from ryzanstein.engine.interrupts import Interruptible
from ryzanstein.engine.prefix_cache import PageChain, PrefixCache
from ryzanstein.engine.prefix_file import PrefixFile, StoredPage, write_prefix_file
from ryzanstein.engine.scheduler import Scheduler
from ryzanstein.engine.step_times import StepTimes
from ryzanstein.errors import ContextLengthError, DistributionError, ValidationError
from ryzanstein.speculative.draft_length import DraftLength
from ryzanstein.speculative.drafter import Drafter

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from collections.abc import Sequence as ABCSequence
    from pathlib import Path

    from ryzanstein._core import F32Array, I32Array
    from ryzanstein.config import EngineConfig
    from ryzanstein.engine.beam_request import BeamRequest
    from ryzanstein.engine.sequence import Sequence
    from ryzanstein.speculative.drafter import MakeProposer

__all__ = ["Engine"]

_LOGITS_BYTES_PER_STEP = 64 << 20


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


class Engine:
    """Sequences, pages and a decoder. One thread at a time, `Uninterrupted` if it is the main one.

    Args:
        decoder: computes.
        cache: holds the pages.
        config: the limits.
        identity: what else determines keys and values, by name: the model, its rope, the tier.
        make_proposer: what guesses at a sequence's next tokens; None guesses nothing.

    Example:
        >>> engine = Engine(decoder, cache, config)
        >>> engine.add(sequence)
        >>> while sequence.finish_reason is None:
        ...     engine.step()
    """

    def __init__(
        self,
        decoder: _core.Decoder,
        cache: _core.PagedCache,
        config: EngineConfig,
        identity: Mapping[str, str] | None = None,
        make_proposer: MakeProposer | None = None,
    ) -> None:
        self.config = config
        self.prefixes = None
        if config.prefix_cache:
            policy = make_policy(config.eviction, cache.num_blocks)
            self.prefixes = PrefixCache(policy, cache.num_blocks)
        self.blocks = BlockManager(cache.num_blocks, _core.PAGE_TOKENS, self.prefixes)
        self.scheduler = Scheduler(self.blocks, config)
        self.step_times = StepTimes(_core.PAGE_TOKENS, config.token_budget)
        parts = {**(identity or {}), "KV format": f"{config.kv_dtype} {_core.PAGE_TOKENS}"}
        self._fingerprints = {name: _hash(part).hex() for name, part in parts.items()}
        self.fingerprint = _hash(str(self._fingerprints))
        self.decoder = decoder
        self._make_proposer = make_proposer
        self._cache = cache

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            ContextLengthError: it could never fit, even alone.
        """
        self.scheduler.add(sequence)
        self._equip(sequence)

    def _equip(self, sequence: Sequence) -> None:
        """Give a sequence what it shares pages and guesses with."""
        sequence.rope_set = self.config.rope_set(sequence.capacity)
        self._index(sequence)
        if self._make_proposer is not None and sequence.beams is None:
            proposer = self._make_proposer(sequence.capacity)
            length = DraftLength(self.step_times)
            sequence.drafter = Drafter(proposer, length, self.config.vocab_size)

    def step(self) -> None:
        """Advance every running sequence; finished ones leave and free their pages.

        A sequence with no token to draw (NaN logits, a logits processor that fails) ends with
        `error` set; its neighbours go on.
        If the step itself fails or is interrupted, every sequence that has drawn nothing yet is as
        it was before, but that tokens of its last page may have to be computed again.
        """
        self.scheduler.retire()
        for beams in {sequence.beams: None for sequence in self.scheduler.held}:
            assert beams is not None
            self._next_round(beams)
        if not self.scheduler.has_work:
            return
        try:
            began = time.perf_counter()
            for sequence in self.scheduler.shift():
                self._index(sequence)
            num_decoding = self.scheduler.num_decoding
            self.scheduler.prefill_tokens = self.step_times.chunk(num_decoding)
            planned = self.scheduler.schedule()
            if not planned:
                return
            with Interruptible():
                logits = run_step(self.decoder, self._cache, [chunk for _, chunk in planned])
            row = 0
            for sequence, chunk in planned:
                self._settle(sequence, chunk, logits[row : row + chunk.num_logit_rows])
                row += chunk.num_logit_rows
            num_tokens = sum(len(chunk.token_ids) for _, chunk in planned)
            seconds = time.perf_counter() - began - self.scheduler.drafting_seconds
            self.step_times.record(num_tokens, seconds)
        except BaseException:
            self.scheduler.rollback()
            raise
        self.scheduler.retire()

    def release(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or not, and free its pages."""
        self.scheduler.release(sequence)

    def save_prefixes(self, path: Path, texts: ABCSequence[I32Array] | None = None) -> int:
        """Write cached pages to a file and return how many: those that texts begin with, or all.

        Raises:
            ModelLoadError: it cannot be written.
            ValidationError: there is no prefix cache.
        """
        prefixes = self._require_prefixes("to write to a file")
        pages = prefixes.pages if texts is None else prefixes.beginnings(texts)
        index = {page: i for i, page in enumerate(pages)}
        stored = [
            StoredPage(
                parent=-1 if page.parent is None else index[page.parent],
                token_ids=np.frombuffer(page.tokens, np.int32).tolist(),
                rope_set=page.namespace[len(self.fingerprint)],
                salt=page.namespace[len(self.fingerprint) + 1 :].decode(),
            )
            for page in pages
        ]
        with Interruptible():
            write_prefix_file(
                path,
                self._fingerprints,
                stored,
                lambda i: self._cache.store_block(pages[i].block_id),
            )
        return len(pages)

    def load_prefixes(self, path: Path) -> int:
        """Enter a file's pages into the cache, as far as pages are free; return how many came.

        Raises:
            As `PrefixFile`. Pages before a damaged one stay.
            ValidationError: there is no prefix cache.
        """
        prefixes = self._require_prefixes("to enter a file's pages into")
        file = PrefixFile(path, self._fingerprints)
        known = len(prefixes)
        for leaf in file.leaves():
            indices = file.path_to(leaf)
            tokens = np.array([file.pages[i].token_ids for i in indices], np.int32).reshape(-1)
            chain = self._chain(tokens, file.pages[leaf].rope_set, file.pages[leaf].salt)
            match = self.blocks.match(chain, len(tokens) + 1)
            missing = indices[len(match.pages) :]
            if len(missing) + match.num_unused > self.blocks.num_free:
                break
            table = self.blocks.allocate()
            try:
                self.blocks.attach(table, match)
                for i in missing:
                    self.blocks.append(table, _core.PAGE_TOKENS)
                    with Interruptible():
                        self._cache.load_block(table.block_ids[-1], file.read(i))
                    self.blocks.share(table, chain, table.num_tokens)
            finally:
                self.blocks.free(table)
        return len(prefixes) - known

    def _require_prefixes(self, purpose: str) -> PrefixCache:
        if self.prefixes is None:
            raise ValidationError(
                f"there is no prefix cache {purpose}: prefix_cache is False; load the model with "
                "prefix_cache=True"
            )
        return self.prefixes

    def logits(self, token_ids: I32Array) -> Generator[tuple[int, F32Array], None, None]:
        """Yield (first position, logits float32 [n, V]) for consecutive chunks of int32 [T] tokens.

        Running sequences may be preempted to make room. The pages are freed when the iterator ends
        or is closed.

        Raises:
            ContextLengthError: the tokens do not fit in the context.
        """
        if len(token_ids) > self.config.context_length:
            raise ContextLengthError(
                f"{len(token_ids)} tokens do not fit in a context of {self.config.context_length}"
            )
        self.scheduler.make_room(self.blocks.blocks_for(len(token_ids)))
        table = self.blocks.allocate()
        start, n = 0, 1
        try:
            while start < len(token_ids):
                piece = token_ids[start : start + n]
                reservation = self.blocks.append(table, len(piece))
                chunk = Chunk(
                    piece,
                    start,
                    reservation.slots,
                    table.block_ids,
                    len(piece),
                    rope_set=self.config.rope_set(len(token_ids)),
                )
                with Interruptible():
                    logits = run_step(self.decoder, self._cache, [chunk])
                yield start, logits
                start += len(piece)
                n = self._rows_per_step(logits.shape[1])
        finally:
            self.blocks.free(table)

    def _index(self, sequence: Sequence) -> None:
        """Let a sequence find and share pages of what the model sees of it."""
        sequence.chain = self._chain(sequence.context, sequence.rope_set, sequence.cache_salt)

    def _chain(self, tokens: I32Array, rope_set: int, salt: str) -> PageChain:
        """Return the pages of a sequence under everything that determines their numbers."""
        namespace = self.fingerprint + bytes([rope_set]) + salt.encode()
        return PageChain(tokens, _core.PAGE_TOKENS, namespace)

    def _rows_per_step(self, vocab_size: int) -> int:
        affordable = _LOGITS_BYTES_PER_STEP // (vocab_size * np.dtype(np.float32).itemsize)
        return max(1, min(self.config.token_budget, affordable))

    def _settle(self, sequence: Sequence, chunk: Chunk, logits: F32Array) -> None:
        """Draw tokens from a chunk's logits, and keep what of it proves to be the sequence's."""
        num_guessed = len(chunk.draft)
        num_computed = chunk.start + len(chunk.token_ids) - num_guessed
        logits = self._score_prompt(sequence, logits)
        if len(logits):
            self._begin_branches(sequence, num_computed, logits[:1])
        accepted = self._draw(sequence, logits, chunk.draft)
        assert sequence.table is not None
        sequence.num_computed = num_computed + accepted
        if num_guessed:
            self.blocks.truncate(sequence.table, sequence.num_computed)
            assert sequence.drafter is not None
            sequence.drafter.learn(accepted)
        self.blocks.share(sequence.table, sequence.chain, sequence.num_computed)

    def _draw(self, sequence: Sequence, logits: F32Array, draft: ABCSequence[int] = ()) -> int:
        try:
            return sequence.accept(logits, draft)
        except (DistributionError, ValidationError) as error:
            sequence.error = error
            return 0

    def _score_prompt(self, sequence: Sequence, logits: F32Array) -> F32Array:
        try:
            return sequence.score_prompt(logits)
        except DistributionError as error:
            sequence.error = error
            return logits[:0]

    def _begin_branches(self, sequence: Sequence, num_computed: int, logits: F32Array) -> None:
        """Let a sequence's branches go on from its pages, each with a first token of its own."""
        if sequence.branches:
            # Before they are forked: of a full page that another sequence has in the cache, each
            # holds that one. Else the cache would not know that it is in use.
            assert sequence.table is not None
            self.blocks.share(sequence.table, sequence.chain, num_computed)
        while sequence.branches:
            branch = sequence.branches[0]
            self._draw(branch, logits)  # first: where it is interrupted, nothing is half done
            del sequence.branches[0]
            self._add_fork(branch, sequence, num_computed)

    def _next_round(self, beams: BeamRequest) -> None:
        """Take a beam search to its next round, if it is ready."""
        if not beams.is_ready:
            return
        last_round = beams.sequences
        for fork, origin in beams.advance():
            self._add_fork(fork, origin, origin.num_computed)
        for sequence in last_round:
            self.scheduler.release(sequence)

    def _add_fork(self, fork: Sequence, origin: Sequence, num_tokens: int) -> None:
        """Let a sequence go on from the pages of another's first `num_tokens` tokens."""
        if origin.table is not None:
            fork.table = self.blocks.fork(origin.table)
            self.blocks.truncate(fork.table, num_tokens)
            fork.num_computed = num_tokens
        self._equip(fork)
        self.scheduler.add_fork(fork, origin)
