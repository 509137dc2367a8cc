"""Against recorded output of real binaries, and a stand-in that prints it again."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from bench.llama_bench import LlamaBench, batched_seconds, cpu_features, single_result
from ryzanstein.bench.workload import Workload

# What two binaries of llama.cpp 0c1e57098 printed for tg16 and for tg8xb8.
RECORDED = Path(__file__).parent / "recorded"
SINGLE = (RECORDED / "llama-bench.json").read_text()
BATCHED = (RECORDED / "llama-batched-bench.txt").read_text()


def test_a_single_result_is_found() -> None:
    result = single_result(SINGLE, Workload.parse("tg16"))
    assert result["avg_ns"] == 512115548
    assert result["build_commit"] == "0c1e57098"


@pytest.mark.parametrize("test", ["tg17", "pp16", "tg16@d1"])
def test_another_test_than_the_one_asked_for_is_refused(test: str) -> None:
    with pytest.raises(ValueError, match=f"llama-bench was to run {test}"):
        single_result(SINGLE, Workload.parse(test))


def test_batched_seconds_are_those_of_the_timed_part() -> None:
    assert "-nan" in BATCHED  # the speed of no prompt, which JSON does not know
    assert batched_seconds(BATCHED, Workload.parse("tg8xb8")) == 1.371456
    prompt = BATCHED.replace('"t_pp": 0.000000', '"t_pp": 0.5')
    assert batched_seconds(prompt, Workload.parse("pp8xb8")) == 0.5


@pytest.mark.parametrize("text", ["", "no room\n", BATCHED.replace('"pl": 8', '"pl": 7')])
def test_no_batched_result_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="llama-batched-bench was to run tg8xb8"):
        batched_seconds(text, Workload.parse("tg8xb8"))


@pytest.mark.parametrize(
    ("options", "features"),
    [
        ("GGML_AVX2:BOOL=ON\nGGML_AVX512:BOOL=OFF\nGGML_CUDA_FA:BOOL=ON\n", "AVX2"),
        ("GGML_AVX512_VNNI:BOOL=ON\nGGML_AVX512:BOOL=ON\n", "AVX512 AVX512_VNNI"),
        ("GGML_NATIVE:BOOL=ON\n", "NATIVE"),
        ("", "plain x86-64"),
    ],
)
def test_features_are_those_of_the_build_tree(options: str, features: str, tmp_path: Path) -> None:
    (tmp_path / "CMakeCache.txt").write_text(options)
    assert cpu_features(tmp_path / "bin/llama-bench") == features


def stand_in(path: Path, output: str) -> Path:
    """Return a program that keeps its arguments, a line a run, and prints `output`."""
    recorded = path.with_suffix(".out")
    recorded.write_text(output)
    path.write_text(f'#!/bin/sh\necho "$*" >> {path}.log\ncat {recorded}\n')
    path.chmod(0o755)
    return path


def printed(generate: int) -> str:
    (result,) = json.loads(SINGLE)
    return json.dumps([result | {"n_gen": generate}])


def test_binaries_are_asked_for_just_the_workload(tmp_path: Path) -> None:
    single = stand_in(tmp_path / "llama-bench", printed(1))
    batched = stand_in(tmp_path / "llama-batched-bench", BATCHED)
    peer = LlamaBench(single, tmp_path / "model.gguf", threads=3)
    assert peer.name == "llama-bench 0c1e57098 (unknown CPU features), model"
    stand_in(single, SINGLE)
    assert peer.seconds(Workload.parse("tg16")) == pytest.approx(0.512115548)
    assert peer.seconds(Workload.parse("tg8@d100xb8")) == 1.371456
    assert peer.seconds(Workload.parse("pp8xb8")) == 0
    common = f"-m {tmp_path}/model.gguf -t 3 "
    assert (tmp_path / "llama-bench.log").read_text().splitlines() == [
        common + "-p 0 -n 1 -r 1 -o json",
        common + "-p 0 -n 16 -r 1 -o json",
    ]
    assert batched.with_name("llama-batched-bench.log").read_text().splitlines() == [
        common + "-npp 100 -ntg 8 -npl 8 -c 864 -pps --output-format jsonl",
        common + "-npp 8 -ntg 0 -npl 8 -c 64 --output-format jsonl",
    ]


def test_a_depth_is_passed_on(tmp_path: Path) -> None:
    binary = stand_in(tmp_path / "llama-bench", printed(1))
    peer = LlamaBench(binary, tmp_path / "model.gguf", threads=1)
    (result,) = json.loads(SINGLE)
    stand_in(binary, json.dumps([result | {"n_depth": 2048}]))
    seconds = peer.seconds(Workload.parse("tg16@d2048"))
    assert seconds is not None
    assert math.isclose(seconds, 0.512115548)
    assert (tmp_path / "llama-bench.log").read_text().endswith("-r 1 -d 2048 -o json\n")


def test_what_the_binaries_lack_is_not_timed(tmp_path: Path) -> None:
    peer = LlamaBench(stand_in(tmp_path / "llama-bench", printed(1)), tmp_path, threads=1)
    assert peer.seconds(Workload.parse("tg8xb8")) is None  # no llama-batched-bench beside it
    stand_in(tmp_path / "llama-batched-bench", BATCHED)
    assert peer.seconds(Workload.parse("pp8@d100xb8")) is None


def test_a_binary_that_fails_is_named_with_its_message(tmp_path: Path) -> None:
    binary = tmp_path / "llama-bench"
    binary.write_text("#!/bin/sh\necho cannot load >&2\nexit 3\n")
    binary.chmod(0o755)
    with pytest.raises(SystemExit, match=r"llama-bench .*: status 3\ncannot load"):
        LlamaBench(binary, tmp_path, threads=1)
