"""Rotary position embedding: its configuration in both spellings, and its frequencies.

transformers 5 writes `rope_parameters` (with `rope_theta` inside), earlier versions `rope_theta`
beside an optional `rope_scaling`.

Some kinds have frequencies for short sequences and others for long ones. A sequence takes those of
the most tokens it may grow to, and keeps them (docs/decisions/0032-rope-sets.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ryzanstein.errors import CorruptFileError, UnsupportedFormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from ryzanstein.models.family import Family
    from ryzanstein.models.fields import Fields

__all__ = [
    "RopeConfig",
    "frequency_sets",
    "inverse_frequencies",
    "read_rope",
    "read_ropes",
    "rope_limits",
]

# Ranges far wider than any model's, inside which no frequency can overflow.
_THETA = (1.0, 1e18)
_FACTOR = (1.0, 1e9)
_BAND = (1e-6, 1e6)
_ATTENTION_FACTOR = (1e-3, 1e3)
_DIVISOR = (1e-3, 1e9)
_MAX_CONTEXT = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding parameters; those after `theta` matter only to the kinds that use them."""

    kind: str  # one of those that `read_rope` knows
    theta: float
    factor: float = 1.0
    # In turns over the original context: where stretching ends, and where it is whole.
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 0
    attention_factor: float = 1.0  # multiplies cosines and sines
    truncate: bool = True  # yarn's ramp begins and ends at whole dimensions
    # longrope: what each frequency is divided by, up to the original context and beyond it.
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    @property
    def max_context(self) -> int:
        """Return the positions that the original ones were stretched to, 0 where unknown."""
        is_known = self.kind in ("yarn", "dynamic")
        return int(self.original_context * self.factor) if is_known else 0

    @property
    def limits(self) -> tuple[int, ...]:
        """Return the lengths of sequences beyond which other frequencies hold, ascending."""
        if self.kind == "longrope":
            return (self.original_context,)
        if self.kind != "dynamic":
            return ()
        doublings = range(max(0, math.ceil(math.log2(self.factor))))
        return tuple(self.original_context << n for n in doublings)


def read_ropes(
    fields: Fields, family: Family, max_context: int, head_dim: int
) -> tuple[RopeConfig, ...]:
    """Return the rotary parameters of a config.json and, if they differ, of windowed layers.

    Raises:
        As `read_rope`.
    """
    ropes = _read_ropes(fields, family, max_context)
    for rope in ropes:
        for divisors in (rope.short_factor, rope.long_factor):
            if rope.kind == "longrope" and len(divisors) != head_dim // 2:
                raise CorruptFileError(
                    f"{fields.name('rope_scaling')} is longrope: short_factor and long_factor must "
                    f"have {head_dim // 2} numbers each, for heads of {head_dim}, found "
                    f"{len(divisors)}"
                )
    return ropes


def _read_ropes(fields: Fields, family: Family, max_context: int) -> tuple[RopeConfig, ...]:
    theta = family.rope_theta
    if not family.local_rope:
        return (read_rope(fields, max_context, theta),)
    here = RopeConfig("default", fields.number("rope_local_base_freq", *_THETA))
    section = fields.section("rope_parameters")
    if section is None or not section.has("full_attention"):
        return read_rope(fields, max_context, theta), here
    full = section.section("full_attention")
    everywhere = _read_section(fields, full, max_context, theta)
    windowed = section.section("sliding_attention")
    if windowed is not None and windowed.has("rope_theta"):
        here = _read_section(windowed, windowed, max_context, None)
    return everywhere, here


def read_rope(fields: Fields, max_context: int, theta: float | None = None) -> RopeConfig:
    """Return the rotary parameters of a config.json; `theta` is what to take where it has none.

    Raises:
        ModelLoadError: a field is missing, has the wrong type, or contradicts another.
        UnsupportedFormatError: a kind of scaling that is not implemented.
    """
    return _read_section(fields, _section(fields), max_context, theta)


def _read_section(
    fields: Fields, section: Fields | None, max_context: int, default: float | None
) -> RopeConfig:
    theta = _theta(fields, section, default)
    _require_whole_head(fields)
    if section is None:
        return RopeConfig("default", theta)
    _require_whole_head(section)
    kind = section.text("rope_type", section.text("type", "default"))
    if kind == "default":
        return RopeConfig(kind, theta)
    if kind not in _READERS:
        raise UnsupportedFormatError(
            f"{section.name('rope_type')} is {kind!r}; supported are default, {', '.join(_READERS)}"
        )
    return _READERS[kind](_Scaling(kind, fields, section, theta, max_context))


