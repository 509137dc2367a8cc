"""Measure how fast this machine's memory can be read: the ceiling of decoding.

A decoded token reads every weight once, so tokens per second cannot exceed bandwidth over bytes
per token. Each thread searches its own part of a buffer, much larger than any cache, for a byte
that is not there: the C library's memchr reads with the widest loads the CPU has and does next to
nothing else.

Examples:
  python -m bench.roofline
  python -m bench.roofline --threads 1 2 4 --megabytes 4096 --json
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from bench.shapes import PRESETS, Shape

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Reading", "bytes_per_token", "measure"]

_FILL = 1
_ABSENT = 2


@dataclass(frozen=True, slots=True)
class Reading:
    """The best of several passes."""

    threads: int
    huge_pages: bool
    gigabytes_per_second: float


def bytes_per_token(shape: Shape, ternary_bits: float, head_bits: float) -> float:
    """Return the weight bytes that one decoded token reads, at these bits per weight."""
    layer = sum(rows * columns for rows, columns in shape.linears().values())
    body = shape.layers * layer * ternary_bits / 8
    return body + shape.vocab * shape.hidden * head_bits / 8


def measure(threads: int, *, megabytes: int, huge_pages: bool, passes: int = 7) -> Reading:
    """Read a buffer with so many threads and return the best pass.

    Args:
        threads: readers, each with a part of the buffer.
        megabytes: size of the buffer; several times the last-level cache.
        huge_pages: ask the kernel for 2 MiB pages (Linux).
        passes: repetitions.
    """
    size = megabytes << 20
    with mmap.mmap(-1, size) as buffer:
        advice = mmap.MADV_HUGEPAGE if huge_pages else mmap.MADV_NOHUGEPAGE
        buffer.madvise(advice)
        start = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        ctypes.memset(start, _FILL, size)
        begins = [start + index * size // threads for index in range(threads + 1)]
        with ThreadPoolExecutor(threads) as pool:
            best = min(_read(pool, begins) for _ in range(passes))
    return Reading(threads, huge_pages, size / best / 1e9)


def _read(pool: ThreadPoolExecutor, begins: Sequence[int]) -> float:
    memchr = ctypes.CDLL(None).memchr  # releases the GIL while it runs
    memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    memchr.restype = ctypes.c_void_p
    begin = time.perf_counter()
    parts = [pool.submit(memchr, first, _ABSENT, last - first) for first, last in pairwise(begins)]
    found = [part.result() for part in parts]
    seconds = time.perf_counter() - begin
    assert not any(found), "the buffer holds only one value"
    return seconds


def _print_tables(readings: Sequence[Reading]) -> None:
    console = Console()
    table = Table("threads", "pages", "GB/s")
    for reading in readings:
        pages = "2 MiB" if reading.huge_pages else "4 KiB"
        table.add_row(str(reading.threads), pages, f"{reading.gigabytes_per_second:.1f}")
    console.print(table)
    best = max(reading.gigabytes_per_second for reading in readings)
    table = Table("2b-4t read per token", "MB", f"tok/s at {best:.1f} GB/s")
    for label, ternary, head in (
        ("2.0 bits, bfloat16 head", 2.0, 16.0),
        ("2.0 bits, Q6_K head", 2.0, 6.5625),
        ("1.6 bits, int8 head", 1.6, 8.0),
        ("1.6 bits, 4.5-bit head", 1.6, 4.5),
    ):
        size = bytes_per_token(PRESETS["2b-4t"], ternary, head)
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
    parser.add_argument("--megabytes", type=int, default=2048, help="buffer size (default: 2048)")
    parser.add_argument("--json", action="store_true", help="print the readings as JSON")
    return parser.parse_args()


def main() -> None:
    args = _arguments()
    readings = [
        measure(threads, megabytes=args.megabytes, huge_pages=huge)
        for threads in args.threads
        for huge in (False, True)
    ]
    if args.json:
        print(json.dumps([asdict(reading) for reading in readings], indent=2))
    else:
        _print_tables(readings)


if __name__ == "__main__":
    main()
