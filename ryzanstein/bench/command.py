"""The `ryzanstein bench` command."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ryzanstein import _core
from ryzanstein.bench.plot import check_plot, save_plot
from ryzanstein.bench.ranges import parse_numbers
from ryzanstein.bench.report import FORMATS, describe, make_table
from ryzanstein.bench.result import measure
from ryzanstein.bench.runner import Runner
from ryzanstein.bench.store import append_rows
from ryzanstein.bench.workload import Workload
from ryzanstein.config import check_integer, check_kv_dtype, check_lm_head, check_weights
from ryzanstein.cpu import check_threads, default_threads
from ryzanstein.errors import ValidationError
from ryzanstein.loaders.hub import resolve_model
from ryzanstein.loaders.model_files import open_files
from ryzanstein.loaders.weight_cache import default_weight_cache
from ryzanstein.models import inspect_tensors, load_model, read_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ryzanstein.bench.result import Row
    from ryzanstein.config import HeadKind, KVDtype, WeightKind
    from ryzanstein.loaders.weight_cache import WeightCache

__all__ = ["bench"]

_EMBEDDED = "the embedded model"


_Model = Annotated[
    str | None, typer.Argument(help="Directory or hub id (default: the embedded model).")
]
_Prompt = Annotated[
    str, typer.Option("--prompt", "-p", metavar="LIST", help="Prompt sizes; 0 for none.")
]
_Generate = Annotated[
    str, typer.Option("--generate", "-n", metavar="LIST", help="Tokens to decode; 0 for none.")
]
_Depth = Annotated[
    str, typer.Option("--depth", "-d", metavar="LIST", help="Tokens in the cache beforehand.")
]
_Batch = Annotated[
    str, typer.Option("--batch", "-b", metavar="LIST", help="Sequences decoded at once.")
]
_Threads = Annotated[
    str | None, typer.Option("--threads", "-t", metavar="LIST", help="Threads to compute with.")
]
_Repetitions = Annotated[
    int, typer.Option("--repetitions", "-r", help="Runs of each test, behind one warm-up.")
]
_KVDtype = Annotated[str, typer.Option(help="Storage of keys and values: f16, f32 or int8.")]
_LmHead = Annotated[str, typer.Option(help="Logits: exact, int8, int7, int5, int4 or dense.")]
_Weights = Annotated[
    str, typer.Option(help="Linears: auto (as stored), bf16, int8, int4 or ternary.")
]
_Isa = Annotated[str | None, typer.Option(help="Instruction set: scalar, avx2 or avx512.")]
_WeightCache = Annotated[
    bool,
    typer.Option(help="Keep the packed weights of a large model, to load it faster next time."),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Csv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
_Markdown = Annotated[bool, typer.Option("--md", help="Print Markdown, as when piped.")]
_Sqlite = Annotated[
    str | None, typer.Option(metavar="FILE", help="Append the rows to its table `bench`.")
]
_Plot = Annotated[
    str | None, typer.Option(metavar="FILE", help="Draw the sweeps as .png, .svg or .pdf.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What to run, checked before the weights are read."""

    model: str | None
    workloads: list[Workload]
    threads: list[int]
    repetitions: int
    kv_dtype: KVDtype
    lm_head: HeadKind
    weights: WeightKind
    isa: str
    weight_cache: WeightCache | None

    def __post_init__(self) -> None:
        check_kv_dtype(self.kv_dtype)
        check_lm_head(self.lm_head)
        check_weights(self.weights)

    @property
    def num_runs(self) -> int:
        return len(self.threads) * len(self.workloads) * (self.repetitions + 1)


