from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tolerances
from golden.files import HERE
from golden.specs import ROPE_LENGTHS, ROPE_SPECS
from reference import model as oracle

from ryzanstein.errors import CorruptFileError, ModelLoadError, UnsupportedFormatError
from ryzanstein.models.fields import Fields
from ryzanstein.models.rope import (
    RopeConfig,
    frequency_sets,
    inverse_frequencies,
    read_rope,
    rope_limits,
)

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
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32}


def read(**config: Any) -> RopeConfig:
    return read_rope(Fields(config, "config.json"), config.get("max_position_embeddings", 131072))


@pytest.mark.parametrize("name", ROPE_SPECS)
def test_frequencies_are_those_of_transformers(name: str) -> None:
    config: Config = ROPE_SPECS[name]
    head_dim = config.get("head_dim", 128)
    with np.load(HERE / "rope.npz") as stored:
        expected = stored[name].astype(np.float64)

    rope = read(**config)
    actual = inverse_frequencies(rope, head_dim, ROPE_LENGTHS.get(name, 0))

    assert actual.dtype == np.float64
    assert actual.shape == (head_dim // 2,)
    np.testing.assert_allclose(actual, expected[:-1], rtol=tolerances.ROPE_FREQUENCIES)
    assert rope.attention_factor == pytest.approx(expected[-1], rel=tolerances.ROPE_FREQUENCIES)


@pytest.mark.parametrize("name", ROPE_SPECS)
def test_frequencies_are_those_of_the_oracle(name: str) -> None:
    config: Config = ROPE_SPECS[name]
    head_dim, length = config.get("head_dim", 128), ROPE_LENGTHS.get(name, 0)
    (section,) = oracle.rope_sections(config | {"architectures": ["LlamaForCausalLM"]})
    expected = oracle.inverse_frequencies(section, head_dim, length)
    actual = inverse_frequencies(read(**config), head_dim, length)
    np.testing.assert_allclose(actual, expected, rtol=tolerances.FLOAT64)


def test_factor_one_changes_nothing() -> None:
    plain = inverse_frequencies(read(rope_theta=10000.0), 64)
    linear = read(rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 1})
    assert np.array_equal(inverse_frequencies(linear, 64), plain)


def test_limits_of_sequences() -> None:
    scaling = {"type": "dynamic", "factor": 5.0}
    dynamic = read(rope_theta=1e4, max_position_embeddings=2048, rope_scaling=scaling)
    assert dynamic.limits == (2048, 4096, 8192)
    assert dynamic.max_context == 10240
    longrope = read(rope_theta=1e4, original_max_position_embeddings=512, rope_scaling=LONGROPE)
    assert longrope.limits == (512,)
    assert rope_limits((dynamic, longrope)) == (512, 2048, 4096, 8192)
    sets = frequency_sets((dynamic, longrope), 64)
    assert sets.shape == (5, 2, 32)
    for row, length in zip(sets, (512, 2048, 4096, 8192, 10240), strict=True):
        assert np.array_equal(row[0], inverse_frequencies(dynamic, 64, length))
        assert np.array_equal(row[1], inverse_frequencies(longrope, 64, length))
    plain = inverse_frequencies(read(rope_theta=1e4), 64)
    assert np.array_equal(sets[0], [plain, plain])
    assert not read(rope_theta=1e4, rope_scaling=scaling | {"factor": 1.0}).limits


def test_a_null_factor_is_how_far_the_context_was_stretched() -> None:
    for scaling in (YARN, LONGROPE):
        stretched = scaling | {"factor": None, "original_max_position_embeddings": 32768}
        rope = read(rope_theta=1e4, rope_scaling=stretched)
        assert rope.factor == 4.0
        assert rope == read(rope_theta=1e4, rope_scaling=stretched | {"factor": 4.0})


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
            {"rope_theta": 1e4, "rope_scaling": {"rope_type": "proportional", "factor": 4.0}},
            UnsupportedFormatError,
            "field 'rope_scaling.rope_type' is 'proportional'; supported are default, linear, ntk, "
            "dynamic, yarn, longrope, llama3",
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": {"rope_type": "longrope", "factor": 4.0}},
            ModelLoadError,
            "field 'rope_scaling.short_factor' is missing",
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": LONGROPE | {"long_factor": 2.0}},
            CorruptFileError,
            "field 'rope_scaling.long_factor' must be a list of numbers",
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": LONGROPE | {"short_factor": [1.0, "2"]}},
            CorruptFileError,
            "field 'rope_scaling.short_factor.1' must be a number",
        ),
        (
            {
                "rope_theta": 1e4,
                "original_max_position_embeddings": 4096,
                "rope_scaling": LONGROPE | {"original_max_position_embeddings": 8192},
            },
            CorruptFileError,
            "at the top level is 4096; keep one of them",
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
            {"rope_theta": 1e4, "rope_scaling": {"type": "dynamic"}},
            ModelLoadError,
            "field 'rope_scaling.factor' is missing",
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
