"""What a model will take in memory, told from its configuration and the headers of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ryzanstein._core import PAGE_TOKENS, TernaryMatrix, kv_block_bytes
from ryzanstein.models.feed_forward import resolve_skip_zeros
from ryzanstein.models.grouped import codes_bytes
from ryzanstein.models.packing import coded_head_bytes, resolve_head
from ryzanstein.models.tensors import fused_shape, linear_shapes
from ryzanstein.tuning import format_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ryzanstein.config import KVDtype
    from ryzanstein.loaders.model_files import WeightSource
    from ryzanstein.models.config import ModelConfig
    from ryzanstein.models.family import Family

__all__ = ["MemoryEstimate", "estimate_memory"]

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
        weights += codes_bytes(checkpoint, family.embedding)
    block = kv_block_bytes(config.num_layers, config.num_kv_heads, config.head_dim, kv_dtype)
    return MemoryEstimate(
        weights=weights,
        head=_head_bytes(checkpoint, config, family),
        kv_token=block // PAGE_TOKENS,
        kv_context=block * -(-config.max_position_embeddings // PAGE_TOKENS),
        is_exact=kernels is not None,
    )


def _head_bytes(checkpoint: WeightSource, config: ModelConfig, family: Family) -> int:
    """Return what logits are computed from: codes by which to narrow down, and the head's own."""
    head = family.embedding if config.tie_word_embeddings else family.lm_head
    own = codes_bytes(checkpoint, head)
    if resolve_head("exact", config, checkpoint, family) == "dense":
        return own or checkpoint.info(head).nbytes
    return own + coded_head_bytes(config.vocab_size, config.hidden_size)


def _plain_bytes(checkpoint: WeightSource, config: ModelConfig, family: Family) -> int:
    """Return what the linears of a model that is not ternary take, each as it is stored."""
    layers = [family.layer.format(index=index) for index in range(config.num_layers)]
    total = 0
    for linear in linear_shapes(config, family):
        for layer in layers:
            name = f"{layer}{linear}.weight"
            total += codes_bytes(checkpoint, name) or checkpoint.info(name).nbytes
    return total


def _layer_matrices(config: ModelConfig, family: Family) -> list[tuple[int, int]]:
    """Return the shapes of the matrices of one layer, each as often as it is there."""
    shapes = linear_shapes(config, family)
    if config.has_input_norms:  # each linear has an input of its own
        return list(shapes.values())
    parts = (family.attn_in, (family.o_proj,), family.mlp_in, (family.down_proj,))
    return [fused_shape(shapes, part) for part in parts]
