from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from gguf_bytes import NUMBERS, GgufBytes, RawTensor
from gguf_models import BITNET, LLAMA, TernaryModel

from ryzanstein.errors import CorruptFileError, ModelLoadError, UnsupportedFormatError
from ryzanstein.loaders.gguf import GgufFile
from ryzanstein.loaders.gguf_config import architecture_of, is_tied, model_config

if TYPE_CHECKING:
    from pathlib import Path

# What each architecture is in the gguf package.
PACKAGE = {
    "bitnet": gguf.MODEL_ARCH.BITNET,
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma": gguf.MODEL_ARCH.GEMMA,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3": gguf.MODEL_ARCH.GEMMA3,
}
ARCHITECTURES = {
    "bitnet": ("BitNetForCausalLM", "silu"),
    "bitnet-25": ("BitNetForCausalLM", "relu2"),
    "bitnet-b1.58": ("BitNetForCausalLM", "relu2"),
    "llama": ("LlamaForCausalLM", "silu"),
    "qwen2": ("Qwen2ForCausalLM", "silu"),
    "qwen3": ("Qwen3ForCausalLM", "silu"),
    "gemma": ("GemmaForCausalLM", "gelu_pytorch_tanh"),
    "gemma2": ("Gemma2ForCausalLM", "gelu_pytorch_tanh"),
    "gemma3": ("Gemma3ForCausalLM", "gelu_pytorch_tanh"),
}


def floats(values: Any) -> RawTensor:
    array = np.asarray(values, np.float32)
    return RawTensor(NUMBERS["F32"], array.shape, array.tobytes())


def content(
    architecture: str, metadata: dict[str, Any] | None = None, **tensors: RawTensor | None
) -> GgufBytes:
    """Return a file of an architecture: hyperparameters, and just enough tensors."""
    values: dict[str, Any] = {
        "embedding_length": 32,
        "block_count": 2,
        "feed_forward_length": 48,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "context_length": 128,
    } | (metadata or {})
    stored = {f"{architecture}.{key}": value for key, value in values.items() if value is not None}
    held: dict[str, RawTensor | None] = {
        "token_embd.weight": floats(np.ones((7, 32))),
        "blk.0.ffn_down.weight": floats(np.ones((32, 48))),
    }
    held.update({name.replace("__", "."): tensor for name, tensor in tensors.items()})
    return GgufBytes(
        {"general.architecture": architecture} | stored,
        {name: tensor for name, tensor in held.items() if tensor is not None},
    )


def read(path: Path, data: GgufBytes) -> dict[str, Any]:
    file = open_file(path, data)
    return model_config(file, architecture_of(file), tied=is_tied(file))


def open_file(path: Path, data: GgufBytes) -> GgufFile:
    (path / "model.gguf").write_bytes(data.serialize())
    return GgufFile(path / "model.gguf")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_hyperparameters(name: str, tmp_path: Path) -> None:
    config = read(tmp_path, content(name))
    architecture, activation = ARCHITECTURES[name]
    expected = {
        "architectures": [architecture],
        "hidden_act": activation,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128,
        "vocab_size": 7,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }
    assert {key: config[key] for key in expected} == expected
    assert "rope_scaling" not in config


@pytest.mark.parametrize("name", PACKAGE)
def test_names_are_those_of_the_gguf_package(name: str, tmp_path: Path) -> None:
    """Every tensor of an architecture gets a name that the package would give back to it."""
    architecture = architecture_of(open_file(tmp_path, content(name)))
    names = gguf.get_tensor_name_map(PACKAGE[name], 3)
    # transformers' BitNet came later than the package's names for its norms
    own = {"self_attn.attn_sub_norm": "attn_sub_norm", "mlp.ffn_sub_norm": "ffn_sub_norm"}
    seen = set()
    for item in gguf.MODEL_TENSORS[PACKAGE[name]]:
        stored = gguf.TENSOR_NAMES[item].format(bid=2)
        found = architecture.tensor_name(f"{stored}.weight")
        if found is None or found == f"{stored}.weight":
            # experts, fused and precomputed parts that no supported model has
            assert re.search("_exps|_gate_inp|_rot_embd|rope_freqs", stored)
            continue
        assert found.endswith(".weight")
        base = found.removesuffix(".weight")
        part = base.removeprefix("model.layers.2.")
        expected = f"blk.2.{own[part]}" if part in own else names.get_name(base)
        assert expected == stored
        seen.add(base)
    assert {"model.embed_tokens", "model.norm", "model.layers.2.mlp.up_proj"} <= seen


