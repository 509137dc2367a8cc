from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from arrays import SIZES, at_fence, guarded, misaligned
from reference import ops
from tolerances import EXP, roundings

from ryzanstein._core import ops as kernels

Name = Literal["silu", "relu2", "gelu_tanh"]
NAMES: list[Name] = ["silu", "relu2", "gelu_tanh"]
# exp stops at e^88, which leaves silu(x) = x * 6e-39 where less is due; gelu_tanh likewise.
SATURATED = 6.1e-39
UNDERFLOW = 2.0**-149


def run(isa: str, name: Name, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    out = guarded(gate.size)
    kernels.gate(isa, name, misaligned(gate), misaligned(up, 3), out.array)
    out.check()
    return out.array


def compare(isa: str, name: Name, gate: np.ndarray, up: np.ndarray) -> None:
    expected = ops.gate(name, gate, up)
    error = np.full_like(expected, EXP + roundings(4))
    if name == "gelu_tanh":  # its exponent is rounded five times itself
        exponent = 1.6 * np.abs(gate * (1 + 0.044715 * gate.astype(np.float64) ** 2))
        error += roundings(5) * np.minimum(exponent, 90)
    bound = np.abs(expected) * error + np.abs(gate * up) * SATURATED
    assert np.all(np.abs(run(isa, name, gate, up) - expected) <= bound + UNDERFLOW)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_against_the_oracle(name: Name, size: int, isa: str) -> None:
    rng = np.random.default_rng(size)
    gate = (rng.standard_normal(size) * 4).astype(np.float32)
    compare(isa, name, gate, rng.standard_normal(size).astype(np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_range(name: Name, isa: str) -> None:
    gate = np.concatenate([np.linspace(-120, 120, 20001), np.logspace(-30, 15, 1001)])
    gate = np.concatenate([gate, -gate]).astype(np.float32)
    compare(isa, name, gate, np.ones_like(gate))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_out_may_be_an_input(name: Name, size: int, isa: str) -> None:
    gate, up = np.random.default_rng(size).standard_normal((2, size)).astype(np.float32)
    expected = run(isa, name, gate, up)
    for which in (0, 1):
        pair = (gate.copy(), up.copy())
        kernels.gate(isa, name, *pair, pair[which])
        assert pair[which].tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", SIZES[:16])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", [0, 1])
def test_nan_stays_where_it_is(name: Name, size: int, which: int, isa: str) -> None:
    arrays = np.ones((2, size), np.float32)
    place = size // 2
    arrays[which, place] = np.nan
    out = run(isa, name, *arrays)
    np.testing.assert_array_equal(np.isnan(out), np.arange(size) == place)


def test_infinity(isa: str) -> None:
    ones = np.ones(2, np.float32)
    infinities = np.array([np.inf, -np.inf], np.float32)
    assert run(isa, "relu2", infinities, ones).tolist() == [np.inf, 0]
    assert not np.isfinite(run(isa, "silu", infinities, ones)).any()
    assert not np.isfinite(run(isa, "gelu_tanh", infinities, ones)).any()
    assert run(isa, "silu", ones, infinities).tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize("size", SIZES)
def test_reads_nothing_past_its_inputs(size: int, isa: str) -> None:
    ones = np.ones(size, np.float32)
    out = at_fence(np.zeros(size, np.float32))
    kernels.gate(isa, "relu2", at_fence(ones), at_fence(ones), out)
    assert np.all(out == 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("has_norm", [False, True])
def test_gate_and_quantize_in_one(has_norm: bool, name: Name, size: int, isa: str) -> None:
    gate, up = np.random.default_rng(size).standard_normal((2, size)).astype(np.float32)
    gain = np.linspace(0.5, 2, size, dtype=np.float32) if has_norm else None
    wanted = np.empty(-(-size // 16) * 16, np.int8)
    expected = run(isa, name, gate, up)
    wanted_scalars = kernels.quantize(isa, expected, wanted, gain)
    out, q = guarded(size), guarded(wanted.size, np.int8)
    scalars = kernels.gate_quantize(isa, name, gate, up, out.array, q.array, gain)
    out.check()
    q.check()
    assert out.array.tobytes() == expected.tobytes()
    assert q.array.tobytes() == wanted.tobytes()
    assert scalars == wanted_scalars
