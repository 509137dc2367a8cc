from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from golden.specs import SPECS

from ryzanstein.errors import CorruptFileError, ModelLoadError, UnsupportedFormatError
from ryzanstein.loaders.model_files import open_files
from ryzanstein.models import ModelConfig, num_parameters, read_config
from ryzanstein.models.config import QuantizationConfig
from ryzanstein.models.rope import RopeConfig

if TYPE_CHECKING:
    from pathlib import Path

    from checkpoints import Config

BITNET, LLAMA, GEMMA3 = SPECS[0].config, SPECS[4].config, SPECS[-1].config
# config.json of microsoft/bitnet-b1.58-2B-4T, without what no engine reads.
FLAGSHIP: Config = {
    "architectures": ["BitNetForCausalLM"],
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_act": "relu2",
    "hidden_size": 2560,
    "initializer_range": 0.02,
    "intermediate_size": 6912,
    "max_position_embeddings": 4096,
    "model_type": "bitnet",
    "rms_norm_eps": 1e-05,
    "num_attention_heads": 20,
    "num_hidden_layers": 30,
    "num_key_value_heads": 5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 128256,
    "quantization_config": {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "offline",
    },
}


def read(directory: Path, config: Config) -> ModelConfig:
    (directory / "config.json").write_text(json.dumps(config))
    return read_config(open_files(directory))


def without(config: Config, key: str) -> Config:
    return {name: value for name, value in config.items() if name != key}


def quantized(**values: Any) -> Config:
    return BITNET | {"quantization_config": BITNET["quantization_config"] | values}


def test_flagship(tmp_path: Path) -> None:
    assert read(tmp_path, FLAGSHIP) == ModelConfig(
        architecture="BitNetForCausalLM",
        hidden_size=2560,
        num_layers=30,
        num_heads=20,
        num_kv_heads=5,
        head_dim=128,
        intermediate_size=6912,
        vocab_size=128256,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        activation="relu2",
        ropes=(RopeConfig("default", 500000.0),),
        tie_word_embeddings=True,
        attn_sub_norm=True,
        ffn_sub_norm=True,
        quantization=QuantizationConfig("autobitlinear", "offline", False, 1e-6),
        sliding_windows=(0,) * 30,
    )


def test_flagship_parameters(tmp_path: Path) -> None:
    assert num_parameters(read(tmp_path, FLAGSHIP)) == 2_412_820_480


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_parameters_are_those_of_the_tensors(spec: Any, tmp_path: Path) -> None:
    from checkpoints import random_tensors

    count = sum(
        tensor.array.size * (4 if tensor.dtype == "U8" else 1)
        for name, tensor in random_tensors(spec.config, 0, "BF16").items()
        if not name.endswith("weight_scale")
    )
    assert num_parameters(read(tmp_path, spec.config)) == count


def test_null_kv_heads_means_every_head(tmp_path: Path) -> None:
    assert read(tmp_path, LLAMA | {"num_key_value_heads": None}).num_kv_heads == 4


def test_untied_is_the_default(tmp_path: Path) -> None:
    assert not read(tmp_path, without(BITNET, "tie_word_embeddings")).tie_word_embeddings


def test_missing_linear_class_divides(tmp_path: Path) -> None:
    config = read(tmp_path, LLAMA | {"quantization_config": {"quant_method": "bitnet"}})
    assert config.quantization == QuantizationConfig("bitlinear", "offline", False, 1e-6)


def test_mode_means_nothing_to_bitlinear(tmp_path: Path) -> None:
    section = {"quant_method": "bitnet", "quantization_mode": "online"}
    config = read(tmp_path, LLAMA | {"quantization_config": section})
    assert config.quantization is not None
    assert config.quantization.mode == "offline"


REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "rope_theta",
    "architectures",
)


@pytest.mark.parametrize("key", REQUIRED)
def test_missing_field(key: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError) as caught:
        read(tmp_path, without(BITNET, key))
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: field '{key}' is missing; ")


@pytest.mark.parametrize("key", [*REQUIRED, "tie_word_embeddings", "head_dim", "attention_bias"])
@pytest.mark.parametrize("value", [{}, [3], "wrong", -1, -0.5, float("nan"), 1e400, 1 << 90])
def test_wrong_type_or_range(key: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError) as caught:
        read(tmp_path, BITNET | {key: value})
    assert f"{tmp_path / 'config.json'}: field '{key}' " in str(caught.value)


