"""Time this engine and its peers on the same shape, paired run by run in one session.

Machines are shared and drift, so figures of different days do not compare. Here every repetition
times each engine once, in alternating order; a ratio is the median of the ratios within
repetitions. The memory's read bandwidth, which bounds decoding, is measured before and after. Each
engine has a process of its own, in which nothing is timed but the steps, as in llama-bench. Missing
checkpoints are written first: about 2 GB for 2b-4t; for gemma-2b 5 GB, and 1.5 GB for each head of
the peers.

Examples:
  python -m bench.peers --peer-python ~/venv-llama/bin/python
  python -m bench.peers --tests pp512 tg64 tg64@d2048 tg64xb8 --threads 1 --repetitions 7
  python -m bench.peers --llama-bench ~/ik_llama.cpp/bin/llama-bench --gguf ~/2b-iq2_bn.gguf
  python -m bench.peers --preset gemma-2b --weights int4 --lm-head int4 exact --peer-head q4_0 q6_k
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
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rich.console import Console
from rich.progress import Progress

from bench.contest import measure
from bench.contest_report import TARGETS, make_table, save_chart, to_markdown
from bench.gguf_writer import write_gguf
from bench.llama_bench import LlamaBench
from bench.shapes import PRESETS, PeerHead, checkpoint_path, default_directory, gguf_path
from bench.synthetic import write_checkpoint
from ryzanstein import _core
from ryzanstein.bench.roofline import read_bandwidth
from ryzanstein.bench.workload import Workload
from ryzanstein.config import HeadKind, KVDtype, WeightKind
from ryzanstein.cpu import read_host

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from bench.contest import Contestant, Row
    from bench.contest_report import Targets

__all__ = ["Worker", "describe_session", "ensure_checkpoint", "ensure_gguf", "main"]

_ROOT = Path(__file__).resolve().parents[1]
# The checkout comes last on the path, so that its `ryzanstein`, which has no compiled module, does
# not shadow an installed one.
_START = """
import runpy, sys
root, module = sys.argv[1:3]
del sys.argv[1:3]
sys.path.append(root)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


