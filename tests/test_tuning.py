from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from checkpoints import random_tensors, write_checkpoint
from gguf_models import quantised
from golden.engine import Sequence
from golden.specs import SPECS

from ryzanstein import ValidationError, _core
from ryzanstein.cli import main
from ryzanstein.loaders.model_files import open_files
from ryzanstein.models import load_model
from ryzanstein.tuning import choose_kernels, format_of, remembered_kernels

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = (2048, 2048)
LAYERS = 128  # the least that is worth measuring
ISA = _core.available_isas()[-1]
KERNELS = _core.ternary_kernels(ISA)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of timings, in a folder that is not there yet."""
    monkeypatch.setenv("RYZANSTEIN_CACHE", str(tmp_path / "a" / "b"))
    for kind in ("TERNARY", "GROUPED"):
        monkeypatch.delenv(f"RYZANSTEIN_{kind}_KERNEL", raising=False)
    return tmp_path / "a" / "b" / "kernels.json"


def choose(threads: int = 1) -> str:
    return choose_kernels([SHAPE], layers=LAYERS, isa=ISA, threads=threads)[SHAPE]


def rewrite(cache: Path, timings: dict[str, tuple[float, float]]) -> None:
    """Let the file say that these were the timings of every shape it holds."""
    entry = {n: {"one_token": one, "many_tokens": many} for n, (one, many) in timings.items()}
    hosts = json.loads(cache.read_text())
    cache.write_text(json.dumps({h: dict.fromkeys(shapes, entry) for h, shapes in hosts.items()}))


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[4]], ids=lambda spec: spec.name)
def test_no_choice_changes_a_logit(
    spec: Any, isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, spec.config, random_tensors(spec.config, 1))
    prompt = np.arange(30)
    logits = set()
    for name in [*_core.ternary_kernels(isa), "two_bit", "five_trit"]:
        monkeypatch.setenv("RYZANSTEIN_TERNARY_KERNEL", name)
        model = load_model(open_files(tmp_path), threads=2, isa=isa)
        sequence = Sequence(model, len(prompt))
        pieces = [sequence.extend(piece)[1].tobytes() for piece in np.split(prompt, [20, 21, 24])]
        logits.add(b"".join(pieces))
    assert len(logits) == 1


@pytest.mark.parametrize("kind", ["int4", "Q2_0", "mixed"])
def test_no_grouped_kernel_changes_a_logit(
    kind: str, isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of prompts and of single tokens, in 4 bits, in 2 and where both and 8 are in a layer."""
    types = {"attn_q": "Q8_0", "attn_v": "Q2_0"} if kind == "mixed" else {}
    path = tmp_path / "model.gguf"
    stored = {"int4": "F32", "mixed": "Q4_0"}.get(kind, kind)
    path.write_bytes(quantised(types, stored).serialize())
    prompt = np.arange(30)
    logits = set()
    for name in [*_core.grouped_kernels(isa, bits=4), "multiply_add", "lookup"]:
        monkeypatch.setenv("RYZANSTEIN_GROUPED_KERNEL", name)
        for threads in (1, 2):
            model = load_model(
                open_files(path),
                threads=threads,
                isa=isa,
                weights="int4" if kind == "int4" else "auto",
            )
            sequence = Sequence(model, len(prompt))
            pieces = [sequence.extend(piece)[1].tobytes() for piece in np.split(prompt, [20, 21])]
            logits.add(b"".join(pieces[:2]))
            once = Sequence(model, len(prompt)).extend(prompt)[1]
            assert once[:21].tobytes() == b"".join(pieces[:2])
            assert once[21:].tobytes() == pieces[2]
    assert len(logits) == 1


