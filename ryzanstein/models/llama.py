"""Ternary `LlamaForCausalLM`: the plain Llama layer with BitNet linears."""

from __future__ import annotations

from ryzanstein.models.family import Family

__all__ = ["LLAMA"]

LLAMA = Family(architecture="LlamaForCausalLM")
