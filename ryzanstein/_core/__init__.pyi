"""Stub of the native module: the engine's arithmetic and bytes, no policy.

Shape letters: T tokens in the step, S sequences, R logit rows, H query heads, G kv heads,
D head dim, K in-features, N out-features, V vocabulary, P tokens per KV page.

Arrays must be C-contiguous and of the exact dtype named here: nothing is converted silently.
bfloat16 arrays travel as their bit patterns in ``uint16``.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ryzanstein._core import ops as ops

F32Array: TypeAlias = NDArray[np.float32]
F64Array: TypeAlias = NDArray[np.float64]
I32Array: TypeAlias = NDArray[np.int32]
I8Array: TypeAlias = NDArray[np.int8]
U8Array: TypeAlias = NDArray[np.uint8]
U16Array: TypeAlias = NDArray[np.uint16]
# float32, float16, or bfloat16 bit patterns as uint16
DenseArray: TypeAlias = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16]
TernaryFormat: TypeAlias = Literal["two_bit", "five_trit"]
Activation: TypeAlias = Literal["silu", "relu2", "gelu_tanh"]
HeadKind: TypeAlias = Literal["exact", "int8", "int7", "int5", "int4", "dense"]

PAGE_TOKENS: int

def build_info() -> dict[str, str | bool | list[str]]:
    """Return version, commit, compiler, assertions and compiled_isas."""

def cpu_features() -> dict[str, bool]:
    """Return each extension the engine looks for, and whether CPU and OS offer it."""

def available_isas() -> list[str]:
    """Return the tiers this CPU can run, lowest first."""

def resolve_isa(name: str | None = None) -> str:
    """Return the tier to use: `name`, else RYZANSTEIN_ISA, else the highest available.

    Raises:
        ValidationError: unknown tier, or one that this CPU or build does not have.
    """

def kernels(isa: str | None = None) -> dict[str, str]:
    """Return op name -> the weight format and instructions it rests on, for reports."""

def probe_bandwidth(threads: int, bytes: int) -> float:
    """Return how many bytes per second the threads read from a buffer of `bytes`, at best.

    Raises:
        ValidationError: threads outside 1..1024, or less than a cache line for each.
        OutOfMemoryError: the buffer does not fit.
    """

def probe_multiply_add(isa: str, threads: int) -> float | None:
    """Return how many int8 products per second the tier can add up, at best.

    None for the scalar tier, which has no instruction for it.

    Raises:
        ValidationError: threads outside 1..1024, or a tier this machine does not have.
    """

def ternary_kernels(isa: str | None = None) -> list[str]:
    """Return the ternary kernels that this CPU runs under a tier, the best guess first.

    A name is the format a kernel reads, a slash and its instructions: "two_bit/avx2". All give the
    same bits.

    Raises:
        ValidationError: a tier this machine does not have.
    """

def grouped_kernels(isa: str | None = None, *, bits: int) -> list[str]:
    """Return the kernels that this CPU runs under a tier for one token and codes of so many bits.

    A name is a method, a slash and its instructions: "multiply_add/avx512" comes first, and for up
    to 4 bits there is one that looks products up, "lookup/avx2". All give the same bits.

    Raises:
        ValidationError: a tier this machine does not have.
    """

def time_ternary_kernels(
    rows: int, columns: int, *, isa: str, threads: int
) -> dict[str, tuple[float, float]]:
    """Return kernel name -> seconds for one product with 1 token and with 48, weights [N, K].

    They come in the order of `ternary_kernels`. One token finds the weights in memory. Takes some
    0.1 s and 100 MB.

    Raises:
        ValidationError: an unusable shape, tier or number of threads.
        OutOfMemoryError: the buffers do not fit.
    """

def time_grouped_kernels(
    rows: int, columns: int, bits: int, *, isa: str, threads: int
) -> dict[str, tuple[float, float]]:
    """Return the same of `grouped_kernels`, in groups of 32 columns; tables are made in the time.

    Raises:
        ValidationError: an unusable shape, number of bits, tier or number of threads.
        OutOfMemoryError: the buffers do not fit.
    """

def skips_zeros(isa: str | None = None) -> bool:
    """Return whether this tier has fast kernels on this CPU for feed-forwards that skip zeros."""

def packing_fingerprint() -> int:
    """Return a 64-bit hash that changes with any layout that weights are packed into."""

class TernaryMatrix:
    """Ternary weights [N, K] with one float scale per row, in a layout the kernels read.

    The format changes size and speed (2.0 or 1.6 bits per weight), never a result.
    """

    def __init__(
        self,
        out_features: int,
        in_features: int,
        format: TernaryFormat = "two_bit",
        arrays: dict[str, U8Array] | None = None,
    ) -> None:
        """Take the `arrays` of a matrix of this shape and format in place, or pack rows next.

        Arrays are kept alive, 64-byte aligned, and must not change.

        Raises ValidationError where they are not what such a matrix has.
        """

    @property
    def format(self) -> TernaryFormat: ...
    @property
    def out_features(self) -> int: ...
    @property
    def in_features(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def pack_hf(self, row_begin: int, packed: U8Array, scale: float) -> None:
        """Fill rows from the Hugging Face packed form, uint8 [N/4, K], code = value + 1.

        Raises QuantizationError (with row and column) on code 3.
        """

    def pack_codes(self, row_begin: int, codes: I8Array, row_scales: F32Array) -> None:
        """Fill rows from int8 [n, K] in {-1, 0, 1} and float32 [n]."""

    def pack_master(self, row_begin: int, weights: DenseArray) -> float:
        """Ternarise full-precision rows [n, K] by their joint absmean, and return it.

        Raises QuantizationError on a non-finite weight.
        """

    def arrays(self) -> dict[str, U8Array]:
        """Return the packed weights as read-only views, by name."""

    def codes(self) -> I8Array:
        """Return the weights as int8 [N, K]."""

    def zero_rows(self) -> I32Array:
        """Return the indices of rows that are zero throughout, int32."""

    def row_scales(self) -> F32Array:
        """Return float32 [N]."""

class GroupedMatrix:
    """Weights [N, K] of 2, 4 or 8 bits, with a scale for each group of columns of a row.

    A weight is scale * (code - zero), zero being 1, 8 or 128, or scale * code + minimum where the
    matrix has minima. Scales and minima are stored as `scale_dtype`.
    """

    def __init__(
        self,
        out_features: int,
        in_features: int,
        bits: int,
        group: int = 32,
        scale_dtype: Literal["f16", "f32"] = "f16",
        has_minimum: bool = False,
        arrays: dict[str, U8Array] | None = None,
    ) -> None:
        """Take the `arrays` of a matrix of this shape and format in place, or pack rows next.

        `group` is 16, 32, 64 or 128. Arrays are kept alive, 64-byte aligned, and must not change.

        Raises ValidationError where they are not what such a matrix has.
        """

    @property
    def out_features(self) -> int: ...
    @property
    def in_features(self) -> int: ...
    @property
    def bits(self) -> int: ...
    @property
    def group(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def pack_float(self, row_begin: int, weights: DenseArray) -> None:
        """Fill rows from floats [n, K], each group by a scale fitted to it; takes no minima.

        Distinct rows may be filled from distinct threads.

        Raises QuantizationError on a weight that is not finite or too large for its scale.
        """

    def pack_codes(
        self, row_begin: int, codes: U8Array, scales: F32Array, minima: F32Array | None = None
    ) -> None:
        """Fill rows from codes [n, K], and scales and minima [n, ceil(K / group)].

        Raises QuantizationError on codes out of range and scales that `scale_dtype` cannot hold.
        """

    def arrays(self) -> dict[str, U8Array]:
        """Return the packed weights as read-only views, by name."""

    def unpack(self) -> tuple[U8Array, F32Array, F32Array | None]:
        """Return codes [N, K], and scales and minima [N, ceil(K / group)]."""

    def dequantize(self, row_begin: int = 0, row_end: int | None = None) -> F32Array:
        """Return rows as float32 [n, K].

        Raises:
            ValidationError: the matrix has no such rows.
        """

class TernaryRows:
    """Ternary weights row by row at 1.6 bits each, for products that leave most rows out."""

    def __init__(self, rows: int, columns: int, arrays: dict[str, U8Array]) -> None:
        """Take the `arrays` of rows of the same shape, which are kept alive.

        Raises ValidationError where names or sizes are others.
        """

    @staticmethod
    def of_rows(matrix: TernaryMatrix, row_begin: int, row_end: int) -> TernaryRows:
        """Return rows [row_begin, row_end) of a matrix.

        Raises:
            ValidationError: the matrix has no such rows.
        """

    @staticmethod
    def of_columns(matrix: TernaryMatrix) -> TernaryRows:
        """Return the columns of a matrix, each as a row."""

    def arrays(self) -> dict[str, U8Array]:
        """Return what the rows are stored in, as read-only views, by name."""

    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

class DenseMatrix:
    """Float weights [N, K] as they are stored, read in place; activations stay float32."""

    def __init__(self, array: DenseArray) -> None:
        """Take an array, which is kept alive and must not change.

        Raises:
            ValidationError: not [N, K], not contiguous, not aligned or of another dtype.
        """

    @property
    def out_features(self) -> int: ...
    @property
    def in_features(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

class Linear:
    """A linear over weights of any kind, with an optional RMSNorm on its input.

    Where there is a bias, it is added last: float32 [N].
    """

    def __init__(
        self,
        matrix: TernaryMatrix | DenseMatrix | GroupedMatrix,
        norm: F32Array | None = None,
        norm_eps: float = 1e-6,
        kernel: str = "",
        bias: F32Array | None = None,
    ) -> None:
        """Take one of `ternary_kernels` or `grouped_kernels`, or "" for the best guess."""
    @property
    def matrix(self) -> TernaryMatrix | DenseMatrix | GroupedMatrix: ...

class LayerWeights:
    """One decoder layer. `attn_in` yields q, k, v rows in that order, `mlp_in` gate then up; either
    one fused Linear or several whose rows are concatenated.

    Norms are float32, their gains final (Gemma's stored w is 1 + w here). `input_norm` and
    `ffn_norm` [hidden] come before the blocks; optional are `q_norm` and `k_norm` [D], of every
    head before it is rotated, `attn_sub_norm` [H * D] and `ffn_sub_norm` before o_proj and
    down_proj, and `attn_output_norm` and `ffn_output_norm` [hidden] on what a block adds to the
    residual stream. With a `sliding_window` of n, a token sees the last n keys, its own among them,
    and the first `attention_sinks`; 0 is all. `rope` says which of a set in `inv_freq` rotates this
    layer.

    `up_rows` and `down_columns` are copies of the rows of up and of the columns of down by which a
    step of one token passes over channels that are zero; they need relu2, a fused ternary `mlp_in`,
    a ternary `down_proj`, both without biases, no norm in `down_proj`, no `ffn_output_norm`, and a
    multiple of 64 channels. There may be fewer channels than
    `intermediate_size`: those left out count as zeros in `ffn_sub_norm`.
    """

    def __init__(
        self,
        *,
        input_norm: F32Array,
        attn_in: list[Linear],
        o_proj: Linear,
        ffn_norm: F32Array,
        mlp_in: list[Linear],
        down_proj: Linear,
        q_norm: F32Array | None = None,
        k_norm: F32Array | None = None,
        attn_sub_norm: F32Array | None = None,
        attn_output_norm: F32Array | None = None,
        ffn_sub_norm: F32Array | None = None,
        ffn_output_norm: F32Array | None = None,
        sliding_window: int = 0,
        attention_sinks: int = 0,
        rope: int = 0,
        up_rows: TernaryRows | None = None,
        down_columns: TernaryRows | None = None,
    ) -> None: ...

class DecoderConfig:
    """Everything that differs between architectures, as data.

    `inv_freq` is float64 [rope_sets, ropes, D / 2]: a layer says which of a set it takes, a
    sequence which set. `rope_attention_factors` float64 [ropes] multiply cosines and sines.
    Embedding rows are multiplied by `embedding_scale`, scores by `attention_scale` (None:
    1 / sqrt(D)). A softcap c, where not 0, makes c * tanh(x / c) of the scaled scores, or of the
    logits, which takes a dense head. "gelu_tanh" is transformers' gelu_pytorch_tanh.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        intermediate_size: int,
        vocab_size: int,
        rms_norm_eps: float,
        activation: Activation,
        inv_freq: F64Array,
        rope_attention_factors: F64Array | None = None,
        embedding_scale: float = 1.0,
        attention_scale: float | None = None,
        attention_softcap: float = 0.0,
        final_softcap: float = 0.0,
    ) -> None: ...

