from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from gguf_bytes import NUMBERS, GgufBytes, RawTensor, quantize_ternary
from gguf_models import BITNET, LLAMA, TernaryModel, permute

from ryzanstein.errors import CorruptFileError, ModelLoadError, UnsupportedFormatError
from ryzanstein.loaders.gguf_files import GgufFiles
from ryzanstein.loaders.model_files import DirectoryFiles, open_files
from ryzanstein.loaders.safetensors import TensorInfo

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from ryzanstein.loaders.gguf_files import GgufWeights

PROJECTION = "model.layers.0.self_attn.q_proj.weight"


def write(path: Path, content: GgufBytes, name: str = "model.gguf") -> Path:
    (path / name).write_bytes(content.serialize())
    return path / name


def weights(path: Path, architecture: str, **tensors: RawTensor) -> GgufWeights:
    """Return the weights of a file of these tensors, in whose names __ stands for a dot."""
    metadata = {
        "general.architecture": architecture,
        f"{architecture}.attention.head_count": 2,
        f"{architecture}.attention.head_count_kv": 1,
    }
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return GgufFiles(write(path, GgufBytes(metadata, named))).open_weights()


def floats(values: NDArray[Any], kind: str = "F32") -> RawTensor:
    dtype = {"F32": "<f4", "F16": "<f2"}[kind]
    return RawTensor(NUMBERS[kind], values.shape, values.astype(dtype).tobytes())


def test_a_file_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    content = TernaryModel(BITNET).gguf("TQ2_0", "bitnet")
    assert isinstance(open_files(write(tmp_path, content)), GgufFiles)
    assert isinstance(open_files(write(tmp_path, content, "model.bin")), GgufFiles)
    directory = tmp_path / "directory.gguf"
    directory.mkdir()
    assert isinstance(open_files(directory), DirectoryFiles)
    (tmp_path / "other.bin").write_bytes(b"PK")
    with pytest.raises(UnsupportedFormatError, match=r"other\.bin is not a GGUF file"):
        open_files(tmp_path / "other.bin")
    (tmp_path / "other.gguf").write_bytes(bytes(64))
    with pytest.raises(CorruptFileError, match=r"other\.gguf: it begins with .*, not b'GGUF'"):
        open_files(tmp_path / "other.gguf")
    with pytest.raises(ModelLoadError, match=r"missing\.gguf does not exist"):
        open_files(tmp_path / "missing.gguf")


def test_tensors_go_by_their_names_in_transformers(tmp_path: Path) -> None:
    model = TernaryModel(LLAMA)
    path = write(tmp_path, model.gguf("TQ1_0", "llama"))
    files = open_files(path)
    found = files.open_weights()
    assert set(found) == {f"{name}.weight" for name in [*model.dense, *model.linears]}
    assert PROJECTION in found
    assert found.info(PROJECTION) == TensorInfo(PROJECTION, "TQ1_0", (256, 256), 256 * 54)
    assert found.where(PROJECTION) == f"{path}: tensor 'blk.0.attn_q.weight'"
    assert files.where("config.json") == f"{path} (as config.json)"
    assert files.read_json("added_tokens.json") is None
    assert files.read_text("vocab.json") is None


def test_numbers_are_read_in_place(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float16)
    found = weights(tmp_path, "llama", token_embd__weight=floats(values, "F16"))
    view = found.view("model.embed_tokens.weight")
    assert view.dtype == np.float16
    assert np.array_equal(view, values)
    assert not view.flags.owndata
    assert not view.flags.writeable
    found.release("model.embed_tokens.weight")
    assert np.array_equal(view, values)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "TQ2_0"])