def bench(
    model: _Model = None,
    prompt: _Prompt = "512",
    generate: _Generate = "64",
    depth: _Depth = "0",
    batch: _Batch = "1",
    threads: _Threads = None,
    repetitions: _Repetitions = 5,
    kv_dtype: _KVDtype = "f16",
    lm_head: _LmHead = "exact",
    weights: _Weights = "auto",
    isa: _Isa = None,
    weight_cache: _WeightCache = True,
    as_json: _Json = False,
    as_csv: _Csv = False,
    as_md: _Markdown = False,
    sqlite: _Sqlite = None,
    plot: _Plot = None,
) -> None:
    """Time a model on this machine, in the manner of llama-bench.

    pp512 is a prompt of 512 tokens, tg64 decodes 64; tg64@d2048 does so behind 2048 tokens of
    context, tg64xb8 in 8 sequences at once (prompts run one at a time). A LIST holds numbers and
    ranges, such as 512 or 1,2,4 or 1-4 or 128-1024*2 or 0-2048+512; every combination is a test.

    As in llama-bench, tokens are random, and tokenising and drawing them is not timed. Logits are
    computed as greedy decoding needs them: of a large exact head, only rows that can be the
    highest are computed from its own weights, which gives the same token.

    The limit is what this memory and these cores can do, measured around each test: bytes read per
    token (packed weights, head, keys and values) against the read bandwidth, products per token
    against the integer multiply-add. The nearer one is shown. A model that fits in the caches may
    exceed the memory's.

    \b
    Examples:
      ryzanstein bench
      ryzanstein bench ./model -d 0,2048 -b 1,8
      ryzanstein bench ./model -t 1-8 --plot threads.png
      ryzanstein bench ./model -p 0 -d 0-4096+1024 --json > depth.json
      ryzanstein bench ./model --sqlite bench.db
    """
    counts = [default_threads()] if threads is None else parse_numbers("-t", threads, 1)
    plan = _Plan(
        model=model,
        workloads=_workloads(prompt, generate, depth, batch),
        threads=[check_threads(count, "-t") for count in counts],
        repetitions=check_integer("-r", repetitions, 1),
        kv_dtype=cast("KVDtype", kv_dtype),
        lm_head=cast("HeadKind", lm_head),
        weights=cast("WeightKind", weights),
        isa=_core.resolve_isa(isa),
        weight_cache=default_weight_cache() if weight_cache else None,
    )
    chosen = _format({"json": as_json, "csv": as_csv, "md": as_md})
    picture = None if plot is None else check_plot(plot)
    rows = list(_run(plan) if sqlite is None else _kept(plan, Path(sqlite)))
    _print(rows, chosen)
    if picture is not None:
        save_plot(rows, picture)


def _kept(plan: _Plan, path: Path) -> Iterator[Row]:
    append_rows(path, [])  # refused before the first test, if at all
    for row in _run(plan):
        append_rows(path, [row])
        yield row


def _workloads(prompt: str, generate: str, depth: str, batch: str) -> list[Workload]:
    depths = parse_numbers("-d", depth, 0)
    sequences = parse_numbers("-b", batch, 1)
    prompts = [n for n in parse_numbers("-p", prompt, 0) if n]
    counts = [n for n in parse_numbers("-n", generate, 0) if n]
    workloads = [Workload(n, 0, d) for d in depths for n in prompts]
    workloads += [Workload(0, n, d, s) for d in depths for s in sequences for n in counts]
    if not workloads:
        raise ValidationError("nothing to time: give -p or -n a number above 0")
    return workloads


def _format(wanted: dict[str, bool]) -> str | None:
    names = [name for name, is_wanted in wanted.items() if is_wanted]
    if len(names) > 1:
        raise ValidationError(f"choose one of {' and '.join('--' + name for name in names)}")
    if names:
        return names[0]
    return None if sys.stdout.isatty() else "md"


def _run(plan: _Plan) -> Iterator[Row]:
    files = open_files(resolve_model(plan.model))
    trained = read_config(files).max_position_embeddings
    for workload in plan.workloads:
        if workload.length > trained:
            raise ValidationError(
                f"{workload.name} ends at {workload.length} tokens, but the model was trained for "
                f"{trained}; choose smaller -p, -n or -d"
            )
    model_bytes = sum(tensor.nbytes for tensor in inspect_tensors(files))
    for index, threads in enumerate(plan.threads):
        loaded = load_model(
            files,
            threads=threads,
            isa=plan.isa,
            weight_cache=plan.weight_cache,
            lm_head=plan.lm_head,
            weights=plan.weights,
            progress=sys.stderr.isatty(),
        )
        runner = Runner(loaded, plan.kv_dtype)
        with _progress(plan, index) as (describe, advance):
            for workload in plan.workloads:
                describe(f"{workload.name}, {threads} threads")
                yield measure(
                    runner,
                    workload,
                    plan.repetitions,
                    weights=plan.weights,
                    model=plan.model or _EMBEDDED,
                    model_bytes=model_bytes,
                    advance=advance,
                )
        del loaded, runner  # before the next model is read


@contextmanager
def _progress(
    plan: _Plan, index: int
) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """Yield functions that name the test and move the bar by one run; no bar off a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None, lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        done = index * plan.num_runs // len(plan.threads)
        task = bar.add_task("", total=plan.num_runs, completed=done)
        yield lambda text: bar.update(task, description=text), lambda: bar.advance(task)


def _print(rows: list[Row], chosen: str | None) -> None:
    if chosen is not None:
        typer.echo(FORMATS[chosen](rows), nl=False)
        return
    from rich.console import Console

    typer.echo(describe(rows[0]))
    Console().print(make_table(rows))
