from __future__ import annotations

import io
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from rich.console import Console

from bench.contest import Row
from bench.contest_report import TARGETS, make_table, save_chart, to_markdown
from ryzanstein.bench.workload import Workload

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [
    Row("tg64", "ours (avx512)", "avx512", 80.0, 0.1, {"avx512": 1.0, "avx2": 0.5}, (80.0,), 2),
    Row("tg64", "ours (avx2)", "avx2", 40.0, 0.05, {"avx512": 2.0, "avx2": 1.0}, (40.0,), 2),
    Row("tg64", "peer", None, 25.0, 0.02, {"avx512": 3.21, "avx2": 1.6}, (25.0,), 2),
    Row("pp7", "ours (avx512)", "avx512", 300.0, 0.0, {"avx512": 1.0, "avx2": 0.25}, (300.0,), 2),
    Row("pp7", "ours (avx2)", "avx2", 75.0, 0.0, {"avx512": 4.0, "avx2": 1.0}, (75.0,), 2),
]


def test_markdown_is_a_row_per_engine() -> None:
    lines = to_markdown(ROWS).splitlines()
    assert lines[0] == "| test | engine | tok/s | spread | avx512 over it | avx2 over it |"
    assert lines[1] == "| --- | --- | ---: | ---: | ---: | ---: |"
    assert lines[4] == "| tg64 | peer | 25.0 | 2% | 3.21x | 1.60x |"
    assert len(lines) == 2 + len(ROWS)


def test_the_terminal_gets_the_same_figures() -> None:
    out = io.StringIO()
    Console(file=out, width=100).print(make_table(ROWS))
    for text in ("peer", "3.21x", "1.60x", "300.0"):
        assert text in out.getvalue()


def texts(path: Path) -> str:
    return "\n".join(ElementTree.parse(path).getroot().itertext())


def test_the_chart_names_tests_peers_and_ratios(tmp_path: Path) -> None:
    save_chart(ROWS, tmp_path / "chart.svg", "a caption", {})
    found = texts(tmp_path / "chart.svg")
    for text in ("a caption", "tg64", "pp7", "peer", "ours (avx512)", "ours (avx2)"):
        assert text in found
    assert "3.21x  (80 : 25 tok/s)" in found
    assert "1.60x  (40 : 25 tok/s)" in found


def test_targets_are_marked(tmp_path: Path) -> None:
    """Red lines, which only targets have: one for each variant's bar where there is a target."""
    targets = {"avx512": {"tg64": 3.5, "tg32": 2.0}, "avx2": {"tg64": 1.5}}
    save_chart(ROWS, tmp_path / "chart.svg", "", targets)
    assert (tmp_path / "chart.svg").read_text().count("stroke: #ff0000") == 2


def test_targets_are_of_tests_by_their_names() -> None:
    for tiers in TARGETS.values():
        for tests in tiers.values():
            assert all(Workload.parse(test).name == test for test in tests)