def test_other_types_are_seen_as_floats(kind: str, tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((9, 256)).astype(np.float32)
    item = gguf.GGMLQuantizationType[kind]
    blocks = gguf.quants.quantize(values, item)
    stored = RawTensor(NUMBERS[kind], values.shape, blocks.tobytes())
    view = weights(tmp_path, "qwen2", token_embd__weight=stored).view("model.embed_tokens.weight")
    assert np.array_equal(view, gguf.quants.dequantize(blocks, item))
    assert not view.flags.writeable


@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_rows_of_queries_and_keys_get_back_in_order(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    query, key = rng.integers(-9, 9, (16, 4)), rng.integers(-9, 9, (8, 4))
    bias = rng.integers(-9, 9, 16)
    stored = {
        "blk__0__attn_q__weight": floats(permute(query, 2), kind),
        "blk__0__attn_k__weight": floats(permute(key, 1), kind),
        "blk__0__attn_q__bias": floats(permute(bias, 2), kind),
        "blk__0__attn_v__weight": floats(key, kind),
    }
    found = weights(tmp_path, "llama", **stored)
    prefix = "model.layers.0.self_attn."
    assert np.array_equal(found.view(f"{prefix}q_proj.weight"), query)
    assert np.array_equal(found.view(f"{prefix}k_proj.weight"), key)
    assert np.array_equal(found.view(f"{prefix}q_proj.bias"), bias)
    assert np.array_equal(found.view(f"{prefix}v_proj.weight"), key)
    others = weights(tmp_path, "qwen2", **stored)
    assert np.array_equal(others.view(f"{prefix}q_proj.weight"), permute(query, 2))


@pytest.mark.parametrize("architecture", ["gemma", "gemma2", "gemma3"])
def test_gains_of_gemma_are_stored_with_one_added(architecture: str, tmp_path: Path) -> None:
    """Adding one again gives exactly what was stored, whatever the gain."""
    rng = np.random.default_rng(3)
    gain = np.concatenate([rng.standard_normal(4000) * 3, [0, -1, 1e-20, 300]]).astype(np.float32)
    stored = np.float32(1) + gain
    found = weights(tmp_path, architecture, output_norm__weight=floats(stored))
    view = found.view("model.norm.weight")
    assert np.array_equal(view + np.float32(1), stored)
    assert np.allclose(view, gain, atol=1e-6, rtol=1e-6)
    assert np.array_equal(
        weights(tmp_path, "qwen3", output_norm__weight=floats(stored)).view("model.norm.weight"),
        stored,
    )


def rows(found: GgufWeights, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    parts = found.ternary_rows(name)
    assert parts is not None
    begins, codes, scales = zip(*parts, strict=True)
    sizes = [len(part) for part in codes]
    assert list(begins) == [sum(sizes[:index]) for index in range(len(sizes))]
    return np.concatenate(codes), np.concatenate(scales)


@pytest.mark.parametrize("kind", ["I2_S", "TQ1_0", "TQ2_0", "IQ1_BN", "IQ2_BN", "Q2_0"])
def test_ternary_tensors_come_as_codes(kind: str, tmp_path: Path) -> None:
    """In several parts, for there are more than a million weights."""
    codes = np.random.default_rng(4).integers(-1, 2, (4160, 256))
    tensor = RawTensor(NUMBERS[kind], codes.shape, quantize_ternary(kind, permute(codes, 2), 0.5))
    found = weights(tmp_path, "llama", blk__0__attn_q__weight=tensor)
    back, scales = rows(found, PROJECTION)
    assert np.array_equal(back, codes)
    assert np.array_equal(scales, np.full(4160, 0.5))
    assert np.array_equal(found.view(PROJECTION), codes * 0.5)


@pytest.mark.parametrize("name", ["attn_q", "attn_v"])
def test_quantised_tensors_come_as_groups(name: str, tmp_path: Path) -> None:
    """In several parts, rows of q in transformers' order."""
    values = np.random.default_rng(5).standard_normal((4160, 256)).astype(np.float32)
    data = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_1).tobytes()
    tensor = RawTensor(NUMBERS["Q4_1"], values.shape, data)
    found = weights(tmp_path, "llama", **{f"blk__0__{name}__weight": tensor})
    own = f"model.layers.0.self_attn.{name[-1]}_proj.weight"
    grouped = found.grouped_rows(own)
    assert grouped is not None
    begins, parts = zip(*grouped.parts, strict=True)
    sizes = [len(part.codes) for part in parts]
    assert len(begins) > 1
    assert list(begins) == [sum(sizes[:i]) for i in range(len(sizes))]
    codes, scales, minima = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    back = codes.reshape(*scales.shape, -1) * scales[..., None] + minima[..., None]
    assert np.array_equal(back.reshape(codes.shape), found.view(own))
    # Some rows, from and to the middle of a head.
    assert np.array_equal(found.rows(own, 1000, 1070), found.view(own)[1000:1070])


def test_other_tensors_have_no_codes(tmp_path: Path) -> None:
    found = weights(tmp_path, "qwen2", output_norm__weight=floats(np.ones(4)))
    assert found.ternary_rows("model.norm.weight") is None
    assert found.grouped_rows("model.norm.weight") is None


def test_ternary_tensors_that_cannot_be_packed(tmp_path: Path) -> None:
    codes = np.ones((2, 512))
    two_scales = bytearray(quantize_ternary("TQ2_0", codes, 0.5))
    two_scales[64:66] = np.array([0.25], "<f2").tobytes()
    tensor = RawTensor(NUMBERS["TQ2_0"], codes.shape, bytes(two_scales))
    found = weights(tmp_path, "qwen2", blk__0__attn_q__weight=tensor)
    with pytest.raises(UnsupportedFormatError, match=r"'blk\.0\.attn_q\.weight' has several scale"):
        rows(found, PROJECTION)
    damaged = bytearray(quantize_ternary("I2_S", codes, 0.5))
    damaged[7] = 0xFF
    tensor = RawTensor(NUMBERS["I2_S"], codes.shape, bytes(damaged))
    found = weights(tmp_path, "qwen2", blk__0__attn_q__weight=tensor)
    with pytest.raises(UnsupportedFormatError, match=r"'blk\.0\.attn_q\.weight': it holds code 3"):
        rows(found, PROJECTION)


def test_a_tied_head_is_left_out(tmp_path: Path) -> None:
    embedding = floats(np.arange(12).reshape(3, 4))
    found = weights(tmp_path, "llama", token_embd__weight=embedding, output__weight=embedding)
    assert set(found) == {"model.embed_tokens.weight"}
    other = floats(np.zeros((3, 4)))
    found = weights(tmp_path, "llama", token_embd__weight=embedding, output__weight=other)
    assert set(found) == {"model.embed_tokens.weight", "lm_head.weight"}


def test_two_tensors_of_one_name(tmp_path: Path) -> None:
    norm = floats(np.ones(4))
    with pytest.raises(CorruptFileError, match=r"'model\.norm\.weight' and 'output_norm\.weight'"):
        weights(tmp_path, "llama", output_norm__weight=norm, model__norm__weight=norm)


def test_identity_changes_with_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, TernaryModel(BITNET).gguf("TQ2_0", "bitnet"))
    first = open_files(path).open_weights().identity()
    assert open_files(path).open_weights().identity() == first
    write(tmp_path, TernaryModel(BITNET).gguf("TQ1_0", "bitnet"))
    assert open_files(path).open_weights().identity() != first


def test_errors_of_the_tokenizer_name_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, TernaryModel(BITNET).gguf("TQ2_0", "bitnet"))
    with pytest.raises(ModelLoadError, match=rf"^{path}: tokenizer\.ggml\."):
        open_files(path).read_text("tokenizer.json")
