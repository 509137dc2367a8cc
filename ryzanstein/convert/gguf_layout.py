"""A model's hyperparameters and tensors as GGUF has them, under the names llama.cpp reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from gguf import GGUFWriter, RopeScalingType

from ryzanstein.errors import UnsupportedFormatError
from ryzanstein.loaders.gguf_config import ARCHITECTURES, LARGEST_GEMMA, WINDOW_PATTERNS
from ryzanstein.loaders.gguf_rope import LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS
from ryzanstein.models.rope import RopeConfig, inverse_frequencies

if TYPE_CHECKING:
    from ryzanstein._core import F32Array, I32Array
    from ryzanstein.convert.source import SourceTensor
    from ryzanstein.loaders.gguf_config import GgufArchitecture
    from ryzanstein.models import ModelConfig

__all__ = ["GgufLayout", "choose_layout"]

# What GGUF calls each, by class and activation. `bitnet-b1.58` is what forks of llama.cpp know
# BitNet with relu2 by; its own `bitnet` has silu in its code.
_NAMES = {
    ("BitNetForCausalLM", "silu"): "bitnet",
    ("BitnetForCausalLM", "silu"): "bitnet",
    ("BitNetForCausalLM", "relu2"): "bitnet-b1.58",
    ("LlamaForCausalLM", "silu"): "llama",
    ("MistralForCausalLM", "silu"): "llama",
    ("Qwen2ForCausalLM", "silu"): "qwen2",
    ("Qwen3ForCausalLM", "silu"): "qwen3",
    ("GemmaForCausalLM", "gelu_tanh"): "gemma",
    ("Gemma2ForCausalLM", "gelu_tanh"): "gemma2",
    ("Gemma3ForCausalLM", "gelu_tanh"): "gemma3",
}
# 1bitLLM's names of two norms.
_ALIASES = {
    "self_attn.inner_attn_ln.": "self_attn.attn_sub_norm.",
    "mlp.ffn_layernorm.": "mlp.ffn_sub_norm.",
}
# Which linears have biases, where llama.cpp does not look whether a file has them.
_BIASED = {"qwen2": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")}
_LLAMA3_BANDS = (1.0, 4.0)
_YARN_BANDS = (1.0, 32.0)
_PERMUTED = ("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")


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
        plain = name
        for theirs, ours in _ALIASES.items():
            plain = plain.replace(theirs, ours)
        found = self.architecture.stored_name(plain)
        if found is None:
            raise UnsupportedFormatError(
                f"GGUF's architecture {self.name} has no tensor for {name}; convert to hf instead"
            )
        return found

    def row_order(self, tensor: SourceTensor, config: ModelConfig) -> I32Array | None:
        """Return int32 [N], the row that each stored row is taken from; None where rows stay."""
        if not self.architecture.permuted or not tensor.name.endswith(_PERMUTED):
            return None
        halves = np.arange(tensor.shape[0], dtype=np.int32).reshape(-1, 2, config.head_dim // 2)
        return halves.swapaxes(1, 2).reshape(-1)

    def offset(self, tensor: SourceTensor) -> float:
        """Return what is added to a tensor's weights: Gemma's gains are stored with their 1."""
        is_gain = self.architecture.shifted_norms and tensor.name.endswith("norm.weight")
        return 1.0 if is_gain else 0.0

    def notes(self, config: ModelConfig) -> list[str]:
        """Return what GGUF cannot say of the hyperparameters, as sentences."""
        context = self._context(config)
        if context == config.max_position_embeddings:
            return []
        return [
            f"GGUF's architecture {self.name} has no sliding window. The context is limited to "
            f"{context} tokens, the length of the window, in which it makes no difference"
        ]

    def _context(self, config: ModelConfig) -> int:
        windows = [window for window in config.sliding_windows if window]
        if self.architecture.sandwich_norms or not windows:
            return config.max_position_embeddings
        return min([config.max_position_embeddings, *windows])

    def write_parameters(self, writer: GGUFWriter, config: ModelConfig) -> None:
        """Write the hyperparameters.

        Raises:
            UnsupportedFormatError: GGUF cannot say them.
        """
        writer.add_vocab_size(config.vocab_size)
        writer.add_context_length(self._context(config))
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_heads)
        writer.add_head_count_kv(config.num_kv_heads)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_string(f"{self.name}.hidden_activation", self.architecture.activation)
        self._write_rope(writer, config)
        if self.architecture.sandwich_norms:
            self._write_attention(writer, config)

    def _write_rope(self, writer: GGUFWriter, config: ModelConfig) -> None:
        rope, *local = config.ropes
        if rope.original_context > self._context(config):
            raise self._unsupported("a window shorter than the context before rotary scaling")
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(rope.theta)
        if rope.kind == "linear":
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope.factor)
        elif rope.kind in ("llama3", "longrope") and not self.architecture.permuted:
            raise self._unsupported(f"{rope.kind} rotary scaling")
        elif rope.kind == "longrope":
            writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
            writer.add_rope_scaling_orig_ctx_len(rope.original_context)
            writer.add_rope_scaling_attn_factors(rope.attention_factor)
        elif rope.kind == "llama3":
            bands = rope.low_freq_factor, rope.high_freq_factor
            if bands != _LLAMA3_BANDS:
                raise self._unsupported(f"llama3 rotary scaling with bands {bands}")
            writer.add_rope_scaling_orig_ctx_len(rope.original_context)
        elif rope.kind == "yarn":
            usual = RopeConfig(
                "yarn",
                rope.theta,
                rope.factor,
                *_YARN_BANDS,
                rope.original_context,
                attention_factor=0.1 * math.log(rope.factor) + 1.0,
            )
            if rope != usual:
                raise self._unsupported("yarn rotary scaling with other than its usual bands")
            writer.add_rope_scaling_type(RopeScalingType.YARN)
            writer.add_rope_scaling_factor(rope.factor)
            writer.add_rope_scaling_orig_ctx_len(rope.original_context)
        elif rope.kind != "default":
            raise self._unsupported(f"{rope.kind} rotary scaling")
        for other in local:
            if other.kind != "default":
                raise self._unsupported(f"{other.kind} rotary scaling of layers with a window")
            writer.add_rope_freq_base_swa(other.theta)

    def _write_attention(self, writer: GGUFWriter, config: ModelConfig) -> None:
        """Write what Gemma 2 and 3 add: a window on most layers, and soft caps."""
        # llama.cpp takes the scale from the size: it is head_dim but for the largest.
        largest = config.num_layers == LARGEST_GEMMA[self.architecture.model_type]
        scalar = config.hidden_size / config.num_heads if largest else config.head_dim
        if config.query_scalar != scalar:
            raise self._unsupported(f"query_pre_attn_scalar {config.query_scalar}, only {scalar}")
        caps = config.attention_softcap, config.final_softcap
        if self.name == "gemma2" and not all(caps):
            raise self._unsupported("that scores or logits are not soft-capped")
        if caps[0]:
            writer.add_attn_logit_softcapping(caps[0])
        if caps[1]:
            writer.add_final_logit_softcapping(caps[1])
        writer.add_sliding_window(max(config.sliding_windows) or config.max_position_embeddings)
        writer.add_sliding_window_pattern(self._window_pattern(config.sliding_windows))

    def _window_pattern(self, windows: tuple[int, ...]) -> int:
        """Return n where every n-th layer sees everything, and no other does."""
        every: int
        usual = WINDOW_PATTERNS[self.architecture.model_type]
        for every in [usual, *range(1, len(windows) + 2)]:
            if all((window == 0) is (i % every == 0) for i, window in enumerate(windows, 1)):
                return every
        raise self._unsupported("which layers have a sliding window, only that every n-th has none")

    def _unsupported(self, what: str) -> UnsupportedFormatError:
        return UnsupportedFormatError(
            f"GGUF's architecture {self.name} cannot say {what}; use the Hugging Face directory"
        )

    def rope_factors(self, config: ModelConfig) -> dict[str, F32Array]:
        """Return by tensor float32 [head_dim / 2]: what frequencies are divided by."""
        rope = config.ropes[0]
        if rope.kind == "longrope":
            return {
                LONG_FACTORS: np.array(rope.long_factor, np.float32),
                SHORT_FACTORS: np.array(rope.short_factor, np.float32),
            }
        if rope.kind != "llama3":
            return {}
        plain = rope.theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
        factors = plain / inverse_frequencies(rope, config.head_dim)
        return {ROPE_FACTORS: factors.astype(np.float32)}


def choose_layout(config: ModelConfig) -> GgufLayout:
    """Return the layout of an architecture.

    Raises:
        UnsupportedFormatError: there is none, or it has other biases.
    """
    name = _NAMES.get((config.architecture, config.activation))
    if name is None:
        raise UnsupportedFormatError(
            f"{config.architecture} with {config.activation} cannot be written to GGUF"
        )
    architecture = ARCHITECTURES[name]
    biased = _BIASED.get(name, ())
    if not architecture.permuted and config.biased != biased:
        raise UnsupportedFormatError(
            f"GGUF's architecture {name} has biases on {', '.join(biased) or 'nothing'}, but the "
            f"model on {', '.join(config.biased) or 'nothing'}"
        )
    return GgufLayout(name, architecture)
