"""What a run must read and multiply, and how fast this machine does either.

Decoding reads every weight for each token, so memory bounds it; a prompt uses each weight for many
tokens, so the integer multiply-add bounds it. A share of 1 is a run at the limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from ryzanstein import _core
from ryzanstein.cpu import read_host

if TYPE_CHECKING:
    from ryzanstein.bench.runner import Runner
    from ryzanstein.bench.workload import Workload

__all__ = ["Demand", "HeadWork", "Limits", "demand", "measure_limits", "read_bandwidth"]

# Many times the last-level cache of most machines.
_PROBE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """Of so many threads, measured.

    Args:
        bandwidth: bytes read per second.
        multiply_adds: int8 products summed per second; None where the tier has no instruction.
    """

    bandwidth: float
    multiply_adds: float | None

    def mean(self, other: Limits) -> Limits:
        """Return the mean of two measurements of one tier."""
        bandwidth = (self.bandwidth + other.bandwidth) / 2
        if self.multiply_adds is None or other.multiply_adds is None:
            return Limits(bandwidth, None)
        return Limits(bandwidth, (self.multiply_adds + other.multiply_adds) / 2)


@dataclass(frozen=True, slots=True)
class Demand:
    """Of one run: bytes read from memory, and products of the ternary linears."""

    bytes_read: float
    multiply_adds: float


@dataclass(frozen=True, slots=True)
class HeadWork:
    """What the first look at an exact head did not settle.

    Args:
        survivors: logits that took a second look.
        candidates: logits computed exactly.
        fallbacks: logit rows that took the whole head after all.
    """

    survivors: float = 0
    candidates: float = 0
    fallbacks: float = 0


def read_bandwidth(threads: int) -> float:
    """Return bytes per second, from a buffer much larger than the caches."""
    return _core.probe_bandwidth(threads, min(_PROBE_BYTES, read_host().free_bytes // 4))


def measure_limits(isa: str, threads: int) -> Limits:
    """Measure how fast so many threads read memory, and multiply on this tier. Takes a second."""
    return Limits(read_bandwidth(threads), _core.probe_multiply_add(isa, threads))


def _skipped_bytes(decoder: _core.Decoder) -> float:
    """Return the bytes of down_proj that a step of one token passed over, on average so far."""
    counts = decoder.channel_counts()
    channels = sum(layer["channels"] * layer["steps"] for layer in counts)
    zeros = channels - sum(layer["nonzero"] for layer in counts)
    return decoder.weight_bytes()["down_columns"] * zeros / channels if channels else 0.0


def demand(runner: Runner, workload: Workload, head: HeadWork) -> Demand:
    """Return what one run needs at least: weights once per step, keys and values once per sequence.

    Args:
        runner: the model.
        workload: the run.
        head: what a screen did not settle, per run.
    """
    decoder = runner.model.decoder
    weights = decoder.weight_bytes()
    steps = runner.steps(workload)
    ends = accumulate(steps, initial=workload.depth)
    next(ends)
    kv_tokens = sum(ends) * workload.sequences
    heads = workload.generate or 1
    vocab_size = runner.model.config.vocab_size
    return Demand(
        bytes_read=len(steps) * weights["linears"]
        - (steps.count(1) * _skipped_bytes(decoder) if workload.sequences == 1 else 0)
        + heads * (weights["screen"] or weights["head"])
        + head.survivors * weights["screen_rest"] / vocab_size
        + head.candidates * weights["head"] / vocab_size
        + head.fallbacks * weights["head"]
        + kv_tokens * runner.kv_bytes_per_token,
        multiply_adds=workload.tokens * decoder.multiplications_per_token,
    )