def test_biases_and_unknown_names(tmp_path: Path) -> None:
    architecture = architecture_of(open_file(tmp_path, content("qwen2")))
    assert architecture.tensor_name("blk.10.attn_q.bias") == "model.layers.10.self_attn.q_proj.bias"
    for name in ("blk.0.attn_qkv.weight", "blk.x.attn_q.weight", "cls.weight", "blk.0.attn_norm"):
        assert architecture.tensor_name(name) == name
    for name in ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"):
        assert architecture.tensor_name(name) is None


def test_an_activation_in_the_file(tmp_path: Path) -> None:
    config = read(tmp_path, content("bitnet-b1.58", {"hidden_activation": "silu"}))
    assert config["hidden_act"] == "silu"


@pytest.mark.parametrize("name", ["bitnet", "bitnet-25", "bitnet-b1.58", "llama"])
@pytest.mark.parametrize("kind", ["I2_S", "TQ1_0", "TQ2_0", "IQ1_BN", "IQ2_BN"])
def test_ternary_linears_take_quantised_activations(name: str, kind: str, tmp_path: Path) -> None:
    model = TernaryModel(LLAMA if name == "llama" else BITNET)
    config = read(tmp_path, model.gguf(kind, name))
    assert config["quantization_config"] == {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "offline",
    }


def test_other_linears_do_not(tmp_path: Path) -> None:
    assert "quantization_config" not in read(tmp_path, content("llama"))
    model = TernaryModel(LLAMA)
    assert "quantization_config" not in read(tmp_path, model.gguf("Q2_0", "llama"))


def test_masters_of_bitnet_are_ternarised(tmp_path: Path) -> None:
    config = read(tmp_path, content("bitnet-b1.58"))
    assert config["quantization_config"]["quantization_mode"] == "online"


