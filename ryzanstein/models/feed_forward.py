"""What a feed-forward need not read: channels that are always zero, and copies to skip zeros by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np

from ryzanstein._core import TernaryMatrix, skips_zeros
from ryzanstein.errors import ValidationError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ryzanstein._core import F32Array
    from ryzanstein.models.config import ModelConfig

__all__ = ["SkipZeros", "drop_dead_channels", "resolve_skip_zeros"]

SkipZeros: TypeAlias = Literal["none", "down", "all"]

# Rows come in panels of this many: leaving out fewer saves nothing.
_PANEL_ROWS = 64
# Below this many weights a feed-forward stays in cache, where skipping saves no reading.
_MIN_WEIGHTS = 1 << 24


def resolve_skip_zeros(choice: SkipZeros | None, config: ModelConfig, isa: str | None) -> SkipZeros:
    """Return what a model of this shape skips where `choice` (None: what is usually faster) allows.

    Skipping takes relu2, one fused matrix of gate and up, and a multiple of 64 channels. By default
    only zero activations of `down_proj` are skipped, on CPUs with kernels for it: gates have to be
    sparser than one half before their up rows are worth a copy of their own.

    Raises:
        ValidationError: `choice` is none of these.
    """
    if choice is not None and choice not in get_args(SkipZeros):
        raise ValidationError(
            f"skip_zeros must be None or one of {get_args(SkipZeros)}, got {choice!r}"
        )
    possible = (
        config.activation == "relu2"
        and not config.quantization.input_norm
        and config.intermediate_size % _PANEL_ROWS == 0
    )
    if not possible:
        return "none"
    if choice is not None:
        return choice
    is_large = config.hidden_size * config.intermediate_size >= _MIN_WEIGHTS
    return "down" if is_large and skips_zeros(isa) else "none"


def drop_dead_channels(
    gate_up: TernaryMatrix, down: TernaryMatrix, gain: F32Array | None
) -> tuple[TernaryMatrix, TernaryMatrix, F32Array | None]:
    """Return the feed-forward without channels whose gate or up row is zero, 64 at a time.

    Such a channel gives zero whatever the input. Takes gate and up rows [2C, hidden], down [hidden,
    C] and the gain [C] of the norm between them, if there is one.
    """
    channels = down.in_features
    is_zero = np.zeros(2 * channels, bool)
    is_zero[gate_up.zero_rows()] = True
    dead = np.flatnonzero(is_zero[:channels] | is_zero[channels:])
    dropped = dead[: len(dead) // _PANEL_ROWS * _PANEL_ROWS]
    if len(dropped) == 0 or len(dropped) == channels:
        return gate_up, down, gain
    kept = np.delete(np.arange(channels), dropped)
    return (
        _part(gate_up, rows=np.concatenate([kept, channels + kept])),
        _part(down, columns=kept),
        None if gain is None else gain[kept],
    )


def _part(
    matrix: TernaryMatrix,
    rows: NDArray[np.intp] | slice = slice(None),
    columns: NDArray[np.intp] | slice = slice(None),
) -> TernaryMatrix:
    codes = np.ascontiguousarray(matrix.codes()[rows][:, columns])
    part = TernaryMatrix(codes.shape[0], codes.shape[1], matrix.format)
    part.pack_codes(0, codes, matrix.row_scales()[rows])
    return part
