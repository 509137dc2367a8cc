"""What a conversion changed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["FLOAT_ACTIVATIONS", "ChangeMeter", "TensorChange"]

# What a model of floats should know of ternary formats.
FLOAT_ACTIVATIONS = (
    "The model's linears take activations as they are; ternary ones round them to 8 bits"
)


@dataclass(frozen=True, slots=True)
class TensorChange:
    """How one tensor was stored.

    Args:
        name: what the model calls it.
        source: how it was stored before: "ternary" or a float type.
        stored: how it is stored now.
        relative_change: the largest change of a weight, as a share of the tensor's largest weight;
            0 where every weight is the same.
        note: why it is stored in another way than was asked for.
    """

    name: str
    source: str
    stored: str
    relative_change: float
    note: str | None = None


class ChangeMeter:
    """The largest change of a tensor's weights, fed slab by slab."""

    def __init__(self) -> None:
        self._largest = self._change = 0.0

    def add(self, before: np.ndarray, after: np.ndarray) -> None:
        """Compare float32 weights before and after."""
        if before.size:
            self._largest = max(self._largest, float(np.abs(before).max()))
            self._change = max(self._change, float(np.abs(after - before).max()))

    @property
    def relative(self) -> float:
        """Return the change as a share of the largest weight."""
        return self._change / self._largest if self._largest else self._change
