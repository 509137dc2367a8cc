"""Draw the training curves of the two twins into one small PNG."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt


def read_log(path: Path) -> list[dict[str, float]]:
    """The log lines of train.py, the last line of each step."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return list({entry["step"]: entry for entry in entries}.values())


def draw(logs: dict[str, Path], out: Path) -> None:
    """Loss in bits per token over tokens seen: solid held-out, dashed training."""
    figure, axes = plt.subplots(figsize=(6.4, 4), dpi=100)
    for name, path in logs.items():
        entries = read_log(path)
        tokens = [e["tokens"] / 1e6 for e in entries]
        held_out = [e["held_out"] / math.log(2) for e in entries]
        (line,) = axes.plot(tokens, held_out, label=f"{name}, held-out")
        train = [e["train"] / math.log(2) for e in entries]
        axes.plot(tokens, train, "--", color=line.get_color(), label=f"{name}, training")
    axes.set_xlabel("tokens seen, millions")
    axes.set_ylabel("bits per token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(out)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="draw the curves of the two training logs")
    parser.add_argument("--ternary", type=Path, required=True, help=".jsonl beside a checkpoint")
    parser.add_argument("--float", type=Path, required=True, help="the float twin's .jsonl")
    parser.add_argument("--out", type=Path, default=Path("training/curves.png"), help="PNG file")
    args = parser.parse_args(argv)
    draw({"ternary": args.ternary, "float twin": args.float}, args.out)


if __name__ == "__main__":
    main()
