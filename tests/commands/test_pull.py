from __future__ import annotations

import json
from typing import TYPE_CHECKING

import huggingface_hub.constants as hub
import pytest

from ryzanstein.cli import main

if TYPE_CHECKING:
    from pathlib import Path

COMMIT = "c0ffee" * 6 + "1234"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds one model, and no network."""
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--org--name" / "snapshots" / COMMIT
    (snapshot / "big").mkdir(parents=True)
    (snapshot / "big" / "m-Q4_0.gguf").write_bytes(b"x" * 1500)
    refs = tmp_path / "models--org--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    (refs / "v1").write_text(COMMIT)
    return snapshot


@pytest.mark.parametrize("arguments", [["org/name"], ["org/name:q4_0", "--revision", "v1"]])
def test_the_path_is_all_of_standard_output(
    arguments: list[str], cached: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pull", *arguments]) == 0
    out, err = capsys.readouterr()
    assert out == f"{cached / 'big' / 'm-Q4_0.gguf'}\n"
    assert err == f"org/name at commit {COMMIT}: 1 file, 1.5 kB\n"


def test_json(cached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "org/name@v1", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out) == {
        "model": "org/name",
        "commit": COMMIT,
        "path": str(cached / "big" / "m-Q4_0.gguf"),
        "bytes": 1500,
        "files": [{"name": "big/m-Q4_0.gguf", "bytes": 1500}],
    }


@pytest.mark.usefixtures("cached")
def test_offline(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "org/other"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ryzanstein: org/other is neither a path nor in the local Hugging Face")
    assert main(["pull", "org/name@v2"]) == 1
    assert "org/name@v2 is neither a path" in capsys.readouterr().err
