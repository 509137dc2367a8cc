"""The same weights reached through different files compute the same tokens."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gguf_models import BITNET, LLAMA, TernaryModel
from golden.engine import Sequence
from support import byte_level

from ryzanstein import LLM, SamplingParams
from ryzanstein.loaders.model_files import open_files
from ryzanstein.models import load_model, read_config

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

TYPES = ["I2_S", "TQ1_0", "TQ2_0", "IQ1_BN", "IQ2_BN"]


def logits(path: Path) -> NDArray[np.float32]:
    """Return the logits of a prompt and of what greedily follows it."""
    model = load_model(open_files(path), threads=2, isa=None)
    sequence = Sequence(model, 64)
    found = [sequence.extend(np.arange(40) % 96)[1]]
    for _ in range(16):
        found.append(sequence.extend(found[-1][-1:].argmax(axis=1))[1])
    return np.concatenate(found)


@pytest.fixture(scope="module", params=["bitnet-b1.58", "llama"])
def architecture(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def model(architecture: str) -> TernaryModel:
    return TernaryModel(LLAMA if architecture == "llama" else BITNET)


@pytest.fixture(scope="module")
def expected(model: TernaryModel, tmp_path_factory: pytest.TempPathFactory) -> NDArray[Any]:
    directory = tmp_path_factory.mktemp("packed")
    return logits(model.write_huggingface(directory, masters=False))


@pytest.mark.parametrize("kind", TYPES)
def test_a_gguf_computes_what_the_packed_checkpoint_does(
    kind: str, architecture: str, model: TernaryModel, expected: NDArray[Any], tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model.gguf(kind, architecture).serialize())
    assert np.array_equal(logits(path), expected)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_ternary_values_in_floats_keep_their_scale(kind: str, tmp_path: Path) -> None:
    model = TernaryModel(BITNET)
    path = tmp_path / "model.gguf"
    path.write_bytes(model.gguf(kind, "bitnet-b1.58").serialize())
    packed = model.write_huggingface(tmp_path / "packed", masters=False)
    assert np.array_equal(logits(path), logits(packed))


def test_masters_in_a_gguf_are_ternarised_like_any(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    model = TernaryModel(BITNET)
    for name, (codes, scale) in model.linears.items():
        model.linears[name] = rng.standard_normal(codes.shape).astype(np.float32), scale
    path = tmp_path / "model.gguf"
    path.write_bytes(model.gguf("BF16", "bitnet-b1.58").serialize())
    masters = model.write_huggingface(tmp_path / "masters", masters=True, gain=1)
    assert np.array_equal(logits(path), logits(masters))


def test_masters_compute_what_the_packed_checkpoint_does(
    model: TernaryModel, expected: NDArray[Any], tmp_path: Path
) -> None:
    assert np.array_equal(logits(model.write_huggingface(tmp_path, masters=True)), expected)


def test_the_configuration_is_that_of_the_packed_checkpoint(
    architecture: str, model: TernaryModel, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model.gguf("TQ2_0", architecture).serialize())
    directory = model.write_huggingface(tmp_path / "packed", masters=False)
    assert read_config(open_files(path)) == read_config(open_files(directory))


def test_one_file_is_a_whole_model(tmp_path: Path) -> None:
    """The tokenizer comes from the file too: text in, text out."""
    model = TernaryModel(BITNET | {"vocab_size": 258})
    tokenizer = byte_level()
    directory = model.write_huggingface(tmp_path / "packed", masters=False)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    content = model.gguf("I2_S", "bitnet-b1.58")
    vocabulary = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": [*(tokenizer.id_to_token(n) for n in range(257)), "ab"],
        "tokenizer.ggml.token_type": [1] * 256 + [3, 1],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 256,
    }
    content = dataclasses.replace(content, metadata={**content.metadata, **vocabulary})
    (tmp_path / "model.gguf").write_bytes(content.serialize())
    params = SamplingParams(max_tokens=12, temperature=0)
    with LLM(tmp_path / "model.gguf") as llm, LLM(directory) as packed:
        found = llm.generate("Grüße 😀", params)
        prompt = llm.tokenizer.encode("Grüße 😀")
        expected = packed.generate(prompt, params)
        assert (found.text, found.token_ids) == (expected.text, expected.token_ids)
