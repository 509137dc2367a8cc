from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tolerances
from golden.files import HERE
from golden.specs import ROPE_SPECS
from reference import model as oracle

from ryzanstein.errors import CorruptFileError, ModelLoadError, UnsupportedFormatError
from ryzanstein.models.fields import Fields
from ryzanstein.models.rope import RopeConfig, inverse_frequencies, read_rope

if TYPE_CHECKING:
    from checkpoints import Config

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

YARN = {"rope_type": "yarn", "factor": 4.0}


def read(**config: Any) -> RopeConfig:
    return read_rope(Fields(config, "config.json"), 131072)


@pytest.mark.parametrize("name", ROPE_SPECS)
def test_frequencies_are_those_of_transformers(name: str) -> None:
    config: Config = ROPE_SPECS[name]
    head_dim = config.get("head_dim", 128)
    with np.load(HERE / "rope.npz") as stored:
        expected = stored[name].astype(np.float64)

    rope = read(**config)
    actual = inverse_frequencies(rope, head_dim)

    assert actual.dtype == np.float64
    assert actual.shape == (head_dim // 2,)
    np.testing.assert_allclose(actual, expected[:-1], rtol=tolerances.ROPE_FREQUENCIES)
    assert rope.attention_factor == pytest.approx(expected[-1], rel=tolerances.ROPE_FREQUENCIES)


@pytest.mark.parametrize("name", ROPE_SPECS)
def test_frequencies_are_those_of_the_oracle(name: str) -> None:
    config: Config = ROPE_SPECS[name]
    if "type" in config.get("rope_scaling", {}):
        config = config | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    (section,) = oracle.rope_sections(config | {"architectures": ["LlamaForCausalLM"]})
    expected = oracle.inverse_frequencies(section, 128)
    np.testing.assert_allclose(
        inverse_frequencies(read(**config), 128), expected, rtol=tolerances.FLOAT64
    )


def test_factor_one_changes_nothing() -> None:
    plain = inverse_frequencies(read(rope_theta=10000.0), 64)
    linear = read(rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 1})
    assert np.array_equal(inverse_frequencies(linear, 64), plain)


def test_both_spellings_may_agree() -> None:
    section = LLAMA3 | {"rope_theta": 500000.0}
    both = read(rope_theta=500000.0, rope_parameters=section, rope_scaling=LLAMA3)
    assert both == read(rope_parameters=section)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({}, ModelLoadError, "field 'rope_theta' is missing"),
        ({"rope_theta": "big"}, CorruptFileError, "field 'rope_theta' must be a number"),
        ({"rope_theta": 0.0}, CorruptFileError, "field 'rope_theta' must be a number"),
        ({"rope_theta": float("nan")}, CorruptFileError, "found nan"),
        ({"rope_theta": 1e4, "rope_scaling": "linear"}, CorruptFileError, "must be an object"),
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}},
            CorruptFileError,
            "'rope_theta' at the top level is 10000.0",
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": {"rope_type": "longrope", "factor": 4.0}},
            UnsupportedFormatError,
            "field 'rope_scaling.rope_type' is 'longrope'; supported are default, linear, llama3, "
            "yarn",
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": YARN | {"beta_slow": 32}},
            CorruptFileError,
            "field 'rope_scaling.beta_slow' is 32.0, not below beta_fast 32.0",
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": YARN | {"attention_factor": "big"}},
            CorruptFileError,
            "field 'rope_scaling.attention_factor' must be a number",
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "factor": 4.0}},
            UnsupportedFormatError,
            "'dynamic'",
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear"}},
            ModelLoadError,
            "field 'rope_scaling.factor' is missing",
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": True}},
            CorruptFileError,
            "field 'rope_scaling.factor' must be a number",
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}},
            CorruptFileError,
            "not below high_freq_factor",
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "linear"}},
            CorruptFileError,
            "'rope_scaling' contradict each other",
        ),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            UnsupportedFormatError,
            "partial_rotary_factor",
        ),
        (
            {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
            UnsupportedFormatError,
            "partial_rotary_factor",
        ),
    ],
)
def test_bad_configuration(config: Config, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        read(**config)
