"""Gemma 1, 2 and 3 (text): scaled embeddings, gains that are stored less one, gelu."""

from __future__ import annotations

from dataclasses import replace

from ryzanstein.models.family import Family

__all__ = ["GEMMA", "GEMMA2", "GEMMA3"]

_GELU = "gelu_pytorch_tanh"

GEMMA = Family(
    architecture="GemmaForCausalLM",
    norm_offset=1.0,
    scales_embedding=True,
    defaults={"head_dim": 256, "hidden_act": _GELU, "tie_word_embeddings": True},
)
GEMMA2 = replace(
    GEMMA,
    architecture="Gemma2ForCausalLM",
    attn_output_norm="post_attention_layernorm.weight",
    ffn_norm="pre_feedforward_layernorm.weight",
    ffn_output_norm="post_feedforward_layernorm.weight",
    scales_queries=True,
    softcaps=True,
    windows="pattern",
    activation="hidden_activation",
    defaults={
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_activation": _GELU,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 2,
        "tie_word_embeddings": True,
    },
)
GEMMA3 = replace(
    GEMMA2,
    architecture="Gemma3ForCausalLM",
    q_norm="self_attn.q_norm.weight",
    k_norm="self_attn.k_norm.weight",
    local_rope=True,
    rope_theta=1000000.0,
    # 4B, 12B and 27B are published with the fields that differ from these, and no others.
    defaults={
        "head_dim": 256,
        "hidden_activation": _GELU,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-6,
        "rope_local_base_freq": 10000.0,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "tie_word_embeddings": True,
        "vocab_size": 262208,
    },
)
