"""The ways to hold the weights of one checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import tolerances
from checkpoints import Stored, Tensors, random_tensors, store, write_checkpoint
from golden.engine import Sequence
from golden.files import relative_error
from golden.specs import SPECS
from reference import ops
from reference.model import Oracle

from ryzanstein.errors import QuantizationError, UnsupportedFormatError, ValidationError
from ryzanstein.llm import LLM
from ryzanstein.loaders.model_files import open_files
from ryzanstein.loaders.weight_cache import WeightCache
from ryzanstein.models import load_model
from ryzanstein.quant import exact_ternary, to_bfloat16

if TYPE_CHECKING:
    from pathlib import Path

    from checkpoints import Config
    from numpy.typing import NDArray

    from ryzanstein.config import WeightKind

PROMPT = np.arange(1, 21)
FLOATS: Config = next(spec for spec in SPECS if spec.name == "mistral").config
TERNARY: Config = next(spec for spec in SPECS if spec.name == "bitnet_offline").config


def logits(directory: Path, weights: WeightKind) -> NDArray[np.float32]:
    model = load_model(open_files(directory), threads=2, isa=None, weights=weights)
    return Sequence(model, len(PROMPT)).extend(PROMPT)[1]


def is_linear(name: str) -> bool:
    return name.endswith("_proj.weight")


def rounded(tensors: Tensors) -> Tensors:
    return {n: store(t.values(), "BF16") if is_linear(n) else t for n, t in tensors.items()}


def test_bf16_rounds_the_linears(tmp_path: Path) -> None:
    tensors = random_tensors(FLOATS, 1, "F32")
    whole = write_checkpoint(tmp_path / "f32", FLOATS, tensors)
    short = write_checkpoint(tmp_path / "bf16", FLOATS, rounded(tensors))
    assert np.array_equal(logits(whole, "bf16"), logits(short, "auto"))
    assert not np.array_equal(logits(whole, "bf16"), logits(whole, "auto"))


def test_ternary_makes_masters_of_floats(tmp_path: Path) -> None:
    tensors = random_tensors(FLOATS, 2, "BF16")
    masters = FLOATS | {
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "online",
        }
    }
    floats = write_checkpoint(tmp_path / "floats", FLOATS, tensors)
    known = write_checkpoint(tmp_path / "masters", masters, tensors)
    assert np.array_equal(logits(floats, "ternary"), logits(known, "auto"))


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_bf16_leaves_16_bits_as_they_are(dtype: str, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, FLOATS, random_tensors(FLOATS, 6, dtype))
    assert np.array_equal(logits(directory, "bf16"), logits(directory, "auto"))


def test_bfloat16_rounds_halves_to_even() -> None:
    values = np.random.default_rng(0).standard_normal((3, 700_000), np.float32)
    values[0, :4] = [1 + 2**-8, 1 + 3 * 2**-8, -0.0, 1e-40]
    expected = store(values, "BF16").array
    np.testing.assert_array_equal(to_bfloat16(values), expected)


def already_ternary(tensors: Tensors, seed: int) -> Tensors:
    """Return the tensors with every linear ternary, a magnitude for each quarter of its rows."""
    rng = np.random.default_rng(seed)
    changed: Tensors = dict(tensors)
    for name, tensor in tensors.items():
        if is_linear(name):
            rows = len(tensor.array)
            codes, scale = ops.ternarize(tensor.values())
            quarters = rng.uniform(0.5, 2.0, 4)[np.arange(rows) * 4 // rows]
            changed[name] = store(codes * (scale * quarters)[:, None], "F16")
    return changed


class Trilm(Oracle):
    """Linears whose rows have scales of their own, with quantised inputs."""

    def _ternary(self, name: str) -> tuple[NDArray[np.int8], float]:
        values = self._values(f"{name}.weight")
        scales = np.abs(values).max(axis=1)
        return np.sign(values).astype(np.int8), scales


def test_weights_that_are_ternary_already_stay_what_they_are(tmp_path: Path) -> None:
    tensors = already_ternary(random_tensors(FLOATS, 5, "F16"), 5)
    directory = write_checkpoint(tmp_path, FLOATS, tensors)
    quantised = FLOATS | {"quantization_config": {"quantization_mode": "online"}}
    expected = Trilm(quantised, tensors).forward(PROMPT)
    assert expected.margin > tolerances.GOLDEN_MARGIN  # no activation is near a boundary
    found = logits(directory, "ternary")
    assert relative_error(found, expected.logits) < tolerances.GOLDEN_LOGITS
    plain = Oracle(FLOATS, tensors).forward(PROMPT)
    assert relative_error(logits(directory, "auto"), plain.logits) < tolerances.GOLDEN_LOGITS
    assert relative_error(logits(directory, "ternary"), plain.logits) < 0.1


def test_scales_of_columns_are_not_ternary_rows() -> None:
    weights = np.array([[1.0, -1.0, 0.0], [0.5, 0.25, 0.0]], np.float32)
    assert exact_ternary(weights[:1]) is not None
    assert exact_ternary(weights) is None


def test_a_row_of_zeros_is_ternary(tmp_path: Path) -> None:
    tensors = already_ternary(random_tensors(FLOATS, 4, "F16"), 4)
    name = "model.layers.0.mlp.up_proj.weight"
    zeroed = tensors[name].array.copy()
    zeroed[3] = 0
    tensors[name] = Stored("F16", zeroed)
    directory = write_checkpoint(tmp_path, FLOATS, tensors)
    assert np.isfinite(logits(directory, "ternary")).all()


# Relative to the logits' spread: 21 linears that err by 1 and 9 % each, in a random walk, and some.
@pytest.mark.parametrize(("weights", "error"), [("int8", 0.08), ("int4", 0.6)])
def test_groups_round_the_linears(weights: WeightKind, error: float, tmp_path: Path) -> None:
    tensors = random_tensors(FLOATS, 6, "BF16")
    directory = write_checkpoint(tmp_path / "model", FLOATS, tensors)
    found = logits(directory, weights)
    exact = logits(directory, "auto")
    assert 0.2 * error < np.std(found - exact) / np.std(exact) < error
    cache = WeightCache(tmp_path / "cache", 1 << 30, minimum_bytes=0)
    for _ in range(2):  # packed, then as it was kept
        model = load_model(
            open_files(directory), threads=1, isa=None, weights=weights, weight_cache=cache
        )
        assert np.array_equal(Sequence(model, len(PROMPT)).extend(PROMPT)[1], found)
    assert model.mapped_bytes > 0


def test_what_cannot_be_rounded_is_located(tmp_path: Path) -> None:
    tensors = random_tensors(FLOATS, 6, "F32")
    name = "model.layers.1.mlp.up_proj.weight"
    spoilt = tensors[name].array.copy()
    spoilt[3, 2] = np.inf
    tensors[name] = Stored("F32", spoilt)
    directory = write_checkpoint(tmp_path, FLOATS, tensors)
    with pytest.raises(QuantizationError, match=rf"{name}.* holds a NaN or an infinity"):
        logits(directory, "int4")


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_a_ternary_checkpoint_stays_ternary(weights: WeightKind, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, TERNARY, random_tensors(TERNARY, 5))
    assert np.array_equal(logits(directory, "auto"), logits(directory, "ternary"))
    with pytest.raises(UnsupportedFormatError, match=f"the model is ternary, which {weights}"):
        logits(directory, weights)


def test_unknown_weights() -> None:
    with pytest.raises(ValidationError, match="weights must be one of"):
        LLM(weights="int3")  # type: ignore[arg-type]
