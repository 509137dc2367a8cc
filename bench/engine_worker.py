"""A worker that times this engine, through the same calls its scheduler makes.

`bench.peers` starts it. The page bookkeeping in Python is part of the time, sampling is not.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.workload import Workload, random_tokens, serve
from ryzanstein import _core
from ryzanstein.config import EngineConfig
from ryzanstein.engine.batch import Chunk, run_step
from ryzanstein.engine.block_manager import BlockManager
from ryzanstein.models import load_model

if TYPE_CHECKING:
    from ryzanstein._core import F32Array
    from ryzanstein.config import KVDtype
    from ryzanstein.engine.block_manager import BlockTable

__all__ = ["Ryzanstein"]

# As many prompt tokens in one step as the engine puts there by default.
_STEP_TOKENS = EngineConfig(context_length=1, num_blocks=1).token_budget


class Ryzanstein:
    """This engine on one checkpoint."""

    def __init__(
        self, directory: Path, *, threads: int, isa: str | None = None, kv_dtype: KVDtype = "f16"
    ) -> None:
        self._model = load_model(directory, threads=threads, isa=isa)
        self._kv_dtype = kv_dtype
        self._prepared: Workload | None = None
        self._tables: list[BlockTable] = []

    def describe(self) -> str:
        """Return name, commit, tier and cache format."""
        commit = _core.build_info()["commit"]
        return f"ryzanstein {commit} ({self._model.decoder.isa}, {self._kv_dtype} cache)"

    def prepare(self, workload: Workload) -> None:
        """Bring the cache to the depth: fill one sequence and share it, or drop a run's tokens."""
        if workload == self._prepared:
            for table in self._tables:
                self._blocks.truncate(table, workload.depth)
            return
        self._open(workload)
        first = self._blocks.allocate()
        self._prefill([first], workload.depth)
        forks = [self._blocks.fork(first) for _ in range(workload.sequences - 1)]
        self._tables = [first, *forks]

    def run(self, workload: Workload) -> F32Array:
        """Process the tokens and return the last step's logits, float32 [sequences, V]."""
        logits = self._prefill(self._tables, workload.prompt)
        for _ in range(workload.generate):
            logits = self._step(self._tables, 1, num_logit_rows=1)
        return logits

    def _open(self, workload: Workload) -> None:
        config = self._model.config
        pages = -(-workload.length // _core.PAGE_TOKENS) * workload.sequences
        self._cache = _core.PagedCache(
            config.num_layers, config.num_kv_heads, config.head_dim, pages, self._kv_dtype
        )
        self._blocks = BlockManager(pages, _core.PAGE_TOKENS)
        self._prepared = workload

    def _prefill(self, tables: list[BlockTable], count: int) -> F32Array:
        """Append `count` tokens to each sequence, with logits for the very last step only."""
        logits = np.zeros((0, self._model.config.vocab_size), np.float32)
        each = max(1, _STEP_TOKENS // len(tables))
        for begin in range(0, count, each):
            size = min(each, count - begin)
            last = begin + size == count
            logits = self._step(tables, size, num_logit_rows=1 if last else 0)
        return logits

    def _step(self, tables: list[BlockTable], count: int, *, num_logit_rows: int) -> F32Array:
        vocab = self._model.config.vocab_size
        tokens = np.array(random_tokens(count * len(tables), vocab), np.int32)
        chunks = []
        for table, ids in zip(tables, np.split(tokens, len(tables)), strict=True):
            start = table.num_tokens
            pages = self._blocks.append(table, count)
            blocks = list(table.block_ids)
            chunks.append(
                Chunk(ids, start, pages.slots, blocks, num_logit_rows, copies=pages.copies)
            )
        return run_step(self._model.decoder, self._cache, chunks)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.engine_worker", description=__doc__)
    parser.add_argument("directory", type=Path, help="the checkpoint")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", help="instruction-set tier (default: the best)")
    parser.add_argument("--kv-dtype", choices=["f16", "f32"], default="f16")
    args = parser.parse_args()
    serve(Ryzanstein(args.directory, threads=args.threads, isa=args.isa, kv_dtype=args.kv_dtype))


if __name__ == "__main__":
    main()
