"""Time this engine and its peers on the same shape, paired run by run in one session.

Machines are shared and drift, so figures of different days do not compare. Here every repetition
times each engine once, in alternating order; a ratio is the median of the ratios within
repetitions. The memory's read bandwidth, which bounds decoding, is measured before and after. Each
engine has a process of its own, in which nothing is timed but the steps, as in llama-bench. Missing
checkpoints are written first (about 2 GB for 2b-4t).

Examples:
  python -m bench.peers --peer-python ~/venv-llama/bin/python
  python -m bench.peers --tests pp512 tg64 tg64@d2048 tg64xb8 --threads 1 --repetitions 7
  python -m bench.peers --llama-bench ~/ik_llama.cpp/bin/llama-bench --gguf ~/2b-iq2_bn.gguf
  python -m bench.peers --isa avx512 avx2 --no-llama-cpp --llama-bench ~/llama-avx2/bin/llama-bench
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rich.console import Console
from rich.progress import Progress

from bench.contest import measure
from bench.contest_report import TARGETS, make_table, save_chart, to_markdown
from bench.gguf_writer import write_gguf
from bench.llama_bench import LlamaBench
from bench.shapes import PRESETS, checkpoint_path, default_directory, gguf_path
from bench.synthetic import write_checkpoint
from ryzanstein import _core
from ryzanstein.bench.roofline import read_bandwidth
from ryzanstein.bench.workload import Workload
from ryzanstein.config import KVDtype
from ryzanstein.cpu import read_host

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from bench.contest import Contestant, Row

__all__ = ["Worker", "main"]

_ROOT = Path(__file__).resolve().parents[1]


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


def _write_missing(checkpoint: Path, gguf: Path | None, preset: str) -> None:
    if not (checkpoint / "config.json").exists():
        write_checkpoint(checkpoint, PRESETS[preset], seed=0, shard_bytes=5_000_000_000)
    if gguf is not None and not gguf.exists():
        write_gguf(gguf, PRESETS[preset], seed=0)


def _engine_command(args: argparse.Namespace, checkpoint: Path, isa: str) -> list[str]:
    command = [sys.executable, "-m", "bench.engine_worker", str(checkpoint), "--isa", isa]
    return [*command, "--threads", str(args.threads), "--kv-dtype", args.kv_dtype]


def _llama_command(args: argparse.Namespace, gguf: Path) -> list[str]:
    worker = [args.peer_python, "-m", "bench.llama_worker", str(gguf)]
    return [*worker, "--threads", str(args.threads)]


def _run(args: argparse.Namespace) -> list[Row]:
    checkpoint = checkpoint_path(args.dir, args.preset)
    gguf: Path = args.gguf or gguf_path(args.dir, args.preset)
    _write_missing(checkpoint, None if args.gguf else gguf, args.preset)
    console = Console(stderr=True)
    with ExitStack() as stack:
        ours = {
            isa: stack.enter_context(Worker(_engine_command(args, checkpoint, isa)))
            for isa in args.isa
        }
        peers: list[Contestant] = []
        if not args.no_llama_cpp:
            peers.append(stack.enter_context(Worker(_llama_command(args, gguf))))
        peers += [LlamaBench(binary, gguf, args.threads) for binary in args.llama_bench]
        progress = stack.enter_context(
            Progress(console=console, transient=True, disable=not console.is_terminal)
        )
        return measure(
            ours,
            peers,
            args.tests,
            repetitions=args.repetitions,
            threads=args.threads,
            progress=progress,
        )


def _workload(text: str) -> Workload:
    try:
        return Workload.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
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
    add("--isa", nargs="+", help="this engine's tiers, in the same run (default: the best)")
    add("--kv-dtype", choices=get_args(KVDtype), default="f16", help="this engine's cache format")
    add("--peer-python", default=sys.executable, help="a Python that has llama-cpp-python")
    add("--no-llama-cpp", action="store_true", help="leave llama-cpp-python out")
    add("--llama-bench", type=Path, action="append", default=[], help="a binary to add; repeatable")
    add("--gguf", type=Path, help="the peers' model (default: a TQ2_0 file of the preset)")
    add("--json", type=Path, metavar="FILE", help="write the rows as JSON, with every sample")
    add("--plot", type=Path, metavar="FILE", help="draw the ratios as .png, .svg or .pdf")
    add("--markdown", action="store_true", help="print a table in Markdown")
    names = TARGETS["avx512"]
    parser.set_defaults(tests=list(map(Workload.parse, names)), isa=[_core.resolve_isa()])
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    before = read_bandwidth(args.threads) / 1e9
    rows = _run(args)
    after = read_bandwidth(args.threads) / 1e9
    caption = (
        f"{args.preset}, {args.threads} threads of {read_host().model}, medians of "
        f"{args.repetitions}, {datetime.now(UTC).date()}, memory read at {before:.0f} GB/s before "
        f"and {after:.0f} after"
    )
    if args.json is not None:
        result = {
            "rows": [asdict(row) for row in rows],
            "read_gigabytes_per_second": [before, after],
        }
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if args.plot is not None:
        save_chart(rows, args.plot, caption)
    print(f"{caption}\n")
    if args.markdown:
        print(to_markdown(rows), end="")
    else:
        Console().print(make_table(rows))


if __name__ == "__main__":
    main()
