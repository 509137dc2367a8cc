from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from ryzanstein import CorruptFileError, SamplingParams
from ryzanstein.sampling.presets import default_params

if TYPE_CHECKING:
    from pathlib import Path


def write(directory: Path, values: Any) -> Path:
    (directory / "generation_config.json").write_text(json.dumps(values))
    return directory


def test_no_file_means_greedy(tmp_path: Path) -> None:
    assert default_params(tmp_path) == SamplingParams(temperature=0)


def test_sampling_fields_are_taken(tmp_path: Path) -> None:
    stored = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": None, "eos": 3}
    assert default_params(write(tmp_path, stored)) == SamplingParams(temperature=0.6, top_p=0.9)


def test_without_do_sample_temperature_is_ignored(tmp_path: Path) -> None:
    stored = {"temperature": 0.6, "repetition_penalty": 1.1, "max_new_tokens": 9}
    expected = SamplingParams(temperature=0, repetition_penalty=1.1, max_tokens=9)
    assert default_params(write(tmp_path, stored)) == expected


def test_a_bad_value_names_the_file(tmp_path: Path) -> None:
    write(tmp_path, {"do_sample": True, "top_p": 7})
    with pytest.raises(CorruptFileError, match=r"generation_config\.json: top_p must be"):
        default_params(tmp_path)
