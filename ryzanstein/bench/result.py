"""One test's result: the row that every report and file is made of."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ryzanstein import _core
from ryzanstein.bench.roofline import HeadWork, demand, measure_limits
from ryzanstein.cpu import read_host
from ryzanstein.models import num_parameters

if TYPE_CHECKING:
    from collections.abc import Callable

    from ryzanstein.bench.roofline import Limits
    from ryzanstein.bench.runner import Runner
    from ryzanstein.bench.workload import Workload

__all__ = ["Row", "measure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A test's speed, what ran it, and how near the machine's limits it came.

    Args:
        test: as `pp512`, `tg64`, `tg64@d2048` or `tg64xb8`.
        n_prompt: prompt tokens per sequence, or 0.
        n_gen: tokens decoded per sequence, or 0.
        depth: tokens in the cache before.
        n_seqs: sequences at once.
        tokens_per_second: mean over the repetitions, all sequences together.
        stddev: their standard deviation.
        median: their median.
        samples: one figure per repetition.
        n_threads: threads that computed.
        isa: instruction-set tier.
        kernels: op -> the weight format and instructions it rests on.
        kv_dtype: how keys and values are stored.
        lm_head: how logits are computed.
        weights: how linears are held, as asked.
        model: as given on the command line.
        model_bytes: of its tensors, on disk.
        num_parameters: of the model.
        version: of ryzanstein.
        commit: it was built from.
        cpu: its name.
        time: when the test began, UTC.
        bytes_per_token: weights, head, keys and values read for each token.
        bandwidth: bytes per second that this memory could be read at: the mean of a reading just
            before the runs and one just after, because shared machines drift.
        bandwidth_share: bytes per token, times median tokens per second, over bandwidth.
        multiply_adds_per_token: products of the ternary linears.
        multiply_adds: products per second that this tier can sum, measured likewise.
        multiply_add_share: the same of the products.
        head_fallbacks: share of screened logit rows that took the whole head after all.
    """

    test: str
    n_prompt: int
    n_gen: int
    depth: int
    n_seqs: int
    tokens_per_second: float
    stddev: float
    median: float
    samples: tuple[float, ...]
    n_threads: int
    isa: str
    kernels: dict[str, str]
    kv_dtype: str
    lm_head: str
    weights: str
    model: str
    model_bytes: int
    num_parameters: int
    version: str
    commit: str
    cpu: str
    time: str
    bytes_per_token: float
    bandwidth: float
    bandwidth_share: float
    multiply_adds_per_token: float
    multiply_adds: float | None
    multiply_add_share: float | None
    head_fallbacks: float

    @property
    def limit(self) -> tuple[str, float]:
        """Return the limit that the test came nearest to, and its share of it."""
        if self.multiply_add_share is None or self.bandwidth_share >= self.multiply_add_share:
            return "memory", self.bandwidth_share
        return "multiply-add", self.multiply_add_share


def measure(
    runner: Runner,
    workload: Workload,
    repetitions: int,
    *,
    weights: str,
    model: str,
    model_bytes: int,
    advance: Callable[[], object] = lambda: None,
) -> Row:
    """Time a workload and set it against the machine's limits, measured before and after.

    Args:
        runner: the model.
        workload: what to time.
        repetitions: runs that count.
        weights: how its linears are held, as asked.
        model: what to call it.
        model_bytes: of its tensors.
        advance: called after each run, the warm-up included.

    Raises:
        OutOfMemoryError: keys and values of that many tokens do not fit.
    """
    decoder = runner.model.decoder
    began = datetime.now(UTC).isoformat(timespec="seconds")
    runner.prepare(workload)  # before the limits: filling a deep cache takes a while
    limits = measure_limits(decoder.isa, decoder.threads)
    before = decoder.head_counters()
    seconds = runner.time(workload, repetitions, advance)
    limits = limits.mean(measure_limits(decoder.isa, decoder.threads))
    head = {name: count - before[name] for name, count in decoder.head_counters().items()}
    rates = [workload.tokens / each for each in seconds]
    build = _core.build_info()
    return Row(
        test=workload.name,
        n_prompt=workload.prompt,
        n_gen=workload.generate,
        depth=workload.depth,
        n_seqs=workload.sequences,
        tokens_per_second=statistics.mean(rates),
        stddev=statistics.stdev(rates) if len(rates) > 1 else 0.0,
        median=statistics.median(rates),
        samples=tuple(rates),
        n_threads=decoder.threads,
        isa=decoder.isa,
        kernels=_core.kernels(decoder.isa),
        kv_dtype=runner.kv_dtype,
        lm_head=runner.model.decoder.head_kind,
        weights=weights,
        model=model,
        model_bytes=model_bytes,
        num_parameters=num_parameters(runner.model.config),
        version=str(build["version"]),
        commit=str(build["commit"]),
        cpu=read_host().model,
        time=began,
        **_shares(runner, workload, limits, head, statistics.median(rates)),
    )


def _shares(
    runner: Runner, workload: Workload, limits: Limits, head: dict[str, int], rate: float
) -> dict[str, Any]:
    """Return the fields of a row about its limits; `head` counts rows over all runs."""
    fallbacks, screened = head["fallback_rows"], head["screened_rows"]
    rows = workload.sequences * (workload.generate or 1)
    runs = max(1, (fallbacks + screened + head["full_rows"]) // rows)
    work = HeadWork(head["survivors"] / runs, head["candidates"] / runs, fallbacks / runs)
    needs = demand(runner, workload, work)
    bytes_per_token = needs.bytes_read / workload.tokens
    products, peak = needs.multiply_adds / workload.tokens, limits.multiply_adds
    return {
        "bytes_per_token": bytes_per_token,
        "bandwidth": limits.bandwidth,
        "bandwidth_share": bytes_per_token * rate / limits.bandwidth,
        "multiply_adds_per_token": products,
        "multiply_adds": peak,
        "multiply_add_share": None if peak is None else products * rate / peak,
        "head_fallbacks": fallbacks / max(1, fallbacks + screened),
    }
