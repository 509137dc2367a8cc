from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from ryzanstein.bench.plot import save_plot, sweeps
from ryzanstein.bench.result import Row

if TYPE_CHECKING:
    from pathlib import Path


def row(rate: float, *, threads: int = 1, depth: int = 0, sequences: int = 1) -> Row:
    """Return a row of decoding at half of the memory's limit and a third of the other."""
    return Row(
        test="tg8",
        n_prompt=0,
        n_gen=8,
        depth=depth,
        n_seqs=sequences,
        tokens_per_second=rate,
        stddev=1.0,
        median=rate,
        samples=(rate,),
        n_threads=threads,
        isa="avx2",
        kernels={},
        kv_dtype="f16",
        lm_head="exact",
        weights="auto",
        model="some/folder/a-model",
        model_bytes=1,
        num_parameters=1,
        version="1.2.3",
        commit="0123abc",
        cpu="a CPU",
        time="2026-11-20T10:00:00+00:00",
        bytes_per_token=1.0,
        bandwidth=2 * rate,
        bandwidth_share=0.5,
        multiply_adds_per_token=1.0,
        multiply_adds=3 * rate,
        multiply_add_share=1 / 3,
        head_fallbacks=0.0,
    )


def texts(rows: list[Row], path: Path) -> list[str]:
    save_plot(rows, path)
    return [text.strip() for text in ElementTree.parse(path).getroot().itertext() if text.strip()]


def test_a_plot_says_what_was_measured_and_where(tmp_path: Path) -> None:
    found = texts([row(10, threads=1), row(18, threads=2)], tmp_path / "plot.svg")
    title = ("a-model on a CPU, 2026-11-20", "ryzanstein 1.2.3 (0123abc), avx2, f16 cache")
    for text in (*title, "decode: depth 0, sequences 1, tg8", "threads", "tokens per second"):
        assert text in found


def test_limits_run_beside_a_curve_with_shares(tmp_path: Path) -> None:
    found = texts([row(10, threads=1), row(18, threads=2)], tmp_path / "plot.svg")
    assert "limit of memory or multiply-add" in found
    assert found.count("50%") == 2


def test_shares_are_left_to_the_table_where_curves_are_many(tmp_path: Path) -> None:
    rows = [row(10, threads=n, depth=depth) for n in (1, 2) for depth in (0, 64)]
    found = texts(rows, tmp_path / "plot.svg")
    assert "50%" not in found
    assert {"depth 0", "depth 64", "threads 1", "threads 2"} <= set(found)


@pytest.mark.parametrize("last", [8, 12])
def test_every_measured_number_of_sequences_has_a_tick(last: int, tmp_path: Path) -> None:
    found = texts([row(10 * n, sequences=n) for n in (1, 2, 4, last)], tmp_path / "plot.svg")
    assert {"1", "2", "4", str(last), "sequences at once"} <= set(found)


def test_what_varies_is_a_sweep() -> None:
    rows = [row(10), row(20, threads=2), row(30, threads=2, depth=64)]
    assert [(sweep.kind, sweep.field) for sweep in sweeps(rows)] == [
        ("decode", "n_threads"),
        ("decode", "depth"),
    ]
