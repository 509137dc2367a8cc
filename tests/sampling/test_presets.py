from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from ryzanstein import CorruptFileError, SamplingParams
from ryzanstein.loaders.model_files import open_files
from ryzanstein.sampling.presets import Defaults, read_defaults

if TYPE_CHECKING:
    from pathlib import Path


def write(directory: Path, values: Any) -> Path:
    (directory / "generation_config.json").write_text(json.dumps(values))
    return directory


def test_no_file_means_greedy(tmp_path: Path) -> None:
    assert read_defaults(open_files(tmp_path)) == Defaults(SamplingParams(temperature=0), 256)


def test_sampling_fields_are_taken(tmp_path: Path) -> None:
    stored = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": None, "eos": 3}
    found = read_defaults(open_files(write(tmp_path, stored)))
    assert found == Defaults(SamplingParams(temperature=0.6, top_p=0.9), 256)


def test_without_do_sample_temperature_is_ignored(tmp_path: Path) -> None:
    stored = {"temperature": 0.6, "repetition_penalty": 1.1, "max_new_tokens": 9}
    found = read_defaults(open_files(write(tmp_path, stored)))
    assert found == Defaults(SamplingParams(temperature=0, repetition_penalty=1.1), 9)


@pytest.mark.parametrize(
    ("field", "value"), [("top_p", 7), ("temperature", "hot"), ("max_new_tokens", 0)]
)
def test_a_bad_value_names_the_file(field: str, value: Any, tmp_path: Path) -> None:
    write(tmp_path, {"do_sample": True, field: value})
    with pytest.raises(CorruptFileError, match=rf"generation_config\.json: {field} must be"):
        read_defaults(open_files(tmp_path))