class Worker:
    """A process that runs a module of this checkout and answers as `bench.worker` says."""

    def __init__(self, python: str, module: str, arguments: Sequence[str]) -> None:
        self._command = [python, "-m", module, *arguments]
        self._process = subprocess.Popen(
            [python, "-P", "-c", _START, str(_ROOT), module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self.name = str(self._answer()["engine"])
        except BaseException:
            self._process.kill()
            self._process.communicate()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()  # closes its input, which ends it, and waits

    def seconds(self, workload: Workload) -> float | None:
        """Return how long the workload took."""
        return float(self.ask(asdict(workload))["seconds"])

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """Return what the module answers to a job."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise SystemExit(f"{' '.join(self._command)}: stopped with status {status}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def ensure_checkpoint(directory: Path, preset: str) -> Path:
    """Return this engine's checkpoint, which is written if it is missing."""
    path = checkpoint_path(directory, preset)
    if not (path / "config.json").exists():
        write_checkpoint(path, PRESETS[preset], seed=0, shard_bytes=5_000_000_000)
    return path


def ensure_gguf(directory: Path, preset: str, head: PeerHead) -> Path:
    """Return a peer's model, which is written if it is missing."""
    path = gguf_path(directory, preset, head)
    if not path.exists():
        write_gguf(path, PRESETS[preset], seed=0, head=head)
    return path


def describe_session(preset: str, threads: int, repetitions: int, bandwidths: list[float]) -> str:
    """Return what was run where, given what the memory read in bytes/s before and after."""
    before, after = (bandwidth / 1e9 for bandwidth in bandwidths)
    return (
        f"{preset}, {threads} threads of {read_host().model}, medians of {repetitions}, "
        f"{datetime.now(UTC).date()}, memory read at {before:.0f} GB/s before and {after:.0f} after"
    )


def _ggufs(args: argparse.Namespace) -> list[Path]:
    """Return the peers' models; those of the preset are written if they are missing."""
    if args.gguf is not None:
        return [args.gguf]
    if args.no_llama_cpp and not args.llama_bench:
        return []
    return [ensure_gguf(args.dir, args.preset, head) for head in args.peer_head]


def _variants(args: argparse.Namespace) -> dict[str, tuple[str, HeadKind]]:
    """Return tier and head of each variant of this engine, by what its column is called."""
    one_head = len(args.lm_head) == 1
    return {
        isa if one_head else f"{isa}, {head} head": (isa, head)
        for isa, head in product(args.isa, args.lm_head)
    }


def _targets(args: argparse.Namespace) -> Targets:
    tiers = TARGETS.get(args.preset, {})
    return {name: tiers.get(isa, {}) for name, (isa, _) in _variants(args).items()}


def _engine(args: argparse.Namespace, checkpoint: Path, isa: str, head: HeadKind) -> Worker:
    formats = ["--weights", args.weights, "--lm-head", head, "--kv-dtype", args.kv_dtype]
    options = ["--isa", isa, "--threads", str(args.threads), *formats]
    return Worker(sys.executable, "bench.engine_worker", [str(checkpoint), *options])


def _llama(args: argparse.Namespace, gguf: Path) -> Worker:
    options = ["--threads", str(args.threads)]
    return Worker(args.peer_python, "bench.llama_worker", [str(gguf), *options])


def _run(args: argparse.Namespace) -> list[Row]:
    checkpoint = ensure_checkpoint(args.dir, args.preset)
    ggufs = _ggufs(args)
    console = Console(stderr=True)
    with ExitStack() as stack:
        ours = {
            name: stack.enter_context(_engine(args, checkpoint, isa, head))
            for name, (isa, head) in _variants(args).items()
        }
        peers: list[Contestant] = []
        for gguf in ggufs:
            if not args.no_llama_cpp:
                peers.append(stack.enter_context(_llama(args, gguf)))
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
    add("--weights", choices=get_args(WeightKind), default="auto", help="this engine's linears")
    heads = get_args(HeadKind)
    add("--lm-head", nargs="+", choices=heads, default=["exact"], help="its heads, in the same run")
    add("--kv-dtype", choices=get_args(KVDtype), default="f16", help="this engine's cache format")
    add("--peer-python", default=sys.executable, help="a Python that has llama-cpp-python")
    add("--no-llama-cpp", action="store_true", help="leave llama-cpp-python out")
    add("--llama-bench", type=Path, action="append", default=[], help="a binary to add; repeatable")
    model = parser.add_mutually_exclusive_group()
    of_preset = "heads of the peers' TQ2_0 or Q4_0 models (default: q6_k)"
    peer_heads = get_args(PeerHead)
    model.add_argument(
        "--peer-head", nargs="+", choices=peer_heads, default=["q6_k"], help=of_preset
    )
    model.add_argument("--gguf", type=Path, help="the peers' model instead of the preset's")
    add("--json", type=Path, metavar="FILE", help="write the rows as JSON, with every sample")
    add("--plot", type=Path, metavar="FILE", help="draw the ratios as .png, .svg or .pdf")
    add("--markdown", action="store_true", help="print a table in Markdown")
    parser.set_defaults(isa=[_core.resolve_isa()])
    args = parser.parse_args(argv)
    if args.tests is None:
        args.tests = [
            Workload.parse(name) for name in TARGETS.get(args.preset, TARGETS["2b-4t"])["avx512"]
        ]
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    before = read_bandwidth(args.threads)
    rows = _run(args)
    bandwidths = [before, read_bandwidth(args.threads)]
    caption = describe_session(args.preset, args.threads, args.repetitions, bandwidths)
    if args.json is not None:
        result = {
            "rows": [asdict(row) for row in rows],
            "read_gigabytes_per_second": [bandwidth / 1e9 for bandwidth in bandwidths],
        }
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if args.plot is not None:
        save_chart(rows, args.plot, caption, _targets(args))
    print(f"{caption}\n")
    if args.markdown:
        print(to_markdown(rows), end="")
    else:
        Console().print(make_table(rows))


if __name__ == "__main__":
    main()
