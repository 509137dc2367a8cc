from __future__ import annotations

import json
import shutil
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from checkpoints import Config, parse, random_tensors, store, write_checkpoint
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize
from reference import ops
from support import byte_level

from ryzanstein import LLM, QuantizationError, SamplingParams, UnsupportedFormatError
from ryzanstein.convert import FORMATS, Conversion, convert_model
from ryzanstein.convert.gguf_file import GgufFormat
from ryzanstein.convert.hugging_face import HuggingFaceFormat
from ryzanstein.convert.output import new_output
from ryzanstein.errors import CorruptFileError, ModelLoadError, ValidationError
from ryzanstein.loaders.hub import EMBEDDED_MODEL
from ryzanstein.loaders.model_files import DirectoryFiles, open_files
from ryzanstein.quant import to_float32
from ryzanstein.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from numpy.typing import NDArray

BITNET: Config = {
    "architectures": ["BitNetForCausalLM"],
    "model_type": "bitnet",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 260,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "relu2",
    "tie_word_embeddings": True,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "quantization_config": {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "offline",
    },
}
LLAMA = BITNET | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "quantization_config": {"quant_method": "bitnet"},  # bitlinear: scales are divided by
}
DENSE = {key: value for key, value in LLAMA.items() if key != "quantization_config"}
ONLINE = {"linear_class": "autobitlinear", "quantization_mode": "online"}
MASTERS = BITNET | {"quantization_config": BITNET["quantization_config"] | ONLINE}
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def write_model(directory: Path, config: Config, seed: int = 1, dtype: str = "BF16") -> Path:
    write_checkpoint(directory, config, random_tensors(config, seed, dtype))
    tokenizer = json.loads(byte_level().to_str())
    tokenizer["model"]["vocab"]["he"] = 257
    tokenizer["model"]["merges"] = [["h", "e"]]  # without any, llama.cpp refuses a vocabulary
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"bos_token": "<s>", "eos_token": "<s>", "add_bos_token": True}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


def convert(model: Path, out: Path, to: str) -> Conversion:
    return convert_model(DirectoryFiles(model), out, to)


def greedy(model: Path) -> list[int]:
    with LLM(model, threads=1) as llm:
        params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
        return list(llm.generate([256, 72, 101], params).token_ids)


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, NDArray[Any]]]]:
    """Return metadata, and type and float32 values of every tensor."""
    reader = GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        shape = [int(size) for size in tensor.shape[::-1]]
        tensors[tensor.name] = (tensor.tensor_type.name, values.reshape(shape))
    return metadata, tensors


