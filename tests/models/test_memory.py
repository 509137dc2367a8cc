"""Loading must not hold the checkpoint twice."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from checkpoints import (
    Config,
    Stored,
    linear_shapes,
    norm_sizes,
    random_tensors,
    store,
    write_checkpoint,
)
from gguf_bytes import NUMBERS, GgufBytes, RawTensor
from gguf_models import LLAMA, TernaryModel
from golden.specs import SPECS

from ryzanstein.loaders.gguf_types import TYPES

if TYPE_CHECKING:
    from pathlib import Path

    from ryzanstein.config import WeightKind

PROGRAM = """
import sys
from pathlib import Path
from ryzanstein.loaders.model_files import open_files
from ryzanstein.loaders.weight_cache import WeightCache
from ryzanstein.models import load_model

def kib(field):
    return int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0])

before = kib("VmRSS")
cache = WeightCache(Path(sys.argv[2]), 1 << 30, minimum_bytes=0)
model = load_model(
    open_files(Path(sys.argv[1])), threads=2, isa=None, weights=sys.argv[3], weight_cache=cache
)
print(kib("VmHWM") - before, kib("RssAnon"), model.mapped_bytes)
"""


def test_peak_memory_is_near_the_packed_size(tmp_path: Path) -> None:
    """48 MB packed: the peak is that and little else, since source pages go as they are packed.

    The first load also writes a file of packed weights, the second maps it.

    The bound asked of the engine is twice the packed size; keeping the source alone would reach it.
    """
    wide: Config = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 3}
    config = SPECS[0].config | wide
    # Weights of zero, in the place of the spec's own random ones: the bytes are quickly made.
    tensors = random_tensors(SPECS[0].config | {"num_hidden_layers": 3}, 0)
    for name, tensor in tensors.items():
        size = 8192 if "ffn_sub_norm" in name else 2048
        if tensor.array.size > 1 and tensor.array.ndim == 1:
            tensors[name] = store(np.ones(size), "F32")
    tensors["model.embed_tokens.weight"] = store(np.ones((96, 2048)), "F32")
    for index in range(3):
        for linear, (rows, columns) in linear_shapes(config).items():
            packed = np.full((rows // 4, columns), 0b01010101, np.uint8)
            tensors[f"model.layers.{index}.{linear}.weight"] = Stored("U8", packed)
    write_checkpoint(tmp_path, config, tensors)
    size = (tmp_path / "model.safetensors").stat().st_size
    del tensors

    assert size > 40 << 20
    for is_warm in (False, True):
        peak, _, mapped_bytes = measure(tmp_path, "auto")
        assert (mapped_bytes > 0.7 * size) == is_warm
        assert peak < 1.5 * size


def dense_model(directory: Path, dtype: str) -> int:
    """Write a model of two layers and no vocabulary to speak of; return the weights in linears."""
    spec = next(spec.config for spec in SPECS if spec.name == "mistral")
    wide: Config = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 2}
    wide |= {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 128}
    config = spec | wide | {"tie_word_embeddings": True}
    tensors = {
        "model.embed_tokens.weight": store(np.ones((96, 1024)), "F32"),
        "model.norm.weight": store(np.ones(1024), "F32"),
    }
    half = store(np.array([0.5]), dtype).array
    linears = 0
    for index in range(2):
        layer = f"model.layers.{index}."
        for name, size in norm_sizes(config).items():
            tensors[f"{layer}{name}.weight"] = store(np.ones(size), "F32")
        for name, (rows, columns) in linear_shapes(config).items():
            values = np.full((rows, columns), half[0])
            tensors[f"{layer}{name}.weight"] = Stored(dtype, values)
            linears += values.size
    write_checkpoint(directory, config, tensors)
    return linears


def test_stored_floats_are_mapped_and_rounded_ones_held_once(tmp_path: Path) -> None:
    """122 MB of float32 linears: in place they are pages of the file, rounded they are half."""
    linears = 4 * dense_model(tmp_path, "F32")
    peak, own, mapped_bytes = measure(tmp_path, "auto")
    assert mapped_bytes == linears > 100 << 20
    assert own < 0.5 * linears
    assert peak < 1.5 * linears
    peak, own, mapped_bytes = measure(tmp_path, "bf16")
    assert mapped_bytes == 0
    assert own > 0.5 * linears
    assert peak < 2 * (linears / 2)


def write_blocks(path: Path, config: Config, kind: str) -> Path:
    """Write a GGUF file whose matrices are blocks of zeros of a type."""
    model = TernaryModel(LLAMA)
    model.config = config
    hidden = config["hidden_size"]
    layer = "model.layers.0."
    shapes = {f"{layer}{name}": shape for name, shape in linear_shapes(config).items()}
    shapes["model.embed_tokens"] = (config["vocab_size"], hidden)
    if not config["tie_word_embeddings"]:
        shapes["lm_head"] = shapes["model.embed_tokens"]
    tensors = {}
    for name, shape in shapes.items():
        size = TYPES[kind].nbytes(shape)
        assert size is not None
        # Else a head that repeats the embedding would be taken for tied.
        data = (b"\0" if name != "lm_head" else b"\1\0") * size
        tensors[model.stored_name(name)] = RawTensor(NUMBERS[kind], shape, data[:size])
    for name in ("model.norm", *(f"{layer}{name}" for name in norm_sizes(config))):
        ones = np.ones(hidden, "<f4")
        tensors[model.stored_name(name)] = RawTensor(NUMBERS["F32"], ones.shape, ones.tobytes())
    path.write_bytes(GgufBytes(model.metadata("llama"), tensors).serialize())
    return path


def write_vocabulary(path: Path, kind: str, rows: int, *, is_tied: bool) -> Path:
    """Write a GGUF file of a vocabulary of 256 columns and one small layer."""
    sizes: Config = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    config: Config = LLAMA | sizes | {"vocab_size": rows, "tie_word_embeddings": is_tied}
    return write_blocks(path, config, kind)


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_K", "Q6_K"])
def test_quantised_tensors_are_packed_without_floats(kind: str, tmp_path: Path) -> None:
    """35 MB of blocks or more: as float32 they would be 250 MB."""
    sizes: Config = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 1}
    path = write_blocks(tmp_path / "model.gguf", LLAMA | sizes, kind)
    check_two_loads(path, 32 << 20, 0.9, math.inf)


@pytest.mark.parametrize(
    ("kind", "rows", "is_tied"),
    [
        ("Q4_0", 1 << 18, True),
        ("Q4_0", 1 << 17, False),
        ("Q8_0", 1 << 18, True),
        ("Q4_K", 1 << 18, True),
        ("Q5_K", 1 << 18, True),
        ("Q6_K", 1 << 18, True),
    ],
)
def test_a_large_quantised_vocabulary_stays_codes(
    kind: str, rows: int, is_tied: bool, tmp_path: Path
) -> None:
    """36 MB or more in the vocabulary of a model that has next to nothing else."""
    path = write_vocabulary(tmp_path / "model.gguf", kind, rows, is_tied=is_tied)
    check_two_loads(path, 35 << 20, 0.9, math.inf)


@pytest.mark.parametrize(("kind", "held"), [("Q8_0", 1.25), ("Q6_K", 1.5)])
def test_codes_beside_a_vocabulary_in_codes(kind: str, held: float, tmp_path: Path) -> None:
    """A vocabulary of 34 M weights in a model of 96 M: 29 MB would narrow it down.

    In Q8_0 they do; K-quants are held in half as much again as in the file, and these take no more.
    """
    sizes: Config = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 1}
    config: Config = LLAMA | sizes | {"vocab_size": 1 << 14, "tie_word_embeddings": True}
    path = write_blocks(tmp_path / "model.gguf", config, kind)
    check_two_loads(path, 70 << 20, held, held + 0.05)


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_K", "TQ1_0"])
def test_what_a_load_takes_besides_is_a_few_megabytes(kind: str, tmp_path: Path) -> None:
    """Of 2 to 11 MB packed: modules imported late, a huge page of the file's header and one that
    the weights do not fill, and what a few rows are decoded in. 4 to 5 MB where this was written.
    """
    path = write_vocabulary(tmp_path / "model.gguf", kind, 1 << 15, is_tied=True)
    peaks, packed = [], 0
    for _ in range(2):
        peak, _, packed = measure(path, "auto")
        peaks.append(peak)
    assert 2 << 20 < packed < 12 << 20
    assert max(peaks) - packed < 8 << 20


@pytest.mark.parametrize(("weights", "bits"), [("int8", 8.5), ("int4", 4.5)])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_floats_are_rounded_a_few_rows_at_a_time(
    dtype: str, weights: WeightKind, bits: float, tmp_path: Path
) -> None:
    """34 M weights: their floats never lie in memory beside all that was made of them."""
    linears = dense_model(tmp_path, dtype)
    packed = linears * bits / 8
    peak, own, mapped_bytes = measure(tmp_path, weights)
    assert mapped_bytes == 0
    assert packed < own
    assert peak < 2 * packed


def test_stored_halves_are_mapped(tmp_path: Path) -> None:
    linears = dense_model(tmp_path, "BF16")
    peak, own, mapped_bytes = measure(tmp_path, "auto")
    assert mapped_bytes == 2 * linears
    assert own < linears
    assert peak < 2 * mapped_bytes


def check_two_loads(path: Path, least_bytes: int, least_mapped: float, most_mapped: float) -> None:
    """Demand that neither load of a larger file peaks at twice its size, and that the second keeps
    as much mapped, in files, as the packed weights take.
    """
    size = path.stat().st_size
    assert size > least_bytes
    for is_warm in (False, True):
        peak, _, mapped_bytes = measure(path, "auto")
        assert (least_mapped < mapped_bytes / size < most_mapped) == is_warm
        assert peak < 2 * size


def measure(path: Path, weights: WeightKind) -> tuple[int, int, int]:
    """Return what a load in a process of its own took at most, what it keeps as memory of its own,
    and what it keeps mapped, in bytes.
    """
    cache = str((path if path.is_dir() else path.parent) / "cache")
    command = [sys.executable, "-P", "-c", PROGRAM, str(path), cache, weights]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    peak, own, mapped_bytes = map(int, result.stdout.split())
    return peak * 1024, own * 1024, mapped_bytes
