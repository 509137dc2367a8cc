"""The same weights reached through different files compute the same tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gguf_models import BITNET, LLAMA, TernaryModel
from golden.engine import Sequence

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
