"""The smallest complete decoder, in parts that a test may spoil before it is put together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ryzanstein import _core

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ryzanstein._core import F32Array

__all__ = [
    "batch",
    "cache",
    "config",
    "decoder",
    "embedding",
    "ints",
    "layer",
    "linear",
    "sequence",
]

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCAB = 32, 4, 2, 8, 48, 50
PAGE = _core.PAGE_TOKENS


def linear(out_features: int, in_features: int, seed: int = 1) -> _core.Linear:
    codes = np.random.default_rng(seed).integers(-1, 2, (out_features, in_features))
    matrix = _core.TernaryMatrix(out_features, in_features)
    matrix.pack_codes(0, codes.astype(np.int8), np.full(out_features, 0.2, np.float32))
    return _core.Linear(matrix)


def layer(**changes: Any) -> _core.LayerWeights:
    parts: dict[str, Any] = {
        "input_norm": np.ones(HIDDEN, np.float32),
        "attn_in": [linear((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN)],
        "o_proj": linear(HIDDEN, HEADS * HEAD_DIM),
        "ffn_norm": np.ones(HIDDEN, np.float32),
        "mlp_in": [linear(2 * INNER, HIDDEN)],
        "down_proj": linear(HIDDEN, INNER),
    }
    return _core.LayerWeights(**parts | changes)


def config(**changes: Any) -> _core.DecoderConfig:
    parts: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "num_heads": HEADS,
        "num_kv_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": INNER,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-5,
        "activation": "silu",
        "inv_freq": 10000.0 ** (-np.arange(HEAD_DIM / 2) / (HEAD_DIM / 2))[None, None],
    }
    return _core.DecoderConfig(**parts | changes)


def embedding(seed: int = 2) -> F32Array:
    return np.random.default_rng(seed).standard_normal((VOCAB, HIDDEN)).astype(np.float32)


def decoder(**changes: Any) -> _core.Decoder:
    parts: dict[str, Any] = {
        "config": config(),
        "layers": [layer()],
        "embedding": embedding(),
        "final_norm": np.ones(HIDDEN, np.float32),
        "small_step": 0,  # every step is shared by all threads
    }
    return _core.Decoder(**parts | changes)


def cache(blocks: int = 8, **changes: Any) -> _core.PagedCache:
    parts: dict[str, Any] = {"num_layers": 1, "num_kv_heads": KV_HEADS, "head_dim": HEAD_DIM}
    return _core.PagedCache(**parts | {"num_blocks": blocks, "dtype": "f32"} | changes)


def ints(*values: int) -> NDArray[Any]:
    return np.array(values, np.int32)


@dataclass(frozen=True)
class Batch:
    """The arrays of a step, of whatever kind and shape a test wants them."""

    token_ids: Any
    positions: Any
    seq_starts: Any
    slots: Any
    block_tables: Any
    logit_rows: Any

    def run(self, decoder: _core.Decoder, cache: _core.PagedCache, **options: Any) -> F32Array:
        return decoder.step(
            self.token_ids,
            self.positions,
            self.seq_starts,
            self.slots,
            self.block_tables,
            self.logit_rows,
            cache,
            **options,
        )


def batch(**changes: Any) -> Batch:
    """Return five tokens of one sequence, over a page border, and three of another."""
    first, second, third = (PAGE * block for block in (2, 5, 7))
    whole = Batch(
        token_ids=ints(1, 2, 3, 4, 5, 6, 7, 8),
        positions=ints(30, 31, 32, 33, 34, 0, 1, 2),
        seq_starts=ints(0, 5, 8),
        slots=ints(
            first + 30, first + 31, second, second + 1, second + 2, *range(third, third + 3)
        ),
        block_tables=np.array([[2, 5], [7, -1]], np.int32),
        logit_rows=ints(4, 7),
    )
    return replace(whole, **changes)


def sequence(tokens: int, blocks: int, seed: int = 1) -> Batch:
    """Return one sequence from position zero, in blocks in order, with every token's logits."""
    positions = np.arange(tokens, dtype=np.int32)
    return Batch(
        np.random.default_rng(seed).integers(0, VOCAB, tokens).astype(np.int32),
        positions,
        ints(0, tokens),
        positions,
        np.arange(blocks, dtype=np.int32)[None],
        positions,
    )
