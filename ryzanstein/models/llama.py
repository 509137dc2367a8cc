"""`LlamaForCausalLM` (Llama 1 to 3, Falcon 3, Falcon-E, TriLM) and `MistralForCausalLM`."""

from __future__ import annotations

from ryzanstein.models.family import Family

__all__ = ["LLAMA", "MISTRAL"]

LLAMA = Family(architecture="LlamaForCausalLM")
MISTRAL = Family(
    architecture="MistralForCausalLM", windows="all", defaults={"sliding_window": 4096}
)
