"""The text models of models of images and text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from checkpoints import Tensors, parse, random_tensors, store, with_images, write_checkpoint
from golden.engine import Sequence
from golden.files import load_golden
from golden.specs import GEMMA3_TEXT_CONFIGS, SPECS
from support import byte_level, copy_embedded

from ryzanstein import LLM, CorruptFileError, ModelLoadError, UnsupportedFormatError
from ryzanstein.convert import convert_model
from ryzanstein.loaders.model_files import open_files
from ryzanstein.model_info import describe_model
from ryzanstein.models import load_model, num_parameters, read_config
from ryzanstein.models.rope import RopeConfig
from ryzanstein.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from checkpoints import Config
    from numpy.typing import NDArray

    from ryzanstein.models import ModelConfig

SPEC = next(spec for spec in SPECS if spec.name == "gemma3_images")
assert SPEC.published is not None
PUBLISHED = SPEC.published
MISTRAL = next(spec.config for spec in SPECS if spec.name == "mistral")
# As published, with a head in the text model; and as transformers 5 calls its modules.
NAMES = {
    "published": ("language_model.model.", "language_model.lm_head.", ""),
    "modules": ("model.language_model.", "lm_head.", "model."),
}


def read(directory: Path, config: Config) -> ModelConfig:
    (directory / "config.json").write_text(json.dumps(config))
    return read_config(open_files(directory))


def gemma(**text: Any) -> Config:
    return {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}


def named(tensors: Tensors, naming: str) -> Tensors:
    """Return a text model's tensors in one of the two spellings, beside one for images."""
    model, head, images = NAMES[naming]
    renamed = {
        name.replace("model.", model, 1) if name.startswith("model.") else head + "weight": tensor
        for name, tensor in tensors.items()
    }
    return renamed | {f"{images}vision_tower.patch.weight": store(np.ones(4), "F32")}


def logits(path: Path) -> NDArray[np.float32]:
    model = load_model(open_files(path), threads=2, isa=None)
    return Sequence(model, 40).extend(np.arange(40))[1]


def test_what_published_configurations_leave_out(tmp_path: Path) -> None:
    """The numbers are those of `Gemma3TextConfig`, which `tests/live` compares with."""
    four = read(tmp_path, gemma(**GEMMA3_TEXT_CONFIGS["4b"]))
    assert (four.architecture, four.num_layers, four.hidden_size) == ("Gemma3ForCausalLM", 34, 2560)
    assert (four.num_heads, four.num_kv_heads, four.head_dim) == (8, 4, 256)
    assert (four.vocab_size, four.max_position_embeddings) == (262208, 131072)
    assert (four.query_scalar, four.rms_norm_eps, four.activation) == (256.0, 1e-6, "gelu_tanh")
    assert (four.tie_word_embeddings, four.attention_softcap, four.final_softcap) == (True, 0, 0)
    assert four.sliding_windows[:7] == (1024, 1024, 1024, 1024, 1024, 0, 1024)
    assert four.ropes == (RopeConfig("linear", 1e6, 8.0), RopeConfig("default", 1e4))
    assert num_parameters(four) == 3_880_263_168
    twelve = read(tmp_path, gemma(**GEMMA3_TEXT_CONFIGS["12b"]))
    assert (twelve.num_heads, twelve.num_kv_heads, twelve.head_dim) == (16, 8, 256)
    largest = read(tmp_path, gemma(**GEMMA3_TEXT_CONFIGS["27b"]))
    assert (largest.head_dim, largest.query_scalar) == (128, 168.0)
    assert largest.sliding_windows.count(0) == 10


@pytest.mark.parametrize("naming", NAMES)
def test_both_spellings_of_names_compute_the_same(naming: str, tmp_path: Path) -> None:
    tensors = random_tensors(SPEC.config, 1, "BF16")
    plain = write_checkpoint(tmp_path / "plain", SPEC.config, tensors)
    wrapped = write_checkpoint(tmp_path / "wrapped", PUBLISHED, named(tensors, naming), 2)
    assert np.array_equal(logits(wrapped), logits(plain))


