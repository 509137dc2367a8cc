"""A model's hyperparameters and tensors as GGUF has them, under the names llama.cpp reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from gguf import GGUFWriter, RopeScalingType

from ryzanstein.errors import UnsupportedFormatError
from ryzanstein.loaders.gguf_config import ARCHITECTURES
from ryzanstein.models.rope import inverse_frequencies

if TYPE_CHECKING:
    from ryzanstein._core import F32Array, I32Array
    from ryzanstein.convert.source import SourceTensor
    from ryzanstein.loaders.gguf_config import GgufArchitecture
    from ryzanstein.models import ModelConfig

__all__ = ["GgufLayout", "choose_layout"]

# Those whose hyperparameters are all written here. `bitnet-b1.58` is what forks of llama.cpp know
# BitNet with relu2 by; its own `bitnet` has silu in its code.
_WRITTEN = ("bitnet", "bitnet-b1.58", "llama")


@dataclass(frozen=True, slots=True)
class GgufLayout:
    """An architecture as llama.cpp calls it, `name`, and how its tensors are stored."""

    name: str
    architecture: GgufArchitecture

    def tensor_name(self, name: str) -> str:
        """Return what GGUF calls a tensor.

        Raises:
            UnsupportedFormatError: it has no name for it.
        """
        found = self.architecture.stored_name(name)
        if found is None:
            raise UnsupportedFormatError(
                f"GGUF's architecture {self.name} has no tensor for {name}; convert to hf instead"
            )
        return found

    def row_order(self, tensor: SourceTensor, config: ModelConfig) -> I32Array | None:
        """Return int32 [N], the row that each stored row is taken from; None where rows stay."""
        if not self.architecture.permuted or not tensor.name.endswith(
            ("q_proj.weight", "k_proj.weight")
        ):
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
        (rope,) = config.ropes
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(rope.theta)
        if rope.kind == "linear":
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope.factor)
        elif rope.kind == "llama3" and not self.architecture.permuted:
            raise UnsupportedFormatError(
                f"GGUF's architecture {self.name} cannot say llama3 rotary scaling; convert to hf"
            )

    def rope_factors(self, config: ModelConfig) -> F32Array | None:
        """Return float32 [head_dim / 2]: what Llama 3's frequencies are divided by, if they are."""
        (rope,) = config.ropes
        if rope.kind != "llama3":
            return None
        plain = rope.theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
        factors = plain / inverse_frequencies(rope, config.head_dim)
        return factors.astype(np.float32)


def choose_layout(config: ModelConfig) -> GgufLayout:
    """Return the layout of an architecture.

    Raises:
        UnsupportedFormatError: there is none, or it cannot be written yet.
    """
    if config.biased or any(config.sliding_windows) or len(config.ropes) != 1:
        raise UnsupportedFormatError(
            f"{config.architecture} with biases or sliding windows cannot be written to GGUF"
        )
    for name in _WRITTEN:
        architecture = ARCHITECTURES[name]
        if (architecture.transformers, architecture.activation) == (
            config.architecture,
            config.activation,
        ):
            return GgufLayout(name, architecture)
    raise UnsupportedFormatError(
        f"{config.architecture} with {config.activation} cannot be written to GGUF"
    )
