"""Take every figure and draw every plot of docs/benchmarks.md, in one go.

The tables are printed as Markdown; the plots go to a folder. What it does not know itself is passed
on to `bench.peers`. With two peers' builds beside llama-cpp-python it takes about a quarter of an
hour; nothing else should run meanwhile.

Example:
  python -m bench.report --plots docs/plots --dir ~/models --isa avx512 avx2 \\
      --llama-bench ~/llama-avx2/bin/llama-bench --llama-bench ~/llama-avx512/bin/llama-bench
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from bench import peers
from bench.shapes import checkpoint_path, default_directory
from ryzanstein import cli

_PRESET = "2b-4t"
# Plot -> options of `ryzanstein bench`.
_SWEEPS = {
    "threads": ["-p", "512", "-n", "64", "-t", f"1-{os.cpu_count() or 1}"],
    "depth": ["-p", "0", "-n", "32", "-d", "0,1024,2048,4096,8192"],
    "batch": ["-p", "0", "-n", "32", "-b", "1,2,4,8,12,16"],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--plots", type=Path, required=True, help="the folder, which must exist")
    parser.add_argument("--dir", type=Path, default=default_directory(), help="as of bench.peers")
    args, rest = parser.parse_known_args()
    chart = ["--markdown", "--plot", str(args.plots / "peers.svg")]
    peers.main(["--preset", _PRESET, "--dir", str(args.dir), *chart, *rest])
    model = str(checkpoint_path(args.dir, _PRESET))
    for name, options in _SWEEPS.items():
        print(f"\nryzanstein bench {_PRESET} {' '.join(options)}", flush=True)
        plot = ["--md", "--plot", str(args.plots / f"{name}.svg")]
        status = cli.main(["bench", model, *options, *plot])
        if status != 0:
            raise SystemExit(status)


if __name__ == "__main__":
    main()
