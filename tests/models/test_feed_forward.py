from __future__ import annotations

from typing import TYPE_CHECKING

import native
import numpy as np
import pytest

from ryzanstein import ValidationError, _core
from ryzanstein.loaders.hub import EMBEDDED_MODEL
from ryzanstein.loaders.model_files import open_files
from ryzanstein.models import feed_forward, read_config
from ryzanstein.models.feed_forward import keep_channels, live_channels

if TYPE_CHECKING:
    from ryzanstein._core import F32Array, I8Array, TernaryFormat

HIDDEN, CHANNELS = native.HIDDEN, 192
FORMATS: list[TernaryFormat] = ["two_bit", "five_trit"]


def packed(codes: I8Array, kind: TernaryFormat = "five_trit") -> _core.TernaryMatrix:
    matrix = _core.TernaryMatrix(len(codes), codes.shape[1], kind)
    matrix.pack_codes(0, codes, np.linspace(0.1, 0.3, len(codes), dtype=np.float32))
    return matrix


def weights(dead: int) -> tuple[I8Array, I8Array]:
    """Return gate and up [2C, hidden] and down [hidden, C]; `dead` channels have a zero row."""
    rng = np.random.default_rng(dead)
    gate_up = rng.integers(-1, 2, (2 * CHANNELS, HIDDEN)).astype(np.int8)
    for channel in rng.choice(CHANNELS, dead, replace=False):
        gate_up[channel + CHANNELS * int(rng.integers(2))] = 0
    return gate_up, rng.integers(-1, 2, (HIDDEN, CHANNELS)).astype(np.int8)


def logits(
    gate_up: _core.TernaryMatrix, down: _core.TernaryMatrix, gain: F32Array, **rows: object
) -> F32Array:
    layer = native.layer(
        mlp_in=[_core.Linear(gate_up)], down_proj=_core.Linear(down), ffn_sub_norm=gain, **rows
    )
    config = native.config(intermediate_size=CHANNELS, activation="relu2")
    decoder = native.decoder(config=config, layers=[layer])
    return native.sequence(1, 1).run(decoder, native.cache())


@pytest.mark.parametrize("kind", FORMATS)
def test_zero_rows(kind: TernaryFormat) -> None:
    codes = np.zeros((5, 101), np.int8)
    codes[1, 100] = 1
    codes[3, 0] = -1
    assert packed(codes, kind).zero_rows().tolist() == [0, 2, 4]


@pytest.mark.parametrize(("dead", "left"), [(0, 192), (63, 192), (64, 128), (130, 64)])
@pytest.mark.parametrize("kind", FORMATS)
def test_whole_panels_of_dead_channels_are_dropped(
    kind: TernaryFormat, dead: int, left: int
) -> None:
    gate_up, down = (packed(codes, kind) for codes in weights(dead))
    gain = np.linspace(0.5, 1.5, CHANNELS, dtype=np.float32)
    live = live_channels(gate_up)
    assert len(live) == left
    # Their zeros still count in the mean of the norm: the same function up to rounding.
    np.testing.assert_allclose(
        logits(*keep_channels(gate_up, down, live), gain[live]),
        logits(gate_up, down, gain),
        rtol=1e-5,
        atol=1e-5,
    )


def test_a_feed_forward_that_is_dead_throughout_stays() -> None:
    gate_up, _ = weights(0)
    gate_up[:] = 0
    assert len(live_channels(packed(gate_up))) == CHANNELS


def test_skipping_zeros_changes_no_bit() -> None:
    gate_up, down = (packed(codes) for codes in weights(0))
    gain = np.ones(CHANNELS, np.float32)
    up_rows = _core.TernaryRows.of_rows(gate_up, CHANNELS, 2 * CHANNELS)
    down_columns = _core.TernaryRows.of_columns(down)
    expected = logits(gate_up, down, gain)
    for rows in (
        {"down_columns": down_columns},
        {"up_rows": up_rows},
        {"up_rows": up_rows, "down_columns": down_columns},
    ):
        assert logits(gate_up, down, gain, **rows).tobytes() == expected.tobytes()


def test_channels_are_counted() -> None:
    gate_up, down = weights(0)
    gate_up[:70] = 0  # gates that are never open
    layer = native.layer(
        mlp_in=[_core.Linear(packed(gate_up))],
        down_proj=_core.Linear(packed(down)),
        down_columns=_core.TernaryRows.of_columns(packed(down)),
    )
    config = native.config(intermediate_size=CHANNELS, activation="relu2")
    decoder = native.decoder(config=config, layers=[layer])
    for seed in range(3):
        native.sequence(1, 1, seed).run(decoder, native.cache())
    (counts,) = decoder.channel_counts()
    assert (counts["channels"], counts["steps"]) == (CHANNELS, 3)
    assert 0 < counts["nonzero"] <= counts["open_gates"] <= 3 * (CHANNELS - 70)


@pytest.mark.parametrize(
    ("changes", "config", "message"),
    [
        ({"rows": 96}, {}, "must be"),
        ({}, {"activation": "silu"}, "relu2"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    changes: dict[str, int], config: dict[str, str], message: str
) -> None:
    gate_up, down = (packed(codes) for codes in weights(0))
    layer = native.layer(
        mlp_in=[_core.Linear(gate_up)],
        down_proj=_core.Linear(down),
        up_rows=_core.TernaryRows.of_rows(gate_up, 0, changes.get("rows", CHANNELS)),
    )
    parts = {"intermediate_size": CHANNELS, "activation": "relu2"} | config
    with pytest.raises(ValidationError, match=message):
        native.decoder(config=native.config(**parts), layers=[layer])


def test_the_default_skips_only_what_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    small = read_config(open_files(EMBEDDED_MODEL))
    assert feed_forward.resolve_skip_zeros(None, small, None) == "none"
    assert feed_forward.resolve_skip_zeros("all", small, None) == "all"
    monkeypatch.setattr(feed_forward, "_MIN_WEIGHTS", 0)
    for isa in _core.available_isas():
        expected = "down" if _core.skips_zeros(isa) else "none"
        assert feed_forward.resolve_skip_zeros(None, small, isa) == expected
