"""The sampling a model's authors recommend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ryzanstein.config import check_integer
from ryzanstein.errors import CorruptFileError, ValidationError
from ryzanstein.sampling.params import SamplingParams

if TYPE_CHECKING:
    from ryzanstein.loaders.model_files import ModelFiles

__all__ = ["Defaults", "read_defaults"]

_FALLBACK_MAX_TOKENS = 256
_FIELDS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class Defaults:
    """What applies where the caller says nothing.

    Args:
        params: used when no SamplingParams are given.
        max_tokens: used when SamplingParams leave max_tokens open.
    """

    params: SamplingParams
    max_tokens: int


def read_defaults(files: ModelFiles) -> Defaults:
    """Return the defaults of generation_config.json, with the meaning transformers gives it.

    As there, `do_sample` absent or false means greedy. Fields that are absent or null take the
    defaults of SamplingParams, and 256 tokens.

    Raises:
        CorruptFileError: the file does not parse, or a value is outside its range.
    """
    stored = files.read_json("generation_config.json") or {}
    fields: dict[str, Any] = {
        name: stored[name] for name in _FIELDS if stored.get(name) is not None
    }
    if stored.get("do_sample") is not True:
        fields["temperature"] = 0.0
    max_tokens = stored.get("max_new_tokens")
    if max_tokens is None:
        max_tokens = _FALLBACK_MAX_TOKENS
    try:
        return Defaults(SamplingParams(**fields), check_integer("max_new_tokens", max_tokens, 1))
    except ValidationError as error:
        raise CorruptFileError(f"{files.where('generation_config.json')}: {error}") from error
