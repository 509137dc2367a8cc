"""Serve the same requests at once with this engine and with llama.cpp, in turns.

Traces (`bench.concurrency_traces`): 8 and 32 requests that arrive together, and a long prompt that
arrives while seven sequences decode. This engine answers through `LLM.serve`; llama.cpp through its
C API under llama-server's policy (`bench.llama_slots`), as many slots as requests. Both decode
greedily, pass over end tokens, and run the same shape, each in a process of its own; ratios are
medians of the ratios within repetitions. Missing checkpoints are written first, about 2 GB.

Examples:
  python -m bench.concurrency --peer-python ~/venv-llama/bin/python --markdown
  python -m bench.concurrency --preset small --no-llama-cpp --traces long-prompt --repetitions 1
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress

from bench.concurrency_report import Run, compare, make_table, save_chart, to_markdown
from bench.concurrency_traces import TRACES, WARM_UP
from bench.contest import let_threads_park
from bench.peers import Worker, describe_session, ensure_checkpoint, ensure_gguf
from bench.shapes import PRESETS, default_directory
from ryzanstein import _core
from ryzanstein.bench.plot import check_plot
from ryzanstein.bench.roofline import read_bandwidth

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.concurrency_report import Row
    from bench.concurrency_traces import Request

__all__ = ["main"]


def _replay(worker: Worker, trace: Sequence[Request], seed: str) -> Run:
    let_threads_park()
    return Run(**worker.ask({"trace": [asdict(request) for request in trace], "seed": seed}))


def _workers(args: argparse.Namespace, stack: ExitStack) -> list[Worker]:
    """Return this engine and, unless left out, llama.cpp."""
    checkpoint = ensure_checkpoint(args.dir, args.preset)
    threads = ["--threads", str(args.threads)]
    ours = [str(checkpoint), *threads, "--isa", args.isa]
    workers = [stack.enter_context(Worker(sys.executable, "bench.stream_worker", ours))]
    if not args.no_llama_cpp:
        gguf = ensure_gguf(args.dir, args.preset, "q6_k")
        worker = Worker(args.peer_python, "bench.llama_slots_worker", [str(gguf), *threads])
        workers.append(stack.enter_context(worker))
    return workers


def _measure(args: argparse.Namespace) -> list[Row]:
    rows = []
    console = Console(stderr=True)
    with ExitStack() as stack:
        workers = _workers(args, stack)
        progress = stack.enter_context(
            Progress(console=console, transient=True, disable=not console.is_terminal)
        )
        task = progress.add_task("", total=len(args.traces) * args.repetitions * len(workers))
        for worker in workers:
            _replay(worker, WARM_UP, seed="warm-up")
        for name in args.traces:
            runs: list[list[Run]] = [[] for _ in workers]
            for repetition in range(args.repetitions):
                order = list(zip(workers, runs, strict=True))
                for worker, done in order if repetition % 2 == 0 else order[::-1]:
                    progress.update(task, description=f"{name} {worker.name}")
                    done.append(_replay(worker, TRACES[name], f"{name} {repetition}"))
                    progress.advance(task)
            rows += compare(name, TRACES[name], [worker.name for worker in workers], runs)
    return rows


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.concurrency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    presets = sorted(name for name, shape in PRESETS.items() if shape.architecture == "bitnet")
    add("--preset", choices=presets, default="2b-4t", help="the shape (default: 2b-4t)")
    add("--dir", type=Path, default=default_directory(), help="where the checkpoints lie or go")
    add("--traces", nargs="+", choices=TRACES, default=[*TRACES], help="what to replay")
    add("--threads", type=int, default=os.cpu_count() or 1, help="for both (default: all)")
    add("--repetitions", type=int, default=3, help="runs of each trace (default: 3)")
    add("--isa", default=_core.resolve_isa(), help="this engine's tier (default: the best)")
    add("--peer-python", default=sys.executable, help="a Python that has llama-cpp-python")
    add("--no-llama-cpp", action="store_true", help="run this engine alone")
    add("--json", type=Path, metavar="FILE", help="write the rows as JSON, with every sample")
    add("--plot", type=check_plot, metavar="FILE", help="draw the ratios as .png, .svg or .pdf")
    add("--markdown", action="store_true", help="print tables in Markdown")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    before = read_bandwidth(args.threads)
    rows = _measure(args)
    bandwidths = [before, read_bandwidth(args.threads)]
    caption = describe_session(args.preset, args.threads, args.repetitions, bandwidths)
    if args.json is not None:
        result = {"caption": caption, "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if args.plot is not None and not args.no_llama_cpp:
        save_chart(rows, args.plot, caption)
    print(f"{caption}\n")
    if args.markdown:
        print(to_markdown(rows), end="")
    else:
        Console().print(make_table(rows))


if __name__ == "__main__":
    main()
