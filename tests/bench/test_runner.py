from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ryzanstein import OutOfMemoryError
from ryzanstein.bench import runner as module
from ryzanstein.bench.roofline import HeadWork, demand
from ryzanstein.bench.runner import Runner
from ryzanstein.bench.workload import Workload
from ryzanstein.cpu import read_host
from ryzanstein.loaders.hub import EMBEDDED_MODEL
from ryzanstein.loaders.model_files import open_files
from ryzanstein.models import load_model

# Prompts of several steps, depths that end inside a page.
NAMES = ["pp5", "pp300", "pp130@d45", "tg3", "tg2@d45", "tg3xb4", "tg2@d45xb3", "pp40xb5"]


@pytest.fixture(scope="module")
def runner() -> Runner:
    return Runner(load_model(open_files(EMBEDDED_MODEL), threads=1, isa=None))


@pytest.mark.parametrize("name", NAMES)
def test_every_run_gives_the_same_logits(runner: Runner, name: str) -> None:
    workload = Workload.parse(name)
    runner.prepare(workload)
    first = runner.run(workload)
    assert first.shape == (workload.sequences, runner.model.config.vocab_size)
    runner.prepare(workload)
    assert np.array_equal(runner.run(workload), first)


def test_sequences_of_a_batch_have_the_depth_of_one(runner: Runner) -> None:
    one, three = Workload.parse("tg1@d45"), Workload.parse("tg1@d45xb3")
    runner.prepare(one)
    alone = runner.run(one)[0]
    runner.prepare(three)
    # The first sequence gets the same random token in either.
    assert np.array_equal(runner.run(three)[0], alone)


def test_time_warms_up_once_and_reports_every_run(runner: Runner) -> None:
    ticks: list[None] = []
    seconds = runner.time(Workload.parse("tg2"), 3, lambda: ticks.append(None))
    assert len(seconds) == 3
    assert min(seconds) > 0
    assert len(ticks) == 4


def test_steps_are_the_engines(runner: Runner) -> None:
    assert runner.steps(Workload.parse("pp300")) == [128, 128, 44]
    assert runner.steps(Workload.parse("pp40xb5")) == [25, 15]
    assert runner.steps(Workload.parse("tg3xb8")) == [1, 1, 1]


def test_a_cache_beyond_memory_is_refused(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    host = replace(read_host(), free_bytes=1000)
    monkeypatch.setattr(module, "read_host", lambda: host)
    with pytest.raises(OutOfMemoryError, match=r"pp9 needs .* MiB of f16 KV"):
        runner.prepare(Workload.parse("pp9"))
    monkeypatch.undo()
    runner.time(Workload.parse("pp9"), 1)


def test_demand_counts_weights_per_step_and_keys_per_sequence(runner: Runner) -> None:
    weights = runner.model.decoder.weight_bytes()
    products = runner.model.decoder.multiplications_per_token
    config = runner.model.config
    token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 2
    head = weights["screen"] or weights["head"]

    def needed(name: str) -> tuple[float, float]:
        workload = Workload.parse(name)
        runner.prepare(workload)
        needs = demand(runner, workload, HeadWork())
        return needs.bytes_read, needs.multiply_adds

    assert needed("tg1") == (weights["linears"] + head + token, products)
    assert needed("tg1@d99") == (weights["linears"] + head + 100 * token, products)
    expected = 2 * (weights["linears"] + head) + 8 * 3 * token
    assert needed("tg2xb8") == (expected, 16 * products)
    expected = 3 * weights["linears"] + head + (128 + 256 + 300) * token
    assert needed("pp300") == (expected, 300 * products)


def test_demand_counts_what_a_screen_did_not_settle(runner: Runner) -> None:
    workload = Workload.parse("tg1")
    runner.prepare(workload)
    weights = runner.model.decoder.weight_bytes()
    plain = demand(runner, workload, HeadWork()).bytes_read
    vocab_size = runner.model.config.vocab_size
    rest, row = weights["screen_rest"] / vocab_size, weights["head"] / vocab_size
    expected = plain + 90 * rest + 7 * row + 2 * weights["head"]
    assert demand(runner, workload, HeadWork(90, 7, 2)).bytes_read == pytest.approx(expected)
