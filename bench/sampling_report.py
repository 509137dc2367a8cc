"""Print the times of bench_sampling.py as the table of docs/benchmarks.md, in Markdown.

Example:
  for isa in avx512 avx2; do
    RYZANSTEIN_ISA=$isa python -m pytest bench/bench_sampling.py --benchmark-json=$isa.json
  done
  python -m bench.sampling_report avx512.json avx2.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.contest_report import markdown_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main", "to_markdown"]


def to_markdown(reports: Sequence[dict[str, Any]]) -> str:
    """Return a row per chain, and per report and kind of logits median and 99th percentile in us.

    Args:
        reports: of pytest-benchmark, one per tier.
    """
    cells: dict[str, dict[str, str]] = {}
    for report in reports:
        for bench in report["benchmarks"]:
            info = bench["extra_info"]
            if "chain" in info:
                times = f"{bench['stats']['median'] * 1e6:.0f} / {info['p99_us']:.0f}"
                cells.setdefault(info["chain"], {})[f"{info['isa']} {info['row']}"] = times
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    lines = [[chain, *(row[column] for column in columns)] for chain, row in cells.items()]
    return markdown_of(["chain", *columns], lines, names=1)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.sampling_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("reports", type=Path, nargs="+", help="files of --benchmark-json")
    args = parser.parse_args(argv)
    print(to_markdown([json.loads(path.read_text()) for path in args.reports]), end="")


if __name__ == "__main__":
    main()
