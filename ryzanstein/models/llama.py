"""`LlamaForCausalLM` (Llama 1 to 3, Falcon 3, Falcon-E, TriLM) and `MistralForCausalLM`."""

from __future__ import annotations

from ryzanstein.models.family import Family

__all__ = ["LLAMA", "MISTRAL"]

# Configurations of Llama 1 and 2 may have neither field.
LLAMA = Family(
    architecture="LlamaForCausalLM", rope_theta=10000.0, defaults={"num_key_value_heads": None}
)
MISTRAL = Family(
    architecture="MistralForCausalLM", windows="all", defaults={"sliding_window": 4096}
)
