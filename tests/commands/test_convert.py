from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ryzanstein.cli import main
from ryzanstein.loaders.hub import EMBEDDED_MODEL

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_what_changed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model.gguf"
    assert main(["convert", str(EMBEDDED_MODEL), str(out), "--to", "q4_0"]) == 0
    shown, err = capsys.readouterr()
    assert err == ""
    lines = shown.splitlines()
    assert lines[0] == f"{out}: 3.3 MB"
    assert lines[1] == "  17 tensors, BF16 to F32: exact"
    assert lines[2].startswith("  1 tensor, BF16 to Q8_0: weights change by up to 0.004 of the")
    assert lines[3].startswith("  28 tensors, ternary to Q4_0: weights change by up to 0.12 of")
    assert lines[4].startswith("  GGUF has no name for how this tokenizer cuts text into words.")
    assert len(lines) == 5
    assert main(["convert", str(EMBEDDED_MODEL), str(out), "--to", "q4_0"]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "packed"
    assert main(["convert", str(EMBEDDED_MODEL), str(out), "--to", "hf", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == str(out)
    assert found["bytes"] == sum(file.stat().st_size for file in out.iterdir())
    assert found["notes"] == []
    assert len(found["tensors"]) == 46
    assert found["tensors"][0] == {
        "name": "model.embed_tokens.weight",
        "source": "BF16",
        "stored": "BF16",
        "relative_change": 0.0,
        "note": None,
    }
