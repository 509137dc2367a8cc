"""A GGUF file's rotary embedding as config.json has it.

Llama 3's scaling, and longrope's, are tensors of what each frequency is divided by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ryzanstein.errors import CorruptFileError, UnsupportedFormatError

if TYPE_CHECKING:
    from ryzanstein.loaders.gguf_metadata import Metadata

__all__ = ["LONG_FACTORS", "ROPE_DIVISORS", "ROPE_FACTORS", "SHORT_FACTORS", "rope_config"]

ROPE_FACTORS = "rope_freqs.weight"
LONG_FACTORS = "rope_factors_long.weight"
SHORT_FACTORS = "rope_factors_short.weight"
# By the kind of scaling that they are of.
_KINDS = {ROPE_FACTORS: "none", LONG_FACTORS: "longrope", SHORT_FACTORS: "longrope"}
ROPE_DIVISORS = frozenset(_KINDS)
_YARN_FACTORS = ("yarn_attn_factor", "yarn_ext_factor", "yarn_log_multiplier")
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_MAX_CONTEXT = (1 << 31) - 1
_REMEDY = "Use the model's Hugging Face directory"


def rope_config(metadata: Metadata, head_dim: Any) -> dict[str, Any]:
    """Return what config.json says of the rotation of heads of this size.

    Raises:
        ModelLoadError: a tensor or value is missing.
        CorruptFileError: a tensor has another size than half a head.
        UnsupportedFormatError: config.json cannot say it.
    """
    config: dict[str, Any] = {"rope_theta": metadata.value("rope.freq_base", 10000.0)}
    rotated = metadata.value("rope.dimension_count", head_dim)
    if type(rotated) is int and type(head_dim) is int and rotated != head_dim > 0:
        config["partial_rotary_factor"] = rotated / head_dim
    scaling = _scaling(metadata, config["rope_theta"], head_dim)
    return config if scaling is None else config | {"rope_scaling": scaling}


def _scaling(metadata: Metadata, theta: Any, head_dim: Any) -> dict[str, Any] | None:
    factor = metadata.value("rope.scaling.factor", metadata.value("rope.scale_linear"))
    # A factor alone stretches all frequencies, as in llama.cpp: early files name no kind.
    kind = metadata.value("rope.scaling.type", "linear" if factor else "none")
    if kind == "linear" and factor == 1:
        kind = "none"
    for name, expected in _KINDS.items():
        if name in metadata and kind != expected:
            raise UnsupportedFormatError(
                f"{metadata.path}: {name} divides the rotary frequencies, but rope.scaling.type is "
                f"{str(kind)[:40]!r}; config.json has no word for both. {_REMEDY}"
            )
    if kind == "longrope":
        return _longrope(metadata, factor, head_dim)
    if kind == "none":
        return _llama3(metadata, theta) if ROPE_FACTORS in metadata else None
    _require_none(metadata, ("attn_factor", *_YARN_FACTORS))
    return {
        "rope_type": kind,
        "factor": metadata.required("rope.scaling.factor") if factor is None else factor,
        "original_max_position_embeddings": metadata.value("rope.scaling.original_context_length"),
        "beta_fast": metadata.value("rope.scaling.yarn_beta_fast"),
        "beta_slow": metadata.value("rope.scaling.yarn_beta_slow"),
    }


def _require_none(metadata: Metadata, keys: tuple[str, ...]) -> None:
    """Refuse what llama.cpp multiplies in, and config.json's attention_factor replaces."""
    for key in keys:
        if metadata.value(f"rope.scaling.{key}") is not None:
            raise UnsupportedFormatError(
                f"{metadata.path}: rope.scaling.{key} is not supported. {_REMEDY}"
            )


def _longrope(metadata: Metadata, factor: Any, head_dim: Any) -> dict[str, Any]:
    """Return longrope's parameters, whose attention factor is 1 where a file does not say."""
    _require_none(metadata, _YARN_FACTORS)
    if factor not in (None, 1.0):
        raise UnsupportedFormatError(
            f"{metadata.path}: rope.scaling.factor is {str(factor)[:40]} beside longrope; "
            "llama.cpp divides every frequency by it, and config.json has no word for that. "
            f"{_REMEDY}"
        )
    return {
        "rope_type": "longrope",
        "original_max_position_embeddings": metadata.value("rope.scaling.original_context_length"),
        "attention_factor": metadata.value("rope.scaling.attn_factor", 1.0),
        "short_factor": _divisors(metadata, SHORT_FACTORS, head_dim),
        "long_factor": _divisors(metadata, LONG_FACTORS, head_dim),
    }


def _divisors(metadata: Metadata, name: str, head_dim: Any) -> list[float]:
    shape = metadata.tensor(name).shape
    if type(head_dim) is not int or shape != (head_dim // 2,):
        raise CorruptFileError(
            f"{metadata.path}: {name} has shape {list(shape)[:4]}, not a number for each pair of "
            f"the {str(head_dim)[:40]} dimensions of a head; download the file again"
        )
    # As other numbers of the file: the shortest decimal is what was meant.
    return [float(str(divisor)) for divisor in metadata.vector(name)]


def _llama3(metadata: Metadata, theta: Any) -> dict[str, Any]:
    """Return the parameters of Llama 3's rope scaling, of which GGUF has only the result.

    The file has by how much each frequency is divided. All models of Llama 3.1 to 3.3 have the same
    bands and, where a file does not say, original context, so the largest divisor settles the rest;
    numbers that do not come out are refused.
    """
    original = metadata.value("rope.scaling.original_context_length")
    is_count = type(original) is int and 0 < original <= _MAX_CONTEXT
    bands = _LLAMA3 | ({"original_max_position_embeddings": original} if is_count else {})
    found = metadata.vector(ROPE_FACTORS)
    factor = float(found.max())
    pairs = len(found)
    if isinstance(theta, float) and theta > 1 and np.isfinite(factor) and factor >= 1:
        frequencies = theta ** -(np.arange(pairs, dtype=np.float64) / pairs)
        turns = bands["original_max_position_embeddings"] * frequencies / (2 * np.pi)
        low, high = bands["low_freq_factor"], bands["high_freq_factor"]
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        if np.allclose(found, 1 / ((1 - kept) / factor + kept), rtol=1e-5):
            return {"rope_type": "llama3", "factor": factor, **bands}
    raise UnsupportedFormatError(
        f"{metadata.path}: {ROPE_FACTORS} is not the scaling of Llama 3.1. {_REMEDY}, "
        "whose config.json says what it is"
    )
