"""Linears of quantised types are computed with in the groups of their file."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
from gguf_bytes import BLOCKS, NUMBERS, GgufBytes, RawTensor, quantize_ternary, random_tensor
from gguf_models import LLAMA, TernaryModel, quantised
from golden.engine import Sequence

from ryzanstein.errors import UnsupportedFormatError
from ryzanstein.loaders.gguf_types import TYPES
from ryzanstein.loaders.model_files import open_files
from ryzanstein.loaders.weight_cache import WeightCache
from ryzanstein.models import load_model, packing, read_architecture, read_config
from ryzanstein.models.memory import estimate_memory

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

MIXED = {"attn_q": "Q4_K", "attn_k": "Q8_0", "attn_v": "Q6_K", "ffn_down": "F32"}
# Relative to the logits' spread: activations in 8 bits err by 1 % of it in each of 14 linears.
ACTIVATIONS = 0.05


def as_floats(content: GgufBytes) -> GgufBytes:
    """Return the same model with every tensor as float32."""
    numbers = {number: kind for kind, number in NUMBERS.items()}

    def dequantized(tensor: RawTensor) -> RawTensor:
        kind = TYPES[numbers[tensor.type]]
        data = np.frombuffer(tensor.data, np.uint8)
        shape = tensor.shape if len(tensor.shape) == 2 else (1, *tensor.shape)
        values = kind.dequantize(data, shape, 0, shape[0])
        return RawTensor(NUMBERS["F32"], tensor.shape, values.astype("<f4").tobytes())

    tensors = {name: dequantized(tensor) for name, tensor in content.tensors.items()}
    return dataclasses.replace(content, tensors=tensors)


def write(path: Path, content: GgufBytes) -> Path:
    path.write_bytes(content.serialize())
    return path


def logits(path: Path, cache: WeightCache | None = None) -> NDArray[np.float32]:
    model = load_model(open_files(path), threads=2, isa=None, weight_cache=cache)
    return Sequence(model, 40).extend(np.arange(40))[1]


@pytest.mark.parametrize("kind", [*BLOCKS, "mixed"])
def test_logits_are_those_of_the_values(kind: str, tmp_path: Path) -> None:
    content = quantised(MIXED, "Q5_0") if kind == "mixed" else quantised({}, kind)
    path = write(tmp_path / "model.gguf", content)
    found = logits(path)
    expected = logits(write(tmp_path / "floats.gguf", as_floats(content)))
    assert np.std(found - expected) < ACTIVATIONS * np.std(expected)
    cache = WeightCache(tmp_path / "cache", 1 << 30, minimum_bytes=0)
    for _ in range(2):  # packed, then as it was kept
        assert np.array_equal(logits(path, cache), found)
    assert len(list(cache.directory.iterdir())) == 1


def test_a_ternary_file_with_floats_beside(tmp_path: Path) -> None:
    """A converter keeps as floats what whole blocks do not divide."""
    model = TernaryModel(LLAMA)
    content = model.gguf("TQ2_0", "llama")
    expected = logits(write(tmp_path / "all.gguf", content))
    floats = model.gguf("F16", "llama").tensors
    kept = {name: floats[name] for name in floats if "ffn_down" in name or "attn_q" in name}
    path = write(
        tmp_path / "model.gguf", dataclasses.replace(content, tensors={**content.tensors, **kept})
    )
    quantization = read_config(open_files(path)).quantization
    assert quantization is not None
    assert quantization.mode == "online"
    assert np.array_equal(logits(path), expected)


def test_floats_of_a_ternary_file_must_be_ternary(tmp_path: Path) -> None:
    content = TernaryModel(LLAMA).gguf("TQ2_0", "llama")
    values = np.random.default_rng(2).standard_normal((256, 512)).astype("<f2")
    other = {"blk.1.ffn_down.weight": RawTensor(NUMBERS["F16"], values.shape, values.tobytes())}
    path = write(
        tmp_path / "model.gguf", dataclasses.replace(content, tensors={**content.tensors, **other})
    )
    with pytest.raises(
        UnsupportedFormatError, match=r"blk\.1\.ffn_down.* is not ternary, as other"
    ):
        logits(path)


def test_ternary_linears_beside_quantised_ones_are_groups(tmp_path: Path) -> None:
    content = TernaryModel(LLAMA).gguf("TQ2_0", "llama")
    rng = np.random.default_rng(5)
    codes = rng.integers(-1, 2, (256, 256))
    others = {
        "blk.0.ffn_down.weight": random_tensor("Q4_0", (256, 512), rng),
        "blk.1.attn_output.weight": RawTensor(
            NUMBERS["I2_S"], codes.shape, quantize_ternary("I2_S", codes, 0.07)
        ),
    }
    mixed = dataclasses.replace(content, tensors={**content.tensors, **others})
    path = write(tmp_path / "model.gguf", mixed)
    assert read_config(open_files(path)).quantization is None
    found, expected = logits(path), logits(write(tmp_path / "floats.gguf", as_floats(mixed)))
    assert np.std(found - expected) < ACTIVATIONS * np.std(expected)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q6_K", "TQ2_0"])
def test_logits_do_not_depend_on_threads_or_chunks(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", quantised({}, kind))
    whole = logits(path)
    for threads, size in ((1, 1), (3, 7)):
        sequence = Sequence(load_model(open_files(path), threads=threads, isa=None), 40)
        chunks = [np.arange(i, min(i + size, 40)) for i in range(0, 40, size)]
        found = np.concatenate([sequence.extend(chunk)[1] for chunk in chunks])
        assert found.tobytes() == whole.tobytes()


@pytest.mark.parametrize(
    ("kind", "head"), [("Q8_0", "exact"), ("Q6_K", "exact"), ("Q4_0", "exact"), ("Q4_K", "dense")]
)
def test_a_head_of_codes_is_narrowed_down_too(
    kind: str, head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "model.gguf", quantised({"output": kind}, "Q8_0"))
    expected = logits(path)
    monkeypatch.setattr(packing, "_CODED_HEAD_ELEMENTS", 1)
    cache = WeightCache(tmp_path / "cache", 1 << 30, minimum_bytes=0)
    for _ in range(2):
        assert np.array_equal(logits(path, cache), expected)
    files = open_files(path)
    decoder = load_model(files, threads=1, isa=None, weight_cache=cache).decoder
    assert decoder.head_kind == head
    coded = sum(array.nbytes for array in decoder.coded_head_arrays().values())
    assert (coded > 0) == (head == "exact")
    memory = estimate_memory(files.open_weights(), *read_architecture(files), None)
    assert memory.head == decoder.weight_bytes()["head"] + coded
