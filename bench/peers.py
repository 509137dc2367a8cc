"""Time this engine and its peers on the same shape, paired run by run in one session.

Machines are shared and drift, so figures of different days do not compare. Here every repetition
times each engine once, in alternating order; the ratio is the median of the ratios within
repetitions. The memory's read bandwidth, which bounds decoding, is measured before and after. Each
engine has a process of its own, in which nothing is timed but the steps, as in llama-bench. Missing
checkpoints are written first (about 2 GB for 2b-4t).

Examples:
  python -m bench.peers --peer-python ~/venv-llama/bin/python
  python -m bench.peers --tests pp512 tg64 tg64@d2048 tg64xb8 --threads 1 --repetitions 7
  python -m bench.peers --llama-bench ~/ik_llama.cpp/bin/llama-bench --gguf ~/2b-iq2_bn.gguf
  python -m bench.peers --isa avx2 --json > peers.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.gguf_writer import write_gguf
from bench.shapes import PRESETS, checkpoint_path, default_directory, gguf_path
from bench.synthetic import write_checkpoint
from ryzanstein.bench.roofline import read_bandwidth
from ryzanstein.bench.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

__all__ = ["Row", "measure"]

_ROOT = Path(__file__).resolve().parents[1]
# Idle threads spin for some milliseconds before they park; the other engine must not compete.
_PARK_S = 0.1


class Contestant(Protocol):
    """An engine in another process."""

    name: str

    def seconds(self, workload: Workload) -> float | None:
        """Return how long the workload took, or None if the engine does not offer it."""


class Worker:
    """A process that answers as `bench.worker.serve` does."""

    def __init__(self, command: Sequence[str]) -> None:
        environment = os.environ | {"PYTHONPATH": str(_ROOT)}
        self._command = command
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        try:
            self.name = str(self._answer()["engine"])
        except BaseException:
            self._process.kill()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def seconds(self, workload: Workload) -> float | None:
        """Return how long the workload took."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(workload)) + "\n")
        self._process.stdin.flush()
        return float(str(self._answer()["seconds"]))

    def _answer(self) -> dict[str, object]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise SystemExit(f"{' '.join(self._command)}: stopped with status {status}")
        answer: dict[str, object] = json.loads(line)
        return answer


class LlamaBench:
    """Any llama-bench binary, started anew for every run: it warms up by itself."""

    def __init__(self, binary: Path, gguf: Path, threads: int) -> None:
        self.name = f"llama-bench {binary}"
        self._command = [str(binary), "-m", str(gguf), "-t", str(threads), "-r", "1", "-o", "json"]

    def seconds(self, workload: Workload) -> float | None:
        """Return how long the workload took; llama-bench has no test of several sequences."""
        if workload.sequences > 1:
            return None
        counts = ["-p", str(workload.prompt), "-n", str(workload.generate)]
        depth = ["-d", str(workload.depth)] if workload.depth else []
        run = subprocess.run(
            [*self._command, *counts, *depth], capture_output=True, text=True, check=False
        )
        if run.returncode != 0:
            raise SystemExit(f"{self.name}: status {run.returncode}\n{run.stderr[-2000:]}")
        return float(json.loads(run.stdout)[0]["avg_ns"]) / 1e9


@dataclass(frozen=True, slots=True)
class Row:
    """One engine's result of one test.

    `tokens_per_second` is the median, `spread` the range over the median, and `ratio` the median
    over repetitions of the first engine's speed over this one's.
    """

    test: str
    engine: str
    tokens_per_second: float
    spread: float
    ratio: float
    samples: tuple[float, ...]
    n_threads: int


def measure(
    contestants: Sequence[Contestant],
    workloads: Sequence[Workload],
    *,
    repetitions: int,
    threads: int,
    progress: Progress,
) -> list[Row]:
    """Time every workload on every engine, in turns.

    Args:
        contestants: engines; ratios are those of the first.
        workloads: what to time.
        repetitions: runs of each.
        threads: recorded in the rows; the engines were started with it.
        progress: where to show how far it is.
    """
    rows = []
    total = len(workloads) * repetitions * len(contestants)
    task = progress.add_task("", total=total)
    for workload in workloads:
        samples: dict[int, list[float]] = {index: [] for index in range(len(contestants))}
        for repetition in range(repetitions):
            order = list(enumerate(contestants))
            for index, contestant in order if repetition % 2 == 0 else order[::-1]:
                progress.update(task, description=f"{workload.name} {contestant.name}")
                time.sleep(_PARK_S)
                seconds = contestant.seconds(workload)
                if seconds is not None:
                    samples[index].append(workload.tokens / seconds)
                progress.advance(task)
        rows += _rows(contestants, workload, samples, threads)
    return rows


