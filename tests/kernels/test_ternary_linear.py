from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from arrays import SIZES, guarded, misaligned
from reference import ops
from tolerances import roundings

from ryzanstein import ValidationError
from ryzanstein._core import TernaryMatrix, available_isas, ternary_kernels
from ryzanstein._core import ops as kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ryzanstein._core import F32Array, I8Array, I32Array, TernaryFormat

PACKINGS: list[TernaryFormat] = ["two_bit", "five_trit"]
# Every kernel this machine can run, and its tier.
TIER_OF = {name: isa for isa in available_isas() for name in ternary_kernels(isa)}
# Decode, every small batch, and prefill with every remainder of its tiles and batches.
TOKENS = [*range(1, 14), 24, 25, 96, 97]
ROWS = [1, 15, 16, 17, 63, 64, 65, 130]
MAX_IN_FEATURES = (1 << 24) - 320
# Rows of quantised activations are padded to a multiple of every format's block.
PADDING = 320


@pytest.fixture(params=TIER_OF)
def kernel(request: pytest.FixtureRequest) -> str:
    name = request.param
    assert isinstance(name, str)
    return name


def format_of(kernel: str) -> TernaryFormat:
    return "two_bit" if kernel.startswith("two_bit/") else "five_trit"


class Problem:
    """Random weights and quantised activations."""

    def __init__(self, rows: int, columns: int, tokens: int, seed: int = 1) -> None:
        rng = np.random.default_rng(seed + 7 * columns)
        self.codes: I8Array = rng.integers(-1, 2, (rows, columns)).astype(np.int8)
        self.row_scales: F32Array = rng.uniform(1e-3, 2, rows).astype(np.float32)
        self.act_scales: F32Array = rng.uniform(1e-3, 2, tokens).astype(np.float32)
        self.activations: I8Array = rng.integers(-127, 128, (tokens, columns)).astype(np.int8)
        self.residual: F32Array = rng.standard_normal((tokens, rows)).astype(np.float32)

    def matrix(self, kernel: str) -> TernaryMatrix:
        shape = self.codes.shape
        matrix = TernaryMatrix(shape[0], shape[1], format_of(kernel))
        matrix.pack_codes(0, self.codes, self.row_scales)
        return matrix

    def sums(self) -> NDArray[np.int64]:
        return self.activations.astype(np.int64) @ self.codes.astype(np.int64).T

    def expected(self, residual: F32Array | None = None) -> F32Array:
        """Return the contract's bits: exact integers, then float32 operation by operation."""
        scales = self.row_scales[None, :] * self.act_scales[:, None]
        out = self.sums().astype(np.float32) * scales
        return out if residual is None else residual + out


