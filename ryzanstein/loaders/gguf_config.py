"""A GGUF file's hyperparameters and tensor names as the Hugging Face files of the model have them.

GGUF leaves out what llama.cpp has in its code: the activation, Gemma's attention scale and window
pattern, Llama 3's frequency scaling except for its result. They are put back here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ryzanstein.errors import CorruptFileError, ModelLoadError, UnsupportedFormatError
from ryzanstein.loaders.gguf_metadata import Metadata
from ryzanstein.loaders.gguf_rope import ROPE_DIVISORS, rope_config
from ryzanstein.loaders.gguf_types import TERNARY_TYPES, row_scales

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ryzanstein.loaders.gguf import GgufFile, GgufTensor

__all__ = [
    "ARCHITECTURES",
    "LARGEST_GEMMA",
    "WINDOW_PATTERNS",
    "GgufArchitecture",
    "architecture_of",
    "is_tied",
    "model_config",
    "ternary_mode",
]

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_LINEAR = re.compile(r"blk\.\d+\.(?:attn_(?:q|k|v|output)|ffn_(?:gate|up|down))\.weight")
_ROW_TERNARY = frozenset(TERNARY_TYPES) - {"Q2_0", "PQ2_0"}
_BLOCK_SCALED = ("TQ1_0", "TQ2_0")  # of those, with a scale for every 256 weights
_SCALE_ROWS = 16  # of a matrix, to tell whether its rows have one scale
_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_sub_norm": "self_attn.attn_sub_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
    "ffn_down": "mlp.down_proj",
}
_SANDWICH_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# Layers of the 27B models, which scale by hidden / heads; llama.cpp too tells them by that.
LARGEST_GEMMA = {"gemma2": 46, "gemma3_text": 62}
# Every so many layers one sees everything, where a file does not say.
WINDOW_PATTERNS = {"gemma2": 2, "gemma3_text": 6}
_COMPARE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class GgufArchitecture:
    """What an architecture of llama.cpp is called in transformers, and what GGUF says otherwise."""

    transformers: str
    model_type: str
    activation: str
    # Rows of each head of q and k are stored for rotation in adjacent pairs.
    permuted: bool = False
    # Norms are stored as 1 + w.
    shifted_norms: bool = False
    # Norms before and after both halves of a layer.
    sandwich_norms: bool = False
    # Linears take 8-bit activations, whatever they are stored as.
    ternary: bool = False

    def tensor_name(self, name: str) -> str | None:
        """Return what transformers calls a tensor, None for one that config.json speaks of.

        A name that is not known stays, for whoever checks names to refuse.
        """
        if name in ROPE_DIVISORS:
            return None
        block = _BLOCK.fullmatch(name)
        if block is None:
            return _TOP_NAMES.get(name, name)
        part, dot, suffix = block[2].rpartition(".")
        names = _BLOCK_NAMES | _SANDWICH_NAMES if self.sandwich_norms else _BLOCK_NAMES
        if part not in names:
            return name
        return f"model.layers.{block[1]}.{names[part]}{dot}{suffix}"

    def stored_name(self, name: str) -> str | None:
        """Return what GGUF calls a tensor of transformers, None where it has no name for it."""
        layer = _LAYER.fullmatch(name)
        if layer is None:
            return {theirs: stored for stored, theirs in _TOP_NAMES.items()}.get(name)
        module, dot, suffix = layer[2].rpartition(".")
        names = _BLOCK_NAMES | _SANDWICH_NAMES if self.sandwich_norms else _BLOCK_NAMES
        stored = {theirs: part for part, theirs in names.items()}.get(module)
        return None if stored is None else f"blk.{layer[1]}.{stored}{dot}{suffix}"


_GEMMA = "gelu_pytorch_tanh"
ARCHITECTURES = {
    "bitnet": GgufArchitecture("BitNetForCausalLM", "bitnet", "silu", ternary=True),
    "bitnet-25": GgufArchitecture("BitNetForCausalLM", "bitnet", "relu2", ternary=True),
    "bitnet-b1.58": GgufArchitecture("BitNetForCausalLM", "bitnet", "relu2", ternary=True),
    "llama": GgufArchitecture("LlamaForCausalLM", "llama", "silu", permuted=True),
    "qwen2": GgufArchitecture("Qwen2ForCausalLM", "qwen2", "silu"),
    "qwen3": GgufArchitecture("Qwen3ForCausalLM", "qwen3", "silu"),
    "gemma": GgufArchitecture("GemmaForCausalLM", "gemma", _GEMMA, shifted_norms=True),
    "gemma2": GgufArchitecture(
        "Gemma2ForCausalLM", "gemma2", _GEMMA, shifted_norms=True, sandwich_norms=True
    ),
    "gemma3": GgufArchitecture(
        "Gemma3ForCausalLM", "gemma3_text", _GEMMA, shifted_norms=True, sandwich_norms=True
    ),
}


def architecture_of(file: GgufFile) -> GgufArchitecture:
    """Return what is known of a file's architecture.

    Raises:
        ModelLoadError: the file does not name one.
        UnsupportedFormatError: it is not supported, or the file is one part of several.
    """
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise ModelLoadError(f"{file.path}: general.architecture is missing; is it a model?")
    if name not in ARCHITECTURES:
        raise UnsupportedFormatError(
            f"{file.path}: general.architecture is {name!r}; supported are "
            f"{', '.join(ARCHITECTURES)}"
        )
    parts = file.metadata.get("split.count", 1)
    if parts != 1:
        raise UnsupportedFormatError(
            f"{file.path} is one of {parts} parts; join them with `llama-gguf-split --merge`"
        )
    return ARCHITECTURES[name]


def is_tied(file: GgufFile) -> bool:
    """Return whether the output head is the embedding: left out, or stored a second time.

    Compared bytes are read only as far as they agree.
    """
    if "output.weight" not in file:
        return True
    if "token_embd.weight" not in file:
        return False
    one, other = file.tensor("token_embd.weight"), file.tensor("output.weight")
    if (one.type, one.shape) != (other.type, other.shape):
        return False
    first, second = file.view(one.name), file.view(other.name)
    parts = (slice(begin, begin + _COMPARE_BYTES) for begin in range(0, one.nbytes, _COMPARE_BYTES))
    return all(np.array_equal(first[part], second[part]) for part in parts)


def model_config(file: GgufFile, architecture: GgufArchitecture, *, tied: bool) -> dict[str, Any]:
    """Return what the model's config.json holds.

    Raises:
        ModelLoadError: a field or tensor is missing.
        CorruptFileError: fields contradict each other or the tensors.
        UnsupportedFormatError: the model asks for something that config.json cannot say.
    """
    metadata = Metadata(file)
    heads = metadata.required("attention.head_count")
    config: dict[str, Any] = {
        "architectures": [architecture.transformers],
        "model_type": architecture.model_type,
        "hidden_act": metadata.value("hidden_activation", architecture.activation),
        "hidden_size": metadata.required("embedding_length"),
        "intermediate_size": metadata.required("feed_forward_length"),
        "num_hidden_layers": _layers(file, metadata),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.value("attention.head_count_kv", heads),
        "max_position_embeddings": metadata.required("context_length"),
        "rms_norm_eps": metadata.required("attention.layer_norm_rms_epsilon"),
        "vocab_size": metadata.tensor("token_embd.weight").shape[0],
        "tie_word_embeddings": tied,
    }
    head_dim = _head_dim(metadata, config)
    if head_dim is not None:
        config["head_dim"] = head_dim
    config |= rope_config(metadata, head_dim)
    if architecture.shifted_norms:
        config["hidden_activation"] = config["hidden_act"]
    if architecture.sandwich_norms:
        config |= _attention(metadata, config)
    if architecture.permuted:  # others always or never have biases
        config["attention_bias"] = "blk.0.attn_q.bias" in file
        config["mlp_bias"] = "blk.0.ffn_down.bias" in file
    return config | _quantization(file, architecture)


def _layers(file: GgufFile, metadata: Metadata) -> int:
    layers = metadata.required("block_count")
    tensors = len(file)
    if type(layers) is not int or not 0 < layers <= tensors:
        raise CorruptFileError(
            f"{file.path}: block_count is {str(layers)[:40]}, but there are {tensors} tensors; "
            "download the file again"
        )
    return layers


def _head_dim(metadata: Metadata, config: Mapping[str, Any]) -> Any:
    """Return the size of a head, None where the heads do not divide the hidden size."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    divides = type(hidden) is type(heads) is int and heads > 0 and hidden % heads == 0
    return metadata.value("attention.key_length", hidden // heads if divides else None)


def _attention(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Gemma 2 and 3 add: a window on most layers, soft caps, a scale of their own."""
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    heads, head_dim = config["num_attention_heads"], config.get("head_dim")
    kind = config["model_type"]
    scalar = head_dim
    if layers == LARGEST_GEMMA[kind] and type(hidden) is type(heads) is int and heads > 0:
        scalar = hidden / heads
    every = metadata.value("attention.sliding_window_pattern", WINDOW_PATTERNS[kind])
    if type(every) is not int or every < 1:
        raise UnsupportedFormatError(
            f"{metadata.path}: attention.sliding_window_pattern is {str(every)[:40]}; supported is "
            "a number of layers, the last of which sees everything"
        )
    added: dict[str, Any] = {
        "query_pre_attn_scalar": scalar,
        "sliding_window": metadata.value("attention.sliding_window", 4096),
        "layer_types": [
            "sliding_attention" if (layer + 1) % every else "full_attention"
            for layer in range(layers)
        ],
    }
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if (cap := metadata.value(key)) is not None:
            added[key] = cap
    if kind == "gemma3_text":
        added["rope_local_base_freq"] = metadata.value("rope.freq_base_swa", 10000.0)
    return added


def ternary_mode(file: GgufFile, architecture: GgufArchitecture) -> str | None:
    """Return the quantisation mode of linears that take 8-bit activations, None where none do.

    "offline" where all are stored as codes, "online" where some are floats. Linears were trained
    with such activations in BitNet's architectures, and in others where they are ternary throughout
    a row; converters store as floats what whole blocks do not divide. Q2_0 has scales within rows:
    models with those were trained with plain activations.
    """
    linears = [file.tensor(name) for name in file if _LINEAR.fullmatch(name)]
    others = [tensor for tensor in linears if tensor.type.name not in _ROW_TERNARY]
    mode = "offline" if linears and not others else "online"
    if architecture.ternary:
        return mode
    if len(others) == len(linears) or any(tensor.type.dense is None for tensor in others):
        return None
    first = [tensor for tensor in linears if tensor.name.startswith("blk.0.")]
    return mode if all(_has_row_scales(file, tensor) for tensor in first) else None


def _has_row_scales(file: GgufFile, tensor: GgufTensor) -> bool:
    """Return whether the first rows of a linear have one scale each, if it is ternary."""
    if tensor.type.name not in _BLOCK_SCALED:
        return True
    end = min(_SCALE_ROWS, tensor.shape[0])
    decoded = tensor.type.decode(file.view(tensor.name), tensor.shape, 0, end)
    file.release(tensor.name)
    return row_scales(*decoded) is not None


def _quantization(file: GgufFile, architecture: GgufArchitecture) -> dict[str, Any]:
    """Return the section that makes linears take 8-bit activations, where they were trained to."""
    mode = ternary_mode(file, architecture)
    if mode is None:
        return {}
    return {
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": mode,
        }
    }
