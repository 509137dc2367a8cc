"""The command from end to end, on a small shape and without a peer's library."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench import contest, peers
from bench.shapes import PRESETS
from ryzanstein import _core

RECORDED = Path(__file__).parent / "recorded" / "llama-bench.json"
SHAPE = replace(
    PRESETS["gemma-2b"], hidden=256, layers=1, heads=2, ffn=512, vocab=1024, context=128
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(PRESETS, "gemma-small", SHAPE)
    monkeypatch.setattr(contest, "_PARK_S", 0)
    monkeypatch.setattr(peers, "read_bandwidth", lambda _: 1e9)  # takes seconds, and is not used
    monkeypatch.setenv("RYZANSTEIN_CACHE", str(tmp_path / "cache"))


def llama_bench(path: Path) -> Path:
    """Return a program that prints a recorded result, of as many tokens as it is asked for."""
    (result,) = json.loads(RECORDED.read_text())
    text = json.dumps([result | {"n_gen": 777}]).replace("777", "'$8'")
    path.write_text(f"#!/bin/sh\necho \"$*\" >> {path}.log\necho '{text}'\n")
    path.chmod(0o755)
    return path


def run(tmp_path: Path, *options: str) -> set[str]:
    """Run the command in a folder and return the models that its peer was started with."""
    binary = llama_bench(tmp_path / "llama-bench")
    common = ["--preset", "gemma-small", "--dir", str(tmp_path), "--isa", "scalar"]
    peer = ["--no-llama-cpp", "--llama-bench", str(binary)]
    peers.main([*common, *peer, "--tests", "tg2", "--threads", "1", "--repetitions", "1", *options])
    log = (tmp_path / "llama-bench.log").read_text()
    return {Path(line.split()[1]).name for line in log.splitlines()}


def test_heads_of_both_sides_meet_in_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = ["--weights", "int4", "--lm-head", "int4", "exact", "--peer-head", "q4_0", "q6_k"]
    files = run(tmp_path, *heads, "--json", str(tmp_path / "rows.json"), "--markdown")
    assert files == {"gemma-small-q4_0-head-q4_0.gguf", "gemma-small-q4_0-head-q6_k.gguf"}
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    commit = _core.build_info()["commit"]
    assert [row["engine"] for row in rows] == [
        f"ryzanstein {commit} (scalar, int4 weights, int4 head, f16 cache)",
        f"ryzanstein {commit} (scalar, int4 weights, exact head, f16 cache)",
        "llama-bench 0c1e57098 (unknown CPU features), gemma-small-q4_0-head-q4_0",
        "llama-bench 0c1e57098 (unknown CPU features), gemma-small-q4_0-head-q6_k",
    ]
    variants = ["scalar, int4 head", "scalar, exact head"]
    assert [row["variant"] for row in rows] == [*variants, None, None]
    assert all(list(row["ratios"]) == variants for row in rows)
    printed = capsys.readouterr().out
    assert "| scalar, int4 head over it | scalar, exact head over it |" in printed
    assert all(row["engine"] in printed for row in rows)


def test_beside_a_model_of_ones_own_none_is_written(tmp_path: Path) -> None:
    assert run(tmp_path, "--gguf", str(tmp_path / "own.gguf")) == {"own.gguf"}
    assert list(tmp_path.glob("*.gguf")) == []