def _rows(
    contestants: Sequence[Contestant],
    workload: Workload,
    samples: dict[int, list[float]],
    threads: int,
) -> list[Row]:
    rows = []
    for index, contestant in enumerate(contestants):
        rates = samples[index]
        if not rates:
            continue
        median = statistics.median(rates)
        ratios = [ours / theirs for ours, theirs in zip(samples[0], rates, strict=True)]
        spread = (max(rates) - min(rates)) / median
        ratio = statistics.median(ratios)
        result = (median, spread, ratio, tuple(rates))
        rows.append(Row(workload.name, contestant.name, *result, threads))
    return rows


def _write_missing(checkpoint: Path, gguf: Path | None, preset: str) -> None:
    if not (checkpoint / "config.json").exists():
        write_checkpoint(checkpoint, PRESETS[preset], seed=0, shard_bytes=5_000_000_000)
    if gguf is not None and not gguf.exists():
        write_gguf(gguf, PRESETS[preset], seed=0)


def _engine_command(args: argparse.Namespace, checkpoint: Path) -> list[str]:
    command = [sys.executable, "-m", "bench.engine_worker", str(checkpoint)]
    command += ["--threads", str(args.threads), "--kv-dtype", args.kv_dtype]
    return command + (["--isa", args.isa] if args.isa else [])


def _llama_command(args: argparse.Namespace, gguf: Path) -> list[str]:
    worker = [args.peer_python, "-m", "bench.llama_worker", str(gguf)]
    return [*worker, "--threads", str(args.threads)]


def _run(args: argparse.Namespace) -> list[Row]:
    checkpoint = checkpoint_path(args.dir, args.preset)
    gguf: Path = args.gguf or gguf_path(args.dir, args.preset)
    _write_missing(checkpoint, None if args.gguf else gguf, args.preset)
    console = Console(stderr=True)
    with ExitStack() as stack:
        contestants: list[Contestant] = [
            stack.enter_context(Worker(_engine_command(args, checkpoint)))
        ]
        if not args.no_llama_cpp:
            contestants.append(stack.enter_context(Worker(_llama_command(args, gguf))))
        contestants += [LlamaBench(binary, gguf, args.threads) for binary in args.llama_bench]
        progress = Progress(console=console, transient=True, disable=not console.is_terminal)
        with progress:
            return measure(
                contestants,
                args.tests,
                repetitions=args.repetitions,
                threads=args.threads,
                progress=progress,
            )


def _print_table(rows: Sequence[Row], bandwidths: Sequence[float]) -> None:
    before, after = bandwidths
    caption = f"memory read at {before:.1f} GB/s before, {after:.1f} GB/s after"
    table = Table("test", "engine", "tok/s", "spread", "ratio", caption=caption)
    for row in rows:
        rate, spread = f"{row.tokens_per_second:.1f}", f"{row.spread:.0%}"
        table.add_row(row.test, row.engine, rate, spread, f"{row.ratio:.2f}x")
    Console().print(table)


def _workload(text: str) -> Workload:
    try:
        return Workload.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--preset", choices=sorted(PRESETS), default="2b-4t", help="the shape (default: 2b-4t)")
    add("--dir", type=Path, default=default_directory(), help="where the checkpoints lie or go")
    add("--tests", nargs="+", type=_workload, metavar="TEST", help="such as pp512 or tg64@d2048xb8")
    add("--threads", type=int, default=os.cpu_count() or 1, help="for every engine (default: all)")
    add("--repetitions", type=int, default=5, help="runs of each test (default: 5)")
    add("--isa", help="force this engine's instruction-set tier")
    add("--kv-dtype", choices=["f16", "f32"], default="f16", help="this engine's cache format")
    add("--peer-python", default=sys.executable, help="a Python that has llama-cpp-python")
    add("--no-llama-cpp", action="store_true", help="leave llama-cpp-python out")
    add("--llama-bench", type=Path, action="append", default=[], help="a binary to add; repeatable")
    add("--gguf", type=Path, help="the peers' model (default: a TQ2_0 file of the preset)")
    add("--json", action="store_true", help="print rows as JSON, with every sample")
    parser.set_defaults(tests=[Workload.parse("pp512"), Workload.parse("tg64")])
    return parser.parse_args()


def main() -> None:
    args = _arguments()
    before = read_bandwidth(args.threads) / 1e9
    rows = _run(args)
    bandwidths = (before, read_bandwidth(args.threads) / 1e9)
    if args.json:
        table = [asdict(row) for row in rows]
        print(json.dumps({"rows": table, "read_gigabytes_per_second": bandwidths}, indent=2))
    else:
        _print_table(rows, bandwidths)


if __name__ == "__main__":
    main()