class PagedCache:
    """Keys and values in pages of PAGE_TOKENS tokens; knows block ids, not requests."""

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        num_blocks: int,
        dtype: Literal["f16", "f32", "int8"],
    ) -> None: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def nbytes(self) -> int:
        """Return the bytes reserved (pages are committed by the OS on first write)."""

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block in every layer."""

    def store_block(self, block: int) -> U8Array:
        """Return one block of every layer as it is stored, uint8 [n], for state files."""

    def load_block(self, block: int, bytes: U8Array) -> None:
        """Fill one block with what `store_block` returned of a cache of the same shape and dtype.

        Raises:
            ValidationError: another number of bytes, or a block out of range.
        """

    def read(self, layer: int, block: int) -> tuple[F32Array, F32Array]:
        """Return keys and values as float32 [P, G, D] (for tests)."""

def kv_block_bytes(
    num_layers: int, num_kv_heads: int, head_dim: int, dtype: Literal["f16", "f32", "int8"]
) -> int:
    """Return what one block of a PagedCache takes over all layers."""

class Decoder:
    """The transformer: `step` turns a batch of tokens into logits."""

    def __init__(
        self,
        config: DecoderConfig,
        layers: list[LayerWeights],
        embedding: DenseArray | GroupedMatrix,
        final_norm: F32Array,
        lm_head: DenseArray | GroupedMatrix | None = None,
        *,
        head_kind: HeadKind = "dense",
        coded_head: dict[str, U8Array] | None = None,
        threads: int = 1,
        isa: str | None = None,
        small_step: int = 1 << 24,
    ) -> None:
        """Take embedding [V, hidden] and head [V, hidden] (None ties them) as views, kept alive.

        Codes in groups are looked up and multiplied as floats; an "exact" head of them has no
        minima.

        The head is "dense", or coded: "exact" lets `step` leave out logits that its caller will not
        look at, "int7" and "int5" answer from codes of so many bits, "int8" and "int4" from a
        GroupedMatrix of groups of 32. `coded_head` is what `coded_head_arrays` gave for the same
        head, 64-byte aligned and kept alive, and spares coding it. Steps of fewer than `small_step`
        multiplications run on one thread: sharing 0.2 ms of work costs more than it saves.
        """

    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    def step(
        self,
        token_ids: I32Array,
        positions: I32Array,
        seq_starts: I32Array,
        slots: I32Array,
        block_tables: I32Array,
        logit_rows: I32Array,
        cache: PagedCache,
        hidden_states: F32Array | None = None,
        screen_top: I32Array | None = None,
        screen_margin: F32Array | None = None,
        screen_known: list[I32Array] = [],
        rope_sets: I32Array | None = None,
    ) -> F32Array:
        """Run T tokens of S sequences and return logits float32 [R, V].

        Args:
            token_ids: int32 [T].
            positions: int32 [T], ascending by one inside a sequence.
            seq_starts: int32 [S + 1], first token of each sequence in this batch, then T.
            slots: int32 [T], block * PAGE_TOKENS + offset where each token's key and value go.
            block_tables: int32 [S, Bmax], block ids in order of position, padded with -1.
            logit_rows: int32 [R], tokens whose logits are wanted.
            cache: the pages to read and write.
            hidden_states: optional float32 [L + 1, T, hidden] to fill with each layer's input and,
                last, the output of the final norm.
            screen_top: optional int32 [R]; for each row, how many of the highest logits the caller
                looks at, 0 for all. Others may come back as -inf; these are exact.
            screen_margin: float32 [R], given with `screen_top`: logits within this much of the
                lowest of those are exact as well.
            screen_known: optional R arrays, given with `screen_top`: token ids whose logits the
                caller looks at besides, and which do not count among the highest.
            rope_sets: optional int32 [S], which set of `inv_freq` rotates each sequence; the first
                for all where there is none.

        Raises:
            ValidationError: shapes or indices that do not fit.
            OutOfMemoryError: the workspace cannot be allocated.
        """

    @property
    def head_kind(self) -> HeadKind: ...
    @property
    def multiplications_per_token(self) -> int:
        """Return the multiplications of one token in the linears."""

    def weight_bytes(self) -> dict[str, int]:
        """Return the bytes of the `linears`, of the stored `head`, and of its codes.

        `screen` is what a step reads of these for every row, `screen_rest` what it reads for
        survivors only; both are 0 where there are none. So is `down_columns`, the copies by which
        zeros are skipped.
        """

    def channel_counts(self) -> list[dict[str, int]]:
        """Return how sparse each layer's feed-forward was so far, where zeros are passed over.

        channels: of the layer; steps: steps of one token; open_gates: gates above zero, and
        nonzero: activations that the quantiser did not make zero, summed over the steps.
        """

    def coded_head_arrays(self) -> dict[str, U8Array]:
        """Return the codes of the head as read-only views, by name; of 0 bytes if it is dense."""

    def head_counters(self) -> dict[str, int]:
        """Return how logit rows were computed so far.

        full_rows: whole, as asked; screened_rows: by candidates, `candidates` in all,
        from `survivors` of the first look;
        fallback_rows: whole, because the candidates were too many.
        """

class Sampler:
    """The sampling chain: biases and penalties, filters in the given order, then one draw.

    What each parameter does is in docs/sampling.md; the names are those of SamplingParams, but for:
    `order` names filters only, `dry_breakers` and `bad_words` are token ids, `stop_ids` may not be
    drawn before min_tokens, and `prompt_length` says how much of a history was not generated.

    Temperature 0 is greedy (ties go to the lowest id). The draw is a pure function of (seed,
    position, logits, history), and under Mirostat of `mu`: a counter-based generator, so batching
    cannot change it.
    """

    def __init__(
        self,
        *,
        order: Sequence[str] = ...,
        temperature: float = 1.0,
        dynatemp_range: float = 0.0,
        dynatemp_exponent: float = 1.0,
        top_n_sigma: float = 0.0,
        top_k: int = 0,
        typical_p: float = 1.0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        xtc_probability: float = 0.0,
        xtc_threshold: float = 0.1,
        min_keep: int = 1,
        mirostat: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        mirostat_mu: float | None = None,
        logit_bias: Sequence[tuple[int, float]] = ...,
        bad_words: Sequence[Sequence[int]] = ...,
        min_tokens: int = 0,
        stop_ids: Sequence[int] = ...,
        prompt_length: int = 0,
        repetition_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        penalty_last_n: int = -1,
        dry_multiplier: float = 0.0,
        dry_base: float = 1.75,
        dry_allowed_length: int = 2,
        dry_penalty_last_n: int = -1,
        dry_breakers: Sequence[int] = ...,
        seed: int = 0,
    ) -> None: ...
    def sample(self, logits: F32Array, history: I32Array, position: int) -> int:
        """Return a token id for float32 [V] logits; `history` is prompt and answer so far.

        Once more at the position of the last call, it starts from the same `mu`.
        """

    def fork(self, seed: int) -> Sampler:
        """Return a sampler that goes on as this one, drawing other numbers."""

    @property
    def mu(self) -> float:
        """Under Mirostat, the greatest surprise of the next token, in bits."""

def log_probs(logits: F32Array, token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """Return the token's log-probability, and the `top` highest (id, log-probability) pairs."""

def score_rows(logits: F32Array, targets: I32Array) -> F32Array:
    """Return log softmax(logits[r])[targets[r]] for float32 [R, V] and int32 [R]."""