@dataclass(frozen=True, slots=True)
class _Scaling:
    """What a section of scaling parameters is read with."""

    kind: str
    fields: Fields
    section: Fields
    theta: float
    max_context: int

    @property
    def factor(self) -> float:
        return self.section.number("factor", *_FACTOR)

    @property
    def original_context(self) -> int:
        """Return the positions before scaling; Phi-3 writes them at the top level."""
        key = "original_max_position_embeddings"
        inner, outer = (
            source.integer(key, _MAX_CONTEXT) if source.has(key) else None
            for source in (self.section, self.fields)
        )
        if None not in (inner, outer) and inner != outer:
            raise CorruptFileError(
                f"{self.section.name(key)} is {inner}, but {key!r} at the top level is {outer}; "
                "keep one of them"
            )
        return outer or inner or self.max_context

    def ratio(self, original: int) -> float:
        """Return the factor, by default how far the original context was stretched."""
        if self.section.has("factor"):
            return self.factor
        return max(1.0, self.max_context / original)

    def number(self, key: str, default: float, limits: tuple[float, float]) -> float:
        return self.section.number(key, *limits) if self.section.has(key) else default


def _read_factor(scaling: _Scaling) -> RopeConfig:
    # Only "dynamic" looks at a context, for which transformers knows no other key.
    original = scaling.max_context if scaling.kind == "dynamic" else 0
    return RopeConfig(scaling.kind, scaling.theta, scaling.factor, original_context=original)


def _read_longrope(scaling: _Scaling) -> RopeConfig:
    """Return the parameters of arXiv:2402.13753, with transformers' defaults and their names."""
    original = scaling.original_context
    factor = scaling.ratio(original)
    attention = 1.0
    if factor > 1.0 and original > 1:
        attention = math.sqrt(1.0 + math.log(factor) / math.log(original))
    return RopeConfig(
        "longrope",
        scaling.theta,
        factor,
        original_context=original,
        attention_factor=scaling.number("attention_factor", attention, _ATTENTION_FACTOR),
        short_factor=scaling.section.numbers("short_factor", *_DIVISOR),
        long_factor=scaling.section.numbers("long_factor", *_DIVISOR),
    )


def _read_llama3(scaling: _Scaling) -> RopeConfig:
    section = scaling.section
    low = section.number("low_freq_factor", *_BAND)
    high = section.number("high_freq_factor", *_BAND)
    if low >= high:
        raise CorruptFileError(
            f"{section.name('low_freq_factor')} is {low}, not below high_freq_factor {high}; "
            "correct them (Llama 3 uses 1 and 4)"
        )
    original = scaling.original_context
    return RopeConfig("llama3", scaling.theta, scaling.factor, low, high, original)


def _read_yarn(scaling: _Scaling) -> RopeConfig:
    """Return the parameters of arXiv:2309.00071, with transformers' defaults and their names."""
    section, number = scaling.section, scaling.number
    slow, fast = number("beta_slow", 1.0, _BAND), number("beta_fast", 32.0, _BAND)
    if slow >= fast:
        raise CorruptFileError(
            f"{section.name('beta_slow')} is {slow}, not below beta_fast {fast}; correct them "
            "(YaRN uses 1 and 32)"
        )
    original = scaling.original_context
    factor = scaling.ratio(original)
    mscale, mscale_all = (number(key, 0.0, (0.0, 1e3)) for key in ("mscale", "mscale_all_dim"))
    attention = _yarn_attention(factor, 1.0)
    if mscale and mscale_all:
        attention = _yarn_attention(factor, mscale) / _yarn_attention(factor, mscale_all)
    attention = number("attention_factor", attention, _ATTENTION_FACTOR)
    truncate = section.boolean("truncate", default=True)
    return RopeConfig("yarn", scaling.theta, factor, slow, fast, original, attention, truncate)


_READERS: dict[str, Callable[[_Scaling], RopeConfig]] = {
    "linear": _read_factor,
    "ntk": _read_factor,
    "dynamic": _read_factor,
    "yarn": _read_yarn,
    "longrope": _read_longrope,
    "llama3": _read_llama3,
}


