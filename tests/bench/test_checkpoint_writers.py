"""What both writers write is read back by the libraries that read such files for a living."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.constants import MODEL_ARCH, MODEL_TENSORS, TENSOR_NAMES
from gguf.quants import dequantize

from bench import synthetic
from bench.gguf_writer import write_gguf
from bench.shapes import PRESETS, Shape, ternary_scale, vocabulary
from bench.synthetic import write_checkpoint
from ryzanstein import LLM, SamplingParams
from ryzanstein.bench.runner import Runner
from ryzanstein.bench.workload import Workload
from ryzanstein.loaders.model_files import open_files
from ryzanstein.models import load_model

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from bench.shapes import PeerHead

SHAPE = Shape(
    hidden=256,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=64,
    ffn=512,
    vocab=1024,
    context=128,
    rope_theta=500000.0,
)
GEMMA = replace(
    PRESETS["gemma-2b"], hidden=256, layers=2, heads=2, ffn=512, vocab=1024, context=128
)
TERNARY = {
    "attn_q": (256, 256),
    "attn_k": (128, 256),
    "attn_v": (128, 256),
    "attn_output": (256, 256),
    "ffn_gate": (512, 256),
    "ffn_up": (512, 256),
    "ffn_down": (256, 512),
}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> GGUFReader:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(path, SHAPE, seed=3)
    return GGUFReader(path)


def values(reader: GGUFReader) -> dict[str, NDArray[np.float32]]:
    return {each.name: dequantize(each.data, each.tensor_type) for each in reader.tensors}


def ternary_codes(data: NDArray[np.uint8], columns: int) -> NDArray[np.int8]:
    """Return [rows, columns] of -1, 0, 1: byte b of a block's half h holds 128h + 32i + b."""
    blocks = data.reshape(-1, 66)[:, :64].reshape(-1, 2, 1, 32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(1, 1, 4, 1)
    codes: NDArray[np.int8] = (blocks >> shifts & 3).astype(np.int8) - 1
    return codes.reshape(-1, columns)


def test_the_gguf_has_the_tensors_of_its_architecture(gguf: GGUFReader) -> None:
    names = {TENSOR_NAMES[tensor] for tensor in MODEL_TENSORS[MODEL_ARCH.BITNET]}
    expected = {
        f"{name.format(bid=layer)}.weight" for name in names for layer in range(SHAPE.layers)
    }
    assert {tensor.name for tensor in gguf.tensors} == expected


def test_the_gguf_dequantises_to_its_codes(gguf: GGUFReader) -> None:
    found = values(gguf)
    for tensor in gguf.tensors:
        kind = tensor.name.split(".")[2] if tensor.name.startswith("blk") else ""
        if kind not in TERNARY:
            continue
        assert tensor.tensor_type == GGMLQuantizationType.TQ2_0
        rows, columns = TERNARY[kind]
        codes = ternary_codes(tensor.data, columns)
        scale = np.float32(np.float16(ternary_scale(columns)))
        assert np.array_equal(found[tensor.name], codes * scale)
        assert codes.shape == (rows, columns)
        counts = np.bincount(codes.ravel() + 1, minlength=3) / codes.size
        assert np.allclose(counts, 1 / 3, atol=0.01)


def test_the_rest_of_the_gguf_is_near_a_trained_model(gguf: GGUFReader) -> None:
    found = values(gguf)
    embedding = found["token_embd.weight"]
    assert embedding.shape == (SHAPE.vocab, SHAPE.hidden)
    assert np.isfinite(embedding).all()
    assert 0.01 < float(embedding.std()) < 0.04
    norms = [name for name in found if "norm" in name]
    assert len(norms) == 1 + 4 * SHAPE.layers
    assert all(np.allclose(found[name], 1, atol=0.3) for name in norms)


def test_the_gguf_says_what_the_model_is(gguf: GGUFReader) -> None:
    fields: dict[str, Any] = {name: field.contents() for name, field in gguf.fields.items()}
    assert fields["general.architecture"] == "bitnet"
    found = {name.removeprefix("bitnet."): fields[name] for name in fields if "bitnet." in name}
    assert found["embedding_length"] == SHAPE.hidden
    assert found["block_count"] == SHAPE.layers
    assert found["feed_forward_length"] == SHAPE.ffn
    assert (found["attention.head_count"], found["attention.head_count_kv"]) == (4, 2)
    assert found["rope.dimension_count"] == SHAPE.head_dim
    assert found["rope.freq_base"] == SHAPE.rope_theta
    assert found["context_length"] == SHAPE.context
    assert fields["tokenizer.ggml.tokens"] == vocabulary(SHAPE)
    assert fields["tokenizer.ggml.bos_token_id"] == SHAPE.bos


def test_a_seed_makes_the_file(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_gguf(tmp_path / name, SHAPE, seed=seed)
    first, same, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == same
    assert first != other


@pytest.mark.parametrize("head", ["q4_0", "q6_k"])
def test_a_gemma_has_the_tensors_and_formats_of_its_architecture(
    head: PeerHead, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "model.gguf", GEMMA, seed=3, head=head)
    reader = GGUFReader(tmp_path / "model.gguf")
    names = {TENSOR_NAMES[tensor] for tensor in MODEL_TENSORS[MODEL_ARCH.GEMMA]}
    expected = {
        f"{name.format(bid=layer)}.weight" for name in names for layer in range(GEMMA.layers)
    }
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert set(kinds) == expected
    assert kinds.pop("token_embd.weight") == head.upper()
    assert {kinds[name] for name in kinds if "norm" not in name} == {"Q4_0"}
    for name, found in values(reader).items():
        # Gains are whole in this format, as llama.cpp multiplies by them.
        least, most = (0.5, 1.5) if "norm" in name else (-1.0, 1.0)
        assert least < found.min() < found.max() < most, name
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "gemma"
    assert fields["gemma.attention.key_length"] == GEMMA.head_dim


@pytest.mark.parametrize("head", ["q4_0", "q6_k"])
def test_the_gemma_gguf_runs(head: PeerHead, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, GEMMA, seed=3, head=head)
    model = load_model(open_files(path), threads=1, isa=None)
    runner, workload = Runner(model), Workload(prompt=3, generate=0)
    runner.prepare(workload)
    logits = runner.run(workload)
    assert 0.05 < float(logits.std()) < 5


def test_the_gemma_checkpoint_runs_in_four_bits(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, GEMMA, seed=3, shard_bytes=1 << 40)
    with LLM(tmp_path, threads=1) as llm:
        stored = llm.logits([GEMMA.bos, 65, 66])
    with LLM(tmp_path, threads=1, weights="int4", lm_head="int4") as llm:
        rounded = llm.logits([GEMMA.bos, 65, 66])
    assert 0.05 < float(stored.std()) < 5
    assert 0.01 < float((stored - rounded).std() / stored.std()) < 0.5


def test_an_interrupted_checkpoint_does_not_look_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(synthetic, "_write_shard", full)
    with pytest.raises(OSError, match="no space left"):
        write_checkpoint(tmp_path, SHAPE, seed=3, shard_bytes=1 << 40)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("shard_bytes", [1 << 40, 100_000])
def test_the_hugging_face_checkpoint_runs(shard_bytes: int, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, SHAPE, seed=3, shard_bytes=shard_bytes)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) == 1 if shard_bytes > 1 << 30 else len(shards) > 3
    with LLM(tmp_path, threads=1) as llm:
        logits = llm.logits([SHAPE.bos, 65, 66])
        again = llm.generate([65, 66], SamplingParams(max_tokens=3, temperature=0))
    assert logits.shape == (3, SHAPE.vocab)
    # Random, but of a spread that a softmax can work with.
    assert 0.05 < float(logits.std()) < 5
    assert len(again.token_ids) == 3
