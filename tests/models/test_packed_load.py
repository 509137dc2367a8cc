"""Loading from packed weights: the same model to the bit, or packed again."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from checkpoints import quantization_config, random_tensors, write_checkpoint
from golden.engine import Sequence
from golden.specs import SPECS

from ryzanstein import CorruptFileError, _core
from ryzanstein.loaders.checkpoint import Checkpoint
from ryzanstein.loaders.model_files import open_files
from ryzanstein.loaders.weight_cache import WeightCache
from ryzanstein.models import (
    LoadedModel,
    choose_packing,
    load_model,
    packing,
    packing_identity,
    read_config,
)
from ryzanstein.tuning import format_of

if TYPE_CHECKING:
    from pathlib import Path

    from checkpoints import Tensors
    from golden.specs import Spec

OFFLINE = SPECS[0]
PROMPT = np.arange(10)
EMBEDDING = "model.embed_tokens.weight"

TERNARY = [spec for spec in SPECS if quantization_config(spec.config)]


@pytest.fixture(autouse=True)
def small_heads_are_screened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_CODED_HEAD_ELEMENTS", 1)


@pytest.fixture
def cache(tmp_path: Path) -> WeightCache:
    return WeightCache(tmp_path / "cache", 1 << 30, minimum_bytes=0)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", OFFLINE.config, random_tensors(OFFLINE.config, 1))


def load(
    directory: Path, cache: WeightCache | None, *, threads: int = 1, isa: str | None = None
) -> LoadedModel:
    return load_model(open_files(directory), threads=threads, isa=isa, weight_cache=cache)


def results(model: LoadedModel) -> list[bytes]:
    """Return logits, hidden states and the screen, to the bit."""
    hidden, logits = Sequence(model, len(PROMPT)).extend(PROMPT)
    screen = model.decoder.coded_head_arrays()
    return [hidden.tobytes(), logits.tobytes(), *(array.tobytes() for array in screen.values())]


def file_of(directory: Path, cache: WeightCache, isa: str | None = None) -> Path:
    config = read_config(open_files(directory))
    weights = Checkpoint(directory)
    chosen = choose_packing(weights, config, isa=isa, threads=1)
    return cache.path(packing_identity(weights, config, chosen))


def check_remade(directory: Path, cache: WeightCache) -> None:
    """Demand that a load finds nothing it can use, and that the next one does."""
    expected = results(load(directory, None))
    again = load(directory, cache)
    assert again.mapped_bytes == 0
    assert results(again) == expected
    warm = load(directory, cache)
    assert warm.mapped_bytes > 0
    assert results(warm) == expected


def test_floats_are_read_in_place_and_not_kept_twice(cache: WeightCache, tmp_path: Path) -> None:
    spec = next(spec for spec in SPECS if spec.name == "mistral")
    tensors = random_tensors(spec.config, 1)
    directory = write_checkpoint(tmp_path / "model", spec.config, tensors, shards=2)
    model = load(directory, cache)
    linears = [t.array.nbytes for name, t in tensors.items() if name.endswith("_proj.weight")]
    assert model.mapped_bytes == sum(linears)
    assert file_of(directory, cache).stat().st_size < sum(linears) / 2  # the codes of the head
    assert results(load(directory, cache)) == results(model)


@pytest.mark.parametrize("spec", TERNARY, ids=lambda spec: spec.name)
def test_the_second_load_is_the_same_model(spec: Spec, cache: WeightCache, tmp_path: Path) -> None:
    tensors = random_tensors(spec.config, 1)
    directory = write_checkpoint(tmp_path / "model", spec.config, tensors, shards=2)
    check_remade(directory, cache)
    assert file_of(directory, cache).exists()
    assert len(list(cache.directory.iterdir())) == 1


def test_packed_weights_are_used_in_place(checkpoint: Path, cache: WeightCache) -> None:
    load(checkpoint, cache)
    warm = load(checkpoint, cache)
    size = file_of(checkpoint, cache).stat().st_size
    assert 0.8 * size < warm.mapped_bytes <= size
    sizes = warm.decoder.weight_bytes()
    assert warm.mapped_bytes == sizes["linears"] + sizes["screen"] + sizes["screen_rest"]
    # Seen in the model, where it does not belong: nothing was packed again.
    path = file_of(checkpoint, cache)
    data = path.read_bytes()
    path.unlink()  # what is mapped stays as it is
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (*_, last) = load(checkpoint, cache).decoder.coded_head_arrays().values()
    (*_, expected) = warm.decoder.coded_head_arrays().values()
    assert (last != expected).sum() == 1


def test_the_model_outlives_its_files(checkpoint: Path, cache: WeightCache) -> None:
    expected = results(load(checkpoint, cache))
    warm = load(checkpoint, cache)
    for path in [*cache.directory.iterdir(), *checkpoint.iterdir()]:
        path.unlink()
    assert results(warm) == expected


def test_large_tensors_are_read_once_only(
    checkpoint: Path, cache: WeightCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a first load found finite is not looked through again."""
    load(checkpoint, cache)
    checked: list[int] = []
    monkeypatch.setattr(
        "ryzanstein.models.tensors.first_non_finite", lambda array: checked.append(array.size)
    )
    assert load(checkpoint, cache).mapped_bytes > 0
    assert max(checked) < OFFLINE.config["vocab_size"] * OFFLINE.config["hidden_size"]


