"""How a model's weights are laid out in memory: chosen before they are packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ryzanstein.models.grouped import codes_bytes, held_format
from ryzanstein.tuning import format_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ryzanstein.config import HeadKind, WeightKind
    from ryzanstein.loaders.model_files import WeightSource
    from ryzanstein.models.config import ModelConfig
    from ryzanstein.models.family import Family
    from ryzanstein.models.feed_forward import SkipZeros

__all__ = ["Packing", "coded_head_bytes", "resolve_head"]

# From 32 MB of bf16 on, reading a third of the bytes of a head is worth the codes' own memory.
_CODED_HEAD_ELEMENTS = 1 << 24
# Beside a head that is codes itself they must not take the model beyond so many times its file:
# loading it may take twice that, with what is at work meanwhile.
_MOST_OF_FILE = 1.75
# Of a coded head (csrc/quant/screen_format.h): rows by panels, a block of 8 columns in 320 bytes,
# two more bits of each weight by 256 columns, four floats for each row.
_PANEL_ROWS, _BLOCK_COLUMNS, _BLOCK_BYTES = 64, 8, 320
_REST_COLUMNS, _REST_BYTES = 256, 64
_ROW_BYTES = 16


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


def resolve_head(
    lm_head: HeadKind, config: ModelConfig, checkpoint: WeightSource, family: Family
) -> HeadKind:
    """Return the kind of head to use: an exact one that codes are of no use to is dense.

    That is a small one, and one stored in groups that have minima, or in a file so small that its
    codes would be much beside it.
    """
    if lm_head != "exact":
        return lm_head
    if config.vocab_size * config.hidden_size < _CODED_HEAD_ELEMENTS:
        return "dense"
    name = family.embedding if config.tie_word_embeddings else family.lm_head
    grouped = held_format(checkpoint, name, "auto")
    if grouped is not None:
        stored = {tensor: checkpoint.info(tensor).nbytes for tensor in checkpoint}
        held = sum(codes_bytes(checkpoint, tensor) or size for tensor, size in stored.items())
        held += coded_head_bytes(config.vocab_size, config.hidden_size)
        if grouped.has_minimum or held > _MOST_OF_FILE * sum(stored.values()):
            return "dense"
    return "exact"


def coded_head_bytes(rows: int, columns: int) -> int:
    """Return what the codes of a head [rows, columns] take."""
    panels = -(-rows // _PANEL_ROWS)
    codes = panels * -(-columns // _BLOCK_COLUMNS) * _BLOCK_BYTES
    rest = rows * -(-columns // _REST_COLUMNS) * _REST_BYTES
    return codes + rest + panels * _PANEL_ROWS * _ROW_BYTES
