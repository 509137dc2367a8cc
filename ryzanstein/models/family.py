"""What one architecture is called, where its weights are and how it differs from Llama, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Family", "WindowRule"]

# Which layers see a window of keys only: none, all, those from max_window_layers on if
# use_sliding_window, or all but every sliding_window_pattern-th.
WindowRule: TypeAlias = Literal["none", "all", "late", "pattern"]


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture: its class name in config.json and the names of its tensors.

    The defaults are Llama's, which most families share. Names after `input_norm` are relative to a
    layer; linears are named without `.weight`; None means the family has no such norm.
    """

    architecture: str
    embedding: str = "model.embed_tokens.weight"
    final_norm: str = "model.norm.weight"
    lm_head: str = "lm_head.weight"
    layer: str = "model.layers.{index}."
    input_norm: str = "input_layernorm.weight"
    attn_in: tuple[str, str, str] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    q_norm: str | None = None
    k_norm: str | None = None
    attn_sub_norm: str | None = None
    o_proj: str = "self_attn.o_proj"
    attn_output_norm: str | None = None
    ffn_norm: str = "post_attention_layernorm.weight"
    mlp_in: tuple[str, str] = ("mlp.gate_proj", "mlp.up_proj")
    ffn_sub_norm: str | None = None
    down_proj: str = "mlp.down_proj"
    ffn_output_norm: str | None = None
    linear_norm: str = ".rms_norm.weight"
    # Tensors some checkpoints carry and no computation reads, by suffix.
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)
    # Linears with a bias whatever the configuration says.
    biased: tuple[str, ...] = ()
    # Linears are ternary where the configuration does not say how: made of masters.
    is_ternary: bool = False
    # What is missing from stored norm gains.
    norm_offset: float = 0.0
    # Embeddings are multiplied by the square root of the hidden size.
    scales_embedding: bool = False
    # Scores are scaled by query_pre_attn_scalar instead of the head size.
    scales_queries: bool = False
    # Scores and logits may be soft-capped.
    softcaps: bool = False
    windows: WindowRule = "none"
    # Layers with a window rotate by frequencies of their own.
    local_rope: bool = False
    # Where the configuration has none.
    rope_theta: float | None = None
    activation: str = "hidden_act"
    # What transformers takes for fields that are absent.
    defaults: Mapping[str, object] = field(default_factory=dict)
