from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ryzanstein import OutOfMemoryError, ValidationError
from ryzanstein.config import EngineConfig, cache_directory, plan_engine

# 1 KiB per token.
SHAPE: dict[str, Any] = {"block_tokens": 32, "block_bytes": 32 << 10, "kv_dtype": "f16"}


def test_cache_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("RYZANSTEIN_CACHE", raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_directory() == Path("/home/somebody/.cache/ryzanstein")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_directory() == Path("/caches/ryzanstein")
    monkeypatch.setenv("RYZANSTEIN_CACHE", "/elsewhere")
    assert cache_directory() == Path("/elsewhere")


def test_room_for_many_sequences() -> None:
    plan = plan_engine(context_length=100, trained_length=4096, free_bytes=1 << 30, **SHAPE)
    assert plan.context_length == 100
    assert plan.num_blocks == 4 * plan.max_sequences


def test_little_memory_means_fewer_sequences_then_a_shorter_default() -> None:
    plan = plan_engine(context_length=None, trained_length=1024, free_bytes=2 << 20, **SHAPE)
    assert (plan.context_length, plan.num_blocks) == (1024, 51)
    plan = plan_engine(context_length=None, trained_length=1 << 17, free_bytes=2 << 20, **SHAPE)
    assert (plan.context_length, plan.num_blocks) == (51 * 32, 51)


def test_a_context_that_was_asked_for_is_never_shortened() -> None:
    with pytest.raises(
        OutOfMemoryError,
        match=r"4096 tokens needs 4 MiB of f16 .* only 2 MiB .*\(at most 1632 fits\)",
    ):
        plan_engine(context_length=4096, trained_length=4096, free_bytes=2 << 20, **SHAPE)


def test_no_memory_at_all() -> None:
    with pytest.raises(OutOfMemoryError, match="only 0 MiB of memory is free"):
        plan_engine(context_length=None, trained_length=4096, free_bytes=0, **SHAPE)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"context_length": 0}, "context_length must be an integer >= 1, got 0"),
        ({"num_blocks": -1}, "num_blocks must be"),
        ({"kv_dtype": "f8"}, r"kv_dtype must be one of \('f16', 'f32', 'int8'\), got 'f8'"),
        ({"token_budget": 3, "max_sequences": 4}, "would starve"),
    ],
)
def test_a_config_checks_itself(options: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValidationError, match=wanted):
        EngineConfig(**({"context_length": 8, "num_blocks": 1} | options))
