from __future__ import annotations

import math
import pickle
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryzanstein import SamplingParams, ValidationError
from ryzanstein.sampling.strategies import ORDERS, STRATEGIES


def test_defaults_change_nothing() -> None:
    params = SamplingParams()
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (1.0, 0, 1.0, 0.0)
    assert (params.repetition_penalty, params.stop, params.seed) == (1.0, (), None)
    assert params.max_tokens is None


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("max_tokens", 0, "an integer >= 1, got 0"),
        ("max_tokens", 1.5, "an integer >= 1, got 1.5"),
        ("max_tokens", True, "an integer >= 1, got True"),
        ("max_tokens", "9", "an integer >= 1, got '9'"),
        ("max_new_tokens", -1, "an integer >= 1, got -1"),
        ("temperature", -0.1, r"a number in \[0, inf\), got -0.1"),
        ("temperature", math.nan, r"a number in \[0, inf\), got nan"),
        ("temperature", math.inf, r"a number in \[0, inf\), got inf"),
        ("temperature", "hot", r"a number in \[0, inf\), got 'hot'"),
        ("temperature", False, r"a number in \[0, inf\), got False"),
        ("top_k", -2, "an integer >= -1, got -2"),
        ("top_k", 2.0, "an integer >= -1, got 2.0"),
        ("top_p", 0.0, r"a number in \(0, 1\], got 0.0"),
        ("top_p", 1.01, r"a number in \(0, 1\], got 1.01"),
        ("top_p", math.nan, r"a number in \(0, 1\], got nan"),
        ("min_p", -0.5, r"a number in \[0, 1\], got -0.5"),
        ("min_p", 1.5, r"a number in \[0, 1\], got 1.5"),
        ("min_p", None, r"a number in \[0, 1\], got None"),
        ("repetition_penalty", 0, r"a number in \(0, inf\), got 0"),
        ("repetition_penalty", math.inf, r"a number in \(0, inf\), got inf"),
        ("stop", [""], "non-empty strings, got ''"),
        ("stop", [1], "non-empty strings, got 1"),
        ("stop", 1, "a string or a list of strings, got 1"),
        ("stop_token_ids", [-1], "an integer >= 0, got -1"),
        ("stop_token_ids", "ab", "a list of token ids, got 'ab'"),
        ("stop_token_ids", 3, "a list of token ids, got 3"),
        ("ignore_eos", 1, "True or False, got 1"),
        ("seed", -1, r"in 0\.\.18446744073709551615, got -1"),
        ("seed", 2**64, r"in 0\.\.18446744073709551615, got 18446744073709551616"),
        ("seed", 0.5, r"in 0\.\.18446744073709551615, got 0.5"),
        ("logprobs", -1, "an integer >= 0, got -1"),
        ("logprobs", True, "an integer >= 0, got True"),
        ("frequency_penalty", math.nan, r"a number in \[-inf, inf\), got nan"),
        ("presence_penalty", "a", r"a number in \[-inf, inf\), got 'a'"),
        ("penalty_last_n", -2, "an integer >= -1, got -2"),
        ("typical_p", 0, r"a number in \(0, 1\], got 0"),
        ("top_n_sigma", -1, r"a number in \[0, inf\), got -1"),
        ("xtc_probability", 1.1, r"a number in \[0, 1\], got 1.1"),
        ("xtc_threshold", 0, r"a number in \(0, 1\], got 0"),
        ("dynatemp_range", -1, r"a number in \[0, inf\), got -1"),
        ("dynatemp_exponent", -1, r"a number in \[0, inf\), got -1"),
        ("dry_multiplier", -1, r"a number in \[0, inf\), got -1"),
        ("dry_base", 0.9, r"a number in \[1, inf\), got 0.9"),
        ("dry_allowed_length", 0, "an integer >= 1, got 0"),
        ("dry_penalty_last_n", -2, "an integer >= -1, got -2"),
        ("dry_sequence_breakers", [""], "non-empty strings, got ''"),
        ("mirostat", 1, "0 or 2, got 1"),
        ("mirostat_tau", -1, r"a number in \[0, inf\), got -1"),
        ("mirostat_eta", math.inf, r"a number in \[0, inf\), got inf"),
        ("min_tokens", -1, "an integer >= 0, got -1"),
        ("min_keep", 0, "an integer >= 1, got 0"),
        ("bad_words", [3], "non-empty strings, got 3"),
        ("logit_bias", {1: math.inf}, "finite numbers or -inf, got inf"),
        ("logit_bias", {1: math.nan}, "finite numbers or -inf, got nan"),
        ("logit_bias", {1: "a"}, "finite numbers or -inf, got 'a'"),
        ("logit_bias", {-1: 1.0}, "an integer >= 0, got -1"),
        ("order", "vllm", "one of hf, llama.cpp or a list of names, got 'vllm'"),
        ("order", ["top_q"], r"names among penalties, .*, xtc, got 'top_q'"),
        ("order", ["top_k", "top_k"], "each name once, got 'top_k' twice"),
        ("logits_processor", 3, "callable, got 3"),
    ],
)
def test_out_of_range_names_field_value_and_range(field: str, value: Any, wanted: str) -> None:
    with pytest.raises(ValidationError, match=f"^{field} must (be|hold) {wanted}$"):
        SamplingParams(**{field: value})


