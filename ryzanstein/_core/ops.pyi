"""Stub of the single kernels, which are for tests and benchmarks.

Every function takes the tier first and writes into `out`. Arguments are as csrc/kernels/ops.h has
them; what is not checked here is checked there only by the caller.
"""

from typing import Literal

from ryzanstein._core import (
    DenseArray,
    F32Array,
    I8Array,
    I32Array,
    PagedCache,
    TernaryMatrix,
)

def rms_norm(isa: str, x: F32Array, gain: F32Array, eps: float, out: F32Array) -> None:
    """Write x / sqrt(mean(x^2) + eps) * gain; all [K]."""

def quantize(isa: str, x: F32Array, q: I8Array) -> tuple[float, int]:
    """Fill q with x as int8 and zeros past it; return scale and sum."""

def ternary_linear(
    isa: str,
    matrix: TernaryMatrix,
    q: I8Array,
    act_scale: F32Array,
    act_sum: I32Array,
    out: F32Array,
    residual: F32Array | None = None,
    kernel: str = "",
) -> None:
    """Write the linear of int8 [T, padded K], float32 [T] and int32 [T] to float32 [T, N].

    `kernel` is one of `ternary_kernels`, or "" for the best guess among those of the format.
    """

def rope(isa: str, x: F32Array, cos: F32Array, sin: F32Array) -> None:
    """Rotate float32 [H, D] in place by float32 [D / 2]."""

def gate(
    isa: str, activation: Literal["silu", "relu2"], gate: F32Array, up: F32Array, out: F32Array
) -> None:
    """Write activation(gate) * up."""

def kv_write(
    isa: str, cache: PagedCache, block: int, offset: int, key: F32Array, value: F32Array
) -> None:
    """Store a token's key and value [G * D] in layer 0."""

def attention(
    isa: str,
    cache: PagedCache,
    kv_head: int,
    block_table: I32Array,
    key_begin: int,
    key_end: int,
    q: F32Array,
    scale: float,
    max: F32Array,
    sum: F32Array,
    out: F32Array,
) -> None:
    """Attend from q [group, D] to keys of layer 0: max and sum [group], out [group, padded D]."""

def attention_merge(
    isa: str,
    head_dim: int,
    part_max: F32Array,
    part_sum: F32Array,
    part_out: F32Array,
    max: F32Array,
    sum: F32Array,
    out: F32Array,
) -> None:
    """Fold the result of further keys into max, sum and out."""

def attention_finish(isa: str, sum: F32Array, rows: F32Array, out: F32Array) -> None:
    """Divide rows [group, padded D] by their sums into [group, D]."""

def embed(isa: str, weights: DenseArray, row: int, out: F32Array) -> None:
    """Write one row of weights as float32."""

def dense_linear(isa: str, weights: DenseArray, x: F32Array, out: F32Array) -> None:
    """Write x [T, K] times weights [N, K] to [T, N]."""

def screen_linear(isa: str, weights: DenseArray, x: F32Array) -> tuple[F32Array, F32Array]:
    """Return lower and upper bounds of x [T, K] @ weights [N, K].T, float32 [T, N padded to 64]."""