def padded(activations: I8Array) -> I8Array:
    """Return the activations in zero-padded rows, four bytes past a cache line."""
    tokens, columns = activations.shape
    q = np.zeros((tokens, -(-columns // PADDING) * PADDING), np.int8)
    q[:, :columns] = activations
    return misaligned(q, 4)


def run(
    kernel: str,
    matrix: TernaryMatrix,
    activations: I8Array,
    act_scales: F32Array,
    residual: F32Array | None = None,
) -> F32Array:
    out = guarded((len(activations), matrix.out_features))
    sums: I32Array = activations.sum(axis=1, dtype=np.int32)
    if residual is not None:
        residual = misaligned(residual, 3)
    q = padded(activations)
    kernels.ternary_linear(
        TIER_OF[kernel], matrix, q, misaligned(act_scales), sums, out.array, residual, kernel
    )
    out.check()
    return out.array


@pytest.mark.parametrize("tokens", TOKENS)
def test_bits_of_the_contract_by_tokens(tokens: int, kernel: str) -> None:
    for rows, columns in ((130, 97), (64, 160), (17, 81)):
        problem = Problem(rows, columns, tokens)
        matrix = problem.matrix(kernel)
        for residual in (None, problem.residual):
            found = run(kernel, matrix, problem.activations, problem.act_scales, residual)
            assert found.tobytes() == problem.expected(residual).tobytes()


@pytest.mark.parametrize("columns", SIZES)
def test_bits_of_the_contract_by_columns(columns: int, kernel: str) -> None:
    for tokens in (1, 3, 12):
        problem = Problem(65, columns, tokens)
        matrix = problem.matrix(kernel)
        found = run(kernel, matrix, problem.activations, problem.act_scales)
        assert found.tobytes() == problem.expected().tobytes()


@pytest.mark.parametrize("rows", ROWS)
def test_bits_of_the_contract_by_rows(rows: int, kernel: str) -> None:
    for tokens in (1, 2, 9):
        problem = Problem(rows, 97, tokens)
        matrix = problem.matrix(kernel)
        found = run(kernel, matrix, problem.activations, problem.act_scales, problem.residual)
        assert found.tobytes() == problem.expected(problem.residual).tobytes()


@pytest.mark.parametrize("tokens", [1, 4, 14])
def test_every_kernel_gives_the_same_bits(tokens: int) -> None:
    problem = Problem(96, 2560, tokens)
    outputs = {
        run(name, problem.matrix(name), problem.activations, problem.act_scales).tobytes()
        for name in TIER_OF
    }
    assert outputs == {problem.expected().tobytes()}


def test_against_the_oracle(kernel: str) -> None:
    problem = Problem(64, 6912, 3)
    found = run(kernel, problem.matrix(kernel), problem.activations, problem.act_scales)
    expected = ops.ternary_linear(
        problem.activations, problem.act_scales, problem.codes, problem.row_scales
    )
    np.testing.assert_allclose(found, expected, rtol=roundings(3))


@pytest.mark.parametrize("tokens", TOKENS)
def test_tokens_do_not_depend_on_each_other(tokens: int, kernel: str) -> None:
    problem = Problem(65, 97, tokens)
    matrix = problem.matrix(kernel)
    whole = run(kernel, matrix, problem.activations, problem.act_scales)
    for t in range(tokens):
        alone = run(kernel, matrix, problem.activations[t : t + 1], problem.act_scales[t : t + 1])
        assert alone.tobytes() == whole[t : t + 1].tobytes()


@pytest.mark.parametrize("tokens", [1, 3, 12])
def test_residual_may_be_the_output(tokens: int, kernel: str) -> None:
    problem = Problem(65, 97, tokens)
    out = problem.residual.copy()
    sums = problem.activations.sum(axis=1, dtype=np.int32)
    q = padded(problem.activations)
    kernels.ternary_linear(
        TIER_OF[kernel], problem.matrix(kernel), q, problem.act_scales, sums, out, out, kernel
    )
    assert out.tobytes() == problem.expected(problem.residual).tobytes()


@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_nan_stays_in_its_token_and_row(tokens: int, kernel: str) -> None:
    problem = Problem(65, 97, tokens)
    problem.act_scales[tokens - 1] = np.nan
    problem.residual[0, 17] = np.nan
    found = run(
        kernel, problem.matrix(kernel), problem.activations, problem.act_scales, problem.residual
    )
    bad = np.zeros(found.shape, bool)
    bad[tokens - 1] = True
    bad[0, 17] = True
    np.testing.assert_array_equal(np.isnan(found), bad)


@pytest.mark.parametrize(
    ("columns", "tokens"),
    [(16400, 12), (70_000, 12), (600_000, 3), (2_000_000, 1), (MAX_IN_FEATURES, 1)],
)
def test_sums_as_large_as_they_can_get(columns: int, tokens: int, kernel: str) -> None:
    """Far past where partial sums of 16 bits, or of shifted codes, would overflow."""
    codes = np.ones((2, columns), np.int8)
    codes[1] = -1
    matrix = TernaryMatrix(2, columns, format_of(kernel))
    matrix.pack_codes(0, codes, np.ones(2, np.float32))
    for value in (127, -127):
        q = np.full((tokens, columns), value, np.int8)
        found = run(kernel, matrix, q, np.ones(tokens, np.float32))
        total = np.float32(value * columns)
        np.testing.assert_array_equal(found, np.tile([total, -total], (tokens, 1)))


@pytest.mark.parametrize("shape", [(1, MAX_IN_FEATURES + 1), (MAX_IN_FEATURES + 1, 1)])
@pytest.mark.parametrize("kind", PACKINGS)
def test_more_features_are_refused(shape: tuple[int, int], kind: TernaryFormat) -> None:
    with pytest.raises(ValidationError, match=rf"must be within 1\.\.{MAX_IN_FEATURES}"):
        TernaryMatrix(shape[0], shape[1], kind)


def test_both_formats_have_a_kernel_in_every_tier(isa: str) -> None:
    assert {format_of(name) for name in ternary_kernels(isa)} == set(PACKINGS)
    assert all(TIER_OF[name] == isa for name in ternary_kernels(isa))


def test_every_byte_of_five_trits_decodes(kernel: str) -> None:
    """All 243 of them in every place of a vector, found out by one activation at a time."""
    numbers = np.arange(243)
    codes = (numbers[:, None] // 3 ** np.arange(5) % 3 - 1).astype(np.int8)
    # Row r holds number r in byte 0, number r + 61 in byte 1 and so on.
    rows = np.stack([codes[(numbers + 61 * j) % 243] for j in range(4)], axis=2).reshape(243, 20)
    matrix = TernaryMatrix(243, 20, format_of(kernel))
    matrix.pack_codes(0, rows, np.ones(243, np.float32))
    found = run(kernel, matrix, np.eye(20, dtype=np.int8), np.ones(20, np.float32))
    np.testing.assert_array_equal(found, rows.T)
    alone = run(kernel, matrix, np.full((1, 20), 1, np.int8), np.ones(1, np.float32))
    np.testing.assert_array_equal(alone[0], rows.sum(axis=1))


def test_kernels_are_refused_by_name() -> None:
    problem = Problem(4, 8, 1)
    out = np.empty((1, 4), np.float32)
    sums = problem.activations.sum(axis=1, dtype=np.int32)
    for isa in available_isas():
        wrong = [name for name in TIER_OF if TIER_OF[name] != isa]
        for name in ["nonsense", f"five_trit/{isa}", *wrong]:
            with pytest.raises(ValidationError, match=f"does not read two_bit .* two_bit/{isa}$"):
                kernels.ternary_linear(
                    isa,
                    problem.matrix("two_bit/"),
                    padded(problem.activations),
                    problem.act_scales,
                    sums,
                    out,
                    None,
                    name,
                )
