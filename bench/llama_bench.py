"""Any build of llama.cpp, or of a fork, through its own llama-bench and llama-batched-bench.

A binary is started anew for every run: it loads the model, warms up and fills the depth by itself,
none of which it times. A depth of 2048 costs as long as a prompt of 2048, in every run.
"""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

from ryzanstein.bench.workload import Workload

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LlamaBench", "batched_seconds", "cpu_features", "single_result"]

# In the order of a name. A native build has whatever the CPU that built it had.
_FEATURES = (
    *("NATIVE", "AVX2", "AVX_VNNI"),
    *("AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16"),
)
_ASKED = {"n_prompt": "prompt", "n_gen": "generate", "n_depth": "depth"}


class LlamaBench:
    """One build on one model file."""

    def __init__(self, binary: Path, gguf: Path, threads: int) -> None:
        """Run the binary once, to learn its build and whether it can load the model."""
        self._single = binary
        self._batched = binary.with_name(binary.name.replace("llama-bench", "llama-batched-bench"))
        self._common = ["-m", str(gguf), "-t", str(threads)]
        commit = self._run_single(Workload(0, 1))["build_commit"]
        self.name = f"llama-bench {commit} ({cpu_features(binary)}), {gguf.stem}"

    def seconds(self, workload: Workload) -> float | None:
        """Return how long the workload took, or None if the binaries have no such test."""
        if workload.sequences == 1:
            return float(self._run_single(workload)["avg_ns"]) / 1e9
        if (workload.prompt and workload.depth) or not self._batched.exists():
            return None
        # A test of decoding shares its prompt, which is the depth then, among the sequences.
        shared = [] if workload.prompt else ["-pps"]
        sizes = {
            "-npp": workload.prompt or workload.depth,
            "-ntg": workload.generate,
            "-npl": workload.sequences,
            "-c": workload.length * workload.sequences,
        }
        options = [text for name, size in sizes.items() for text in (name, str(size))]
        command = [str(self._batched), *self._common, *options, *shared]
        return batched_seconds(_output([*command, "--output-format", "jsonl"]), workload)

    def _run_single(self, workload: Workload) -> dict[str, Any]:
        options = ["-p", str(workload.prompt), "-n", str(workload.generate), "-r", "1"]
        depth = ["-d", str(workload.depth)] if workload.depth else []  # older builds lack it
        command = [str(self._single), *self._common, *options, *depth, "-o", "json"]
        return single_result(_output(command), workload)


def single_result(text: str, workload: Workload) -> dict[str, Any]:
    """Return the one result that llama-bench printed as JSON.

    Raises:
        ValueError: it is not that of the workload.
    """
    results: list[dict[str, Any]] = json.loads(text)
    ran = [{ours: each.get(name, 0) for name, ours in _ASKED.items()} for each in results]
    if ran != [{ours: getattr(workload, ours) for ours in _ASKED.values()}]:
        raise ValueError(f"llama-bench was to run {workload.name}, but printed {text}")
    return results[0]


def batched_seconds(text: str, workload: Workload) -> float:
    """Return the timed part of the one line that llama-batched-bench printed as JSON.

    Raises:
        ValueError: there is no such line, as when the context was too small for the test.
    """
    for line in text.splitlines():
        if line.startswith("{"):
            # Without a prompt its speed is 0 / 0, which C prints as no JSON can have it.
            result = json.loads(re.sub(r"-?\bnan\b", "NaN", line))
            if result["pl"] == workload.sequences:
                return float(result["t_pp" if workload.prompt else "t_tg"])
    raise ValueError(f"llama-batched-bench was to run {workload.name}, but printed {text}")


def cpu_features(binary: Path) -> str:
    """Return the CPU features that CMake's build tree says a binary was compiled for."""
    for folder in binary.resolve().parents:
        cache = folder / "CMakeCache.txt"
        if cache.exists():
            on = set(re.findall(r"^GGML_(\w+):BOOL=ON$", cache.read_text(), re.MULTILINE))
            return " ".join(name for name in _FEATURES if name in on) or "plain x86-64"
    return "unknown CPU features"


def _output(command: list[str]) -> str:
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: status {run.returncode}\n{run.stderr[-2000:]}")
    return run.stdout
