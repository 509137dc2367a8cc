"""Write a trained checkpoint as a Hugging Face directory with packed ternary weights.

Layout: ``*.weight`` uint8[N/4, K], where bits 2i and 2i+1 of byte (r, k) hold the value of row
``i * N/4 + r`` plus one; ``*.weight_scale`` bfloat16[1], to multiply by (linear_class
"autobitlinear", mode "offline"). The embedding and the gains are bfloat16. The scale is stored as
transformers reads it, rounded, so that every reader computes with the same number.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.model import BitLinear, BitNet, ModelConfig, ternarise
from training.tokenizer import END_OF_TEXT, END_OF_TEXT_ID
from training.train import load

VALUES_PER_BYTE = 4


def pack(values: Tensor) -> Tensor:
    """Ternary values [N, K], N divisible by 4, to uint8[N/4, K]."""
    codes = (values + 1).to(torch.uint8).view(VALUES_PER_BYTE, -1, values.shape[1])
    packed = torch.zeros_like(codes[0])
    for i in range(VALUES_PER_BYTE):
        packed |= codes[i] << (2 * i)
    return packed


def unpack(packed: Tensor) -> Tensor:
    """uint8[N/4, K] back to float32[N, K] of -1, 0, 1."""
    rows = [(packed >> (2 * i)) & 3 for i in range(VALUES_PER_BYTE)]
    return torch.cat(rows).float() - 1.0


def packed_tensors(model: BitNet) -> dict[str, Tensor]:
    """Every tensor of the file, named as transformers names them."""
    tensors: dict[str, Tensor] = {}
    linears = {n for n, m in model.named_modules() if isinstance(m, BitLinear)}
    for name, parameter in model.named_parameters():
        owner = name.removesuffix(".weight")
        if owner in linears:
            values, scale = ternarise(parameter.detach())
            tensors[f"model.{name}"] = pack(values).contiguous()
            tensors[f"model.{owner}.weight_scale"] = scale.reshape(1).bfloat16()
        else:
            tensors[f"model.{name}"] = parameter.detach().bfloat16()
    return tensors


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """config.json of the directory."""
    return {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "hidden_act": "relu2",
        "max_position_embeddings": config.max_positions,
        "initializer_range": 0.02,
        "rms_norm_eps": config.rms_eps,
        "rope_theta": config.rope_theta,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": END_OF_TEXT_ID,
        "pad_token_id": END_OF_TEXT_ID,
        "torch_dtype": "bfloat16",
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
        },
    }


def tokenizer_config(config: ModelConfig) -> dict[str, Any]:
    """tokenizer_config.json of the directory."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_positions,
    }


# Small models repeat themselves under greedy search; a cool, truncated sample reads better.
GENERATION_CONFIG = {
    "bos_token_id": END_OF_TEXT_ID,
    "eos_token_id": END_OF_TEXT_ID,
    "pad_token_id": END_OF_TEXT_ID,
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.95,
    "repetition_penalty": 1.1,
    "max_new_tokens": 128,
}


def export(model: BitNet, tokenizer: Path, out: Path) -> None:
    """Write the directory; the model card beside it is written by hand."""
    out.mkdir(parents=True, exist_ok=True)
    save_file(packed_tensors(model), out / "model.safetensors", metadata={"format": "pt"})
    for name, content in (
        ("config.json", hf_config(model.config)),
        ("tokenizer_config.json", tokenizer_config(model.config)),
        ("generation_config.json", GENERATION_CONFIG),
    ):
        (out / name).write_text(json.dumps(content, indent=2) + "\n")
    shutil.copyfile(tokenizer, out / "tokenizer.json")


def load_exported(directory: Path) -> BitNet:
    """The exported directory as a torch model, with exactly the numbers in the file."""
    raw = json.loads((directory / "config.json").read_text())
    config = ModelConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        layers=raw["num_hidden_layers"],
        heads=raw["num_attention_heads"],
        kv_heads=raw["num_key_value_heads"],
        max_positions=raw["max_position_embeddings"],
        rope_theta=raw["rope_theta"],
        rms_eps=raw["rms_norm_eps"],
    )
    tensors = load_file(directory / "model.safetensors")
    model, weights = BitNet(config), {}
    for name in model.state_dict():
        stored = tensors[f"model.{name}"]
        scale = tensors.get(f"model.{name}_scale")
        weights[name] = stored.float() if scale is None else unpack(stored) * scale.float()
    model.load_state_dict(weights)
    for module in model.modules():
        if isinstance(module, BitLinear):
            module.ternary = False  # ternary already: a second absmean would change the scale
    return model


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="export a checkpoint as a packed HF directory")
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint of train.py")
    parser.add_argument(
        "--tokenizer", type=Path, default=Path(".data/tokenizer.json"), help="tokenizer.json"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("ryzanstein/assets/default"), help="directory to write"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    export(load(args.checkpoint).model, args.tokenizer, args.out)
    print(f"{(args.out / 'model.safetensors').stat().st_size} bytes in {args.out}")


if __name__ == "__main__":
    main()
