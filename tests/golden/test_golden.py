"""The engine against transformers in float32, layer by layer, from committed files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import tolerances
from golden.engine import Sequence
from golden.files import Golden, load_golden, relative_error
from golden.specs import SPECS, TEXT_TOKENS

from ryzanstein import _core
from ryzanstein.loaders.model_files import open_files
from ryzanstein.models import LoadedModel, load_model

if TYPE_CHECKING:
    from pathlib import Path

    from ryzanstein.config import KVDtype


@pytest.fixture(params=SPECS, ids=lambda spec: spec.name)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


@pytest.fixture(params=_core.available_isas())
def model(request: pytest.FixtureRequest, golden: Golden, tmp_path: Path) -> LoadedModel:
    return load_model(open_files(golden.write(tmp_path)), threads=2, isa=request.param)


def test_hidden_states_and_logits(model: LoadedModel, golden: Golden) -> None:
    hidden, logits = Sequence(model, TEXT_TOKENS).extend(golden.prompt)

    errors = [relative_error(*pair) for pair in zip(hidden, golden.hidden, strict=True)]
    assert max(errors) < tolerances.GOLDEN_HIDDEN, f"by layer: {errors}"
    assert relative_error(logits, golden.logits) < tolerances.GOLDEN_LOGITS


def test_greedy_tokens_of_the_prompt(model: LoadedModel, golden: Golden) -> None:
    _, logits = Sequence(model, TEXT_TOKENS).extend(golden.prompt)

    ordered = np.sort(golden.logits, axis=1)
    threshold = 2 * tolerances.GOLDEN_LOGITS * np.abs(golden.logits).max()
    clear = ordered[:, -1] - ordered[:, -2] > threshold
    assert clear.mean() > 0.9
    assert np.array_equal(logits.argmax(1)[clear], golden.logits.argmax(1)[clear])


def test_greedy_generation(model: LoadedModel, golden: Golden) -> None:
    sequence = Sequence(model, TEXT_TOKENS)
    _, logits = sequence.extend(golden.prompt)
    tokens = []
    for _ in golden.generated:
        tokens.append(int(logits[-1].argmax()))
        _, logits = sequence.extend(np.array(tokens[-1:]))
    assert tokens == golden.generated.tolist()


@pytest.mark.parametrize("dtype", tolerances.CACHE_LOGITS)
def test_a_rounded_cache_stays_close(dtype: KVDtype, model: LoadedModel, golden: Golden) -> None:
    _, logits = Sequence(model, TEXT_TOKENS, dtype).extend(golden.prompt)
    assert relative_error(logits, golden.logits) < tolerances.CACHE_LOGITS[dtype]
