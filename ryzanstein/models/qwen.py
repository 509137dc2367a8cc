"""`Qwen2ForCausalLM`, Llama with biased queries, keys and values, and `Qwen3ForCausalLM`, with
normed queries and keys instead.
"""

from __future__ import annotations

from ryzanstein.models.family import Family

__all__ = ["QWEN2", "QWEN3"]

QWEN2 = Family(
    architecture="Qwen2ForCausalLM",
    biased=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    windows="late",
    defaults={"max_window_layers": 28, "sliding_window": 4096},
)
QWEN3 = Family(
    architecture="Qwen3ForCausalLM",
    q_norm="self_attn.q_norm.weight",
    k_norm="self_attn.k_norm.weight",
    windows="late",
    defaults={"head_dim": 128, "max_window_layers": 28, "sliding_window": 4096},
)
