"""The engine against an installed transformers, live: `pytest tests/live` in the parity job.

The checkpoints are the golden ones, whose texts keep clear of rounding boundaries (see
`tolerances`), so that a new transformers or torch is compared on ground where only arithmetic can
differ.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tolerances
from golden.engine import Sequence
from golden.files import Golden, load_golden, relative_error
from golden.hf import Reference
from golden.specs import SPECS, TEXT_TOKENS

from ryzanstein import _core
from ryzanstein.loaders.model_files import open_files
from ryzanstein.models import LoadedModel, load_model

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Pair:
    """One checkpoint in transformers, with what it computed, and its directory."""

    golden: Golden
    hidden: NDArray[np.float32]
    logits: NDArray[np.float32]
    generated: NDArray[np.int32]
    model: dict[str, LoadedModel]


@pytest.fixture(scope="module", params=SPECS, ids=lambda spec: spec.name)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    golden = load_golden(request.param)
    directory = golden.write(tmp_path_factory.mktemp("checkpoint"))
    reference = Reference(directory, json.loads(golden.files["config.json"]), TEXT_TOKENS)
    hidden, logits = reference.run(golden.prompt)
    generated = reference.generate(golden.prompt, len(golden.generated))
    models = {
        isa: load_model(open_files(directory), threads=2, isa=isa) for isa in _core.available_isas()
    }
    return Pair(golden, hidden, logits, generated, models)


@pytest.mark.parametrize("isa", _core.available_isas())
def test_hidden_states_and_logits(pair: Pair, isa: str) -> None:
    hidden, logits = Sequence(pair.model[isa], TEXT_TOKENS).extend(pair.golden.prompt)

    errors = [relative_error(*states) for states in zip(hidden, pair.hidden, strict=True)]
    assert max(errors) < tolerances.GOLDEN_HIDDEN, f"by layer: {errors}"
    assert relative_error(logits, pair.logits) < tolerances.GOLDEN_LOGITS


@pytest.mark.parametrize("isa", _core.available_isas())
def test_greedy_generation(pair: Pair, isa: str) -> None:
    prompt = pair.golden.prompt
    sequence = Sequence(pair.model[isa], TEXT_TOKENS)
    _, logits = sequence.extend(prompt)
    tokens = []
    for _ in pair.generated:
        tokens.append(int(logits[-1].argmax()))
        _, logits = sequence.extend(np.array(tokens[-1:]))
    assert tokens == pair.generated.tolist()


def test_golden_files_are_current(pair: Pair) -> None:
    """What transformers computes today is what the committed files hold."""
    assert relative_error(pair.hidden, pair.golden.hidden) < tolerances.GOLDEN_HIDDEN
    assert relative_error(pair.logits, pair.golden.logits) < tolerances.GOLDEN_LOGITS
    assert pair.generated.tolist() == pair.golden.generated.tolist()