@pytest.mark.parametrize("naming", NAMES)
@pytest.mark.parametrize("outer", [True, False])
def test_a_head_of_its_own(naming: str, outer: bool, tmp_path: Path) -> None:
    """Releases of transformers differ in which part of a config.json says so."""
    untied = {"tie_word_embeddings": False}
    tensors = random_tensors(SPEC.config | untied, 1, "BF16")
    plain = write_checkpoint(tmp_path / "plain", SPEC.config | untied, tensors)
    text = PUBLISHED["text_config"]
    config = PUBLISHED | (untied if outer else {"text_config": text | untied})
    wrapped = write_checkpoint(tmp_path / "wrapped", config, named(tensors, naming))
    assert np.array_equal(logits(wrapped), logits(plain))


@pytest.mark.parametrize("naming", NAMES)
def test_mistral(naming: str, tmp_path: Path) -> None:
    tensors = random_tensors(MISTRAL, 1, "BF16")
    plain = write_checkpoint(tmp_path / "plain", MISTRAL, tensors)
    text = {key: value for key, value in MISTRAL.items() if key != "architectures"}
    config = {"architectures": ["Mistral3ForConditionalGeneration"], "text_config": text}
    wrapped = write_checkpoint(tmp_path / "wrapped", config, named(tensors, naming))
    assert np.array_equal(logits(wrapped), logits(plain))


def write_with_tokenizer(directory: Path) -> Path:
    golden = load_golden(SPEC)
    directory.mkdir()
    golden.write(directory)
    (directory / "tokenizer.json").write_text(byte_level().to_str())
    return directory


def write_placeholder(directory: Path, *, others: int = 0) -> Path:
    """Write the embedded model with a token for images that it has no row for."""
    model = copy_embedded(directory)
    content = json.loads((model / "tokenizer.json").read_text())
    names = ["<image_soft_token>", *(f"<other {index}>" for index in range(others))]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] += [
        {"id": 4096 + index, "content": name, "special": True} | flags
        for index, name in enumerate(names)
    ]
    (model / "tokenizer.json").write_text(json.dumps(content))
    return model


def test_a_token_for_images_is_text(tmp_path: Path) -> None:
    """Gemma 3 1B has no row for it, and 4B one that no text was trained with."""
    model = write_placeholder(tmp_path / "model")
    text = "a <image_soft_token> b"
    with LLM(model, threads=1) as llm, LLM(threads=1) as plain:
        assert llm.tokenizer.encode(text) == plain.tokenizer.encode(text)
        assert llm.tokenizer.vocabulary == plain.tokenizer.vocabulary
    path = convert_model(open_files(model), tmp_path / "model.gguf", "tq2_0").path
    assert Tokenizer.from_files(open_files(path)).vocab_size == 4096


def test_a_token_for_images_before_others_stays(tmp_path: Path) -> None:
    """Who adds tokens adds rows for all of them; without this one the others would move."""
    model = write_placeholder(tmp_path / "model", others=2)
    tokenizer = Tokenizer.from_files(open_files(model))
    assert tokenizer.vocab_size == 4096 + 3
    assert tokenizer.encode("<image_soft_token><other 1>")[-2:] == [4096, 4098]
    with pytest.raises(CorruptFileError, match="the tokenizer has 4099 tokens, but the model only"):
        LLM(model)