BAD: dict[str, tuple[Config, type[Exception], str]] = {
    "architecture": (
        BITNET | {"architectures": ["PhiForCausalLM"]},
        UnsupportedFormatError,
        "'PhiForCausalLM'; supported are BitNetForCausalLM, BitnetForCausalLM, Gemma2ForCausalLM",
    ),
    "architectures": (
        BITNET | {"architectures": ["BitNetForCausalLM", "LlamaForCausalLM"]},
        UnsupportedFormatError,
        "names several classes",
    ),
    "activation": (
        BITNET | {"hidden_act": "gelu"},
        UnsupportedFormatError,
        "field 'hidden_act' is 'gelu'; supported are silu and relu2",
    ),
    "kv heads": (
        BITNET | {"num_key_value_heads": 3},
        CorruptFileError,
        "field 'num_key_value_heads' is 3, which does not divide num_attention_heads 4",
    ),
    "heads": (
        BITNET | {"num_attention_heads": 5},
        CorruptFileError,
        "field 'hidden_size' is 64, not a multiple of num_attention_heads 5",
    ),
    "odd head": (
        LLAMA | {"head_dim": 23},
        CorruptFileError,
        "field 'head_dim' is 23; rotary embedding needs an even one",
    ),
    "head of another size": (
        BITNET | {"head_dim": 32},
        CorruptFileError,
        "field 'head_dim' is 32, but 4 heads of it do not make up hidden_size 64",
    ),
    "activation of a family": (
        GEMMA3 | {"hidden_activation": "silu"},
        UnsupportedFormatError,
        "field 'hidden_activation' is 'silu'; supported are gelu_pytorch_tanh and gelu",
    ),
    "too few layer types": (
        GEMMA3 | {"layer_types": ["full_attention"]},
        CorruptFileError,
        "field 'layer_types' must name sliding_attention or full_attention for each of 3 layers, "
        "found 1 names: full_attention",
    ),
    "unknown layer type": (
        GEMMA3 | {"layer_types": ["full_attention", "linear_attention", "full_attention"]},
        CorruptFileError,
        "found 3 names: full_attention, linear_attention",
    ),
    "soft cap": (
        GEMMA3 | {"final_logit_softcapping": -1},
        CorruptFileError,
        "field 'final_logit_softcapping' must be a number",
    ),
    "attention to both sides": (
        GEMMA3 | {"use_bidirectional_attention": True},
        UnsupportedFormatError,
        "field 'use_bidirectional_attention' is true: the model embeds texts",
    ),
    "window": (
        GEMMA3 | {"sliding_window": 0},
        CorruptFileError,
        "field 'sliding_window' must be an integer",
    ),
    "no method": (
        BITNET | {"quantization_config": {"linear_class": "autobitlinear"}},
        ModelLoadError,
        "field 'quantization_config.quant_method' is missing",
    ),
    "other method": (
        quantized(quant_method="gptq"),
        UnsupportedFormatError,
        "field 'quantization_config.quant_method' is 'gptq'; supported: bitnet",
    ),
    "other class": (
        quantized(linear_class="linear"),
        UnsupportedFormatError,
        "field 'quantization_config.linear_class' is 'linear'",
    ),
    "other mode": (
        quantized(quantization_mode="sideways"),
        UnsupportedFormatError,
        "field 'quantization_config.quantization_mode' is 'sideways'",
    ),
    "dense parts": (
        quantized(modules_to_not_convert=["lm_head", "model.layers.0"]),
        UnsupportedFormatError,
        "keeps model.layers.0 dense; only the output head may stay unquantised",
    ),
    "quantised head": (
        LLAMA | {"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": []}},
        UnsupportedFormatError,
        "leaves lm_head out, which means a quantised output head",
    ),
    "list of numbers": (
        quantized(modules_to_not_convert=["lm_head", 3]),
        CorruptFileError,
        "field 'quantization_config.modules_to_not_convert' must be a list of strings",
    ),
    "norm epsilon": (
        quantized(use_rms_norm=True, rms_norm_eps=-1.0),
        CorruptFileError,
        "field 'quantization_config.rms_norm_eps' must be a number",
    ),
}


