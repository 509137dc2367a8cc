"""Stub of the single kernels, which are for tests and benchmarks.

Every function takes the tier first and writes into `out`. Arguments are as csrc/kernels/ops.h has
them; what is not checked here is checked there only by the caller.
"""

from ryzanstein._core import (
    Activation,
    DenseArray,
    F32Array,
    GroupedMatrix,
    I8Array,
    I32Array,
    PagedCache,
    TernaryMatrix,
    TernaryRows,
    U16Array,
)

def rms_norm(
    isa: str,
    x: F32Array,
    gain: F32Array,
    eps: float,
    out: F32Array,
    residual: F32Array | None = None,
) -> None:
    """Write x / sqrt(mean(x^2) + eps) * gain, plus a residual if there is one; all [K]."""

def quantize(
    isa: str,
    x: F32Array,
    q: I8Array,
    gain: F32Array | None = None,
    eps: float = 1e-5,
    mean_count: int | None = None,
) -> tuple[float, int]:
    """Fill q with x, RMS-normed where a gain is given, as int8, and zeros past it.

    Return scale and sum. The mean of squares is over `mean_count` elements (None: over x).
    """

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

def quantize_blocks(
    isa: str,
    x: F32Array,
    q: I8Array,
    blocks: I32Array,
    gain: F32Array | None = None,
    eps: float = 1e-5,
) -> None:
    """Fill q [blocks, T, 32] with x [T, K], RMS-normed where a gain is given, and zeros past it.

    `blocks` [blocks, T, 4] takes the bits of a block's float32 scale, minus the sum of its codes,
    and minus the sums of its halves.
    """

def grouped_linear(
    isa: str,
    matrix: GroupedMatrix,
    q: I8Array,
    blocks: I32Array,
    out: F32Array,
    residual: F32Array | None = None,
    kernel: str = "",
) -> None:
    """Write the linear of what quantize_blocks made of [T, K] to float32 [T, N].

    `kernel` is one of `grouped_kernels`, or "" for the tier's products. One that looks products up
    takes one token and makes its tables first.
    """

def select_gates(isa: str, gate: F32Array, begin: int, end: int) -> I32Array:
    """Return the indices in [begin, end) of gates that relu2 does not make exactly zero."""

def select_nonzero(isa: str, q: I8Array) -> I32Array:
    """Return the indices of what is not zero; the length of q is a multiple of 16."""

def selected_rows(
    isa: str,
    weights: TernaryRows,
    row_scale: F32Array,
    selected: I32Array,
    q: I8Array,
    act_scale: float,
    act_sum: int,
    out: F32Array,
) -> None:
    """Write the linear of int8 [K padded to 320] to the selected elements of float32 [N]."""

def selected_columns(
    isa: str,
    weights: TernaryRows,
    row_scale: F32Array,
    selected: I32Array,
    q: I8Array,
    act_scale: float,
    act_sum: int,
    unit_begin: int,
    unit_end: int,
    residual: F32Array,
    out: F32Array,
) -> None:
    """Write residual + the linear of int8 [K], zero where not selected, to units of float32 [N]."""

def rope(isa: str, x: F32Array, cos: F32Array, sin: F32Array) -> None:
    """Rotate float32 [H, D] in place by float32 [D / 2]."""

def gate(isa: str, activation: Activation, gate: F32Array, up: F32Array, out: F32Array) -> None:
    """Write activation(gate) * up."""

def gate_quantize(
    isa: str,
    activation: Activation,
    gate: F32Array,
    up: F32Array,
    out: F32Array,
    q: I8Array,
    gain: F32Array | None = None,
    eps: float = 1e-5,
) -> tuple[float, int]:
    """Write activation(gate) * up and fill q with it as `quantize` does; return scale and sum."""

def kv_write(
    isa: str, cache: PagedCache, block: int, offset: int, key: F32Array, value: F32Array
) -> None:
    """Store a token's key and value [G * D] in layer 0."""

def attention(
    isa: str,
    cache: PagedCache,
    kv_head: int,
    block_table: I32Array,
    position: int,
    key_begin: int,
    key_end: int,
    q: F32Array,
    scale: float,
    max: F32Array,
    sum: F32Array,
    out: F32Array,
    softcap: float = 0.0,
    window: int = 0,
    sinks: int = 0,
) -> None:
    """Attend from q [tokens, group, D] to keys of layer 0.

    Token t stands at `position` + t and sees keys [key_begin, min(key_end, position + t + 1)), of
    these with a window the last `window` up to its own, and the first `sinks`. Scores are
    soft-capped unless that is 0. Writes max and sum [tokens, group] and out
    [tokens, group, padded D].
    """

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

def embed(isa: str, weights: DenseArray, row: int, out: F32Array, scale: float = 1.0) -> None:
    """Write one row of weights as float32, times scale."""

def softcap(isa: str, x: F32Array, softcap: float) -> None:
    """Make softcap * tanh(x / softcap) of x, in place."""

def add_bias(isa: str, bias: F32Array, out: F32Array, begin: int = 0) -> None:
    """Add bias [N] to out [T, N], in columns from `begin` on."""

def dense_linear(
    isa: str, weights: DenseArray, x: F32Array, out: F32Array, residual: F32Array | None = None
) -> None:
    """Write x [T, K] times weights [N, K] to [T, N], plus a residual if there is one."""

def weight_only_linear(isa: str, matrix: GroupedMatrix, x: F32Array, out: F32Array) -> None:
    """Write x [T, K] times grouped weights [N, K] of 2, 4 or 8 bits to [T, N]."""

class ScreenMatrix:
    """The coded LM head: 5 bits and 2 more of each weight."""

    def __init__(self, weights: DenseArray) -> None: ...
    @property
    def nbytes(self) -> int: ...

def screen_linear(isa: str, coded: ScreenMatrix, x: F32Array, out: F32Array) -> None:
    """Write x [T, K] times the high plane [N, K] to [T, N]."""

def screen_rest(isa: str, coded: ScreenMatrix, x: F32Array, rows: I32Array, out: F32Array) -> None:
    """Add to `rows` of out [N] what the low plane makes of x [1, K]."""

def screen_slack(coded: ScreenMatrix, x: F32Array) -> tuple[F32Array, F32Array]:
    """Return how far logits by the high plane and by both are off at most, [T, N] each."""

def block_max(isa: str, values: F32Array, out: F32Array) -> bool:
    """Write the largest of each 64 values, [blocks * 64]; return whether any is NaN."""

def softmax_weights(
    isa: str, values: F32Array, reference: float, inv_temperature: float, out: F32Array
) -> float:
    """Write exp(min(values - reference, 0) * inv_temperature) in steps of 2^-34; return the sum."""

def weighted_moments(
    isa: str, values: F32Array, weights: F32Array, shift: float
) -> tuple[float, float]:
    """Return the sums of weights * (values - shift)^k for k = 1, 2."""

def rungs(
    isa: str, values: F32Array, top: float, per_unit: float, count: int, out: U16Array
) -> None:
    """Write floor((top - values) * per_unit), within [0, count - 1]."""

def rung_members(isa: str, rungs: U16Array, first: int, last: int, out: I32Array) -> int:
    """Write the places of rungs within [first, last], ascending; return how many."""