@pytest.mark.parametrize("isa", _core.available_isas())
def test_every_tier_finds_its_own_format(isa: str, checkpoint: Path, cache: WeightCache) -> None:
    for other in _core.available_isas():
        load(checkpoint, cache, isa=other)
    expected = results(load(checkpoint, None, isa=isa))
    warm = load(checkpoint, cache, isa=isa)
    assert warm.mapped_bytes > 0
    assert results(warm) == expected
    formats = {format_of(_core.ternary_kernels(other)[0]) for other in _core.available_isas()}
    assert len(list(cache.directory.iterdir())) == len(formats)


def test_a_changed_checkpoint_is_packed_again(checkpoint: Path, cache: WeightCache) -> None:
    before = results(load(checkpoint, cache))
    write_checkpoint(checkpoint, OFFLINE.config, random_tensors(OFFLINE.config, 2))
    check_remade(checkpoint, cache)
    assert results(load(checkpoint, cache)) != before
    write_checkpoint(checkpoint, OFFLINE.config, random_tensors(OFFLINE.config, 2), shards=2)
    (checkpoint / "model.safetensors").unlink()
    check_remade(checkpoint, cache)


def test_a_replaced_file_of_the_same_size_and_time(checkpoint: Path, cache: WeightCache) -> None:
    load(checkpoint, cache)
    path = checkpoint / "model.safetensors"
    status = path.stat()
    kept = path.rename(path.with_name("kept"))  # or the new file might get its inode
    write_checkpoint(checkpoint, OFFLINE.config, random_tensors(OFFLINE.config, 2))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == kept.stat().st_size
    check_remade(checkpoint, cache)


def test_a_changed_configuration_is_packed_again(checkpoint: Path, cache: WeightCache) -> None:
    load(checkpoint, cache)
    section = OFFLINE.config["quantization_config"]
    config = OFFLINE.config | {"quantization_config": section | {"linear_class": "bitlinear"}}
    assert config != OFFLINE.config
    (checkpoint / "config.json").write_text(json.dumps(config))
    check_remade(checkpoint, cache)


def test_a_changed_layout_is_packed_again(
    checkpoint: Path, cache: WeightCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(checkpoint, cache)
    other = _core.packing_fingerprint() ^ 1
    monkeypatch.setattr("ryzanstein.models.packing_fingerprint", lambda: other)
    check_remade(checkpoint, cache)


def test_a_moved_checkpoint_is_still_known(checkpoint: Path, cache: WeightCache) -> None:
    load(checkpoint, cache)
    moved = checkpoint.rename(checkpoint.with_name("elsewhere"))
    assert load(moved, cache).mapped_bytes > 0


def test_damaged_files_are_made_again(checkpoint: Path, cache: WeightCache) -> None:
    expected = results(load(checkpoint, cache))
    path = file_of(checkpoint, cache)
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    rng = np.random.default_rng(0)
    damaged = [data[:size] for size in rng.integers(0, len(data), 4)]
    for index in [0, 7, *rng.integers(8, header, 4)]:
        damaged.append(data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :])
    # Names and sizes as another layout would have them.
    damaged.append(data.replace(b"/packed", b"/crates"))
    damaged.append(data.replace(b"screen/", b"scream/"))
    damaged.append(data.replace(b'"U8"', b'"I8"'))
    damaged.append(data.replace(b"model.layers.1", b"model.layers.7"))
    for content in damaged:
        path.write_bytes(content)
        assert results(load(checkpoint, cache)) == expected
    assert path.read_bytes() == data


def test_stored_arrays_of_another_shape_are_made_again(
    checkpoint: Path, cache: WeightCache
) -> None:
    load(checkpoint, cache)
    config = read_config(open_files(checkpoint))
    weights = Checkpoint(checkpoint)
    chosen = choose_packing(weights, config, isa=None, threads=1)
    identity = packing_identity(weights, config, chosen)
    packed = cache.find(identity)
    assert packed is not None
    layer = "model.layers.0.mlp."
    names = [f"{layer}gate_proj+mlp.up_proj", f"{layer}down_proj"]
    assert all(packed.arrays(name) for name in names)
    cache.store(identity, {name: packed.arrays(names[0]) for name in names})
    check_remade(checkpoint, cache)


@pytest.mark.parametrize("name", [EMBEDDING, "model.layers.1.mlp.ffn_sub_norm.weight"])
def test_a_damaged_checkpoint_is_refused_and_not_kept(
    name: str, cache: WeightCache, tmp_path: Path
) -> None:
    tensors: Tensors = random_tensors(OFFLINE.config, 1)
    array = tensors[name].array.copy()
    array.reshape(-1)[3] = np.nan
    tensors[name] = dataclasses.replace(tensors[name], array=array)
    directory = write_checkpoint(tmp_path / "model", OFFLINE.config, tensors)
    for _ in range(2):
        with pytest.raises(CorruptFileError, match="holds a NaN"):
            load(directory, cache)
    assert not cache.directory.exists()


def test_loads_at_the_same_time(checkpoint: Path, cache: WeightCache) -> None:
    expected = results(load(checkpoint, None))
    start = threading.Barrier(6)

    def run(_: int) -> list[bytes]:
        start.wait()
        return results(load(checkpoint, cache))

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(run, range(6))) == [expected] * 6
    assert list(cache.directory.iterdir()) == [file_of(checkpoint, cache)]


def test_a_cache_that_cannot_be_written(checkpoint: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    expected = results(load(checkpoint, None))
    for _ in range(2):
        model = load(checkpoint, WeightCache(blocked, 1 << 30, minimum_bytes=0))
        assert model.mapped_bytes == 0
        assert results(model) == expected
