"""Options of the pytest-benchmark suites in this directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.shapes import PRESETS
from bench.synthetic import write_checkpoint


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ryzanstein bench")
    group.addoption(
        "--checkpoint",
        type=Path,
        help="BitNet checkpoint to run (default: a small synthetic one, written for the session)",
    )
    group.addoption("--threads", type=int, default=os.cpu_count(), help="default: all")


@pytest.fixture(scope="session")
def threads(request: pytest.FixtureRequest) -> int:
    value = request.config.getoption("--threads")
    assert isinstance(value, int)
    return value


@pytest.fixture(scope="session")
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = request.config.getoption("--checkpoint")
    if isinstance(given, Path):
        return given
    directory = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(directory, PRESETS["small"], seed=0, shard_bytes=1 << 40)
    return directory
