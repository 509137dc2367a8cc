"""Files of named arrays: whole and exact, or absent."""

from __future__ import annotations

import logging
import os
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pytest
from safetensors.numpy import load_file

from ryzanstein.errors import ValidationError
from ryzanstein.loaders.weight_cache import WeightCache, default_weight_cache

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

GB = 10**9
Objects: TypeAlias = "dict[str, dict[str, NDArray[Any]]]"


def random_objects(seed: int, size: int = 100) -> Objects:
    rng = np.random.default_rng(seed)
    return {
        "a.b+c": {"packed": rng.integers(0, 256, size, np.uint8), "none": np.empty(0, np.uint8)},
        "numbers": {
            "shape": np.array([3, 1 << 40]),
            "gain": rng.standard_normal((2, 3)).astype(np.float32),
            "half": rng.standard_normal(3).astype(np.float16),
        },
        "last": {"packed": rng.integers(0, 256, 1, np.uint8)},
    }


OBJECTS = random_objects(0)


def make(directory: Path, limit_bytes: int = GB, minimum_bytes: int = 0) -> WeightCache:
    return WeightCache(directory, limit_bytes, minimum_bytes)


def holds(cache: WeightCache, identity: str, objects: Objects) -> bool:
    packed = cache.find(identity)
    if packed is None:
        return False
    for name, arrays in objects.items():
        found = packed.arrays(name)
        assert found.keys() == arrays.keys()
        for array, values in arrays.items():
            assert (found[array].dtype, found[array].shape) == (values.dtype, values.shape)
            assert np.array_equal(found[array], values)
    return True


def test_arrays_come_back_aligned_and_read_only(tmp_path: Path) -> None:
    cache = make(tmp_path / "deep" / "cache")
    assert cache.find("x") is None
    cache.store("x", OBJECTS)
    assert holds(cache, "x", OBJECTS)
    packed = cache.find("x")
    assert packed is not None
    assert packed.arrays("unknown") == {}
    for name in OBJECTS:
        for array in packed.arrays(name).values():
            assert array.size == 0 or array.ctypes.data % 64 == 0
            assert array.size == 0 or not array.flags.writeable