def test_unknown_option() -> None:
    options: dict[str, Any] = {"temprature": 1.0}
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(**options)


def test_max_new_tokens_is_max_tokens() -> None:
    assert SamplingParams(max_new_tokens=7).max_tokens == 7
    assert replace(SamplingParams(max_new_tokens=7), max_tokens=9).max_tokens == 9
    with pytest.raises(ValidationError, match=r"max_tokens \(1\) and max_new_tokens \(2\) mean"):
        SamplingParams(max_tokens=1, max_new_tokens=2)


def test_values_are_normalised() -> None:
    stops: Any = (s for s in ("a", "b"))
    params = SamplingParams(stop=stops, stop_token_ids=[1, 2], top_k=-1, temperature=1)
    assert params.stop == params.stop_strings == ("a", "b")
    assert params.stop_token_ids == (1, 2)
    assert params.top_k == 0
    assert isinstance(params.temperature, float)
    assert SamplingParams(stop="ab").stop_strings == ("ab",)


def test_numpy_numbers_are_numbers() -> None:
    seed: Any = np.int64(3)
    temperature: Any = np.float32(0.5)
    params = SamplingParams(seed=seed, temperature=temperature)
    assert (params.seed, params.temperature) == (3, 0.5)
    assert type(params.seed) is int


def test_frozen_hashable_picklable() -> None:
    params = SamplingParams(seed=1, stop=["x"], stop_token_ids=[4])
    with pytest.raises(FrozenInstanceError):
        params.seed = 2  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(params)) == params
    assert hash(params) == hash(replace(params))


@given(
    st.fixed_dictionaries(
        {
            "temperature": st.floats(0, 1e6),
            "top_p": st.floats(0, 1, exclude_min=True),
            "min_p": st.floats(0, 1),
            "top_k": st.integers(-1, 10**9),
            "repetition_penalty": st.floats(0, 1e6, exclude_min=True),
            "seed": st.none() | st.integers(0, 2**64 - 1),
        }
    )
)
def test_the_whole_range_is_accepted(options: dict[str, Any]) -> None:
    SamplingParams(**options)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"min_tokens": 9, "max_tokens": 8}, r"min_tokens \(9\) exceeds max_tokens \(8\)"),
        ({"order": ["top_k"], "top_p": 0.5}, "top_p is 0.5, but order leaves 'top_p' out"),
        ({"order": ["top_k"], "dynatemp_range": 0.5}, "dynatemp_range is 0.5, but order leaves"),
        ({"order": ["top_k", "penalties"]}, "order must begin with penalties and dry"),
        ({"order": ["dry", "penalties"]}, "order must begin with penalties and dry"),
        ({"mirostat": 2, "top_k": 4}, "top_k is 4, but mirostat cuts in its place"),
        ({"mirostat": 2, "dynatemp_range": 0.5}, "dynatemp_range is 0.5, but mirostat"),
        ({"temperature": 0, "xtc_probability": 0.5}, "xtc_probability is 0.5, but temperature 0"),
        ({"temperature": 0, "mirostat": 2}, "mirostat is 2, but temperature 0"),
        ({"temperature": 0, "dynatemp_range": 1}, "dynatemp_range is 1.0, but temperature 0"),
        ({"logit_bias": [1, 2]}, "logit_bias must map token ids to numbers, got 1"),
        ({"logit_bias": 3}, "logit_bias must map token ids to numbers, got 3"),
    ],
)
def test_contradictions_name_the_field(options: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValidationError, match=wanted):
        SamplingParams(**options)


def test_collections_are_normalised() -> None:
    params = SamplingParams(logit_bias={5: 1, 2: -math.inf}, bad_words="a", order=["top_k"])
    assert params.logit_bias == params.biases == ((2, -math.inf), (5, 1.0))
    assert (params.bad_words, params.order) == (("a",), ("top_k",))
    assert replace(params, seed=1).biases == params.biases
    assert SamplingParams().order == SamplingParams(order="hf").order == ORDERS["hf"]


def test_every_parameter_of_a_strategy_is_a_field_with_its_off_value() -> None:
    for strategy in STRATEGIES.values():
        assert strategy.active_fields(SamplingParams()) == []
        for name in strategy.parameters:
            assert hasattr(SamplingParams(), name)
