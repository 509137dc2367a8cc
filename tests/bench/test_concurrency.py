"""The traces, llama-server's policy, the figures, and the command without a peer's library."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from bench import concurrency, contest
from bench.concurrency_report import Run, compare, save_chart, to_markdown
from bench.concurrency_traces import TRACES, Request, Timeline, length, make_prompts
from bench.llama_slots import Slots
from bench.shapes import PRESETS

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = replace(PRESETS["small"], hidden=256, layers=1, heads=4, kv_heads=1, ffn=512, vocab=1024)


def test_requests_arrive_once_those_before_them_have_so_many_tokens() -> None:
    timeline = Timeline((Request(4, 8), Request(4, 8), Request(4, 8, after=2)))
    assert timeline.arrive() == [0, 1]
    timeline.add(0, 3)
    timeline.add(1, 1)
    assert timeline.arrive() == []
    timeline.add(1, 1)
    assert timeline.arrive() == [2]
    assert timeline.arrive() == []
    assert 0 < timeline.tokens[0][-1] <= timeline.tokens[1][0] <= timeline.arrivals[2]


def test_traces_are_the_same_every_time_and_prompts_differ_by_seed() -> None:
    assert [len(TRACES[name]) for name in TRACES] == [8, 32, 8]
    for trace in TRACES.values():
        first, again, other = (make_prompts(trace, 1000, seed) for seed in ("1", "1", "2"))
        assert first == again
        assert [len(prompt) for prompt in first] == [request.prompt for request in trace]
        assert all(a[:32] != b[:32] for a, b in zip(first, other, strict=True))
    assert length(TRACES["long-prompt"]) == 2080
    assert {request.generate for request in TRACES["burst-32"]} <= {*range(64, 129)}


def batch(slots: Slots) -> list[tuple[object, ...]]:
    return [tuple(entry) for entry in slots.next_batch()]


def test_a_batch_is_decodes_then_prompts_slot_by_slot() -> None:
    slots = Slots(n_batch=6)
    slots.start(1, [10, 11], 3)
    slots.start(0, [20], 2)
    # The slots' order counts, not that of arrival; logits are wanted behind complete prompts.
    assert batch(slots) == [(20, 0, 0, True), (10, 0, 1, False), (11, 1, 1, True)]
    slots.accept({0: 5, 1: 6})
    slots.start(2, [*range(30, 39)], 1)
    # Decodes first, and as much of the prompt as the batch holds besides.
    prompt = [(30 + i, i, 2, False) for i in range(9)]
    assert batch(slots) == [(5, 1, 0, True), (6, 2, 1, True), *prompt[:4]]
    slots.accept({0: 7, 1: 8})
    # Slot 0 has its two tokens.
    assert batch(slots) == [(8, 3, 1, True), *prompt[4:8], (38, 8, 2, True)]
    slots.accept({1: 9, 2: 1})
    assert batch(slots) == []


def test_prompts_beyond_a_full_batch_wait() -> None:
    slots = Slots(n_batch=4)
    slots.start(0, [1, 2, 3], 1)
    slots.start(1, [4, 5, 6], 1)
    assert batch(slots) == [(1, 0, 0, False), (2, 1, 0, False), (3, 2, 0, True), (4, 0, 1, False)]
    slots.accept({0: 9})
    assert batch(slots) == [(5, 1, 1, False), (6, 2, 1, True)]


LATE = (Request(4, 4), Request(4, 2, after=2))


def run(scale: float) -> Run:
    """Return a run of `LATE`: one request's gaps are 1, 5 and 1, the second one in between."""
    times = Run(arrivals=[0, 2.5], tokens=[[1, 2, 7, 8], [6, 9]])
    return Run(
        arrivals=[scale * at for at in times.arrivals],
        tokens=[[scale * at for at in came] for came in times.tokens],
    )


def test_figures_of_a_run() -> None:
    (row,) = compare("late", LATE, ["ours"], [[run(1)]])
    assert row.metrics == {
        "tokens_per_second": pytest.approx(6 / 9),
        "first_p50": 1,
        "first_p99": 3.5,
        "latency_p50": 6.5,
        "latency_p99": 8,
        # Only the gap from 2 to 7 falls into the time that the late request waited.
        "between_p50": 5,
        "between_p99": 5,
        "between_max": 5,
    }
    together = tuple(replace(request, after=0) for request in LATE)
    (row,) = compare("together", together, ["ours"], [[run(1)]])
    assert [row.metrics[f"between_{name}"] for name in ("p50", "max")] == [1, 5]


def test_ratios_are_medians_of_pairs_and_above_one_where_this_engine_is_better(
    tmp_path: Path,
) -> None:
    # The machine is four times slower in the second repetition, for both.
    rows = compare(
        "late", LATE, ["ours", "peer"], [[run(1), run(4), run(1)], [run(2), run(8), run(3)]]
    )
    assert rows[0].ratios == {}
    assert all(ratio == pytest.approx(2) for ratio in rows[1].ratios.values())
    save_chart(rows, tmp_path / "ratios.svg", "caption")
    assert "ours, beside peer" in (tmp_path / "ratios.svg").read_text()
    lines = to_markdown(rows).splitlines()
    assert (
        lines[2] == "| late | ours | 0.7 | 1.0 s | 3.5 s | 6.5 s | 8.0 s | 5.0 s | 5.0 s | 5.0 s |"
    )
    assert lines[4] == f"| late | ryzanstein over it |{' 2.00x |' * 8}"


def test_the_command_replays_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PRESETS, "tiny", SHAPE)
    monkeypatch.setattr(contest, "_PARK_S", 0)
    monkeypatch.setattr(concurrency, "read_bandwidth", lambda _: 1e9)  # takes seconds
    monkeypatch.setenv("RYZANSTEIN_CACHE", str(tmp_path / "cache"))
    names = ["burst-8", "long-prompt"]
    out = tmp_path / "rows.json"
    options = ["--no-llama-cpp", "--threads", "1", "--repetitions", "1", "--json", str(out)]
    concurrency.main(
        ["--preset", "tiny", "--dir", str(tmp_path), *options, "--markdown", "--traces", *names]
    )
    rows = json.loads(out.read_text())["rows"]
    assert [row["trace"] for row in rows] == names
    assert all(len(row["samples"]) == 1 and row["ratios"] == {} for row in rows)
    assert all(row["metrics"]["tokens_per_second"] > 0 for row in rows)
    assert capsys.readouterr().out.count("| ryzanstein ") == len(names)
