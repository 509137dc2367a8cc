from __future__ import annotations

import pytest

from ryzanstein import OutOfMemoryError, ValidationError
from ryzanstein._core import probe_bandwidth, probe_multiply_add


@pytest.mark.parametrize("threads", [1, 3])
def test_memory_is_read_at_some_speed(threads: int) -> None:
    assert 1e6 < probe_bandwidth(threads, 1 << 20) < 1e14


@pytest.mark.parametrize("threads", [1, 2])
def test_tiers_multiply_at_some_speed(isa: str, threads: int) -> None:
    rate = probe_multiply_add(isa, threads)
    if isa == "scalar":
        assert rate is None
    else:
        assert rate is not None
        assert 1e8 < rate < 1e15


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValidationError, match="too small"):
        probe_bandwidth(2, 64)
    with pytest.raises(ValidationError, match="threads"):
        probe_bandwidth(0, 1 << 20)
    with pytest.raises(OutOfMemoryError, match="the bandwidth probe"):
        probe_bandwidth(1, 1 << 60)
    with pytest.raises(ValidationError, match="nonsense"):
        probe_multiply_add("nonsense", 1)