@pytest.mark.parametrize("added", ["[", "[1]", "[{}]", '[{"id": "x"}]', "[]", "7"])
def test_damaged_lists_of_tokens(added: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(
        f'{{"x": "<image_soft_token>", "added_tokens": {added}}}'
    )
    with pytest.raises(CorruptFileError, match="is not a tokenizer"):
        Tokenizer.from_files(open_files(tmp_path))


def test_info_says_what_is_left_out(tmp_path: Path) -> None:
    files = open_files(write_with_tokenizer(tmp_path / "model"))
    info = describe_model(files)
    assert info.notes == [
        "this is the text model of Gemma3ForConditionalGeneration: images cannot be given to it, "
        "and 4 tensors for them are not read"
    ]
    assert info.config.architecture == "Gemma3ForCausalLM"
    assert info.tensors[0].name == "model.embed_tokens.weight"
    assert sum(np.prod(tensor.shape) for tensor in info.tensors) == info.parameters
    assert info.tokenizer.eos_token_ids == (1, 6)
    # Both shards hold tensors of the text model.
    assert len(info.hashes) == 2


def test_a_gguf_of_it_is_that_of_its_text_model(tmp_path: Path) -> None:
    tokenizer = json.loads(byte_level().to_str())
    tokenizer["model"]["vocab"]["he"] = 257
    tokenizer["model"]["merges"] = [["h", "e"]]
    # As in real models: GGUF has no word for another scale.
    real = {"query_pre_attn_scalar": 8, "vocab_size": 260}
    plain = SPEC.config | real | {"eos_token_id": [1, 6]}
    tensors = random_tensors(plain, 1, "F32")
    written: list[bytes] = []
    for config, stored in (
        (plain, tensors),
        (PUBLISHED | {"text_config": PUBLISHED["text_config"] | real}, with_images(tensors)),
    ):
        model = write_checkpoint(tmp_path / config["model_type"] / "model", config, stored)
        (model / "tokenizer.json").write_text(json.dumps(tokenizer))
        path = convert_model(open_files(model), tmp_path / f"{len(written)}.gguf", "q8_0").path
        written.append(path.read_bytes())
    assert written[0] == written[1]
    assert Tokenizer.from_files(open_files(path)).eos_token_ids == (1, 6)


def test_it_converts_to_packed_ternary(tmp_path: Path) -> None:
    tensors = random_tensors(SPEC.config, 1, "F32")
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            tensors[name] = store(np.sign(tensor.values()) / 4, "F32")
    model = write_checkpoint(tmp_path / "model", PUBLISHED, with_images(tensors))
    path = convert_model(open_files(model), tmp_path / "packed", "hf").path
    config = json.loads((path / "config.json").read_text())
    assert config["architectures"] == ["Gemma3ForCausalLM"]
    assert set(PUBLISHED["text_config"]) < set(config)
    stored = parse((path / "model.safetensors").read_bytes())
    assert {name.removesuffix("_scale") for name in stored} == set(tensors)
    assert load_model(open_files(path), threads=1, isa=None).config.quantization is not None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"text_config": [1]}, CorruptFileError, "field 'text_config' must be an object"),
        (
            {"text_config": {"model_type": "gemma3n_text"}},
            UnsupportedFormatError,
            r"'text_config.model_type' is 'gemma3n_text'; supported in Gemma3ForConditional",
        ),
        (
            {"text_config": {"hidden_size": "many"}},
            CorruptFileError,
            r"config\.json \(its text model\): field 'hidden_size' must be an integer",
        ),
        (
            {"quantization_config": {"quant_method": "compressed-tensors"}},
            UnsupportedFormatError,
            "'quantization_config.quant_method' is 'compressed-tensors'",
        ),
        (
            {"architectures": ["LlavaForConditionalGeneration"]},
            UnsupportedFormatError,
            "Gemma3ForCausalLM, Gemma3ForConditionalGeneration, GemmaForCausalLM",
        ),
    ],
)
def test_refused(change: Config, error: type[ModelLoadError], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        read(tmp_path, PUBLISHED | change)


def test_tensors_that_are_not_known_are_refused(tmp_path: Path) -> None:
    tensors = named(random_tensors(SPEC.config, 1, "BF16"), "published")
    more = {"language_model.model.layers.0.extra.weight": store(np.ones(4), "F32")}
    path = write_checkpoint(tmp_path / "more", PUBLISHED, tensors | more)
    with pytest.raises(UnsupportedFormatError, match=r"'language_model\.model\.layers\.0\.extra"):
        load_model(open_files(path), threads=1, isa=None)
    twice = {"model.norm.weight": store(np.ones(16), "BF16")}
    path = write_checkpoint(tmp_path / "twice", PUBLISHED, tensors | twice)
    with pytest.raises(CorruptFileError, match=r"are both 'model\.norm\.weight'"):
        load_model(open_files(path), threads=1, isa=None)
