from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from arrays import guarded, misaligned
from grouped_matrices import Kind, RandomGrouped, kinds_of
from reference import grouped as oracle
from tolerances import reduction

from ryzanstein import ValidationError
from ryzanstein._core import GroupedMatrix, available_isas, grouped_kernels
from ryzanstein._core import ops as kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ryzanstein._core import F32Array, I8Array, I32Array

BITS = (1, 2, 3, 4, 8)
KINDS = kinds_of(BITS)
# Decode, every small batch, prefill with remainders of its tiles.
TOKENS = [*range(1, 10), 31, 33, 65]


LOOKUP_BITS = (1, 2, 3, 4)


def lookup(isa: str, bits: int) -> str:
    """Return the kernel of a tier that looks products up."""
    return next(name for name in grouped_kernels(isa, bits=bits) if name.startswith("lookup/"))


class Problem:
    """Random weights of one kind and activations with outliers, quantised by the oracle."""

    def __init__(self, kind: Kind, rows: int, columns: int, tokens: int) -> None:
        bits, group, _, _ = kind
        made = RandomGrouped(kind, rows, columns)
        self.matrix, self.weights, rng = made.matrix, made.weights, made.rng
        scales = np.repeat(np.abs(made.scales), group, axis=1)[:, :columns]
        self.parts = scales * np.float64(1 << bits)
        if made.minima is not None:
            self.parts = self.parts + np.repeat(np.abs(made.minima), group, axis=1)[:, :columns]
        x = rng.standard_normal((tokens, columns))
        x[rng.random(x.shape) < 0.02] *= 50
        self.q, self.scales = oracle.quantize_blocks(x)
        self.residual = rng.standard_normal((tokens, rows)).astype(np.float32)
        self.width = max(group, 32)

    def run(
        self,
        isa: str,
        tokens: slice = slice(None),
        residual: F32Array | None = None,
        kernel: str = "",
    ) -> F32Array:
        q, blocks = block_layout(self.q[tokens], self.scales[tokens], self.width)
        out = guarded((q.shape[1], self.matrix.out_features))
        kernels.grouped_linear(
            isa, self.matrix, misaligned(q, 3), blocks, out.array, residual, kernel
        )
        out.check()
        return out.array

    def expected(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the outputs, and how far rounding may put float32 sums off them."""
        exact = oracle.grouped_linear(self.q, self.scales.astype(np.float32), self.weights)
        magnitude = oracle.grouped_linear(
            np.abs(self.q.astype(np.int64)).astype(np.uint8),
            self.scales,
            self.parts,
        )
        return exact, magnitude * reduction(self.q.shape[1] // 16 + 4)


def block_layout(q: I8Array, scales: NDArray[Any], width: int) -> tuple[I8Array, I32Array]:
    """Return q [blocks, T, 32], zero-padded to whole records, and the blocks' numbers."""
    tokens, columns = q.shape
    padded = np.zeros((tokens, -(-columns // width) * width), np.int8)
    padded[:, :columns] = q
    by_block = np.ascontiguousarray(padded.reshape(tokens, -1, 32).swapaxes(0, 1))
    blocks = np.zeros((*by_block.shape[:2], 4), np.int32)
    floats = np.ones(blocks.shape[:2], np.float32)
    floats[: scales.shape[1]] = scales.T
    blocks[:, :, 0] = floats.view(np.int32)
    halves = by_block.reshape(*by_block.shape[:2], 2, 16).sum(axis=3, dtype=np.int32)
    blocks[:, :, 1] = -halves.sum(axis=2)
    blocks[:, :, 2:] = -halves
    return by_block, blocks


@pytest.mark.parametrize("columns", [1, 16, 31, 32, 33, 127, 129, 2560])
@pytest.mark.parametrize("kind", KINDS)
def test_against_the_oracle(kind: Kind, columns: int, isa: str) -> None:
    for tokens in (1, 3):
        problem = Problem(kind, 70, columns, tokens)
        expected, error = problem.expected()
        assert np.all(np.abs(problem.run(isa) - expected) <= error)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_do_not_depend_on_each_other(kind: Kind, tokens: int, isa: str) -> None:
    problem = Problem(kind, 65, 97, tokens)
    whole = problem.run(isa)
    for t in {0, tokens // 2, tokens - 1}:
        assert problem.run(isa, slice(t, t + 1)).tobytes() == whole[t : t + 1].tobytes()


@pytest.mark.parametrize("columns", [1, 16, 31, 33, 97, 129, 2560])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kernel_gives_the_same_bits(kind: Kind, columns: int, isa: str) -> None:
    problem = Problem(kind, 70, columns, 1)
    names = grouped_kernels(isa, bits=kind[0])
    assert len(names) == (1 if kind[0] == 8 else 2)
    for residual in (None, problem.residual):
        found = {problem.run(isa, residual=residual, kernel=name).tobytes() for name in names}
        assert len(found) == 1


@pytest.mark.parametrize("rows", [1, 7, 16, 17, 63, 64, 65, 130])
def test_looked_up_rows(rows: int, isa: str) -> None:
    for bits in LOOKUP_BITS:
        problem = Problem((bits, 32, "f16", False), rows, 97, 1)
        assert problem.run(isa, kernel=lookup(isa, bits)).tobytes() == problem.run(isa).tobytes()


@pytest.mark.parametrize("group", [16, 32])
@pytest.mark.parametrize("bits", LOOKUP_BITS)
def test_every_code_is_looked_up(bits: int, group: int, isa: str) -> None:
    """Each in every place of a block, met by activations that make sums as large as they get."""
    count = 1 << bits
    codes = ((np.arange(count)[:, None] + 37 * np.arange(32)) % count).astype(np.uint8)
    codes = np.concatenate([codes, np.zeros((1, 32), np.uint8), np.full((1, 32), count - 1)])
    matrix = GroupedMatrix(len(codes), 32, bits, group)
    matrix.pack_codes(0, codes.astype(np.uint8), np.ones((len(codes), 32 // group), np.float32))
    weights = codes.astype(np.int64) - oracle.zero_point(bits)
    rng = np.random.default_rng(bits)
    extremes = rng.choice([-127, 127], (20, 32))
    single = 127 * np.eye(32, dtype=np.int64)
    for row in [np.full(32, -127), np.full(32, 127), *extremes, *single, *-single]:
        q, blocks = block_layout(row.astype(np.int8)[None], np.ones((1, 1)), 32)
        out = np.empty((1, len(codes)), np.float32)
        kernels.grouped_linear(isa, matrix, q, blocks, out, None, lookup(isa, bits))
        np.testing.assert_array_equal(out[0], weights @ row)


def test_kernels_are_named(isa: str) -> None:
    problem = Problem((4, 32, "f16", False), 3, 32, 2)
    assert grouped_kernels(isa, bits=8) == grouped_kernels(isa, bits=4)[:1]
    with pytest.raises(ValidationError, match=r"'lookup/sse' does not read codes of 4 bits under"):
        problem.run(isa, kernel="lookup/sse")
    with pytest.raises(ValidationError, match="takes one token"):
        problem.run(isa, kernel=lookup(isa, 4))


@pytest.mark.parametrize("tokens", [1, 4, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_every_tier_gives_the_same_bits(kind: Kind, tokens: int) -> None:
    problem = Problem(kind, 130, 288, tokens)
    assert len({problem.run(isa).tobytes() for isa in available_isas()}) == 1


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 130])
def test_rows_and_residual(rows: int, isa: str) -> None:
    for tokens in (1, 2, 9):
        problem = Problem((4, 32, "f16", False), rows, 97, tokens)
        plain = problem.run(isa)
        added = problem.run(isa, residual=misaligned(problem.residual, 3))
        assert added.tobytes() == (problem.residual + plain).tobytes()


@pytest.mark.parametrize("tokens", [1, 3])
def test_residual_may_be_the_output(tokens: int, isa: str) -> None:
    problem = Problem((4, 32, "f16", False), 65, 97, tokens)
    q, blocks = block_layout(problem.q, problem.scales, 32)
    out = problem.residual.copy()
    kernels.grouped_linear(isa, problem.matrix, q, blocks, out, out)
    assert out.tobytes() == (problem.residual + problem.run(isa)).tobytes()


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("bits", BITS)
def test_largest_products(bits: int, tokens: int, isa: str) -> None:
    """Where pairs of products in int16 are as large as they get, of either sign."""
    for code in (0, (1 << bits) - 1):
        for value in (-127, 127):
            matrix = GroupedMatrix(3, 128, bits)
            codes = np.full((3, 128), code, np.uint8)
            matrix.pack_codes(0, codes, np.ones((3, 4), np.float32))
            q, blocks = block_layout(
                np.full((tokens, 128), value, np.int8), np.ones((tokens, 4)), 32
            )
            out = np.empty((tokens, 3), np.float32)
            kernels.grouped_linear(isa, matrix, q, blocks, out)
            assert np.all(out == value * 128 * (code - oracle.zero_point(bits)))


@pytest.mark.parametrize("bits", BITS)
def test_every_code_decodes(bits: int, isa: str) -> None:
    """Each in every place of a block, found out by one activation at a time."""
    count = 1 << bits
    codes = (np.arange(count)[:, None] + 37 * np.arange(32)) % count
    matrix = GroupedMatrix(count, 32, bits)
    matrix.pack_codes(0, codes.astype(np.uint8), np.ones((count, 1), np.float32))
    q, blocks = block_layout(np.eye(32, dtype=np.int8), np.ones((32, 1)), 32)
    out = np.empty((32, count), np.float32)
    kernels.grouped_linear(isa, matrix, q, blocks, out)
    np.testing.assert_array_equal(out, codes.T - oracle.zero_point(bits))


@pytest.mark.parametrize("tokens", [1, 9])
def test_nan_stays_in_its_token_and_row(tokens: int, isa: str) -> None:
    problem = Problem((4, 32, "f16", False), 65, 97, tokens)
    problem.scales[tokens - 1, 1] = np.nan
    residual = problem.residual.copy()
    residual[0, 17] = np.nan
    bad = np.zeros(residual.shape, bool)
    bad[tokens - 1] = True
    bad[0, 17] = True
    np.testing.assert_array_equal(np.isnan(problem.run(isa, residual=residual)), bad)


def test_activations_must_be_padded(isa: str) -> None:
    matrix = GroupedMatrix(3, 97, 4, 128)
    q, blocks = block_layout(np.ones((1, 97), np.int8), np.ones((1, 4)), 32)
    with pytest.raises(ValidationError, match="blocks has 12 elements, expected 16"):
        kernels.grouped_linear(isa, matrix, q, blocks[:3], np.empty((1, 3), np.float32))
    with pytest.raises(ValidationError, match="padded with zeros to whole records"):
        kernels.grouped_linear(isa, matrix, q[:3], blocks[:3], np.empty((1, 3), np.float32))
