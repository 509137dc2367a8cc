"""Runs workloads through the calls that the scheduler makes.

The page bookkeeping in Python is part of the time; tokenising and drawing from the logits are not.
Logits are asked for as greedy decoding asks for them: where the model's head is screened, only
those that can be the highest are computed exactly.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from ryzanstein import _core
from ryzanstein.config import EngineConfig
from ryzanstein.cpu import read_host
from ryzanstein.engine.batch import Chunk, run_step
from ryzanstein.engine.block_manager import BlockManager
from ryzanstein.errors import OutOfMemoryError
from ryzanstein.sampling import SamplingParams
from ryzanstein.sampling.screening import screening

if TYPE_CHECKING:
    from collections.abc import Callable

    from ryzanstein._core import F32Array
    from ryzanstein.bench.workload import Workload
    from ryzanstein.config import KVDtype
    from ryzanstein.engine.block_manager import BlockTable
    from ryzanstein.models import LoadedModel

__all__ = ["Runner"]

# As many prompt tokens in one step as the engine puts there by default.
_STEP_TOKENS = EngineConfig(context_length=1, num_blocks=1).token_budget
_GREEDY = screening(SamplingParams(temperature=0.0))


class Runner:
    """One loaded model, a cache of the size the current workload needs, and its sequences."""

    def __init__(self, model: LoadedModel, kv_dtype: KVDtype = "f16") -> None:
        self.model = model
        self.kv_dtype = kv_dtype
        self._prepared: Workload | None = None
        self._tables: list[BlockTable] = []

    def time(
        self, workload: Workload, repetitions: int, advance: Callable[[], object] = lambda: None
    ) -> list[float]:
        """Return the seconds of each repetition, after one that is not counted.

        Raises:
            OutOfMemoryError: keys and values of that many tokens do not fit.
        """
        seconds = []
        for _ in range(repetitions + 1):
            self.prepare(workload)
            begin = time.perf_counter()
            self.run(workload)
            seconds.append(time.perf_counter() - begin)
            advance()
        return seconds[1:]

    def prepare(self, workload: Workload) -> None:
        """Bring every sequence to the workload's depth, each in pages of its own.

        Raises:
            OutOfMemoryError: keys and values of that many tokens do not fit.
        """
        if workload != self._prepared:
            self._open(workload)
        for table in self._tables:
            self._blocks.truncate(table, workload.depth)

    @property
    def kv_bytes_per_token(self) -> float:
        """Return the bytes that one token's keys and values take, over all layers."""
        return self._cache.nbytes / (self._cache.num_blocks * _core.PAGE_TOKENS)

    def run(self, workload: Workload) -> F32Array:
        """Process the tokens and return the last step's logits, float32 [sequences, V]."""
        logits = self._prefill(self._tables, workload.prompt)
        for _ in range(workload.generate):
            logits = self._step(self._tables, 1, num_logit_rows=1)
        return logits

    @staticmethod
    def steps(workload: Workload) -> list[int]:
        """Return how many tokens of each sequence go into each step of a run."""
        each = max(1, _STEP_TOKENS // workload.sequences)
        full, rest = divmod(workload.prompt, each)
        return [each] * full + ([rest] if rest else []) + [1] * workload.generate

    def _open(self, workload: Workload) -> None:
        self._prepared = None
        config = self.model.config
        pages = -(-workload.length // _core.PAGE_TOKENS) * workload.sequences
        shape = (config.num_layers, config.num_kv_heads, config.head_dim)
        free_bytes = read_host().free_bytes - self.model.mapped_bytes
        self._cache = _core.PagedCache(*shape, pages, self.kv_dtype)
        if self._cache.nbytes > free_bytes:
            raise OutOfMemoryError(
                f"{workload.name} needs {self._cache.nbytes >> 20} MiB of {self.kv_dtype} KV "
                f"cache, but only {free_bytes >> 20} MiB of memory is free"
            )
        self._blocks = BlockManager(pages, _core.PAGE_TOKENS)
        self._tables = [self._blocks.allocate() for _ in range(workload.sequences)]
        first = self._tables[0]
        self._prefill([first], workload.depth)
        for table in self._tables[1:]:
            self._blocks.append(table, workload.depth)
            for source, target in zip(first.block_ids, table.block_ids, strict=True):
                self._cache.copy_block(source, target)
        self._prepared = workload

    def _prefill(self, tables: list[BlockTable], count: int) -> F32Array:
        """Append `count` tokens to each sequence, with logits for the very last step only."""
        logits = np.zeros((0, self.model.config.vocab_size), np.float32)
        each = max(1, _STEP_TOKENS // len(tables))
        for begin in range(0, count, each):
            size = min(each, count - begin)
            last = begin + size == count
            logits = self._step(tables, size, num_logit_rows=1 if last else 0)
        return logits

    def _step(self, tables: list[BlockTable], count: int, *, num_logit_rows: int) -> F32Array:
        # Random ids, so that embedding rows are as scattered as those of a text.
        vocab = self.model.config.vocab_size
        tokens = np.random.default_rng(0).integers(vocab, size=(len(tables), count), dtype=np.int32)
        chunks = []
        for table, ids in zip(tables, tokens, strict=True):
            start = table.num_tokens
            pages = self._blocks.append(table, count)
            blocks = list(table.block_ids)
            chunks.append(
                Chunk(ids, start, pages.slots, blocks, num_logit_rows, _GREEDY, copies=pages.copies)
            )
        return run_step(self.model.decoder, self._cache, chunks)
