"""Show how sparse a model's feed-forwards are while it decodes a text, and what that saves.

Zero gates need no row of up_proj, zero activations no column of down_proj. With --break-even or
--plot it also times, on random weights in the 2B-4T shape, from which density on reading only the
others is no longer faster; nothing else should run meanwhile.

Examples:
  python -m bench.sparsity
  python -m bench.sparsity ./model --text notes.txt --tokens 1000 --json
  python -m bench.sparsity --plot zero-skipping.svg
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

import ryzanstein.llm
from bench.break_even import PRODUCTS, Weights, break_even, measure, save_curves
from ryzanstein import _core
from ryzanstein.bench.plot import check_plot
from ryzanstein.cpu import default_threads, read_host
from ryzanstein.engine.batch import Chunk, run_step
from ryzanstein.errors import ValidationError
from ryzanstein.loaders.hub import resolve_model
from ryzanstein.loaders.model_files import open_files
from ryzanstein.models import load_model
from ryzanstein.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.break_even import Point
    from ryzanstein.models import LoadedModel

__all__ = ["LayerZeros", "decode_text", "layer_zeros"]


@dataclass(frozen=True, slots=True)
class LayerZeros:
    """Shares of a layer's channels that are zero: gates, and activations once quantised."""

    layer: int
    channels: int
    zero_gates: float
    zero_activations: float


def decode_text(directory: Path, text: str, max_tokens: int, threads: int) -> list[LayerZeros]:
    """Return what was zero while the model took a text token by token.

    Raises:
        ValidationError: no tokens, or a model whose feed-forwards make no zeros.
    """
    model = load_model(open_files(directory), threads=threads, isa=None, skip_zeros="down")
    tokens = Tokenizer.from_files(open_files(directory)).encode(text)[:max_tokens]
    if not tokens:
        raise ValidationError("there is no token to decode")
    _decode(model, tokens[: model.config.max_position_embeddings])
    return layer_zeros(model.decoder.channel_counts())


def layer_zeros(counts: Sequence[dict[str, int]]) -> list[LayerZeros]:
    """Return the shares from `Decoder.channel_counts`.

    Raises:
        ValidationError: nothing was counted.
    """
    if not any(layer["steps"] for layer in counts):
        raise ValidationError("no zeros to skip: that takes relu2 and a fused gate and up")
    shares = []
    for index, layer in enumerate(counts):
        total = layer["channels"] * layer["steps"]
        zero_gates = 1 - layer["open_gates"] / total
        shares.append(
            LayerZeros(index, layer["channels"], zero_gates, 1 - layer["nonzero"] / total)
        )
    return shares


def _decode(model: LoadedModel, tokens: Sequence[int]) -> None:
    shape = model.config
    blocks = range(-(-len(tokens) // _core.PAGE_TOKENS))
    sizes = (shape.num_layers, shape.num_kv_heads, shape.head_dim, len(blocks))
    cache = _core.PagedCache(*sizes, "f16")
    for position, token in enumerate(tokens):
        ids, slot = np.full(1, token, np.int32), np.full(1, position, np.int32)
        run_step(model.decoder, cache, [Chunk(ids, position, slot, blocks, num_logit_rows=0)])


def _layer_table(name: str, layers: Sequence[LayerZeros]) -> Table:
    table = Table("layer", "channels", "zero gates", "zero activations", title=name)
    for layer in layers:
        shares = (f"{share:.1%}" for share in (layer.zero_gates, layer.zero_activations))
        table.add_row(str(layer.layer), str(layer.channels), *shares)
    return table


def _curve_table(points: Sequence[Point]) -> Table:
    columns = ("product", "threads", "density", "whole, us", "skipping, us", "ratio")
    table = Table(*columns, title="one feed-forward of 2B-4T")
    for point in points:
        place = (point.product, str(point.threads), f"{point.density:.2f}")
        table.add_row(*place, f"{point.whole:.0f}", f"{point.skipping:.0f}", f"{point.ratio:.3f}")
    return table


def _break_evens(points: Sequence[Point]) -> list[dict[str, Any]]:
    found = []
    for product in PRODUCTS:
        for threads in sorted({point.threads for point in points}):
            curve = [p for p in points if (p.product, p.threads) == (product, threads)]
            found.append({"product": product, "threads": threads, "density": break_even(curve)})
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.sparsity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", nargs="?", help="checkpoint directory (default: the embedded model)")
    own = Path(ryzanstein.llm.__file__)
    add("--text", type=Path, default=own, help="file to decode (default: a source file of ours)")
    add("--tokens", type=int, default=512, help="at most so many of it (default: 512)")
    add("--break-even", action="store_true", help="time skipping over density as well")
    add("--threads", type=int, nargs="+", default=[1, os.cpu_count() or 1], help="to time with")
    add("--plot", metavar="FILE", help="draw these times as .png, .svg or .pdf")
    add("--json", action="store_true", help="print everything as JSON")
    return parser.parse_args()


def main() -> None:
    args = _arguments()
    picture = None if args.plot is None else check_plot(args.plot)
    timed = args.break_even or picture is not None
    if timed and not _core.skips_zeros():
        raise ValidationError("this CPU or tier has no fast kernels that skip zeros")
    directory = resolve_model(args.model)
    text = args.text.read_text(encoding="utf-8")
    layers = decode_text(directory, text, args.tokens, default_threads())
    points: list[Point] = []
    if timed:
        weights = Weights()
        points = [p for threads in sorted(set(args.threads)) for p in measure(weights, threads)]
    if picture is not None:
        save_curves(points, picture, f"feed-forwards of the 2B-4T shape on {read_host().model}")
    if args.json:
        result = {
            "layers": [asdict(layer) for layer in layers],
            "points": [asdict(point) for point in points],
            "break_evens": _break_evens(points),
        }
        print(json.dumps(result, indent=2))
        return
    console = Console()
    console.print(_layer_table(directory.name, layers))
    if points:
        console.print(_curve_table(points))
        for found in _break_evens(points):
            console.print("break-even of {product}, threads {threads}: {density}".format(**found))


if __name__ == "__main__":
    main()
