"""From chunks of sequences to the arrays of one native step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ryzanstein.sampling.screening import EVERY_LOGIT, Screening

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ryzanstein import _core
    from ryzanstein._core import F32Array, I32Array
    from ryzanstein.engine.block_manager import BlockCopy

__all__ = ["Chunk", "StepBatch", "run_step"]

_NO_TOKENS: I32Array = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence, with pages reserved for them.

    Args:
        token_ids: int32 [n].
        start: position of the first.
        slots: int32 [n], where each token's key and value go.
        block_ids: pages of the sequence from position 0.
        num_logit_rows: how many of the last tokens want logits, 0..n.
        screening: which logits of these rows will be looked at.
        seen: int32 [m], tokens whose logits will be looked at besides.
        copies: pages to copy before the step.
        draft: the last tokens again, as far as they are guesses that the logits will decide.
        rope_set: of the sequence.
    """

    token_ids: I32Array
    start: int
    slots: I32Array
    block_ids: Sequence[int]
    num_logit_rows: int
    screening: Screening = EVERY_LOGIT
    seen: I32Array | None = None
    copies: tuple[BlockCopy, ...] = ()
    draft: Sequence[int] = ()
    rope_set: int = 0


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The arguments of `_core.Decoder.step`, described there."""

    token_ids: I32Array
    positions: I32Array
    seq_starts: I32Array
    slots: I32Array
    block_tables: I32Array
    logit_rows: I32Array
    screen_top: I32Array
    screen_margin: F32Array
    screen_known: list[I32Array]
    rope_sets: I32Array
    copies: tuple[BlockCopy, ...]

    @classmethod
    def build(cls, chunks: Sequence[Chunk]) -> StepBatch:
        """Lay out at least one chunk."""
        lengths = [len(chunk.token_ids) for chunk in chunks]
        logit_counts = [chunk.num_logit_rows for chunk in chunks]
        seq_starts = np.zeros(len(chunks) + 1, np.int32)
        np.cumsum(lengths, out=seq_starts[1:])
        width = max(len(chunk.block_ids) for chunk in chunks)
        block_tables = np.full((len(chunks), width), -1, np.int32)
        for row, chunk in enumerate(chunks):
            block_tables[row, : len(chunk.block_ids)] = chunk.block_ids
        return cls(
            token_ids=np.concatenate([chunk.token_ids for chunk in chunks]),
            positions=np.concatenate(
                [
                    np.arange(chunk.start, chunk.start + n, dtype=np.int32)
                    for chunk, n in zip(chunks, lengths, strict=True)
                ]
            ),
            seq_starts=seq_starts,
            slots=np.concatenate([chunk.slots for chunk in chunks]),
            block_tables=block_tables,
            logit_rows=np.concatenate(
                [
                    np.arange(end - chunk.num_logit_rows, end, dtype=np.int32)
                    for chunk, end in zip(chunks, seq_starts[1:], strict=True)
                ]
            ),
            screen_top=np.repeat(
                np.array([chunk.screening.top for chunk in chunks], np.int32), logit_counts
            ),
            screen_margin=np.repeat(
                np.array([chunk.screening.margin for chunk in chunks], np.float32), logit_counts
            ),
            screen_known=[
                _NO_TOKENS if chunk.seen is None else chunk.seen
                for chunk in chunks
                for _ in range(chunk.num_logit_rows)
            ],
            rope_sets=np.array([chunk.rope_set for chunk in chunks], np.int32),
            copies=tuple(copy for chunk in chunks for copy in chunk.copies),
        )


def run_step(decoder: _core.Decoder, cache: _core.PagedCache, chunks: Sequence[Chunk]) -> F32Array:
    """Copy the pages that have to be, run the chunks, and return logits float32 [R, V].

    Rows come in the order of the chunks.
    """
    batch = StepBatch.build(chunks)
    for copy in batch.copies:
        cache.copy_block(copy.source, copy.target)
    return decoder.step(
        batch.token_ids,
        batch.positions,
        batch.seq_starts,
        batch.slots,
        batch.block_tables,
        batch.logit_rows,
        cache,
        screen_top=batch.screen_top,
        screen_margin=batch.screen_margin,
        screen_known=batch.screen_known,
        rope_sets=batch.rope_sets,
    )
