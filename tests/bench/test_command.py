from __future__ import annotations

import csv
import io
import json
import shutil
import sqlite3
import statistics
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from ryzanstein import __version__, _core
from ryzanstein.bench import plot, roofline
from ryzanstein.cli import main
from ryzanstein.loaders.hub import EMBEDDED_MODEL

if TYPE_CHECKING:
    from pathlib import Path

QUICK = ["bench", "-p", "3", "-n", "2", "-r", "2"]


@pytest.fixture(autouse=True)
def quick_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the limits in no time, whatever they are worth then."""
    monkeypatch.setattr(roofline, "_PROBE_BYTES", 1 << 20)
    monkeypatch.setenv("RYZANSTEIN_THREADS", "1")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def rows(capsys: pytest.CaptureFixture[str], *options: str) -> list[dict[str, Any]]:
    assert main([*QUICK, "--json", *options]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    result: list[dict[str, Any]] = json.loads(out)
    return result


def test_json_rows_say_what_was_run_and_how_fast(capsys: pytest.CaptureFixture[str]) -> None:
    prompt, decode = rows(capsys)
    assert (prompt["test"], prompt["n_prompt"], prompt["n_gen"]) == ("pp3", 3, 0)
    assert (decode["test"], decode["n_prompt"], decode["n_gen"]) == ("tg2", 0, 2)
    for row in (prompt, decode):
        assert (row["depth"], row["n_seqs"], row["n_threads"]) == (0, 1, 1)
        assert len(row["samples"]) == 2
        assert row["tokens_per_second"] == pytest.approx(statistics.mean(row["samples"]))
        assert row["stddev"] == pytest.approx(statistics.stdev(row["samples"]))
        assert row["median"] == pytest.approx(statistics.median(row["samples"]))
        assert row["isa"] == _core.resolve_isa()
        assert row["kernels"] == _core.kernels()
        assert row["kv_dtype"] == "f16"
        assert row["model"] == "the embedded model"
        assert row["model_bytes"] > 1e6
        assert row["num_parameters"] > 1e6
        assert (row["version"], row["commit"]) == (__version__, _core.build_info()["commit"])
        assert row["cpu"]
        assert row["time"].endswith("+00:00")
        rate = row["bytes_per_token"] * row["median"]
        assert row["bandwidth_share"] == pytest.approx(rate / row["bandwidth"])
        assert row["head_fallbacks"] == 0
        if row["multiply_adds"] is not None:
            rate = row["multiply_adds_per_token"] * row["median"]
            assert row["multiply_add_share"] == pytest.approx(rate / row["multiply_adds"])


def test_every_combination_is_a_test(capsys: pytest.CaptureFixture[str]) -> None:
    lists = ["-p", "2-3", "-n", "2-4*2", "-d", "0-40+40", "-b", "1,3", "-t", "1,2", "-r", "1"]
    found = rows(capsys, *lists)
    one = [
        *("pp2", "pp3", "pp2@d40", "pp3@d40", "tg2", "tg4", "tg2xb3", "tg4xb3"),
        *("tg2@d40", "tg4@d40", "tg2@d40xb3", "tg4@d40xb3"),
    ]
    assert [row["test"] for row in found] == one * 2
    assert [row["n_threads"] for row in found] == [1] * len(one) + [2] * len(one)
    assert {row["stddev"] for row in found} == {0.0}


def test_a_tier_is_forced_and_reported(capsys: pytest.CaptureFixture[str]) -> None:
    row = rows(capsys, "-n", "0", "--isa", "scalar", "--kv-dtype", "f32", "--lm-head", "int7")[0]
    assert (row["isa"], row["kv_dtype"], row["lm_head"]) == ("scalar", "f32", "int7")
    assert row["weights"] == "auto"
    assert row["multiply_add_share"] is None


def test_csv_has_a_column_per_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--csv"]) == 0
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["test"] for row in found] == ["pp3", "tg2"]
    assert list(found[0]) == list(rows(capsys)[0])
    assert len(json.loads(found[0]["samples"])) == 2


@pytest.mark.parametrize("option", [[], ["--md"]])
def test_markdown_is_printed_when_piped(
    option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*QUICK, *option]) == 0
    out = capsys.readouterr().out
    assert "| test | threads | tok/s | median | of the limit |\n| --- |" in out
    assert "\n| pp3 | 1 | " in out
    assert "\n| tg2 | 1 | " in out
    assert "the embedded model, 4 M parameters" in out


def test_a_terminal_gets_a_table_and_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("COLUMNS", "100")
    assert main(QUICK) == 0
    assert "tg2" in out.getvalue()
    assert "┃" in out.getvalue()
    assert "tg2, 1 threads" in err.getvalue()


def test_sqlite_grows_from_run_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.db"
    printed = rows(capsys, "--sqlite", str(file)) + rows(capsys, "--sqlite", str(file))
    with closing(sqlite3.connect(file)) as database:
        database.row_factory = sqlite3.Row
        stored = [dict(row) for row in database.execute("SELECT * FROM bench")]
    for row in stored:
        row.update({name: json.loads(row[name]) for name in ("samples", "kernels")})
    assert stored == printed


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["-t", "1,2"],
        ["-d", "0,8", "-b", "1,2"],
        ["-p", "1-10", "-n", "1,2,3", "-d", "0,8", "-b", "1,2", "-r", "1"],
    ],
    ids=["no sweep", "threads", "depth and batch", "all"],
)
def test_a_plot_is_drawn(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.png"
    rows(capsys, *options, "--plot", str(file))
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["-p", "x"], "-p takes numbers"),
        (["-n", "9-1"], "-n 9-1: 1 is less than 9"),
        (["-d", "-1"], "-d takes numbers"),
        (["-b", "0"], "-b must be an integer >= 1"),
        (["-t", "0"], "-t must be an integer >= 1"),
        (["-t", "1025"], "-t must be in 1..1024"),
        (["-r", "0"], "-r must be an integer >= 1"),
        (["-r", "x"], "'-r': Input should be a valid integer"),
        (["-p", "0", "-n", "0"], "nothing to time"),
        (["-d", "4096"], "the model was trained for 1024"),
        (["--json", "--csv"], "choose one of --json and --csv"),
        (["--isa", "sse9"], "sse9"),
        (["--kv-dtype", "f8"], "kv_dtype must be one of"),
        (["--lm-head", "f8"], "lm_head must be one of"),
        (["--weights", "f8"], "weights must be one of"),
        (["--plot", "out.txt"], "must end in one of .pdf, .png, .svg"),
        (["--plot", "no/such/folder/out.png"], "there is no such folder"),
        (["--sqlite", "no/such/folder/bench.db"], "unable to open"),
        (["--sqlite", "tests/bench/test_command.py"], "file is not a database"),
    ],
)
def test_a_bad_value_is_one_clear_line(
    options: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree("tests/bench", tmp_path / "tests/bench")
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert reason in err


def test_a_plot_without_matplotlib_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    assert main(["bench", "--plot", str(tmp_path / "out.png")]) == 2
    assert "pip install 'ryzanstein[bench]'" in capsys.readouterr().err


def test_a_table_with_other_columns_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "other.db"
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE bench (name)")
    assert main([*QUICK, "--sqlite", str(file)]) == 2
    assert "no such column" in capsys.readouterr().err


def test_a_plot_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.png").mkdir()
    assert main([*QUICK, "--plot", str(tmp_path / "out.png")]) == 2
    assert capsys.readouterr().err.endswith("out.png: Is a directory\n")


def test_a_directory_is_a_model_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert rows(capsys, str(EMBEDDED_MODEL))[0]["model"] == str(EMBEDDED_MODEL)
    assert main(["bench", "no/such/model"]) == 1
    assert "no/such/model" in capsys.readouterr().err
