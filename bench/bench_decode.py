"""Prefill and decode, end to end through the native decoder.

    python -m pytest bench/bench_decode.py
    python -m pytest bench/bench_decode.py --checkpoint /tmp/ryzanstein-bench/2b-4t --threads 2

Every case asserts that all its runs gave the same bits: a fast wrong answer is no answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ryzanstein.bench.runner import Runner
from ryzanstein.bench.workload import Workload
from ryzanstein.loaders.model_files import open_files
from ryzanstein.models import load_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def engine(checkpoint: Path, threads: int) -> Runner:
    return Runner(load_model(open_files(checkpoint), threads=threads, isa=None))


@pytest.mark.parametrize("name", ["pp128", "pp512", "tg16", "tg16@d512", "tg16xb8", "tg16@d512xb8"])
def test_steps(benchmark: Any, engine: Runner, name: str) -> None:
    workload = Workload.parse(name)
    engine.prepare(workload)
    expected = engine.run(workload)
    assert expected.shape[0] == workload.sequences
    assert np.isfinite(expected).all()

    def prepare() -> tuple[tuple[Workload], dict[str, object]]:
        engine.prepare(workload)
        return (workload,), {}

    logits = benchmark.pedantic(engine.run, setup=prepare, rounds=5)
    assert np.array_equal(logits, expected)
    if benchmark.enabled:
        seconds = benchmark.stats.stats.median
        benchmark.extra_info["tokens_per_second"] = workload.tokens / seconds
