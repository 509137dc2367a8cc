"""Running a checkpoint in transformers, in float32, a ternary one on its quantised path."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

# The quantisers are decorated with torch.compile; eager they are the formulas as written, and
# need no compiler.
os.environ["TORCHDYNAMO_DISABLE"] = "1"

import numpy as np
import torch
import transformers
from checkpoints import parse, quantization_config, write_checkpoint
from transformers.integrations.bitnet import AutoBitLinear, BitLinear
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

if TYPE_CHECKING:
    from checkpoints import Config
    from numpy.typing import NDArray

__all__ = ["Reference", "inverse_frequencies", "versions"]


def versions() -> str:
    """Return the versions a golden file was made with."""
    return f"torch {torch.__version__}, transformers {transformers.__version__}"


def inverse_frequencies(config: Config, length: int) -> NDArray[np.float32]:
    """Return the rotary frequencies of a Llama configuration and, last, its attention factor.

    They are those of a sequence of so many tokens.
    """
    rotary = LlamaRotaryEmbedding(transformers.LlamaConfig(**_without_ntk(config)))
    rotary(torch.zeros(1, 1, 1), torch.tensor([[length - 1]]))
    return np.append(rotary.inv_freq.numpy(), np.float32(rotary.attention_scaling))


def _without_ntk(config: Config) -> Config:
    """Return the same frequencies as transformers writes them: by a larger theta."""
    scaling = config.get("rope_scaling", {})
    if scaling.get("type") != "ntk":
        return config
    dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    theta = config["rope_theta"] * scaling["factor"] ** (dim / (dim - 2))
    return {name: value for name, value in config.items() if name != "rope_scaling"} | {
        "rope_theta": theta
    }


class Reference:
    """A checkpoint directory as transformers loads it.

    Dynamic NTK is frozen at `length` tokens: transformers keeps the frequencies of the longest
    sequence that it has seen, down to sequences of the original context.
    """

    def __init__(self, directory: Path, config: Config, length: int) -> None:
        self._model = _load(directory, config)
        # Beside the parts for images, where it has those.
        self._text_model = getattr(self._model.model, "language_model", self._model.model)
        self.run(np.zeros(length, np.int32))
        layers = config.get("text_config", config)["num_hidden_layers"]
        self._check_linears(quantization_config(config), layers)

    def run(self, token_ids: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return hidden states [L + 1, T, hidden], as `Decoder.step` does, and logits [T, V]."""
        hidden: list[torch.Tensor] = []
        inner = self._text_model
        hooks = [
            layer.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
            for layer in inner.layers
        ]
        hooks.append(inner.norm.register_forward_hook(lambda _m, _a, out: hidden.append(out)))
        with torch.inference_mode():
            logits = self._model(torch.from_numpy(token_ids.astype(np.int64))[None]).logits
        for hook in hooks:
            hook.remove()
        return torch.cat(hidden).numpy(), logits[0].numpy()

    def generate(self, prompt: NDArray[Any], count: int) -> NDArray[np.int32]:
        """Return `count` greedy tokens after the prompt, past any end of sequence."""
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
            eos_token_id=None,
            pad_token_id=0,
        )
        return np.asarray(out[0, len(prompt) :].numpy(), np.int32)

    def _check_linears(self, quantization: Config, layers: int) -> None:
        automatic = quantization.get("linear_class") == "autobitlinear"
        quantised = AutoBitLinear if automatic else BitLinear
        linears = [m for name, m in self._text_model.named_modules() if name.endswith("_proj")]
        assert len(linears) == 7 * layers
        for linear in linears:
            assert type(linear) is (quantised if quantization else torch.nn.Linear)
            if not quantization:
                continue
            assert (linear.rms_norm is not None) == bool(quantization.get("use_rms_norm"))
            if automatic:
                assert linear.online_quant == (quantization["quantization_mode"] == "online")


def _load(directory: Path, config: Config) -> Any:
    if config["architectures"] != ["BitnetForCausalLM"]:
        return transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    # 1bitLLM's class is not in transformers: its BitNet is, under other names.
    known = config | {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "quantization_config": quantization_config(config) | {"quant_method": "bitnet"},
    }
    tensors = {
        _bitnet_name(name): tensor
        for name, tensor in parse((directory / "model.safetensors").read_bytes()).items()
    }
    with tempfile.TemporaryDirectory() as renamed:
        return _load(write_checkpoint(Path(renamed), known, tensors), known)


def _bitnet_name(name: str) -> str:
    return name.replace("inner_attn_ln", "attn_sub_norm").replace("ffn_layernorm", "ffn_sub_norm")
