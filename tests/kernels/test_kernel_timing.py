from __future__ import annotations

import pytest

from ryzanstein import ValidationError
from ryzanstein._core import (
    available_isas,
    grouped_kernels,
    ternary_kernels,
    time_grouped_kernels,
    time_ternary_kernels,
)

ISA = available_isas()[-1]


@pytest.mark.parametrize("threads", [1, 3])
def test_every_kernel_takes_some_time(threads: int) -> None:
    for shape in ((1000, 1501), (65, 7001)):
        found = time_ternary_kernels(*shape, isa=ISA, threads=threads)
        assert list(found) == ternary_kernels(ISA)
        check_seconds(found)


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_every_grouped_kernel_takes_some_time(bits: int) -> None:
    for shape in ((1000, 1501), (65, 7001)):
        found = time_grouped_kernels(*shape, bits, isa=ISA, threads=2)
        assert list(found) == grouped_kernels(ISA, bits=bits)
        check_seconds(found)


def check_seconds(found: dict[str, tuple[float, float]]) -> None:
    for one_token, many_tokens in found.values():
        assert 0 < one_token < 1
        assert 0 < many_tokens < 10


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValidationError, match="shape"):
        time_ternary_kernels(0, 64, isa="scalar", threads=1)
    with pytest.raises(ValidationError, match="shape"):
        time_ternary_kernels(64, 1 << 40, isa="scalar", threads=1)
    with pytest.raises(ValidationError, match="shape"):
        time_grouped_kernels(64, 0, 4, isa="scalar", threads=1)
    with pytest.raises(ValidationError, match="bits"):
        time_grouped_kernels(64, 64, 9, isa="scalar", threads=1)
    with pytest.raises(ValidationError, match="threads"):
        time_ternary_kernels(64, 64, isa="scalar", threads=0)
    with pytest.raises(ValidationError, match="nonsense"):
        time_ternary_kernels(64, 64, isa="nonsense", threads=1)