def test_the_override_of_grouped_kernels(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow, wide = (*SHAPE, 4), (*SHAPE, 8)
    products, lookup = _core.grouped_kernels(isa, bits=4)
    for name, kernel in {"multiply_add": products, "lookup": lookup, lookup: lookup}.items():
        monkeypatch.setenv("RYZANSTEIN_GROUPED_KERNEL", name)
        chosen = choose_kernels([narrow, wide], layers=LAYERS, isa=isa, threads=1)
        assert chosen == {narrow: kernel, wide: products}
    monkeypatch.setenv("RYZANSTEIN_GROUPED_KERNEL", "tables")
    for shape in (narrow, wide):
        with pytest.raises(ValidationError, match=r"must be multiply_add, lookup .*'tables'"):
            choose_kernels([shape], layers=1, isa=isa, threads=1)


def test_grouped_kernels_are_measured_too(cache: Path) -> None:
    shapes = [(2048, 2048, 2), (2048, 2048, 8)]
    assert choose_kernels(shapes, layers=1, isa=ISA, threads=1) == dict.fromkeys(
        shapes, _core.grouped_kernels(ISA, bits=2)[0]
    )
    assert not cache.exists()
    ternary = choose()
    chosen = choose_kernels(shapes, layers=LAYERS, isa=ISA, threads=1)
    written = cache.read_bytes()
    assert choose_kernels(shapes, layers=LAYERS, isa=ISA, threads=1) == chosen
    assert cache.read_bytes() == written
    found = remembered_kernels(isa=ISA, threads=1)
    assert {shape: measured.chosen for shape, measured in found.items()} == {
        "2048x2048": ternary,
        "2048x2048x2": chosen[2048, 2048, 2],
    }
    products, lookup = _core.grouped_kernels(ISA, bits=2)
    assert chosen[2048, 2048, 8] == products  # the only one
    rewrite(cache, {products: (2.0, 1.0), lookup: (1.0, 1.0)})
    assert choose_kernels(shapes[:1], layers=LAYERS, isa=ISA, threads=1) == {shapes[0]: lookup}
    # Equal ones keep to products.
    rewrite(cache, {products: (1.01, 1.01), lookup: (1.0, 1.0)})
    assert choose_kernels(shapes[:1], layers=LAYERS, isa=ISA, threads=1) == {shapes[0]: products}


def test_the_override_names_a_format_or_a_kernel(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _core.ternary_kernels(isa):
        monkeypatch.setenv("RYZANSTEIN_TERNARY_KERNEL", name)
        assert choose_kernels([SHAPE], layers=LAYERS, isa=isa, threads=1) == {SHAPE: name}
        kind = format_of(name)
        monkeypatch.setenv("RYZANSTEIN_TERNARY_KERNEL", kind)
        assert format_of(choose_kernels([SHAPE], layers=1, isa=isa, threads=1)[SHAPE]) == kind
    monkeypatch.setenv("RYZANSTEIN_TERNARY_KERNEL", "three_bit")
    with pytest.raises(ValidationError, match=r"_KERNEL must be .*_bit.* or one of .*'three_bit'"):
        choose_kernels([SHAPE], layers=1, isa=isa, threads=1)


def test_small_models_and_scalar_code_are_not_measured(cache: Path) -> None:
    assert choose_kernels([SHAPE], layers=LAYERS - 1, isa=ISA, threads=1) == {SHAPE: KERNELS[0]}
    assert choose_kernels([SHAPE], layers=LAYERS, isa="scalar", threads=1) == {
        SHAPE: "two_bit/scalar"
    }
    assert not cache.exists()


def test_measured_once(cache: Path) -> None:
    chosen = choose()
    assert chosen in KERNELS
    written = cache.read_bytes()
    assert choose() == chosen
    assert cache.read_bytes() == written
    found = remembered_kernels(isa=ISA, threads=1)
    assert found.keys() == {"2048x2048"}
    assert found["2048x2048"].chosen == chosen
    # Another number of threads is another measurement, and leaves the first one there.
    choose(threads=2)
    assert remembered_kernels(isa=ISA, threads=1) == found


def test_decode_decides_and_prefill_among_equals(cache: Path) -> None:
    choose()
    slow = dict.fromkeys(KERNELS, (9.0, 1.0))
    first, last = KERNELS[0], KERNELS[-1]
    rewrite(cache, slow | {first: (1.0, 5.0), last: (1.1, 4.0)})
    assert choose() == first
    rewrite(cache, slow | {first: (1.0, 5.0), last: (1.02, 4.0)})
    assert choose() == last
    rewrite(cache, slow | {first: (1.02, 4.0), last: (1.0, 4.5)})
    assert choose() == first


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"HOST": 3}', '{"HOST": {"2048": {}}}', '{"HOST": {"2048x2048": {}}}',
     '{"HOST": {"2048x2048": {"two_bit/avx2": {"one_token": "a"}}}}', "\udcff"],
)  # fmt: skip
def test_a_damaged_file_is_made_again(content: str, cache: Path) -> None:
    choose()
    (host,) = json.loads(cache.read_text())
    damaged = content.replace("HOST", host).encode(errors="surrogateescape")
    cache.write_bytes(damaged)
    assert choose() in KERNELS
    assert cache.read_bytes() != damaged
    assert remembered_kernels(isa=ISA, threads=1).keys() == {"2048x2048"}


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RYZANSTEIN_CACHE", str(tmp_path / "file"))
    assert choose() in KERNELS
    assert remembered_kernels(isa=ISA, threads=1) == {}


def test_doctor_shows_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RYZANSTEIN_THREADS", "1")
    monkeypatch.setenv("RYZANSTEIN_ISA", ISA)
    chosen = choose()
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["measured_kernels"]
    found = remembered_kernels(isa=ISA, threads=1)
    assert report == {shape: asdict(measured) for shape, measured in found.items()}
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert f"2048x2048: {chosen} (us for one/many tokens: " in text
    assert all(name in text for name in KERNELS)
