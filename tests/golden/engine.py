"""Running one sequence through the native decoder, without the engine around it."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any

import numpy as np

from ryzanstein._core import PAGE_TOKENS, PagedCache

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ryzanstein._core import F32Array
    from ryzanstein.config import KVDtype
    from ryzanstein.models import LoadedModel

__all__ = ["Sequence"]


class Sequence:
    """A token sequence with a cache of its own, in blocks that run backwards through it."""

    def __init__(self, model: LoadedModel, capacity: int, dtype: KVDtype = "f32") -> None:
        config = model.config
        blocks = -(-capacity // PAGE_TOKENS)
        self._model = model
        self._cache = PagedCache(
            config.num_layers, config.num_kv_heads, config.head_dim, blocks, dtype
        )
        self._blocks = np.arange(blocks, dtype=np.int32)[::-1].copy()
        self._length = 0
        self._rope_sets = np.array([bisect_left(config.rope_limits, capacity)], np.int32)

    def extend(self, token_ids: NDArray[Any]) -> tuple[F32Array, F32Array]:
        """Run more tokens; return hidden states [L + 1, T, hidden] and logits [T, V]."""
        count = len(token_ids)
        config = self._model.config
        positions = np.arange(self._length, self._length + count, dtype=np.int32)
        slots = self._blocks[positions // PAGE_TOKENS] * PAGE_TOKENS + positions % PAGE_TOKENS
        hidden = np.empty((config.num_layers + 1, count, config.hidden_size), np.float32)
        logits = self._model.decoder.step(
            token_ids.astype(np.int32),
            positions,
            np.array([0, count], np.int32),
            slots.astype(np.int32),
            self._blocks[None, :].copy(),
            np.arange(count, dtype=np.int32),
            self._cache,
            hidden,
            rope_sets=self._rope_sets,
        )
        self._length += count
        return hidden, logits
