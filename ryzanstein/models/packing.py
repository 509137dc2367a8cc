"""How a model's weights are laid out in memory: chosen before they are packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ryzanstein.errors import ValidationError
from ryzanstein.tuning import format_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ryzanstein.config import HeadKind, WeightKind
    from ryzanstein.models.config import ModelConfig
    from ryzanstein.models.feed_forward import SkipZeros

__all__ = ["Packing", "resolve_head"]

# From 32 MB of bf16 on, reading a third of the bytes of a head is worth the codes' own memory.
_CODED_HEAD_ELEMENTS = 1 << 24


@dataclass(frozen=True, slots=True)
class Packing:
    """The kernels of ternary matrices, the copies that feed-forwards get, and the head's codes.

    Kernels are by shape (out-features, in-features), as the checkpoint has it. `weights` is "auto"
    for linears that are kept as they are stored.
    """

    kernels: Mapping[tuple[int, int], str]
    skip_zeros: SkipZeros
    head: HeadKind
    weights: WeightKind = "auto"

    def identity(self) -> dict[str, object]:
        """Return what the packed bytes depend on: of a kernel, the format it reads."""
        formats = {f"{n}x{k}": format_of(kernel) for (n, k), kernel in self.kernels.items()}
        return {
            "formats": formats,
            "skip_zeros": self.skip_zeros,
            "head": self.head,
            "weights": self.weights,
        }


def resolve_head(lm_head: HeadKind, config: ModelConfig) -> HeadKind:
    """Return the kind of head to use: an exact one that codes are of no use to is dense.

    That is a small one, and one whose logits are soft-capped: bounds are of logits as they are.

    Raises:
        ValidationError: codes are to answer for soft-capped logits.
    """
    if config.final_softcap > 0.0 and lm_head not in ("exact", "dense"):
        raise ValidationError(
            f"lm_head is {lm_head!r}, but this model soft-caps its logits, which takes a dense "
            "head; choose 'exact' or 'dense'"
        )
    is_small = config.vocab_size * config.hidden_size < _CODED_HEAD_ELEMENTS
    uncoded = is_small or config.final_softcap > 0.0
    return "dense" if lm_head == "exact" and uncoded else lm_head
