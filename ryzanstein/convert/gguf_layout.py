"""A model's hyperparameters and tensors as GGUF has them, under the names llama.cpp reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType, get_tensor_name_map

from ryzanstein.errors import UnsupportedFormatError
from ryzanstein.models.rope import inverse_frequencies

if TYPE_CHECKING:
    from ryzanstein._core import F32Array, I32Array
    from ryzanstein.convert.source import SourceTensor
    from ryzanstein.models import ModelConfig

__all__ = ["ROPE_FACTORS", "GgufLayout", "choose_layout"]

# The divisors of Llama 3's rotary frequencies, which GGUF has as a tensor.
ROPE_FACTORS = "rope_freqs.weight"
# What the gguf package knows BitNet's own norms as: the names of the first such models.
_FIRST_NAMES = {
    "self_attn.attn_sub_norm": "self_attn.inner_attn_ln",
    "mlp.ffn_sub_norm": "mlp.ffn_layernorm",
}


@dataclass(frozen=True, slots=True)
class GgufLayout:
    """What llama.cpp calls an architecture, and how its tensors differ from transformers'.

    Args:
        name: `general.architecture`.
        names: the architecture whose tensor names it has.
        permuted: rows of each head of q and k are stored for rotation in adjacent pairs.
    """

    name: str
    names: MODEL_ARCH
    permuted: bool = False

    def tensor_name(self, name: str, num_layers: int) -> str:
        """Return what GGUF calls a tensor.

        Raises:
            UnsupportedFormatError: it has no name for it.
        """
        if name == "lm_head.weight":  # which the package leaves out for tied architectures
            return "output.weight"
        known = name
        for ours, first in _FIRST_NAMES.items():
            known = known.replace(ours, first)
        found = get_tensor_name_map(self.names, num_layers).get_name(known, (".weight", ".bias"))
        if found is None:
            raise UnsupportedFormatError(
                f"GGUF's architecture {self.name} has no tensor for {name}; convert to hf instead"
            )
        return found

    def row_order(self, tensor: SourceTensor, config: ModelConfig) -> I32Array | None:
        """Return int32 [N], the row that each stored row is taken from; None where rows stay."""
        if not self.permuted or not tensor.name.endswith(("q_proj.weight", "k_proj.weight")):
            return None
        halves = np.arange(tensor.shape[0], dtype=np.int32).reshape(-1, 2, config.head_dim // 2)
        return halves.swapaxes(1, 2).reshape(-1)

    def write_parameters(self, writer: GGUFWriter, config: ModelConfig) -> None:
        """Write the hyperparameters.

        Raises:
            UnsupportedFormatError: GGUF cannot say them.
        """
        writer.add_vocab_size(config.vocab_size)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_heads)
        writer.add_head_count_kv(config.num_kv_heads)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_string(f"{self.name}.hidden_activation", config.activation)
        rope = config.rope
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(rope.theta)
        if rope.kind == "linear":
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope.factor)
        elif rope.kind == "llama3" and not self.permuted:
            raise UnsupportedFormatError(
                f"GGUF's architecture {self.name} cannot say llama3 rotary scaling; convert to hf"
            )

    def rope_factors(self, config: ModelConfig) -> F32Array | None:
        """Return float32 [head_dim / 2]: what Llama 3's frequencies are divided by, if they are."""
        if config.rope.kind != "llama3":
            return None
        plain = config.rope.theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
        factors = plain / inverse_frequencies(config.rope, config.head_dim)
        return factors.astype(np.float32)


_LAYOUTS = {
    ("BitNetForCausalLM", "silu"): GgufLayout("bitnet", MODEL_ARCH.BITNET),
    # llama.cpp's `bitnet` has silu in its code; forks know the 2B-4T model by this name.
    ("BitNetForCausalLM", "relu2"): GgufLayout("bitnet-b1.58", MODEL_ARCH.BITNET),
    ("LlamaForCausalLM", "silu"): GgufLayout("llama", MODEL_ARCH.LLAMA, permuted=True),
}


def choose_layout(config: ModelConfig) -> GgufLayout:
    """Return the layout of an architecture.

    Raises:
        UnsupportedFormatError: GGUF has none.
    """
    layout = _LAYOUTS.get((config.architecture, config.activation))
    if layout is None:
        raise UnsupportedFormatError(
            f"GGUF has no architecture for {config.architecture} with {config.activation}; "
            "convert to hf instead"
        )
    return layout
