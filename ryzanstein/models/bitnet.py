"""`BitNetForCausalLM`: Llama with a norm before o_proj and another before down_proj."""

from __future__ import annotations

from ryzanstein.models.family import Family

__all__ = ["BITNET"]

BITNET = Family(
    architecture="BitNetForCausalLM",
    attn_sub_norm="self_attn.attn_sub_norm.weight",
    ffn_sub_norm="mlp.ffn_sub_norm.weight",
)
