from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from checkpoints import random_tensors, write_checkpoint
from golden.specs import SPECS
from support import byte_level

from ryzanstein.cli import main
from ryzanstein.loaders.hub import EMBEDDED_MODEL

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """Return a tiny Llama in float32, with a tokenizer of bytes."""
    spec = next(spec for spec in SPECS if spec.name == "llama_dense")
    sizes = {"vocab_size": 260, "intermediate_size": 96, "mlp_bias": False}
    config = spec.config | sizes
    directory = write_checkpoint(tmp_path / "dense", config, random_tensors(config, 0))
    (directory / "tokenizer.json").write_text(byte_level().to_str())
    return directory


def test_what_changed_is_said(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.gguf"
    assert main(["convert", str(dense), str(out), "--to", "q4_0"]) == 0
    shown, err = capsys.readouterr()
    assert err == ""
    lines = shown.splitlines()
    assert lines[0] == f"{out}: 61.4 kB"
    assert lines[1] == "  13 tensors, F32 to F32: exact"
    assert lines[2].startswith("  14 tensors, F32 to Q4_0: weights change by up to 0.098 of the")
    assert lines[3].startswith("  1 tensor, F32 to Q8_0: weights change by up to 0.0038 of the")
    assert len(lines) == 4
    assert main(["convert", str(dense), str(out), "--to", "q4_0"]) == 2
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
