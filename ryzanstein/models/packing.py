"""How a model's weights are laid out in memory: chosen before they are packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ryzanstein._core import preferred_ternary_format
from ryzanstein.models.feed_forward import resolve_skip_zeros

if TYPE_CHECKING:
    from ryzanstein._core import TernaryFormat
    from ryzanstein.models.config import ModelConfig
    from ryzanstein.models.feed_forward import SkipZeros

__all__ = ["Packing", "choose_packing"]


@dataclass(frozen=True, slots=True)
class Packing:
    """The format of ternary matrices, and which copies the feed-forwards get."""

    ternary_format: TernaryFormat
    skip_zeros: SkipZeros


def choose_packing(
    config: ModelConfig, isa: str | None, skip_zeros: SkipZeros | None = None
) -> Packing:
    """Return how a model is packed for a tier of this machine.

    Raises:
        ValidationError: a tier this machine does not have.
    """
    return Packing(preferred_ternary_format(isa), resolve_skip_zeros(skip_zeros, config, isa))