@pytest.mark.parametrize(("config", "error", "message"), BAD.values(), ids=BAD)
def test_bad_configuration(
    config: Config, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        read(tmp_path, config)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_floats_have_no_quantization(tmp_path: Path) -> None:
    assert read(tmp_path, without(LLAMA, "quantization_config")).quantization is None
    assert read(tmp_path, LLAMA | {"quantization_config": None}).quantization is None


def test_the_first_llamas_leave_out_what_their_class_supplies(tmp_path: Path) -> None:
    first = without(without(LLAMA, "num_key_value_heads"), "rope_parameters")
    config = read(tmp_path, first)
    assert config.num_kv_heads == config.num_heads
    assert config.ropes == (RopeConfig("default", 10000.0),)
    section = {"rope_type": "default", "rope_theta": 700.0}
    given = first | {"rope_parameters": section}
    assert read(tmp_path, given).ropes == (RopeConfig("default", 700.0),)


def test_gemma3_in_the_spelling_of_transformers_5(tmp_path: Path) -> None:
    old = read(tmp_path, GEMMA3)
    spelt = {name: value for name, value in GEMMA3.items() if not name.startswith("rope_")}
    spelt |= {
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    }
    del spelt["sliding_window_pattern"]
    assert read(tmp_path, spelt) == old
    spelt["rope_parameters"] = {
        "full_attention": {"rope_type": "default", "rope_theta": 700.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 90.0},
    }
    assert read(tmp_path, spelt).ropes == (
        RopeConfig("default", 700.0),
        RopeConfig("default", 90.0),
    )
    assert old.sliding_windows == (12, 12, 0)
    assert old.ropes == (RopeConfig("linear", 1000000.0, 8.0), RopeConfig("default", 10000.0))


def qwen(**values: Any) -> Config:
    return LLAMA | {"architectures": ["Qwen2ForCausalLM"], "quantization_config": None} | values


def test_windows_of_late_layers_are_on_request(tmp_path: Path) -> None:
    late = qwen(num_hidden_layers=4, sliding_window=8, max_window_layers=3)
    assert read(tmp_path, late).sliding_windows == (0, 0, 0, 0)
    assert read(tmp_path, late | {"use_sliding_window": True}).sliding_windows == (0, 0, 0, 8)


def test_a_null_window_sees_everything(tmp_path: Path) -> None:
    mistral = LLAMA | {"architectures": ["MistralForCausalLM"], "quantization_config": None}
    assert read(tmp_path, mistral | {"sliding_window": None}).sliding_windows == (0, 0)
    assert read(tmp_path, mistral).sliding_windows == (4096, 4096)


def test_biases_in_the_order_of_a_layer(tmp_path: Path) -> None:
    assert read(tmp_path, LLAMA).biased == ()
    assert read(tmp_path, qwen()).biased == tuple(f"self_attn.{x}_proj" for x in "qkv")
    assert read(tmp_path, LLAMA | {"mlp_bias": True}).biased == (
        *("mlp.gate_proj", "mlp.up_proj"),
        "mlp.down_proj",
    )


@pytest.mark.parametrize("architecture", ["BitNetForCausalLM", "BitnetForCausalLM"])
def test_classes_of_ternary_linears_are_ternary_unsaid(architecture: str, tmp_path: Path) -> None:
    masters = QuantizationConfig("autobitlinear", "online", False, 1e-6)
    config = without(BITNET, "quantization_config") | {"architectures": [architecture]}
    assert read(tmp_path, config).quantization == masters
    assert read(tmp_path, config | {"quantization_config": None}).quantization == masters


def test_missing_directory_and_config(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no model directory"):
        read_config(open_files(tmp_path / "x"))
    with pytest.raises(ModelLoadError, match=r"config\.json does not exist"):
        read_config(open_files(tmp_path))


def test_what_is_asked_of_attention_leaves_shorter_windows_alone(tmp_path: Path) -> None:
    config = replace(read(tmp_path, GEMMA3), attention_window=100, attention_sinks=4)
    assert [config.attention_span(layer) for layer in range(3)] == [(12, 0), (12, 0), (100, 4)]
    config = replace(config, attention_window=8)
    assert [config.attention_span(layer) for layer in range(3)] == [(8, 4)] * 3
    assert read(tmp_path, GEMMA3).attention_span(2) == (0, 0)


def test_longrope_has_a_factor_for_each_frequency(tmp_path: Path) -> None:
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 7}
    with pytest.raises(CorruptFileError, match="12 numbers each, for heads of 24, found 8"):
        read(tmp_path, LLAMA | {"rope_parameters": scaling | {"rope_theta": 1e4}})