def test_a_head_is_tied_where_it_is_the_embedding(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((7, 32))
    other = values.copy()
    other[-1, -1] += 1
    embedding = floats(values)
    for head, tied in ((None, True), (floats(values), True), (floats(other), False)):
        data = content("llama", token_embd__weight=embedding, output__weight=head)
        assert is_tied(open_file(tmp_path, data)) is tied
    half = RawTensor(NUMBERS["F16"], (7, 32), values.astype("<f2").tobytes())
    data = content("llama", token_embd__weight=embedding, output__weight=half)
    assert not is_tied(open_file(tmp_path, data))


def test_head_sizes(tmp_path: Path) -> None:
    assert read(tmp_path, content("qwen3", {"attention.key_length": 16}))["head_dim"] == 16
    config = read(tmp_path, content("llama", {"rope.dimension_count": 4}))
    assert (config["head_dim"], config["partial_rotary_factor"]) == (8, 0.5)
    config = read(tmp_path, content("llama", {"rope.dimension_count": 8}))
    assert "partial_rotary_factor" not in config
    assert "head_dim" not in read(tmp_path, content("llama", {"embedding_length": 33}))
    assert (
        read(tmp_path, content("llama", {"attention.head_count_kv": None}))["num_key_value_heads"]
        == 4
    )


def test_rope(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        content(
            "llama",
            {
                "rope.freq_base": 500000.0,
                "rope.scaling.type": "linear",
                "rope.scaling.factor": 0.1,
            },
        ),
    )
    assert config["rope_theta"] == 500000.0
    # the float32 in the file, as the decimal that it came from
    assert config["rope_scaling"]["rope_type"] == "linear"
    assert config["rope_scaling"]["factor"] == 0.1
    none = content("llama", {"rope.scaling.type": "none", "rope.scaling.factor": 1.0})
    assert "rope_scaling" not in read(tmp_path, none)


@pytest.mark.parametrize("key", ["rope.scaling.factor", "rope.scale_linear"])
def test_a_rope_factor_of_no_kind_is_linear(key: str, tmp_path: Path) -> None:
    """Early files name no kind, the first ones not even the factor as later ones do."""
    scaling = read(tmp_path, content("llama", {key: 4.0}))["rope_scaling"]
    assert (scaling["rope_type"], scaling["factor"]) == ("linear", 4.0)
    off = read(tmp_path, content("llama", {key: 0.0}))
    assert "rope_scaling" not in off


def test_yarn(tmp_path: Path) -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_context_length": 64}
    given = yarn | {"yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0}
    found = read(tmp_path, content("qwen2", {f"rope.scaling.{k}": v for k, v in given.items()}))
    assert found["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
    }
    for key in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor", "yarn_log_multiplier"):
        more = {f"rope.scaling.{k}": v for k, v in (yarn | {key: 1.5}).items()}
        with pytest.raises(UnsupportedFormatError, match=rf"rope\.scaling\.{key} is not supported"):
            read(tmp_path, content("qwen2", more))


def test_longrope(tmp_path: Path) -> None:
    scaling = {"type": "longrope", "original_context_length": 64, "attn_factor": 1.19}
    given = {f"rope.scaling.{key}": value for key, value in scaling.items()}
    tensors = {
        "rope_factors_short__weight": floats([1.0, 1.05, 1.1, 1.2]),
        "rope_factors_long__weight": floats([1.0, 1.5, 3.25, 61.3]),
    }
    expected = {
        "rope_type": "longrope",
        "original_max_position_embeddings": 64,
        "attention_factor": 1.19,
        "short_factor": [1.0, 1.05, 1.1, 1.2],
        "long_factor": [1.0, 1.5, 3.25, 61.3],
    }
    for rest in ({}, {"rope.scaling.factor": 1.0}):
        config = read(tmp_path, content("llama", given | rest, **tensors))
        assert config["rope_scaling"] == expected
    del given["rope.scaling.attn_factor"]
    config = read(tmp_path, content("llama", given, **tensors))
    assert config["rope_scaling"] == expected | {"attention_factor": 1.0}
    stretched = content("llama", given | {"rope.scaling.factor": 4.0}, **tensors)
    with pytest.raises(UnsupportedFormatError, match=r"factor is 4\.0 beside longrope"):
        read(tmp_path, stretched)
    yarn = content("llama", given | {"rope.scaling.yarn_attn_factor": 1.5}, **tensors)
    with pytest.raises(UnsupportedFormatError, match=r"scaling\.yarn_attn_factor is not supported"):
        read(tmp_path, yarn)
    tensors["rope_factors_long__weight"] = floats(np.ones(5))
    with pytest.raises(CorruptFileError, match=r"long\.weight has shape \[5\], not a number for"):
        read(tmp_path, content("llama", given, **tensors))
    del tensors["rope_factors_long__weight"]
    with pytest.raises(ModelLoadError, match=r"tensor 'rope_factors_long\.weight' is missing"):
        read(tmp_path, content("llama", given, **tensors))


@pytest.mark.parametrize(
    ("tensor", "scaling"),
    [
        ("rope_freqs", {"type": "linear", "factor": 4.0}),
        ("rope_freqs", {"factor": 4.0}),
        ("rope_freqs", {"type": "yarn", "factor": 4.0}),
        ("rope_freqs", {"type": "longrope"}),
        ("rope_factors_long", {}),
        ("rope_factors_short", {"type": "yarn", "factor": 4.0}),
    ],
)
def test_divisors_beside_another_scaling(
    tensor: str, scaling: dict[str, Any], tmp_path: Path
) -> None:
    """llama.cpp divides by the tensor and by the factor; config.json has no word for both."""
    given = {f"rope.scaling.{key}": value for key, value in scaling.items()}
    data = content("llama", given, **{f"{tensor}__weight": floats(np.ones(4))})
    with pytest.raises(UnsupportedFormatError, match=rf"{tensor}\.weight divides the rotary freq"):
        read(tmp_path, data)


def test_a_factor_of_one_scales_nothing(tmp_path: Path) -> None:
    given = {"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}
    assert "rope_scaling" not in read(tmp_path, content("llama", given))
    config = read(tmp_path, content("llama", given, rope_freqs__weight=floats(np.ones(4))))
    assert config["rope_scaling"]["rope_type"] == "llama3"


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_found_again(factor: float, tmp_path: Path) -> None:
    """The divisors as llama.cpp's converter computes them from config.json."""
    base, dim = 500000.0, 64
    low, high, context = 1.0, 4.0, 8192
    factors = []
    for frequency in 1.0 / base ** (np.arange(0, dim, 2) / dim):
        wavelength = 2 * np.pi / frequency
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    metadata = {"rope.freq_base": base, "attention.key_length": dim}
    config = read(tmp_path, content("llama", metadata, rope_freqs__weight=floats(factors)))
    assert config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    factors[5] *= 1.01
    with pytest.raises(UnsupportedFormatError, match=r"rope_freqs\.weight is not the scaling of"):
        read(tmp_path, content("llama", metadata, rope_freqs__weight=floats(factors)))


def test_gemma2(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        content(
            "gemma2",
            {
                "block_count": 4,
                "attention.key_length": 16,
                "attention.sliding_window": 64,
                "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0,
            },
            a=floats([1]),
            b=floats([1]),
        ),
    )
    assert config["query_pre_attn_scalar"] == 16
    assert config["sliding_window"] == 64
    assert config["layer_types"] == ["sliding_attention", "full_attention"] * 2
    assert config["attn_logit_softcapping"] == 50.0
    assert config["final_logit_softcapping"] == 30.0
    assert config["hidden_activation"] == "gelu_pytorch_tanh"
    assert "rope_local_base_freq" not in config


def test_gemma3(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        content(
            "gemma3",
            {"block_count": 7, "rope.freq_base": 1e6, "attention.sliding_window": 512},
            **{f"t{index}": floats([1]) for index in range(5)},
        ),
    )
    assert config["layer_types"] == ["sliding_attention"] * 5 + [
        "full_attention",
        "sliding_attention",
    ]
    assert config["rope_theta"] == 1e6
    assert config["rope_local_base_freq"] == 10000.0
    assert "attn_logit_softcapping" not in config


@pytest.mark.parametrize(("name", "layers", "scalar"), [("gemma2", 46, 8), ("gemma3", 62, 8)])
def test_the_27b_models_scale_by_hidden_size(
    name: str, layers: int, scalar: int, tmp_path: Path
) -> None:
    tensors = {f"t{index}": floats([1]) for index in range(layers)}
    data = content(name, {"block_count": layers, "attention.key_length": 128}, **tensors)
    assert read(tmp_path, data)["query_pre_attn_scalar"] == scalar


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"context_length": None}, ModelLoadError, "metadata llama.context_length is missing"),
        ({"block_count": 3}, CorruptFileError, "block_count is 3, but there are 2 tensors"),
        ({"block_count": 2**32 - 1}, CorruptFileError, "block_count is 4294967295, but there"),
        ({"block_count": [1, 2]}, CorruptFileError, r"block_count is \[1, 2\], but there"),
    ],
)
def test_wrong_metadata(
    metadata: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        read(tmp_path, content("llama", metadata))


def test_files_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFormatError, match=r"architecture is 'mamba'; supported are bit"):
        read(tmp_path, content("mamba"))
    with pytest.raises(ModelLoadError, match=r"general\.architecture is missing"):
        read(tmp_path, GgufBytes({"general.architecture": 3}, {}))
    split = GgufBytes({"general.architecture": "llama", "split.count": 3}, {})
    with pytest.raises(UnsupportedFormatError, match="is one of 3 parts; join them with"):
        read(tmp_path, split)
    with pytest.raises(ModelLoadError, match=r"tensor 'token_embd\.weight' is missing"):
        read(tmp_path, content("llama", token_embd__weight=None, other=floats([1])))
