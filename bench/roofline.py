"""Show this machine's limits, and what they allow on the 2B-4T shape.

A decoded token reads every weight once, so tokens per second cannot exceed the read bandwidth over
the bytes per token; a prompt's token multiplies every weight once.

Examples:
  python -m bench.roofline
  python -m bench.roofline --threads 1 2 4 --json
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from bench.shapes import PRESETS, Shape
from ryzanstein import _core
from ryzanstein.bench.roofline import read_bandwidth

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Reading", "bytes_per_token"]


@dataclass(frozen=True, slots=True)
class Reading:
    """The limits of so many threads; products per second by tier, where it can multiply bytes."""

    threads: int
    gigabytes_per_second: float
    giga_multiply_adds_per_second: dict[str, float]


def bytes_per_token(shape: Shape, ternary_bits: float, head_bits: float) -> float:
    """Return the weight bytes that one decoded token reads, at these bits per weight."""
    return (_ternary_weights(shape) * ternary_bits + shape.vocab * shape.hidden * head_bits) / 8


def _ternary_weights(shape: Shape) -> int:
    return shape.layers * sum(rows * columns for rows, columns in shape.linears().values())


def _measure(threads: int) -> Reading:
    rates = {isa: _core.probe_multiply_add(isa, threads) for isa in _core.available_isas()}
    products = {isa: rate / 1e9 for isa, rate in rates.items() if rate is not None}
    return Reading(threads, read_bandwidth(threads) / 1e9, products)


def _print_tables(readings: Sequence[Reading]) -> None:
    console = Console()
    shape = PRESETS["2b-4t"]
    tiers = list(readings[0].giga_multiply_adds_per_second)
    columns = [f"{tier}, {what}" for tier in tiers for what in ("GMAC/s", "prefill tok/s")]
    table = Table("threads", "read, GB/s", *columns)
    for reading in readings:
        cells = [str(reading.threads), f"{reading.gigabytes_per_second:.1f}"]
        for rate in reading.giga_multiply_adds_per_second.values():
            cells += [f"{rate:.0f}", f"{rate * 1e9 / _ternary_weights(shape):.0f}"]
        table.add_row(*cells)
    console.print(table)
    best = max(reading.gigabytes_per_second for reading in readings)
    table = Table("2b-4t read per token", "MB", f"decode tok/s at {best:.1f} GB/s")
    for label, ternary, head in (
        ("2.0 bits, bfloat16 head", 2.0, 16.0),
        ("2.0 bits, Q6_K head", 2.0, 6.5625),
        ("1.6 bits, int8 head", 1.6, 8.0),
        ("1.6 bits, 4.5-bit head", 1.6, 4.5),
    ):
        size = bytes_per_token(shape, ternary, head)
        table.add_row(label, f"{size / 1e6:.0f}", f"{best * 1e9 / size:.0f}")
    console.print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.roofline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    every = list(range(1, (os.cpu_count() or 1) + 1))
    parser.add_argument("--threads", type=int, nargs="+", default=every, help="(default: 1 to all)")
    parser.add_argument("--json", action="store_true", help="print the readings as JSON")
    return parser.parse_args()


def main() -> None:
    args = _arguments()
    readings = [_measure(threads) for threads in args.threads]
    if args.json:
        print(json.dumps([asdict(reading) for reading in readings], indent=2))
    else:
        _print_tables(readings)


if __name__ == "__main__":
    main()