def _yarn_attention(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0


def _section(fields: Fields) -> Fields | None:
    new, old = fields.section("rope_parameters"), fields.section("rope_scaling")
    if new is not None and old is not None:
        agreed = {**old.values, **new.values} == {**new.values, **old.values}
        if not agreed:
            raise CorruptFileError(
                f"{fields.name('rope_parameters')} and 'rope_scaling' contradict each other; "
                "keep one of them"
            )
    return new or old


def _theta(fields: Fields, section: Fields | None, default: float | None) -> float:
    if section is None or not section.has("rope_theta"):
        if default is not None and not fields.has("rope_theta"):
            return default
        return fields.number("rope_theta", *_THETA)
    theta = section.number("rope_theta", *_THETA)
    if fields.has("rope_theta") and fields.number("rope_theta", *_THETA) != theta:
        raise CorruptFileError(
            f"{section.name('rope_theta')} is {theta}, but 'rope_theta' at the top level is "
            f"{fields.values['rope_theta']}; keep one of them"
        )
    return theta


def _require_whole_head(source: Fields) -> None:
    if source.has("partial_rotary_factor") and source.number("partial_rotary_factor", 0, 1) != 1:
        raise UnsupportedFormatError(
            f"{source.name('partial_rotary_factor')} is "
            f"{source.values['partial_rotary_factor']}; only whole heads (1.0) can be rotated"
        )


def rope_limits(ropes: Iterable[RopeConfig]) -> tuple[int, ...]:
    """Return the lengths of sequences beyond which any of the ropes has other frequencies."""
    return tuple(sorted({limit for rope in ropes for limit in rope.limits}))


def frequency_sets(ropes: tuple[RopeConfig, ...], head_dim: int) -> NDArray[np.float64]:
    """Return float64 [sets, ropes, head_dim / 2]: set n is of sequences up to the n-th limit.

    The last is of those beyond every limit.
    """
    lengths = (*rope_limits(ropes), math.inf)
    return np.stack(
        [[inverse_frequencies(rope, head_dim, length) for rope in ropes] for length in lengths]
    )


def inverse_frequencies(rope: RopeConfig, head_dim: int, length: float = 0) -> NDArray[np.float64]:
    """Return float64 [head_dim / 2]: radians per position of each pair of dimensions.

    The kinds are those of transformers' `modeling_rope_utils.py`, and "ntk", which is a larger
    theta. Only "longrope" and "dynamic" look at the `length` of the sequence.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    theta = rope.theta * _ntk_stretch(rope, length) ** (head_dim / max(head_dim - 2, 1))
    frequencies = np.asarray(theta**-exponents, dtype=np.float64)
    if rope.kind in ("default", "ntk", "dynamic"):
        return frequencies
    if rope.kind == "longrope":
        is_long = length > rope.original_context
        divisors = np.array(rope.long_factor if is_long else rope.short_factor)
        return np.asarray(frequencies / divisors)
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "yarn":
        kept = _yarn_kept(rope, head_dim)
        return np.asarray((1.0 - kept) * frequencies / rope.factor + kept * frequencies)
    # llama3: keep short wavelengths, stretch long ones, blend in between
    turns = rope.original_context * frequencies / (2 * math.pi)
    span = rope.high_freq_factor - rope.low_freq_factor
    kept = np.clip((turns - rope.low_freq_factor) / span, 0.0, 1.0)
    blended = (1.0 - kept) * frequencies / rope.factor + kept * frequencies
    return np.asarray(blended, dtype=np.float64)


def _ntk_stretch(rope: RopeConfig, length: float) -> float:
    """Return how far the slowest pair is slowed down, the fastest one not at all."""
    if rope.kind == "ntk":
        return rope.factor
    if rope.kind != "dynamic":
        return 1.0
    longest = next((limit for limit in rope.limits if length <= limit), rope.max_context)
    return rope.factor * longest / rope.original_context - (rope.factor - 1.0)


def _yarn_kept(rope: RopeConfig, head_dim: int) -> NDArray[np.float64]:
    """Return float64 [head_dim / 2]: how much of each frequency is left as it is."""

    def dimension(turns: float) -> float:
        """Return which pair makes so many turns over the original context."""
        wavelength = rope.original_context / (turns * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(rope.theta))

    low, high = dimension(rope.high_freq_factor), dimension(rope.low_freq_factor)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp
    ramp = (np.arange(head_dim // 2, dtype=np.float64) - low) / (high - low)
    return np.asarray(1.0 - np.clip(ramp, 0.0, 1.0))
