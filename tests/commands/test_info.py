from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support import CHAT_TEMPLATE, copy_embedded

from ryzanstein import _core, tuning
from ryzanstein.cli import main
from ryzanstein.convert import convert_model
from ryzanstein.loaders.hub import EMBEDDED_MODEL
from ryzanstein.loaders.model_files import open_files
from ryzanstein.loaders.weight_cache import WeightCache
from ryzanstein.model_info import describe_model
from ryzanstein.models import load_model
from ryzanstein.models.packing import coded_head_bytes

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RYZANSTEIN_THREADS", "1")
    monkeypatch.setenv("RYZANSTEIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def shown_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert main(["info", "--json", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_what_a_reader_sees(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for label, value in (
        ("architecture", "BitNetForCausalLM, relu2"),
        ("layers", r"4 of 4 heads \(2 of keys and values\) of 64"),
        ("sizes", "hidden 256, feed-forward 768, vocabulary 4096, tied head"),
        ("parameters", "4,200,704"),
        ("tensors", r"74 in 2\.9 MB: 46 BF16 \(2\.11 MB\), 28 U8 \(786 kB\)"),
        ("context", "1024 tokens"),
        ("tokenizer", "byte-level BPE, 4096 tokens, ends at 0"),
        ("chat template", "none: generate, not chat"),
        ("  keys and values", r"2\.05 kB per token, 2\.1 MB for the whole context"),
        ("  total", r"\S+ MB, fits in \S+ GB free"),
    ):
        assert re.search(rf"^{label}: +{value}$", out, re.MULTILINE), label
    assert main(["info", "--tensors"]) == 0
    lines = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert len(lines) == 74
    assert lines[0].split() == ["model.embed_tokens.weight", "BF16", "4096", "x", "256"]


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = shown_json(capsys)
    assert found["model"] == str(EMBEDDED_MODEL)
    assert found["parameters"] == 4200704
    assert found["vocab_size"] == 4096
    assert found["chat_template"] is None
    assert found["packed_weights"] is None
    assert found["blake3"] == {str(EMBEDDED_MODEL / "model.safetensors"): None}
    assert found["types"] == {
        "BF16": {"tensors": 46, "bytes": 2110008},
        "U8": {"tensors": 28, "bytes": 786432},
    }
    assert "tensor_list" not in found
    listed = shown_json(capsys, "--tensors")["tensor_list"]
    assert isinstance(listed, list)
    assert len(listed) == 74


def test_templates_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"chat_template": CHAT_TEMPLATE}
    model = copy_embedded(tmp_path / "model", tokenizer_config=settings)
    assert shown_json(capsys, str(model))["chat_template"] == CHAT_TEMPLATE
    broken = copy_embedded(tmp_path / "broken", tokenizer_config={"chat_template": "{% if %}"})
    assert main(["info", str(broken)]) == 1
    assert "the chat template does not parse, line 1" in capsys.readouterr().err


def test_corrections_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = "{% for m in messages %}Human: {{ m.content }}\n\nBITNETAssistant: {% endfor %}"
    model = copy_embedded(tmp_path / "model", tokenizer_config={"chat_template": template})
    file = str(convert_model(open_files(model), tmp_path / "model.gguf", "tq2_0").path)
    found = shown_json(capsys, file)
    assert found["notes"] == [
        "the file's chat template (Human: ... BITNETAssistant:) is not the one the model was "
        "trained on; using User: ...<|eot_id|>Assistant: instead"
    ]
    assert main(["info", file]) == 0
    assert re.search(r"^note 1: +the file's chat template ", capsys.readouterr().out, re.MULTILINE)


def test_packed_weights_are_shown(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = {"directory": str(cache / "packed"), "files": 0, "bytes": 0}
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weight_cache"].items() >= empty.items()
    model = copy_embedded(tmp_path / "model")
    load_model(
        open_files(model),
        threads=1,
        isa=None,
        weight_cache=WeightCache(cache / "packed", 1 << 30, 0),
    )
    packed = shown_json(capsys, str(model))["packed_weights"]
    (file,) = (cache / "packed").iterdir()
    assert packed == {"path": str(file), "bytes": file.stat().st_size}
    assert main(["doctor"]) == 0
    assert re.search(rf"^  bytes: +{file.stat().st_size}$", capsys.readouterr().out, re.MULTILINE)


def test_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model large enough for its kernels to be measured at loading."""
    monkeypatch.setattr(tuning, "_LEAST_BITS", 0)
    monkeypatch.setattr(_core, "time_ternary_kernels", lambda *_, **__: pytest.fail("measured"))
    report = describe_model(open_files(EMBEDDED_MODEL))
    assert report.memory.is_exact is (_core.resolve_isa() == "scalar")
    assert report.packed_weights is None


def test_memory_is_what_loading_takes(tmp_path: Path) -> None:
    files = open_files(EMBEDDED_MODEL)
    report = describe_model(files)
    store = WeightCache(tmp_path / "packed", 1 << 30, 0)
    load_model(files, threads=1, isa=None, weight_cache=store)
    (packed,) = store.directory.iterdir()
    # The file also has a header, and which channels are left.
    assert 0 <= packed.stat().st_size - report.memory.weights < 32 << 10
    assert report.memory.head == 4096 * 256 * 2  # small, so read as it is stored
    config = report.config
    pages = -(-config.max_position_embeddings // _core.PAGE_TOKENS)
    shape = (config.num_layers, config.num_kv_heads, config.head_dim)
    assert report.memory.kv_context == _core.PagedCache(*shape, pages, "f16").nbytes
    assert report.memory.kv_token * config.max_position_embeddings == report.memory.kv_context


@pytest.mark.parametrize("shape", [(100, 264), (128, 256), (65, 7), (1000, 513)])
def test_memory_of_a_coded_head(shape: tuple[int, int]) -> None:
    rows, columns = shape
    head = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    assert coded_head_bytes(rows, columns) == _core.ops.ScreenMatrix(head).nbytes


def test_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = copy_embedded(tmp_path / "model")
    file = model / "model.safetensors"
    assert main(["info", "--verify", str(model)]) == 0
    first = capsys.readouterr().out
    assert re.search(r"^  model.safetensors: [0-9a-f]{64} \(recorded\)$", first, re.MULTILINE)
    digest = first.split()[-2]
    assert shown_json(capsys, str(model))["blake3"] == {str(file): digest}
    again = shown_json(capsys, "--verify", str(model))["verified"]
    assert again == {str(file): {"blake3": digest, "is_known": True, "matches_hub": False}}
