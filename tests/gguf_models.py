"""Tiny models: a ternary one in every form that can hold it, and ones of random quantised types."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
from checkpoints import Config, Tensors, linear_shapes, store, write_checkpoint
from gguf_bytes import NUMBERS, GgufBytes, RawTensor, quantize_ternary, random_tensor
from reference import ops

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["BITNET", "LLAMA", "TernaryModel", "quantised"]

_COMMON = {
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "vocab_size": 96,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
BITNET = _COMMON | {
    "architectures": ["BitNetForCausalLM"],
    "model_type": "bitnet",
    "hidden_act": "relu2",
}
LLAMA = _COMMON | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
_BLOCK_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
    "mlp.down_proj": "ffn_down",
}
# Exact in float16 and bfloat16, and so is its double.
_SCALES = np.array([0.078125, 0.0625, 0.09375])


def permute(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Reorder the rows of q or k as llama.cpp's converter does."""
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


class TernaryModel:
    """Random codes, half of them zero, with a scale for each linear; norms and embedding floats."""

    def __init__(self, config: Config, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.config = config
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        vocabulary = (config["vocab_size"], hidden)
        self.dense: dict[str, NDArray[Any]] = {
            "model.embed_tokens": 0.15 * rng.standard_normal(vocabulary)
        }
        if not config["tie_word_embeddings"]:
            self.dense["lm_head"] = rng.standard_normal(vocabulary) / 8
        self.dense["model.norm"] = rng.uniform(0.5, 1.5, (hidden,))
        self.linears: dict[str, tuple[NDArray[Any], float]] = {}
        for index in range(config["num_hidden_layers"]):
            layer = f"model.layers.{index}."
            norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
            if config["model_type"] == "bitnet":
                norms |= {"self_attn.attn_sub_norm": hidden, "mlp.ffn_sub_norm": inner}
            for norm, size in norms.items():
                self.dense[layer + norm] = rng.uniform(0.5, 1.5, (size,))
            for name, shape in linear_shapes(config).items():
                codes = np.zeros(shape[0] * shape[1], np.int8)
                codes[: codes.size // 2] = rng.choice([-1, 1], codes.size // 2)
                rng.shuffle(codes)
                self.linears[layer + name] = codes.reshape(shape), float(rng.choice(_SCALES))

    def write_huggingface(self, directory: Path, *, masters: bool, gain: float = 2) -> Path:
        """Write packed codes, or bfloat16 masters: with gain 2, their absmean is the scale."""
        tensors: Tensors = {
            f"{name}.weight": store(values, "F32") for name, values in self.dense.items()
        }
        for name, (codes, scale) in self.linears.items():
            if masters:
                tensors[f"{name}.weight"] = store(codes * (gain * scale), "BF16")
            else:
                tensors[f"{name}.weight"] = store(ops.pack_hf(codes), "U8")
                tensors[f"{name}.weight_scale"] = store(np.array([scale]), "F32")
        quantization = {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "online" if masters else "offline",
        }
        return write_checkpoint(
            directory, self.config | {"quantization_config": quantization}, tensors
        )

    def gguf(self, kind: str, architecture: str) -> GgufBytes:
        """Return the file with linears of a type."""
        tensors = {}
        for name, values in self.dense.items():
            data = values.astype(np.float32).tobytes()
            tensors[self.stored_name(name)] = RawTensor(NUMBERS["F32"], values.shape, data)
        heads = {
            "q_proj": self.config["num_attention_heads"],
            "k_proj": self.config["num_key_value_heads"],
        }
        for name, (codes, scale) in self.linears.items():
            part = name.rpartition(".")[2]
            if architecture == "llama" and part in heads:
                codes = permute(codes, heads[part])
            if kind in ("F32", "F16", "BF16"):
                data = store(codes * scale, kind).array.tobytes()
            else:
                data = quantize_ternary(kind, codes, scale)
            tensors[self.stored_name(name)] = RawTensor(NUMBERS[kind], codes.shape, data)
        return GgufBytes(self.metadata(architecture), tensors)

    def metadata(self, architecture: str) -> dict[str, Any]:
        """Return a file's hyperparameters."""
        config = self.config
        return {
            "general.architecture": architecture,
            f"{architecture}.embedding_length": config["hidden_size"],
            f"{architecture}.block_count": config["num_hidden_layers"],
            f"{architecture}.feed_forward_length": config["intermediate_size"],
            f"{architecture}.attention.head_count": config["num_attention_heads"],
            f"{architecture}.attention.head_count_kv": config["num_key_value_heads"],
            f"{architecture}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
            f"{architecture}.context_length": config["max_position_embeddings"],
            f"{architecture}.rope.freq_base": config["rope_theta"],
        }

    @staticmethod
    def stored_name(name: str) -> str:
        """Return the name that GGUF has for a tensor."""
        top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
        if name in top:
            return f"{top[name]}.weight"
        _, _, index, part = name.split(".", 3)
        return f"blk.{index}.{_BLOCK_NAMES[part]}.weight"


def quantised(kinds: dict[str, str], default: str) -> GgufBytes:
    """Return a model whose linears, embedding and head are of a type, some of others."""
    content = TernaryModel(LLAMA).gguf("F32", "llama")
    rng = np.random.default_rng(8)
    tensors = dict(content.tensors)
    for name, tensor in tensors.items():
        kind = kinds.get(name.split(".")[-2], default)
        if len(tensor.shape) == 2 and kind != "F32":
            tensors[name] = random_tensor(kind, tensor.shape, rng)
    return dataclasses.replace(content, tensors=tensors)
