from __future__ import annotations

import pytest
from rich.progress import Progress

from bench import contest as module
from bench.contest import Row, measure
from ryzanstein.bench.workload import Workload


@pytest.fixture(autouse=True)
def no_threads_to_park(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PARK_S", 0)


class Scripted:
    """An engine whose runs take the seconds it is given, one after the other."""

    def __init__(self, name: str, seconds: list[float | None], log: list[str]) -> None:
        self.name = name
        self._seconds = iter(seconds)
        self._log = log

    def seconds(self, workload: Workload) -> float | None:
        self._log.append(f"{workload.name} {self.name}")
        return next(self._seconds)


def contest(
    ours: dict[str, list[float | None]],
    peers: dict[str, list[float | None]],
    tests: list[str],
    repetitions: int,
) -> tuple[list[Row], list[str]]:
    log: list[str] = []
    rows = measure(
        {tier: Scripted(f"ours {tier}", seconds, log) for tier, seconds in ours.items()},
        [Scripted(name, seconds, log) for name, seconds in peers.items()],
        [Workload.parse(test) for test in tests],
        repetitions=repetitions,
        threads=2,
        progress=Progress(disable=True),
    )
    return rows, log


def test_engines_take_turns_in_alternating_order() -> None:
    _, log = contest({"avx2": [1.0] * 6}, {"peer": [1.0] * 6}, ["tg4", "pp8"], 3)
    turns = ["ours avx2", "peer", "peer", "ours avx2", "ours avx2", "peer"]
    assert log == [f"{test} {name}" for test in ("tg4", "pp8") for name in turns]


def test_a_ratio_is_the_median_of_paired_ratios() -> None:
    # The machine is four times slower in the second repetition, for both.
    rows, _ = contest({"avx2": [1.0, 4.0, 1.0]}, {"peer": [2.0, 8.0, 3.0]}, ["tg8"], 3)
    ours, peer = rows
    assert ours.samples == (8, 2, 8)
    assert list(peer.samples) == pytest.approx([4, 1, 8 / 3])
    # Of 2, 2 and 3; the ratio of the medians would be 3.
    assert peer.ratios == {"avx2": pytest.approx(2)}
    assert ours.ratios == {"avx2": 1}
    assert (ours.variant, peer.variant) == ("avx2", None)
    assert [row.tokens_per_second for row in rows] == pytest.approx([8, 8 / 3])
    assert [row.spread for row in rows] == pytest.approx([6 / 8, 3 / (8 / 3)])
    assert {row.n_threads for row in rows} == {2}


def test_every_tier_is_set_against_every_engine() -> None:
    rows, _ = contest({"avx512": [1.0], "avx2": [2.0]}, {"a": [4.0], "b": [8.0]}, ["tg8"], 1)
    assert [row.engine for row in rows] == ["ours avx512", "ours avx2", "a", "b"]
    assert [row.ratios["avx512"] for row in rows] == [1, 2, 4, 8]
    assert [row.ratios["avx2"] for row in rows] == [0.5, 1, 2, 4]


def test_tokens_are_those_of_all_sequences() -> None:
    rows, _ = contest({"avx2": [2.0]}, {}, ["tg8@d100xb3"], 1)
    assert rows[0].tokens_per_second == 12


def test_a_test_that_an_engine_lacks_has_no_row() -> None:
    rows, _ = contest({"avx2": [1.0] * 4}, {"peer": [None, None, 2.0, 2.0]}, ["tg8xb2", "tg8"], 2)
    assert [(row.test, row.engine) for row in rows] == [
        ("tg8xb2", "ours avx2"),
        ("tg8", "ours avx2"),
        ("tg8", "peer"),
    ]
