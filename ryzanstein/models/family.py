"""What one architecture is called and where its weights are, as data."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Family"]


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture: its class name in config.json and the names of its tensors.

    The defaults are the Llama names, which most families share. Names after `input_norm` are
    relative to a layer; linears are named without `.weight`; None means the family has no such
    norm.
    """

    architecture: str
    embedding: str = "model.embed_tokens.weight"
    final_norm: str = "model.norm.weight"
    lm_head: str = "lm_head.weight"
    layer: str = "model.layers.{index}."
    input_norm: str = "input_layernorm.weight"
    attn_in: tuple[str, str, str] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    attn_sub_norm: str | None = None
    o_proj: str = "self_attn.o_proj"
    post_attention_norm: str = "post_attention_layernorm.weight"
    mlp_in: tuple[str, str] = ("mlp.gate_proj", "mlp.up_proj")
    ffn_sub_norm: str | None = None
    down_proj: str = "mlp.down_proj"
    linear_norm: str = ".rms_norm.weight"
    # Tensors some checkpoints carry and no computation reads, by suffix.
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)
