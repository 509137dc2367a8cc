"""How a model's weights are laid out in memory: chosen before they are packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ryzanstein._core import preferred_ternary_format
from ryzanstein.models.feed_forward import resolve_skip_zeros

if TYPE_CHECKING:
    from ryzanstein._core import TernaryFormat
    from ryzanstein.config import HeadKind
    from ryzanstein.models.config import ModelConfig
    from ryzanstein.models.feed_forward import SkipZeros

__all__ = ["Packing", "choose_packing"]

# From 32 MB of bf16 on, reading a third of the bytes of a head is worth the codes' own memory.
_CODED_HEAD_ELEMENTS = 1 << 24


@dataclass(frozen=True, slots=True)
class Packing:
    """The format of ternary matrices, the copies that feed-forwards get, and the head's codes."""

    ternary_format: TernaryFormat
    skip_zeros: SkipZeros
    head: HeadKind


def choose_packing(
    config: ModelConfig,
    isa: str | None,
    skip_zeros: SkipZeros | None = None,
    lm_head: HeadKind = "exact",
) -> Packing:
    """Return how a model is packed for a tier of this machine.

    An exact head too small to gain by codes is dense.

    Raises:
        ValidationError: a tier this machine does not have.
    """
    if lm_head == "exact" and config.vocab_size * config.hidden_size < _CODED_HEAD_ELEMENTS:
        lm_head = "dense"
    skip_zeros = resolve_skip_zeros(skip_zeros, config, isa)
    return Packing(preferred_ternary_format(isa), skip_zeros, lm_head)
