"""What a feed-forward need not read: channels that are always zero, and copies to skip zeros by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np

from ryzanstein._core import TernaryMatrix, skips_zeros
from ryzanstein.errors import ValidationError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ryzanstein.models.config import ModelConfig

__all__ = ["SkipZeros", "keep_channels", "live_channels", "resolve_skip_zeros"]

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
        and config.quantization is not None
        and not config.has_input_norms
        and config.intermediate_size % _PANEL_ROWS == 0
    )
    if not possible:
        return "none"
    if choice is not None:
        return choice
    is_large = config.hidden_size * config.intermediate_size >= _MIN_WEIGHTS
    return "down" if is_large and skips_zeros(isa) else "none"


def live_channels(gate_up: TernaryMatrix) -> NDArray[np.int32]:
    """Return the channels worth keeping, given gate and up rows [2C, hidden].

    A channel whose gate or up row is zero gives zero whatever the input. Such channels are left out
    in multiples of 64, since matrices are read by panels of so many rows; never all of them.
    """
    channels = gate_up.out_features // 2
    is_zero = np.zeros(2 * channels, bool)
    is_zero[gate_up.zero_rows()] = True
    dead = np.flatnonzero(is_zero[:channels] | is_zero[channels:])
    dropped = dead[: len(dead) // _PANEL_ROWS * _PANEL_ROWS]
    everything = np.arange(channels, dtype=np.int32)
    return everything if len(dropped) == channels else np.delete(everything, dropped)


def keep_channels(
    gate_up: TernaryMatrix, down: TernaryMatrix, live: NDArray[np.int32]
) -> tuple[TernaryMatrix, TernaryMatrix]:
    """Return gate and up rows [2C, hidden] and down [hidden, C] with these channels alone."""
    rows = np.concatenate([live, down.in_features + live])
    return _part(gate_up, rows=rows), _part(down, columns=live)


def _part(
    matrix: TernaryMatrix,
    rows: NDArray[np.int32] | slice = slice(None),
    columns: NDArray[np.int32] | slice = slice(None),
) -> TernaryMatrix:
    codes = np.ascontiguousarray(matrix.codes()[rows][:, columns])
    part = TernaryMatrix(codes.shape[0], codes.shape[1], matrix.format)
    part.pack_codes(0, codes, matrix.row_scales()[rows])
    return part
