from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryzanstein.bench.workload import Workload

COUNT = st.integers(1, 10**6)


@pytest.mark.parametrize(
    ("workload", "name"),
    [
        (Workload(512, 0), "pp512"),
        (Workload(0, 64), "tg64"),
        (Workload(0, 64, 2048), "tg64@d2048"),
        (Workload(0, 64, 0, 8), "tg64xb8"),
        (Workload(0, 64, 2048, 8), "tg64@d2048xb8"),
    ],
)
def test_names_are_those_of_llama_bench(workload: Workload, name: str) -> None:
    assert workload.name == name


@given(COUNT, st.booleans(), st.integers(0, 10**6), COUNT)
def test_a_name_holds_the_whole_workload(
    count: int, is_prompt: bool, depth: int, sequences: int
) -> None:
    workload = Workload(*(count, 0) if is_prompt else (0, count), depth, sequences)
    assert Workload.parse(workload.name) == workload
    assert workload.tokens == count * sequences
    assert workload.length == depth + count


@pytest.mark.parametrize("name", ["", "pp", "pp0", "tg-1", "tg64@", "tg64x8", "tg64xb0", "TG64"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not of the form"):
        Workload.parse(name)
