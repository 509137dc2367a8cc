"""The float64 oracle against transformers: what the kernels are tested with is itself tested."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tolerances
from checkpoints import parse
from golden.files import load_golden, relative_error
from golden.specs import SPECS, TEXT_TOKENS
from reference.model import Oracle

if TYPE_CHECKING:
    from golden.specs import Spec


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_oracle(spec: Spec) -> None:
    golden = load_golden(spec)
    tensors = {
        name.removeprefix("language_model."): tensor
        for file, data in golden.files.items()
        if file.endswith(".safetensors")
        for name, tensor in parse(data).items()
    }

    config = spec.config if spec.published else json.loads(golden.files["config.json"])
    trace = Oracle(config, tensors, TEXT_TOKENS).forward(golden.prompt)

    assert relative_error(golden.hidden, trace.hidden) < tolerances.ORACLE
    assert relative_error(golden.logits, trace.logits) < tolerances.ORACLE
    assert trace.margin > tolerances.GOLDEN_MARGIN


def test_every_golden_file_is_small_and_has_a_spec() -> None:
    from golden.files import HERE

    stored = {path.stem: path.stat().st_size for path in HERE.glob("*.npz")}
    assert set(stored) == {spec.name for spec in SPECS} | {"rope"}
    assert max(stored.values()) < 300_000
    assert np.load(HERE / "rope.npz").files