def test_the_file_is_a_safetensors_file(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.store("x", OBJECTS)
    tensors = load_file(cache.path("x"))
    for name, arrays in OBJECTS.items():
        for array, values in arrays.items():
            assert np.array_equal(tensors[f"{name}/{array}"], values)


def test_any_damaged_header_byte_is_noticed(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.store("x", OBJECTS)
    path = cache.path("x")
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    rng = np.random.default_rng(2)
    for index in [*range(16), *rng.integers(16, header, 150).tolist()]:
        bit = 1 << int(rng.integers(8))
        path.write_bytes(data[:index] + bytes([data[index] ^ bit]) + data[index + 1 :])
        assert cache.find("x") is None, index
    path.write_bytes(data)
    assert holds(cache, "x", OBJECTS)


def test_a_header_that_was_changed_with_care_is_noticed(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.store("x", OBJECTS)
    path = cache.path("x")
    data = path.read_bytes()
    for before, after in [("U8", "I8"), ("F32", "I32"), ("/gain", "/pain"), ("[2, 3]", "[3, 2]")]:
        changed = data.replace(before.encode(), after.encode())
        assert changed != data
        path.write_bytes(changed)
        assert cache.find("x") is None


def test_a_truncated_or_longer_file_is_none(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.store("x", OBJECTS)
    path = cache.path("x")
    data = path.read_bytes()
    sizes = {0, 7, 8, len(data) - 1, *np.random.default_rng(1).integers(0, len(data), 40).tolist()}
    for size in sizes:
        path.write_bytes(data[:size])
        assert cache.find("x") is None, size
    path.write_bytes(data + b"\0")
    assert cache.find("x") is None
    cache.store("x", OBJECTS)
    assert holds(cache, "x", OBJECTS)


def test_a_file_of_another_identity_is_none(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.store("x", OBJECTS)
    cache.path("x").rename(cache.path("y"))
    assert cache.find("x") is None
    assert cache.find("y") is None
    cache.store("y", random_objects(3))
    assert holds(cache, "y", random_objects(3))


def test_an_open_file_survives_being_replaced(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.store("x", OBJECTS)
    packed = cache.find("x")
    cache.store("x", random_objects(4))
    cache.path("x").unlink()
    assert packed is not None
    assert np.array_equal(packed.arrays("a.b+c")["packed"], OBJECTS["a.b+c"]["packed"])


def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    make(tmp_path).store("old", OBJECTS)
    size = make(tmp_path).path("old").stat().st_size
    cache = make(tmp_path, limit_bytes=4 * size - 1)
    for name in ("used", "new"):
        cache.store(name, OBJECTS)
    for age, name in enumerate(("new", "used", "old")):
        os.utime(cache.path(name), (time.time() - 100 * (age + 1),) * 2)
    assert cache.find("old") is not None  # now the one used last
    cache.store("more", {"more": {"bytes": np.zeros(size, np.uint8)}})
    assert [name for name in ("old", "used", "new", "more") if cache.path(name).exists()] == [
        "old",
        "new",
        "more",
    ]
    report = cache.report()
    assert report["files"] == 3
    assert report["bytes"] == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert (report["directory"], report["limit_bytes"]) == (str(tmp_path), 4 * size - 1)


def test_too_small_and_too_large_are_not_kept(tmp_path: Path) -> None:
    make(tmp_path, minimum_bytes=10_000).store("x", OBJECTS)
    make(tmp_path, limit_bytes=100).store("x", OBJECTS)
    make(tmp_path, limit_bytes=0).store("x", OBJECTS)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_deleted_in_time(tmp_path: Path) -> None:
    cache = make(tmp_path)
    dead, busy = tmp_path / "dead.tmp", tmp_path / "busy.tmp"
    for path in (dead, busy):
        path.write_bytes(b"x")
    os.utime(dead, (time.time() - 5000,) * 2)
    cache.store("x", OBJECTS)
    assert not dead.exists()
    assert busy.exists()


def test_more_arrays_than_one_write_can_gather(tmp_path: Path) -> None:
    """Between large ones, which one write of a block ends in the middle of."""
    large = np.random.default_rng(0).integers(0, 256, (2, (9 << 20) + 5), np.uint8)
    small = {f"{index}": np.full(index % 70, index % 256, np.uint8) for index in range(1500)}
    objects: Objects = {"a": {"large": large[0]}, "b": small, "c": {"large": large[1]}}
    cache = make(tmp_path)
    cache.store("x", objects)
    assert holds(cache, "x", objects)


def test_a_place_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    for directory in (blocked, blocked / "below", Path("/proc/ryzanstein")):
        caplog.clear()
        cache = make(directory)
        cache.store("x", OBJECTS)
        assert cache.find("x") is None
        (record,) = (entry for entry in caplog.records if entry.levelno >= logging.WARNING)
        assert str(directory) in record.getMessage()


def test_a_write_that_fails_half_way_leaves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        cache.store("x", random_objects(0, 3 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_disk_nearly_full_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = make(tmp_path, limit_bytes=1 << 62)
    huge = np.broadcast_to(np.zeros(1, np.uint8), 1 << 60)  # one byte of memory
    cache.store("x", {"huge": {"array": huge}})
    assert "No space left" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RYZANSTEIN_CACHE", str(tmp_path))
    monkeypatch.delenv("RYZANSTEIN_CACHE_LIMIT", raising=False)
    assert default_weight_cache() == WeightCache(tmp_path / "packed", 16 * GB)
    monkeypatch.setenv("RYZANSTEIN_CACHE_LIMIT", "0.5")
    assert default_weight_cache() == WeightCache(tmp_path / "packed", GB // 2)
    for text in ("-1", "many", "nan", "inf"):
        monkeypatch.setenv("RYZANSTEIN_CACHE_LIMIT", text)
        with pytest.raises(ValidationError, match=f"RYZANSTEIN_CACHE_LIMIT .* got '{text}'"):
            default_weight_cache()
