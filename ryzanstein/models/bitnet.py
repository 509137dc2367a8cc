"""Llama with a norm before o_proj and another before down_proj: `BitNetForCausalLM`, and
`BitnetForCausalLM` as 1bitLLM published it, which is always made of full-precision masters.
"""

from __future__ import annotations

from ryzanstein.models.family import Family

__all__ = ["BITNET", "BITNET_1BITLLM"]

BITNET = Family(
    architecture="BitNetForCausalLM",
    attn_sub_norm="self_attn.attn_sub_norm.weight",
    ffn_sub_norm="mlp.ffn_sub_norm.weight",
    is_ternary=True,
)
BITNET_1BITLLM = Family(
    architecture="BitnetForCausalLM",
    attn_sub_norm="self_attn.inner_attn_ln.weight",
    ffn_sub_norm="mlp.ffn_layernorm.weight",
    is_ternary=True,
)
