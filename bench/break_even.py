"""What skipping zeros saves of a decoded token's feed-forwards, over their density.

Times a decoder that skips and one that does not, on the same weights: 30 feed-forwards of the
2B-4T shape, 318 MB, hardly any attention and no head. The weights are made so that each of 21
tokens opens another share of the gates, with an activation that is not zero behind every open gate.
The decoder reads a whole matrix above the break-evens set in csrc/model/step_worker.cpp; to see the
curve beyond them, raise them there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from bench.shapes import PRESETS, Shape
from ryzanstein import _core
from ryzanstein.engine.batch import Chunk, run_step
from ryzanstein.tuning import format_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from ryzanstein._core import I8Array

__all__ = ["PRODUCTS", "Point", "Product", "Weights", "break_even", "measure", "save_curves"]

Product: TypeAlias = Literal["down", "up"]

PRODUCTS: tuple[Product, ...] = ("down", "up")
_SHAPE = PRESETS["2b-4t"]
_GROUPS = 20
_HEAD_DIM = 64
_REPETITIONS = 25


@dataclass(frozen=True, slots=True)
class Point:
    """Microseconds of a layer with zeros of one product skipped, by so many threads.

    density: share of the channels that are open. whole: without skipping. ratio: of neighbouring
    steps. All are medians.
    """

    product: Product
    threads: int
    density: float
    whole: float
    skipping: float
    ratio: float


class Weights:
    """Feed-forwards whose density the token sets: token t opens t of 20 groups of channels.

    Hidden states are +1 in the groups that are open and -1 in the others, and stay so: what the
    layers add is zero. Gate and up rows add up the elements of their channel's group.
    """

    def __init__(self, shape: Shape = _SHAPE) -> None:
        self.shape = shape
        # A layer's channels are shuffled, so that records read and left out lie among one another.
        group_of = np.arange(shape.hidden) * _GROUPS // shape.hidden
        open_below = np.arange(_GROUPS + 1)[:, None]
        self._embedding = np.where(group_of < open_below, 1, -1).astype(np.float32)
        rows = (group_of == np.arange(_GROUPS)[:, None]).astype(np.int8)
        self._layers = [self._layer(seed, rows) for seed in range(shape.layers)]

    def decoder(self, product: Product | None, threads: int) -> _core.Decoder:
        """Return a decoder that skips zeros of this product."""
        shape = self.shape
        config = _core.DecoderConfig(
            hidden_size=shape.hidden,
            num_heads=1,
            num_kv_heads=1,
            head_dim=_HEAD_DIM,
            intermediate_size=shape.ffn,
            vocab_size=_GROUPS + 1,
            rms_norm_eps=shape.rms_eps,
            activation="relu2",
            inv_freq=np.ones((1, 1, _HEAD_DIM // 2)),
        )
        layers = [self._with_copy(parts, product) for parts in self._layers]
        ones = np.ones(shape.hidden, np.float32)
        return _core.Decoder(config, layers, self._embedding, ones, threads=threads)

    def _layer(self, seed: int, group_rows: I8Array) -> tuple[_core.TernaryMatrix, ...]:
        shape = self.shape
        rng = np.random.default_rng(seed)
        gate = group_rows[rng.permutation(shape.ffn) * _GROUPS // shape.ffn]
        down = rng.integers(-1, 2, (shape.hidden, shape.ffn), dtype=np.int8)
        return (
            _packed(np.zeros((3 * _HEAD_DIM, shape.hidden), np.int8), 0.0),
            _packed(np.zeros((shape.hidden, _HEAD_DIM), np.int8), 0.0),
            _packed(np.concatenate([gate, gate]), 1.0),
            _packed(down, 0.0),
        )

    def _with_copy(
        self, parts: tuple[_core.TernaryMatrix, ...], product: Product | None
    ) -> _core.LayerWeights:
        attn_in, o_proj, gate_up, down = parts
        width, ones = self.shape.ffn, np.ones(self.shape.hidden, np.float32)
        copies: dict[str, Any] = {}
        if product == "up":
            copies["up_rows"] = _core.TernaryRows.of_rows(gate_up, width, 2 * width)
        if product == "down":
            copies["down_columns"] = _core.TernaryRows.of_columns(down)
        return _core.LayerWeights(
            input_norm=ones,
            attn_in=[_core.Linear(attn_in)],
            o_proj=_core.Linear(o_proj),
            ffn_norm=ones,
            mlp_in=[_core.Linear(gate_up)],
            down_proj=_core.Linear(down),
            **copies,
        )


def _packed(codes: I8Array, scale: float) -> _core.TernaryMatrix:
    rows, columns = codes.shape
    matrix = _core.TernaryMatrix(rows, columns, format_of(_core.ternary_kernels()[0]))
    matrix.pack_codes(0, codes, np.full(rows, scale, np.float32))
    return matrix


def measure(weights: Weights, threads: int) -> list[Point]:
    """Return a point for each product and density, in that order.

    Steps of the decoders alternate, so that each finds in the caches what another one left, and
    every repetition passes through all densities, so that no noise falls on a few of them.
    """
    steps = [_stepper(weights, product, threads) for product in (None, *PRODUCTS)]
    seconds = np.empty((_REPETITIONS + 1, _GROUPS + 1, len(steps)))
    for repetition, token in np.ndindex(seconds.shape[:2]):
        for place, step in enumerate(steps):
            begin = time.perf_counter()
            step(token)
            seconds[repetition, token, place] = time.perf_counter() - begin
    layer = 1e6 / weights.shape.layers * seconds[1:]  # the first repetition is a warm-up
    ratios = np.median(layer / layer[:, :, :1], axis=0)
    medians = np.median(layer, axis=0)
    return [
        Point(product, threads, token / _GROUPS, *map(float, (row[0], row[place], ratio[place])))
        for place, product in enumerate(PRODUCTS, start=1)
        for token, (row, ratio) in enumerate(zip(medians, ratios, strict=True))
    ]


def _stepper(weights: Weights, product: Product | None, threads: int) -> Callable[[int], None]:
    decoder = weights.decoder(product, threads)
    cache = _core.PagedCache(weights.shape.layers, 1, _HEAD_DIM, 1, "f16")
    slot = np.zeros(1, np.int32)

    def step(token: int) -> None:
        ids = np.full(1, token, np.int32)
        run_step(decoder, cache, [Chunk(ids, 0, slot, [0], num_logit_rows=0)])

    return step


def break_even(points: Sequence[Point]) -> float | None:
    """Return the density, interpolated, above which skipping is slower, or None if it never is.

    `points` are of one product and ascend in density.
    """
    for below, above in pairwise(points):
        if below.ratio < 1 <= above.ratio:
            part = (1 - below.ratio) / (above.ratio - below.ratio)
            return below.density + part * (above.density - below.density)
    return None


def save_curves(points: Sequence[Point], path: Path, caption: str) -> None:
    """Draw a panel per product: time beside not skipping, over density, break-evens marked."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 4.2), layout="constrained")
    panels = figure.subplots(1, len(PRODUCTS), sharey=True)
    for axes, product in zip(panels, PRODUCTS, strict=True):
        _draw(axes, [point for point in points if point.product == product])
        axes.set_title(f"{product}_proj", loc="left", fontsize=9)
    panels[0].set_ylabel("time of a feed-forward / time without skipping")
    figure.suptitle(caption, fontsize=9)
    with rc_context({"svg.fonttype": "none"}):  # text as text, a third of the size
        figure.savefig(path, dpi=150)


def _draw(axes: Axes, points: Sequence[Point]) -> None:
    for threads in sorted({point.threads for point in points}):
        curve = [point for point in points if point.threads == threads]
        crossing = break_even(curve)
        label = f"threads {threads}"
        if crossing is not None:
            label += f", break-even at {crossing:.2f}"
        densities, ratios = [p.density for p in curve], [p.ratio for p in curve]
        (line,) = axes.plot(densities, ratios, marker="o", markersize=3, label=label)
        if crossing is not None:
            axes.axvline(crossing, color=line.get_color(), linestyle=":", linewidth=1)
    axes.plot([0, 1], [2 / 3, 1], color="grey", linestyle="--", linewidth=1, label="bytes read")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xlabel("density: share of the channels that are not zero")
    axes.set_xlim(0, 1)
    axes.legend(fontsize=7, frameon=False, loc="upper left")
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
