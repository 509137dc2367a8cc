"""What a model will take in memory, told from its configuration and the headers of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ryzanstein._core import PAGE_TOKENS, TernaryMatrix, kv_block_bytes
from ryzanstein.models.feed_forward import resolve_skip_zeros
from ryzanstein.models.grouped import grouped_matrix, held_format
from ryzanstein.models.packing import resolve_head
from ryzanstein.models.tensors import fused_shape, linear_shapes
from ryzanstein.tuning import format_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ryzanstein.config import KVDtype
    from ryzanstein.loaders.model_files import WeightSource
    from ryzanstein.models.config import ModelConfig
    from ryzanstein.models.family import Family

__all__ = ["MemoryEstimate", "coded_head_bytes", "estimate_memory"]

# Of a coded head (csrc/quant/screen_format.h): rows by panels, a block of 8 columns in 320 bytes,
# two more bits of each weight by 256 columns, four floats for each row.
_PANEL_ROWS, _BLOCK_COLUMNS, _BLOCK_BYTES = 64, 8, 320
_REST_COLUMNS, _REST_BYTES = 256, 64
_ROW_BYTES = 16
# Of the copy by which zero activations are skipped.
_SKIPPED_WEIGHTS_PER_BYTE = 5


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes of memory, before loading.

    Args:
        weights: the packed matrices of all layers, and an embedding of codes that no head shares.
        head: what logits are computed from; where it is the embedding itself, that.
        kv_token: keys and values of one token.
        kv_context: keys and values of a full context.
        is_exact: whether it is known which format the matrices get on this machine. Otherwise the
            larger one is counted, since telling takes measuring.
    """

    weights: int
    head: int
    kv_token: int
    kv_context: int
    is_exact: bool

    @property
    def total(self) -> int:
        """Return what one sequence over a full context takes."""
        return self.weights + self.head + self.kv_context


def estimate_memory(
    checkpoint: WeightSource,
    config: ModelConfig,
    family: Family,
    kernels: Mapping[tuple[int, int], str] | None,
    *,
    kv_dtype: KVDtype = "f16",
) -> MemoryEstimate:
    """Return what a model will take.

    Args:
        checkpoint: its tensors, of which only headers are looked at.
        config: of the model.
        family: of the model.
        kernels: those chosen for its shapes, None where that is not known yet.
        kv_dtype: how keys and values are stored.
    """
    if config.quantization is None:
        weights = _plain_bytes(checkpoint, config, family)
    else:
        layer = sum(
            # Reserved, and never touched: the system gives it no memory.
            TernaryMatrix(
                *shape, "two_bit" if kernels is None else format_of(kernels[shape])
            ).nbytes
            for shape in _layer_matrices(config, family)
        )
        if resolve_skip_zeros(None, config, None) == "down":
            layer += config.hidden_size * config.intermediate_size // _SKIPPED_WEIGHTS_PER_BYTE
        weights = layer * config.num_layers
    if not config.tie_word_embeddings:
        weights += _codes_bytes(checkpoint, family.embedding)
    head = family.embedding if config.tie_word_embeddings else family.lm_head
    block = kv_block_bytes(config.num_layers, config.num_kv_heads, config.head_dim, kv_dtype)
    return MemoryEstimate(
        weights=weights,
        head=_codes_bytes(checkpoint, head)
        or (
            checkpoint.info(head).nbytes
            if resolve_head("exact", config) == "dense"
            else coded_head_bytes(config.vocab_size, config.hidden_size)
        ),
        kv_token=block // PAGE_TOKENS,
        kv_context=block * -(-config.max_position_embeddings // PAGE_TOKENS),
        is_exact=kernels is not None,
    )


def _plain_bytes(checkpoint: WeightSource, config: ModelConfig, family: Family) -> int:
    """Return what the linears of a model that is not ternary take, each as it is stored."""
    layers = [family.layer.format(index=index) for index in range(config.num_layers)]
    total = 0
    for linear in linear_shapes(config, family):
        for layer in layers:
            name = f"{layer}{linear}.weight"
            total += _codes_bytes(checkpoint, name) or checkpoint.info(name).nbytes
    return total


def _codes_bytes(checkpoint: WeightSource, name: str) -> int:
    """Return what a matrix stored as codes in groups takes, 0 for any other."""
    grouped = held_format(checkpoint, name, "auto")
    if grouped is None:
        return 0
    rows, columns = checkpoint.info(name).shape
    # Reserved, and never touched: the system gives it no memory.
    return grouped_matrix((rows, columns), grouped).nbytes


def _layer_matrices(config: ModelConfig, family: Family) -> list[tuple[int, int]]:
    """Return the shapes of the matrices of one layer, each as often as it is there."""
    shapes = linear_shapes(config, family)
    if config.has_input_norms:  # each linear has an input of its own
        return list(shapes.values())
    parts = (family.attn_in, (family.o_proj,), family.mlp_in, (family.down_proj,))
    return [fused_shape(shapes, part) for part in parts]


def coded_head_bytes(rows: int, columns: int) -> int:
    """Return what the codes of a head [rows, columns] take."""
    panels = -(-rows // _PANEL_ROWS)
    codes = panels * -(-columns // _BLOCK_COLUMNS) * _BLOCK_BYTES
    rest = rows * -(-columns // _REST_COLUMNS) * _REST_BYTES
    return codes + rest + panels * _PANEL_ROWS * _ROW_BYTES