def requantise(
    path: Path,
    out: Path,
    names: Collection[str],
    wanted: GGMLQuantizationType = GGMLQuantizationType.Q8_0,
) -> None:
    """Copy a GGUF file with some tensors in another type, as the gguf package quantises."""
    reader = GGUFReader(path)
    writer = GGUFWriter(out, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        data, kind = tensor.data, tensor.tensor_type
        if tensor.name in names:
            kind = wanted
            data = quantize(dequantize(tensor.data, tensor.tensor_type), kind)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def source_values(model: Path, name: str) -> NDArray[np.float64]:
    """The weights of a model by the formulas of its config.json, in float64."""
    tensors = parse((model / "model.safetensors").read_bytes())
    stored = tensors[name]
    if stored.dtype == "U8":
        config = json.loads((model / "config.json").read_text())["quantization_config"]
        scale = tensors[name + "_scale"].values()
        multiplies = config.get("linear_class") == "autobitlinear"
        codes = ops.unpack_hf(stored.array).astype(np.float64)
        return codes * (scale if multiplies else 1 / scale)
    return stored.values()


@pytest.mark.parametrize("config", [BITNET, LLAMA, MASTERS], ids=["bitnet", "llama", "masters"])
def test_packed_directories_give_the_same_tokens(config: Config, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", config)
    conversion = convert(model, tmp_path / "packed", "hf")
    assert conversion.lossy == []
    assert conversion.notes == []
    written = json.loads((tmp_path / "packed" / "config.json").read_text())
    section = written.pop("quantization_config")
    assert written == {key: config[key] for key in config if key != "quantization_config"}
    assert (section["linear_class"], section["quantization_mode"]) == ("autobitlinear", "offline")
    names = [sorted(path.name for path in place.iterdir()) for place in (model, conversion.path)]
    assert names[0] == names[1]
    assert greedy(tmp_path / "packed") == greedy(model)


@pytest.mark.parametrize("to", ["tq2_0", "tq1_0"])
@pytest.mark.parametrize(
    ("config", "architecture"),
    [(BITNET, "bitnet-b1.58"), (LLAMA, "llama"), (MASTERS, "bitnet-b1.58")],
    ids=["bitnet", "llama", "masters"],
)
def test_ternary_files(config: Config, architecture: str, to: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", config)
    conversion = convert(model, tmp_path / "out.gguf", to)
    metadata, tensors = read_gguf(conversion.path)
    assert metadata["general.architecture"] == architecture
    assert metadata[f"{architecture}.block_count"] == config["num_hidden_layers"]
    assert metadata[f"{architecture}.attention.head_count_kv"] == config["num_key_value_heads"]
    assert metadata[f"{architecture}.hidden_activation"] == config["hidden_act"]
    kinds = {name: kind for name, (kind, _) in tensors.items()}
    assert kinds["blk.1.ffn_down.weight"] == to.upper()
    assert kinds["token_embd.weight"] == "BF16"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert ("output.weight" in kinds) is not config["tie_word_embeddings"]
    assert np.array_equal(
        tensors["token_embd.weight"][1], source_values(model, "model.embed_tokens.weight")
    )
    for change in conversion.tensors:
        assert change.relative_change <= (2**-11 if change.source == "ternary" else 0)


@pytest.mark.parametrize("to", ["tq2_0", "tq1_0", "q8_0", "q4_0"])
def test_rows_of_llama_are_in_pairs(to: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", LLAMA)
    convert(model, tmp_path / "out.gguf", to)
    _, tensors = read_gguf(tmp_path / "out.gguf")
    tolerance = {"q8_0": 0.005, "q4_0": 0.13}.get(to, 2**-11)
    for linear, name in (("self_attn.k_proj", "attn_k"), ("mlp.up_proj", "ffn_up")):
        expected = source_values(model, f"model.layers.1.{linear}.weight")
        if name == "attn_k":
            # Row 2i of a head of 64 is row i of its first half, row 2i + 1 of its second.
            heads = expected.reshape(2, 64, -1)
            expected = np.stack([heads[:, :32], heads[:, 32:]], axis=2).reshape(expected.shape)
        found = tensors[f"blk.1.{name}.weight"][1]
        assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_a_scale_that_float16_has_is_exact(tmp_path: Path) -> None:
    tensors = random_tensors(BITNET, 1, "BF16")
    halves = {
        name: store(np.array([0.0625]), "BF16") for name in tensors if name.endswith("_scale")
    }
    model = write_model(tmp_path / "model", BITNET)
    write_checkpoint(model, BITNET, tensors | halves)
    assert convert(model, tmp_path / "exact.gguf", "tq2_0").lossy == []
    thirds = {name: store(np.array([1 / 3]), "F32") for name in halves}
    write_checkpoint(model, BITNET, tensors | thirds)
    lossy = convert(model, tmp_path / "rounded.gguf", "tq2_0").lossy
    change = abs(float(np.float16(1 / 3)) - float(np.float32(1 / 3))) / float(np.float32(1 / 3))
    assert [tensor.relative_change for tensor in lossy] == [pytest.approx(change)] * 14


def test_a_scale_that_float16_cannot_hold(tmp_path: Path) -> None:
    tensors = random_tensors(BITNET, 1, "BF16")
    name = "model.layers.1.mlp.down_proj.weight"
    model = write_model(tmp_path / "model", BITNET)
    write_checkpoint(model, BITNET, tensors | {name + "_scale": store(np.array([1e-9]), "F32")})
    with pytest.raises(QuantizationError, match=rf"{name}: TQ1_0 cannot hold the scale 1e-09"):
        convert(model, tmp_path / "out.gguf", "tq1_0")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_quantised_files(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", DENSE | {"tie_word_embeddings": True})
    conversion = convert(model, tmp_path / "out.gguf", "q4_0")
    kinds = {tensor.name: tensor.stored for tensor in conversion.tensors}
    assert kinds["model.embed_tokens.weight"] == "Q8_0"
    assert kinds["model.layers.0.mlp.up_proj.weight"] == "Q4_0"
    _, tensors = read_gguf(conversion.path)
    changes = {tensor.name: tensor.relative_change for tensor in conversion.tensors}
    expected = source_values(model, "model.embed_tokens.weight")
    change = np.abs(tensors["token_embd.weight"][1] - expected).max() / np.abs(expected).max()
    assert changes["model.embed_tokens.weight"] == pytest.approx(change)
    assert 0 < change < 0.005


def test_rows_that_are_not_whole_blocks(tmp_path: Path) -> None:
    config = BITNET | {"intermediate_size": 96}
    model = write_model(tmp_path / "model", config)
    conversion = convert(model, tmp_path / "out.gguf", "tq2_0")
    noted = {tensor.name: tensor.note for tensor in conversion.tensors if tensor.note}
    down = {f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(2)}
    assert noted == dict.fromkeys(down, "rows of 96 are not whole blocks of 256")
    assert greedy(conversion.path) == greedy(model)
    _, tensors = read_gguf(conversion.path)
    assert tensors["blk.0.ffn_down.weight"][0] == "F16"
    assert tensors["blk.0.ffn_up.weight"][0] == "TQ2_0"


def test_rows_of_zeros_have_no_scale(tmp_path: Path) -> None:
    tensors = random_tensors(BITNET, 1, "BF16")
    model = write_model(tmp_path / "model", BITNET)
    packed = tensors["model.layers.0.mlp.up_proj.weight"].array
    packed[0] = 0b01010101  # rows 0, 128, 256 and 384
    write_checkpoint(model, BITNET, tensors)
    file = convert(model, tmp_path / "model.gguf", "tq1_0").path
    back = convert_model(open_files(file), tmp_path / "back", "hf").path
    assert greedy(file) == greedy(model)
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight_scale"):
        copy = parse((back / "model.safetensors").read_bytes())[name]
        assert np.array_equal(copy.values(), tensors[name].values())


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", BITNET)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).write_bytes((EMBEDDED_MODEL / name).read_bytes())
    with pytest.raises(CorruptFileError, match="has 4096 tokens, but the model only 260"):
        convert(model, tmp_path / "out.gguf", "tq2_0")


def test_embeddings_that_a_file_has_quantised(tmp_path: Path) -> None:
    """A ternary model of Microsoft's kind, its embedding in Q8_0."""
    model = write_model(tmp_path / "model", BITNET)
    file = convert(model, tmp_path / "model.gguf", "tq2_0").path
    requantise(file, tmp_path / "small.gguf", {"token_embd.weight"})
    files = open_files(tmp_path / "small.gguf")
    expected = read_gguf(tmp_path / "small.gguf")[1]["token_embd.weight"]
    assert expected[0] == "Q8_0"
    again = convert_model(files, tmp_path / "again.gguf", "tq2_0")
    assert again.lossy == []
    found = read_gguf(again.path)[1]["token_embd.weight"]
    assert found[0] == "F32"
    assert np.array_equal(found[1], expected[1])
    packed = convert_model(files, tmp_path / "packed", "hf")
    tensors = parse((packed.path / "model.safetensors").read_bytes())
    assert np.array_equal(tensors["model.embed_tokens.weight"].array, expected[1])
    assert greedy(tmp_path / "small.gguf") == greedy(packed.path) == greedy(again.path)


def test_llama3_rotary_scaling_is_a_tensor(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = write_model(tmp_path / "model", LLAMA | {"rope_scaling": scaling})
    convert(model, tmp_path / "out.gguf", "q8_0")
    factors = read_gguf(tmp_path / "out.gguf")[1]["rope_freqs.weight"][1]
    assert factors.shape == (32,)
    # Short wavelengths are kept, those beyond the original context stretched whole.
    assert (factors[0], factors[-1]) == (1, 8)
    model = write_model(tmp_path / "other", BITNET | {"rope_scaling": scaling})
    with pytest.raises(UnsupportedFormatError, match="cannot say llama3 rotary scaling"):
        convert(model, tmp_path / "other.gguf", "tq2_0")


def test_the_tokenizer_is_in_the_file(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", LLAMA)
    conversion = convert(model, tmp_path / "out.gguf", "tq2_0")
    metadata, _ = read_gguf(conversion.path)
    assert conversion.notes == []
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.pre"] == "gpt-2"
    tokens = metadata["tokenizer.ggml.tokens"]
    assert len(tokens) == 260
    assert tokens[256:] == ["<s>", "he", "[PAD258]", "[PAD259]"]
    assert metadata["tokenizer.ggml.token_type"][255:] == [1, 3, 1, 5, 5]
    assert metadata["tokenizer.ggml.merges"] == ["h e"]
    assert metadata["tokenizer.ggml.bos_token_id"] == 256
    assert metadata["tokenizer.ggml.eos_token_id"] == 256
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert metadata["tokenizer.chat_template"] == TEMPLATE


def test_what_gguf_cannot_say_of_a_tokenizer_is_said(tmp_path: Path) -> None:
    conversion = convert(EMBEDDED_MODEL, tmp_path / "out.gguf", "tq2_0")
    (note,) = conversion.notes
    assert "GGUF has no name for how this tokenizer cuts text into words" in note
    metadata, _ = read_gguf(conversion.path)
    assert metadata["tokenizer.ggml.pre"] == "default"
    assert metadata["tokenizer.huggingface.json"] == (EMBEDDED_MODEL / "tokenizer.json").read_text()

    text = "def f(x):\n\n    return x  # 123\n"
    from_file = Tokenizer.from_files(open_files(conversion.path))
    assert from_file.encode(text) == Tokenizer.from_files(open_files(EMBEDDED_MODEL)).encode(text)


def test_what_exists_is_never_touched(tmp_path: Path) -> None:
    for name in ("out.gguf", "packed"):
        (tmp_path / name).write_text("precious")
        with pytest.raises(ValidationError, match="exists and is not overwritten"):
            convert(EMBEDDED_MODEL, tmp_path / name, "tq2_0" if "." in name else "hf")
        assert (tmp_path / name).read_text() == "precious"


def test_what_appears_meanwhile_is_not_touched(tmp_path: Path) -> None:
    def write() -> None:
        with new_output(tmp_path / "out") as temporary:
            temporary.write_text("new")
            (tmp_path / "out").write_text("precious")

    with pytest.raises(ValidationError, match="exists and is not overwritten"):
        write()
    assert (tmp_path / "out").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("out", "to", "problem"),
    [
        ("out.gguf", "q5_k", "the format must be one of hf, tq2_0, tq1_0, q8_0, q4_0, got 'q5_k'"),
        ("out", "tq2_0", "tq2_0 is written to a file that ends in .gguf; got "),
        ("out.gguf", "hf", "hf is written to a directory, not a .gguf file; got "),
        ("no/such/out", "hf", "/no/such is not a directory; create it first"),
    ],
)
def test_what_cannot_be_asked_for(out: str, to: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=problem):
        convert(EMBEDDED_MODEL, tmp_path / out, to)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", FORMATS)
def test_a_bad_weight_leaves_nothing_behind(to: str, tmp_path: Path) -> None:
    config = LLAMA | {"quantization_config": MASTERS["quantization_config"]}
    tensors = random_tensors(config, 1, "F32")
    tensors["model.layers.1.mlp.up_proj.weight"].array[3, 5] = np.nan
    model = write_model(tmp_path / "model", config)
    write_checkpoint(model, config, tensors)
    out = tmp_path / ("out" if to == "hf" else "out.gguf")
    with pytest.raises(QuantizationError, match=r"up_proj.weight"):
        convert(model, out, to)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    tensors = random_tensors(config, 1, "F32")
    tensors["model.embed_tokens.weight"].array[7, 9] = np.inf
    write_checkpoint(model, config, tensors)
    with pytest.raises(CorruptFileError, match=r"embed_tokens.* NaN or infinity"):
        convert(model, out, to)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("to", FORMATS)
def test_what_is_written_wrong_is_noticed(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that changes a byte between writing and reading back."""
    model = write_model(tmp_path / "model", LLAMA)
    form: Any = HuggingFaceFormat if to == "hf" else GgufFormat
    check = form._check

    def spoil(self: Any, path: Path) -> Any:
        file = path / "model.safetensors" if to == "hf" else path
        data = bytearray(file.read_bytes())
        data[-900] ^= 0x10
        file.write_bytes(data)
        return check(self, path)

    monkeypatch.setattr(form, "_check", spoil)
    out = tmp_path / ("out" if to == "hf" else "out.gguf")
    with pytest.raises((QuantizationError, CorruptFileError)):
        convert(model, out, to)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_no_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ModelLoadError, match=r"will take 2 MiB, but its disk has 1 MiB left"):
        convert(EMBEDDED_MODEL, tmp_path / "out.gguf", "tq2_0")


def test_memory_is_bounded(tmp_path: Path) -> None:
    """An embedding of 64 MB goes through in slabs of 4."""
    config = LLAMA | {"vocab_size": 32768, "hidden_size": 512, "num_hidden_layers": 1}
    model = write_model(tmp_path / "model", config, dtype="F32")
    tracemalloc.start()
    try:
        for to in ("q8_0", "hf"):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            convert(model, tmp_path / ("out" if to == "hf" else "out.gguf"), to)
            peak = tracemalloc.get_traced_memory()[1] - before
            assert peak < 24 << 20, to
    finally:
        tracemalloc.stop()


def test_converted_files_are_converted_again(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", MASTERS)
    convert(model, tmp_path / "packed", "hf")
    convert(tmp_path / "packed", tmp_path / "again", "hf")
    names = ("config.json", "model.safetensors", "tokenizer.json")
    for name in names:
        assert (tmp_path / "packed" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_rows_that_cannot_be_packed(tmp_path: Path) -> None:
    config = MASTERS | {"intermediate_size": 98}
    model = write_model(tmp_path / "model", config)
    with pytest.raises(UnsupportedFormatError, match=r"has 98 rows; .* Convert to tq2_0"):
        convert(model, tmp_path / "out", "hf")


def test_norms_inside_linears_have_no_place_in_gguf(tmp_path: Path) -> None:
    section = BITNET["quantization_config"] | {"use_rms_norm": True, "rms_norm_eps": 1e-5}
    model = write_model(tmp_path / "model", BITNET | {"quantization_config": section})
    with pytest.raises(UnsupportedFormatError, match=r"has no tensor for .*rms_norm.weight"):
        convert(model, tmp_path / "out.gguf", "tq2_0")
    convert(model, tmp_path / "packed", "hf")
    assert greedy(tmp_path / "packed") == greedy(model)


@pytest.mark.parametrize("config", [BITNET, LLAMA], ids=["bitnet", "llama"])
@pytest.mark.parametrize("to", ["tq2_0", "tq1_0"])
def test_gguf_files_give_the_same_tokens(to: str, config: Config, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", config)
    tensors = random_tensors(config, 1, "BF16")
    halves = {  # one half of the multiplied kind, and of the divided
        name: store(np.array([0.0625 if config is BITNET else 16.0]), "BF16")
        for name in tensors
        if name.endswith("_scale")
    }
    write_checkpoint(model, config, tensors | halves)
    file = convert(model, tmp_path / "out.gguf", to).path
    assert greedy(file) == greedy(model)
    back = convert_model(open_files(file), tmp_path / "back", "hf")
    assert back.lossy == []
    assert greedy(back.path) == greedy(model)
    other = convert_model(open_files(file), tmp_path / "other.gguf", "tq2_0").path
    first, second = read_gguf(file), read_gguf(other)
    assert {name: kind for name, (kind, _) in second[1].items()}.keys() == first[1].keys()
    for name, (_, values) in first[1].items():
        assert np.array_equal(values, second[1][name][1]), name


@pytest.mark.parametrize("to", ["q8_0", "q4_0"])
def test_dense_models(to: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", DENSE)
    conversion = convert(model, tmp_path / "out.gguf", to)
    _, tensors = read_gguf(conversion.path)
    assert tensors["blk.0.attn_v.weight"][0] == to.upper()
    assert len(conversion.lossy) == 16
    back = convert_model(open_files(conversion.path), tmp_path / "back.gguf", "q8_0").path
    # Eight bits hold what fewer have, and find the same steps again.
    found = read_gguf(back)[1]["blk.0.attn_v.weight"][1]
    values = tensors["blk.0.attn_v.weight"][1]
    assert np.abs(found - values).max() <= 0.0045 * np.abs(values).max()
    for other in ("hf", "tq2_0"):
        with pytest.raises(UnsupportedFormatError, match="is not ternary"):
            convert(model, tmp_path / ("packed" if other == "hf" else "no.gguf"), other)


def ternary_floats(
    directory: Path, *, shards: int = 1, by_column: bool = False, config: Config = DENSE
) -> Path:
    """Write TriLM's kind of model: floats that hold one magnitude in each shard of a matrix."""
    model = write_model(directory, config, dtype="F16")
    tensors = parse((model / "model.safetensors").read_bytes())
    rng = np.random.default_rng(4)
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            axis = int(by_column and "down_proj" in name)
            scales = 0.0625 * (1 + np.arange(shards)).repeat(tensor.array.shape[axis] // shards)
            codes = rng.integers(-1, 2, tensor.array.shape)
            tensors[name] = store(codes * (scales if axis else scales[:, None]), "F16")
    write_checkpoint(model, config, tensors)
    return model


def linears_of(path: Path) -> dict[str, NDArray[np.float32]]:
    held = open_files(path).open_weights()
    return {name: to_float32(held.view(name)) for name in held if name.endswith("_proj.weight")}


@pytest.mark.parametrize("to", ["tq2_0", "tq1_0"])
@pytest.mark.parametrize("by_column", [False, True])
def test_floats_that_are_ternary_keep_every_weight(
    by_column: bool, to: str, tmp_path: Path
) -> None:
    """Two scales in each matrix: over its rows, or over columns in whole blocks of 256."""
    model = ternary_floats(tmp_path / "model", shards=2, by_column=by_column)
    conversion = convert(model, tmp_path / "out.gguf", to)
    assert conversion.lossy == []
    stored = {change.stored for change in conversion.tensors if "_proj" in change.name}
    assert stored == {to.upper()}
    (note,) = conversion.notes
    assert "round them to 8 bits" in note
    expected = linears_of(model)
    for name, values in linears_of(conversion.path).items():
        assert np.array_equal(values, expected[name]), name
    with LLM(conversion.path, threads=1) as llm, LLM(model, threads=1) as floats:
        found, whole = (one.logits([256, 72, 101]) for one in (llm, floats))
    # Activations of 8 bits are all that differs.
    assert np.std(found - whole) < 0.05 * np.std(whole)


def test_floats_that_are_ternary_are_packed(tmp_path: Path) -> None:
    model = ternary_floats(tmp_path / "model")
    conversion = convert(model, tmp_path / "packed", "hf")
    assert conversion.lossy == []
    (note,) = conversion.notes
    assert "round them to 8 bits" in note
    packed = parse((conversion.path / "model.safetensors").read_bytes())
    name = "model.layers.1.mlp.up_proj.weight"
    codes = ops.unpack_hf(packed[name].array).astype(np.float64)
    assert np.array_equal(codes * packed[name + "_scale"].values(), source_values(model, name))
    with LLM(model, threads=1, weights="ternary") as llm:
        params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
        expected = list(llm.generate([256, 72, 101], params).token_ids)
    assert greedy(conversion.path) == expected


def test_what_packed_weights_cannot_hold(tmp_path: Path) -> None:
    several = ternary_floats(tmp_path / "several", shards=2)
    with pytest.raises(UnsupportedFormatError, match=r"has several scales, .* to tq2_0"):
        convert(several, tmp_path / "packed", "hf")
    columns = ternary_floats(tmp_path / "columns", shards=2, by_column=True)
    with pytest.raises(UnsupportedFormatError, match=r"down_proj.weight' is not ternary: a row"):
        convert(columns, tmp_path / "packed", "hf")
    quarters = ternary_floats(tmp_path / "quarters", shards=4, by_column=True)
    with pytest.raises(UnsupportedFormatError, match=r"down_proj.weight is not ternary"):
        convert(quarters, tmp_path / "out.gguf", "tq2_0")


@pytest.mark.parametrize("scale", [0.0625, 1 / 3])
@pytest.mark.parametrize("to", ["q8_0", "q4_0"])
@pytest.mark.parametrize("config", [BITNET, LLAMA], ids=["bitnet", "llama"])
def test_ternary_weights_in_blocks_of_more_bits(
    config: Config, to: str, scale: float, tmp_path: Path
) -> None:
    """Nothing but a scale that float16 has not is rounded."""
    model = write_model(tmp_path / "model", config)
    tensors = random_tensors(config, 1, "BF16")
    stored = scale if config is BITNET else 1 / scale
    for name in tensors:
        if name.endswith("_scale"):
            tensors[name] = store(np.array([stored]), "F32")
    write_checkpoint(model, config, tensors)
    conversion = convert(model, tmp_path / "out.gguf", to)
    linears = [change for change in conversion.tensors if "_proj" in change.name]
    assert {change.stored for change in linears} == {to.upper()}
    for change in linears:
        assert change.relative_change <= (0 if scale == 0.0625 else 2**-11)
    name = "model.layers.0.mlp.up_proj.weight"
    found = read_gguf(conversion.path)[1]["blk.0.ffn_up.weight"][1]
    assert np.allclose(found, source_values(model, name), rtol=2**-11, atol=0)


@pytest.mark.parametrize("to", ["q8_0", "q4_0"])
def test_bitnet_in_blocks_of_more_bits_is_still_ternary(to: str, tmp_path: Path) -> None:
    """Ours, and what llama.cpp's converter makes: blocks quantised as any weights are."""
    model = write_model(tmp_path / "model", BITNET)
    expected = convert(model, tmp_path / "packed.gguf", "tq2_0").path
    file = convert(model, tmp_path / "out.gguf", to).path
    linears = {name for name in read_gguf(file)[1] if "attn_" in name or "ffn_" in name}
    matrices = {name for name in linears if "norm" not in name}
    requantise(file, tmp_path / "other.gguf", matrices, GGMLQuantizationType[to.upper()])
    codes = open_files(expected).open_weights()
    for path in (file, tmp_path / "other.gguf"):
        weights = open_files(path).open_weights()
        for name in (name for name in weights if name.endswith("_proj.weight")):
            parts = [list(one.ternary_rows(name) or []) for one in (weights, codes)]
            found, wanted = (np.concatenate([part[1] for part in one]) for one in parts)
            assert np.array_equal(found, wanted), name
            scales, stored = (np.concatenate([part[2] for part in one]) for one in parts)
            assert np.allclose(scales, stored, rtol=2**-9, atol=0), name
        with LLM(path, threads=1) as llm, LLM(expected, threads=1) as packed:
            one, other = (model.logits([256, 72, 101]) for model in (llm, packed))
        assert np.std(one - other) < (0.05 * np.std(other))


def test_memory_of_quantised_files_is_bounded(tmp_path: Path) -> None:
    """An embedding of 16 M weights in Q8_0 would be 64 MB of floats."""
    config = LLAMA | {"vocab_size": 32768, "hidden_size": 512, "num_hidden_layers": 1}
    model = write_model(tmp_path / "model", config, dtype="BF16")
    file = convert(model, tmp_path / "first.gguf", "q8_0").path
    files = open_files(file)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        convert_model(files, tmp_path / "second.gguf", "q4_0")
        assert tracemalloc.get_traced_memory()[1] - before < 40 << 20
    finally:
        tracemalloc.stop()
