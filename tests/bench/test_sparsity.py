from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest
from native import ints, sequence

from bench.break_even import PRODUCTS, Point, Weights, break_even, measure, save_curves
from bench.shapes import PRESETS
from bench.sparsity import LayerZeros, decode_text, layer_zeros
from ryzanstein import ValidationError, _core
from ryzanstein.loaders.hub import EMBEDDED_MODEL

if TYPE_CHECKING:
    from pathlib import Path

    from bench.break_even import Product

SHAPE = replace(PRESETS["small"], hidden=320, ffn=640, layers=2)  # 16 and 32 to a group


def points(*ratios: float, threads: int = 1) -> list[Point]:
    densities = (index / (len(ratios) - 1) for index in range(len(ratios)))
    pairs = zip(densities, ratios, strict=True)
    return [Point("down", threads, density, 100, 100 * ratio, ratio) for density, ratio in pairs]


def test_shares_are_over_all_channels_and_steps() -> None:
    counts = [
        {"channels": 100, "steps": 4, "open_gates": 100, "nonzero": 40},
        {"channels": 64, "steps": 4, "open_gates": 256, "nonzero": 0},
    ]
    assert layer_zeros(counts) == [LayerZeros(0, 100, 0.75, 0.9), LayerZeros(1, 64, 0.0, 1.0)]


def test_the_embedded_model_has_zeros_in_every_layer() -> None:
    layers = decode_text(EMBEDDED_MODEL, "import os\n\n\ndef main():\n", 8, 1)
    assert [layer.layer for layer in layers] == [0, 1, 2, 3]
    # A closed gate makes a zero activation; squares of small gates are rounded to more of them.
    assert all(0.2 < layer.zero_gates < layer.zero_activations < 1 for layer in layers)


def test_only_the_first_tokens_are_decoded() -> None:
    first, again, all_of_it = (
        decode_text(EMBEDDED_MODEL, text, tokens, 1)
        for text, tokens in (("import os", 1), ("import sys, re", 1), ("import os", 9))
    )
    assert first == again != all_of_it


def test_models_without_zeros_and_nothing_to_decode_are_refused() -> None:
    with pytest.raises(ValidationError, match="relu2"):
        layer_zeros([{"channels": 64, "steps": 0, "open_gates": 0, "nonzero": 0}])
    with pytest.raises(ValidationError, match="no token to"):
        decode_text(EMBEDDED_MODEL, "import", 0, 1)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("token", [0, 1, 9, 20])
def test_a_token_opens_its_share_of_every_layer(product: Product, token: int) -> None:
    decoder = Weights(SHAPE).decoder(product, threads=1)
    cache = _core.PagedCache(SHAPE.layers, 1, 64, 1, "f16")
    replace(sequence(1, 1), token_ids=ints(token)).run(decoder, cache)
    for counts in decoder.channel_counts():
        assert counts["open_gates"] == counts["nonzero"] == 32 * token


def test_points_are_by_product_and_density() -> None:
    found = measure(Weights(SHAPE), threads=1)
    wanted = [(product, token / 20) for product in PRODUCTS for token in range(21)]
    assert [(point.product, point.density) for point in found] == wanted
    assert all(min(point.whole, point.skipping, point.ratio) > 0 for point in found)


def test_the_break_even_is_interpolated() -> None:
    assert break_even(points(0.5, 0.8, 1.2)) == pytest.approx(0.75)
    assert break_even(points(0.5, 0.8, 0.9)) is None


def test_the_plot_names_threads_and_break_evens(tmp_path: Path) -> None:
    path = tmp_path / "plot.svg"
    save_curves([*points(0.5, 0.8, 1.2), *points(0.5, 0.8, 0.9, threads=2)], path, "a CPU")
    texts = {text.strip() for text in ElementTree.parse(path).getroot().itertext()}
    assert {"a CPU", "down_proj", "up_proj", "bytes read", "threads 2"} <= texts
    assert "threads 1, break-even at 0.75" in texts
