"""The tiny models that are compared with transformers, one for each thing that can differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from checkpoints import Config

__all__ = [
    "GEMMA3_TEXT_CONFIGS",
    "NEW_TOKENS",
    "PROMPT_TOKENS",
    "ROPE_LENGTHS",
    "ROPE_SPECS",
    "SPECS",
    "TEXT_TOKENS",
    "Spec",
]

PROMPT_TOKENS = 40  # past the end of a 32-token page
NEW_TOKENS = 32
TEXT_TOKENS = PROMPT_TOKENS + NEW_TOKENS

_OFFLINE = {
    "quant_method": "bitnet",
    "linear_class": "autobitlinear",
    "quantization_mode": "offline",
}
_GELU = "gelu_pytorch_tanh"
_ONLINE = _OFFLINE | {"quantization_mode": "online"}
_DIVIDE = {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # Short, so that a tiny head has frequencies in all three bands.
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True, slots=True)
class Spec:
    """One model: its config.json, the dtype of what is not packed, and how many files it fills.

    A model of images and text has `published` for its config.json, and `config` is what its class
    makes of the part for the text model.
    """

    name: str
    config: Config
    dtype: str = "F32"
    shards: int = 1
    published: Config | None = None


def _bitnet(hidden: int, heads: int, kv_heads: int, inner: int, **other: Any) -> Config:
    return _config("BitNetForCausalLM", "bitnet", "relu2", hidden, heads, kv_heads, inner) | other


def _llama(hidden: int, heads: int, kv_heads: int, inner: int, **other: Any) -> Config:
    return _config("LlamaForCausalLM", "llama", "silu", hidden, heads, kv_heads, inner) | other


def _gemma(
    architecture: str, model_type: str, hidden: int, heads: int, kv_heads: int, inner: int
) -> Config:
    config = _config(architecture, model_type, _GELU, hidden, heads, kv_heads, inner)
    config["hidden_activation"] = config.pop("hidden_act")
    other = {"head_dim": 16, "num_hidden_layers": 3, "tie_word_embeddings": False}
    return config | other | {"sliding_window": 12}


def _config(
    architecture: str, model_type: str, act: str, hidden: int, heads: int, kv_heads: int, inner: int
) -> Config:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_act": act,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "num_hidden_layers": 2,
        "vocab_size": 96,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
    }


SPECS = (
    # The form of microsoft/bitnet-b1.58-2B-4T.
    Spec(
        "bitnet_offline",
        _bitnet(64, 4, 2, 100, rope_theta=500000.0, quantization_config=_OFFLINE),
    ),
    # The form of its -bf16 masters and of fine-tunes; transformers 5's spelling of RoPE.
    Spec(
        "bitnet_online",
        _bitnet(
            48,
            2,
            1,
            100,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            quantization_config=_ONLINE,
        ),
        dtype="BF16",
    ),
    Spec(
        "bitnet_untied_linear_rope",
        _bitnet(
            60,
            3,
            3,
            84,
            tie_word_embeddings=False,
            rope_theta=10000.0,
            rope_scaling={"rope_type": "linear", "factor": 4.0},
            quantization_config=_ONLINE,
        ),
        dtype="F16",
    ),
    Spec(
        "bitnet_input_norm",
        _bitnet(
            80,
            4,
            1,
            108,
            num_hidden_layers=3,
            rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
            quantization_config=_OFFLINE | {"use_rms_norm": True, "rms_norm_eps": 1e-4},
        ),
    ),
    # The form of HF1BitLLM/Llama3-8B-1.58 and Falcon3: no linear_class, divide by the scale.
    Spec(
        "llama_divide",
        _llama(
            96,
            4,
            1,
            160,
            tie_word_embeddings=False,
            rope_parameters=_LLAMA3 | {"rope_theta": 500000.0},
            quantization_config=_DIVIDE,
        ),
    ),
    # Heads that do not make up the hidden size, and a norm inside each linear.
    Spec(
        "llama_divide_input_norm",
        _llama(
            72,
            6,
            3,
            92,
            head_dim=20,
            rope_theta=10000.0,
            quantization_config=_DIVIDE | {"linear_class": "bitlinear", "use_rms_norm": True},
        ),
    ),
    Spec(
        "llama_online_sharded",
        _llama(
            48,
            4,
            4,
            68,
            num_hidden_layers=3,
            tie_word_embeddings=False,
            head_dim=16,
            rope_theta=10000.0,
            rope_scaling=_LLAMA3,
            quantization_config=_ONLINE,
        ),
        dtype="BF16",
        shards=2,
    ),
    # The form of 1bitLLM/bitnet_b1_58-3B: masters, other names, sizes that divide nothing.
    Spec(
        "bitnet_1bitllm",
        _config("BitnetForCausalLM", "llama", "silu", 60, 3, 3, 90)
        | {"rope_theta": 10000.0, "input_bits": 8, "weight_bits": 1},
        dtype="F16",
    ),
    # Plain floats from here on. Gemma's hidden size has a root that every type holds: transformers,
    # which runs these in float32, would round another one to another type than we do.
    Spec(
        "llama_dense",
        _llama(
            64,
            4,
            2,
            100,
            attention_bias=True,
            mlp_bias=True,
            rope_theta=500000.0,
            rope_scaling=_LLAMA3,
        ),
        dtype="BF16",
    ),
    Spec(
        "mistral",
        _config("MistralForCausalLM", "mistral", "silu", 72, 4, 2, 100)
        | {
            "head_dim": 20,
            "rope_theta": 10000.0,
            "sliding_window": 13,
            "tie_word_embeddings": False,
        },
        dtype="BF16",
        shards=2,
    ),
    Spec(
        "qwen2",
        _config("Qwen2ForCausalLM", "qwen2", "silu", 64, 4, 2, 84)
        | {
            "max_window_layers": 1,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                # Short, as above.
                "original_max_position_embeddings": 128,
            },
            "rope_theta": 1000000.0,
            "sliding_window": 11,
            "use_sliding_window": True,
        },
        dtype="F16",
    ),
    Spec(
        "qwen3",
        _config("Qwen3ForCausalLM", "qwen3", "silu", 56, 4, 1, 92)
        | {"head_dim": 24, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
        dtype="BF16",
    ),
    # Texts beyond the original context from their first step on, as transformers counts.
    Spec(
        "llama_longrope",
        _llama(
            64,
            4,
            2,
            92,
            rope_theta=10000.0,
            original_max_position_embeddings=32,
            rope_scaling={
                "type": "longrope",
                "short_factor": [1.0 + i / 8 for i in range(8)],
                "long_factor": [1.0 + i * 1.5 for i in range(8)],
            },
        ),
        dtype="BF16",
    ),
    Spec(
        "llama_longrope_short",
        _llama(
            64,
            4,
            2,
            92,
            rope_theta=10000.0,
            original_max_position_embeddings=256,
            rope_scaling={
                "rope_type": "longrope",
                "short_factor": [1.0 + i / 8 for i in range(8)],
                "long_factor": [1.0 + i * 1.5 for i in range(8)],
                "attention_factor": 1.25,
            },
        ),
        dtype="F16",
    ),
    Spec(
        "llama_dynamic",
        _llama(
            64,
            4,
            2,
            92,
            max_position_embeddings=18,
            rope_theta=10000.0,
            # Stretched four times, which is the length of the texts.
            rope_scaling={"type": "dynamic", "factor": 4.0},
        ),
        dtype="BF16",
    ),
    Spec(
        "gemma",
        _config("GemmaForCausalLM", "gemma", _GELU, 36, 4, 1, 80)
        | {"head_dim": 16, "rope_theta": 10000.0},
        dtype="BF16",
    ),
    Spec(
        "gemma2",
        _gemma("Gemma2ForCausalLM", "gemma2", 64, 4, 2, 80)
        | {
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 20.0,
            "query_pre_attn_scalar": 12,
            "rope_theta": 10000.0,
        },
        dtype="F16",
    ),
    # The form of google/gemma-3-4b-it, which says of its text model what differs from the class.
    Spec(
        "gemma3_images",
        _gemma("Gemma3ForCausalLM", "gemma3_text", 16, 8, 4, 40)
        | {
            "head_dim": 8,
            "max_position_embeddings": 131072,
            "num_hidden_layers": 6,
            "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-6,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "rope_theta": 1000000.0,
            "sliding_window_pattern": 6,
            "tie_word_embeddings": True,
        },
        dtype="BF16",
        shards=2,
        published={
            "architectures": ["Gemma3ForConditionalGeneration"],
            "boi_token_index": 90,
            "eoi_token_index": 91,
            "eos_token_id": [1, 6],
            "image_token_index": 92,
            "mm_tokens_per_image": 4,
            "model_type": "gemma3",
            "text_config": {
                "head_dim": 8,
                "hidden_size": 16,
                "intermediate_size": 40,
                "model_type": "gemma3_text",
                "num_hidden_layers": 6,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 12,
                "vocab_size": 96,
            },
            "vision_config": {
                "hidden_size": 8,
                "image_size": 28,
                "intermediate_size": 8,
                "model_type": "siglip_vision_model",
                "num_attention_heads": 2,
                "num_hidden_layers": 1,
                "patch_size": 14,
            },
        },
    ),
    Spec(
        "gemma3",
        _gemma("Gemma3ForCausalLM", "gemma3_text", 64, 4, 2, 80)
        | {
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "query_pre_attn_scalar": 20,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "rope_theta": 1000000.0,
            "sliding_window_pattern": 3,
        },
        dtype="BF16",
    ),
)

# What google/gemma-3-*-it say of their text models, in whole.
GEMMA3_TEXT_CONFIGS: dict[str, Config] = {
    "4b": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "12b": {
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "model_type": "gemma3_text",
        "num_attention_heads": 16,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "27b": {
        "head_dim": 128,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "model_type": "gemma3_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "query_pre_attn_scalar": 168,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
}

_LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + i / 100 for i in range(48)],
    "long_factor": [1.0 + i * 1.3 for i in range(48)],
}
_DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
_HEADS = {"hidden_size": 1024, "num_attention_heads": 8, "max_position_embeddings": 131072}
_LLAMA31 = _LLAMA3 | {"original_max_position_embeddings": 8192}

# Rotary configurations of real models, head dim 128 unless said, in both spellings.
ROPE_SPECS: dict[str, Config] = {
    "default": _HEADS | {"rope_theta": 500000.0},
    "default_new_spelling": _HEADS
    | {"head_dim": 80, "rope_parameters": {"rope_type": "default", "rope_theta": 1000042.0}},
    "linear": _HEADS
    | {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    "linear_type_key": _HEADS
    | {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "yarn": _HEADS
    | {
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
        },
    },
    "yarn_all_parameters": _HEADS
    | {
        "head_dim": 64,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 16,
            "beta_slow": 2,
            "mscale": 0.707,
            "mscale_all_dim": 1.0,
            "truncate": False,
        },
    },
    "llama3": _HEADS | {"rope_theta": 500000.0, "rope_scaling": _LLAMA31},
    "llama3_new_spelling": _HEADS
    | {"head_dim": 64, "rope_parameters": _LLAMA31 | {"factor": 32.0, "rope_theta": 500000.0}},
    # Phi-3 mini 128k's sizes.
    **dict.fromkeys(
        ("longrope_short", "longrope_long"),
        _HEADS
        | {
            "head_dim": 96,
            "original_max_position_embeddings": 4096,
            "rope_theta": 10000.0,
            "rope_scaling": _LONGROPE,
        },
    ),
    "longrope_new_spelling": _HEADS
    | {
        "head_dim": 96,
        "rope_parameters": _LONGROPE
        | {"factor": 8.0, "original_max_position_embeddings": 16384, "rope_theta": 10000.0},
    },
    **dict.fromkeys(
        ("dynamic_short", "dynamic_doubled", "dynamic_whole"),
        _HEADS | {"max_position_embeddings": 4096, "rope_theta": 10000.0, "rope_scaling": _DYNAMIC},
    ),
    "ntk": _HEADS | {"rope_theta": 10000.0, "rope_scaling": {"type": "ntk", "factor": 4.0}},
}

# Of the sequence, where the frequencies depend on it.
ROPE_LENGTHS = {
    "longrope_short": 4096,
    "longrope_long": 4097,
    "longrope_new_spelling": 16385,
    "dynamic_short": 4096,
    "dynamic_doubled": 8192,
    "dynamic_whole": 16384,
}
