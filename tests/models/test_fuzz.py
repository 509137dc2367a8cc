"""Damaged checkpoints: each either loads and steps, or raises a RyzansteinError. Nothing else."""

from __future__ import annotations

import contextlib
import json
import random
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from checkpoints import Config, random_tensors, write_checkpoint
from gguf_models import BITNET, LLAMA, TernaryModel
from golden.engine import Sequence
from golden.specs import SPECS

from ryzanstein.errors import RyzansteinError
from ryzanstein.loaders.model_files import open_files
from ryzanstein.models import inspect_tensors, load_model

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 3.0  # for each of the eight tests here
# Of processor time for any one checkpoint: bounds the work, and a busy machine cannot fail it.
SLOWEST = 5.0
NASTY: tuple[object, ...] = (
    None,
    True,
    0,
    -1,
    1,
    3,
    2**31,
    2**63,
    10**30,
    0.5,
    -0.0,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "F32",
    "BF16",
    "\ud800",
    [],
    [[]],
    {},
    [0, 2**64],
    ["lm_head"],
    {"rope_type": "yarn"},
)


def attempt(model_path: Path) -> bool:
    """Load and run a checkpoint; return whether it was accepted."""
    began = time.process_time()
    accepted = False
    with contextlib.suppress(RyzansteinError):
        inspect_tensors(open_files(model_path))
        model = load_model(open_files(model_path), threads=1, isa=None)
        Sequence(model, 3).extend(np.array([0, 1, 2]) % model.config.vocab_size)
        accepted = True
    assert time.process_time() - began < SLOWEST
    return accepted


def damage_bytes(data: bytes, header: int, rng: random.Random) -> bytes:
    """Flip, cut, extend, repeat or blank some bytes; half the time inside the header."""
    buffer = bytearray(data)
    limit = header if rng.random() < 0.5 else len(buffer)
    kind = rng.randrange(6)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    if kind == 1:
        return data + rng.randbytes(rng.randrange(1, 64))
    if kind == 2:
        start = rng.randrange(limit)
        return data[:start] + data[start + rng.randrange(1, 64) :]
    if kind == 3:
        buffer[:8] = rng.randbytes(8)[: rng.randrange(9)].ljust(8, b"\0")
        return bytes(buffer)
    for _ in range(rng.choice([1, 1, 2, 20])):
        position = rng.randrange(limit)
        buffer[position] = rng.randrange(256) if kind == 4 else buffer[position] ^ 1
    return bytes(buffer)


def damage_value(value: Any, rng: random.Random) -> Any:
    """Replace, remove or rename something at a random depth of a JSON value."""
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = rng.choice(list(value))
        kind = rng.randrange(6)
        if kind == 0:
            return {name: item for name, item in value.items() if name != key}
        if kind == 1:
            return {name + "x" * (name == key): item for name, item in value.items()}
        return value | {key: damage_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        index = rng.randrange(len(value))
        return [*value[:index], damage_value(value[index], rng), *value[index + 1 :]]
    if isinstance(value, int) and rng.random() < 0.5:
        return value + rng.choice([-4, -1, 1, 4, value])
    return rng.choice(NASTY)


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[1], SPECS[5]], ids=lambda spec: spec.name)
def test_damaged_weights(spec: Any, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, spec.config, random_tensors(spec.config, 0, spec.dtype))
    path = tmp_path / "model.safetensors"
    sound = path.read_bytes()
    header = 8 + int.from_bytes(sound[:8], "little")
    assert attempt(tmp_path)
    rng = random.Random(spec.name)
    outcomes = set()
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        path.unlink()  # the old bytes may still be mapped
        path.write_bytes(damage_bytes(sound, header, rng))
        outcomes.add(attempt(tmp_path))
    assert outcomes == {True, False}


@pytest.mark.parametrize(("config", "architecture"), [(BITNET, "bitnet-b1.58"), (LLAMA, "llama")])
def test_damaged_gguf(config: Config, architecture: str, tmp_path: Path) -> None:
    model = TernaryModel(config | {"num_hidden_layers": 1})
    content = model.gguf("TQ2_0", architecture)
    path = tmp_path / "model.gguf"
    sound = content.serialize()
    header = len(sound) - sum(-(-len(t.data) // 32) * 32 for t in content.tensors.values())
    path.write_bytes(sound)
    assert attempt(path)
    rng = random.Random(architecture)
    outcomes = set()
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        path.unlink()
        path.write_bytes(damage_bytes(sound, header, rng))
        outcomes.add(attempt(path))
    assert outcomes == {True, False}


def test_damaged_header_values(tmp_path: Path) -> None:
    spec = SPECS[0]
    write_checkpoint(tmp_path, spec.config, random_tensors(spec.config, 0))
    path = tmp_path / "model.safetensors"
    sound = path.read_bytes()
    start = 8 + int.from_bytes(sound[:8], "little")
    header = json.loads(sound[8:start])
    rng = random.Random(1)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        text = json.dumps(damage_value(header, rng)).encode()
        path.unlink()
        path.write_bytes(len(text).to_bytes(8, "little") + text + sound[start:])
        attempt(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_damaged_json(file: str, tmp_path: Path) -> None:
    spec = SPECS[6]
    tensors = random_tensors(spec.config, 0, spec.dtype)
    path = write_checkpoint(tmp_path, spec.config, tensors, shards=2) / file
    sound = json.loads(path.read_text())
    rng = random.Random(file)
    outcomes = set()
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        path.write_text(json.dumps(damage_value(sound, rng)))
        outcomes.add(attempt(tmp_path))
    assert outcomes == {True, False}
