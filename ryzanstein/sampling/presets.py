"""The sampling a model's authors recommend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ryzanstein.errors import CorruptFileError, ValidationError
from ryzanstein.loaders.json_file import read_json_object
from ryzanstein.sampling.params import SamplingParams

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["default_params"]

_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")


def default_params(directory: Path) -> SamplingParams:
    """Return the sampling of generation_config.json, with the meaning transformers gives it.

    As there, `do_sample` absent or false means greedy. Fields that are absent or null take the
    defaults of SamplingParams.

    Raises:
        CorruptFileError: the file does not parse, or a value is outside its range.
    """
    path = directory / "generation_config.json"
    stored = read_json_object(path) if path.is_file() else {}
    fields: dict[str, Any] = {
        name: stored[name] for name in _FIELDS if stored.get(name) is not None
    }
    if stored.get("do_sample") is not True:
        fields["temperature"] = 0.0
    try:
        return SamplingParams(**fields)
    except ValidationError as error:
        raise CorruptFileError(f"{path}: {error}") from error
