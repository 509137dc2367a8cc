"""Reading the committed golden files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from golden.specs import Spec
    from numpy.typing import NDArray

__all__ = ["Golden", "load_golden", "relative_error"]

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Golden:
    """A checkpoint's files, a prompt, and what transformers made of them."""

    files: dict[str, bytes]
    prompt: NDArray[np.int32]
    hidden: NDArray[np.float32]  # [L + 1, T, hidden]
    logits: NDArray[np.float32]  # [T, V]
    generated: NDArray[np.int32]

    def write(self, directory: Path) -> Path:
        """Write the checkpoint's files into a directory."""
        for name, data in self.files.items():
            (directory / name).write_bytes(data)
        return directory


def load_golden(spec: Spec) -> Golden:
    """Return the golden file of a model."""
    with np.load(HERE / f"{spec.name}.npz") as arrays:
        files = {
            name.removeprefix("file:"): arrays[name].tobytes()
            for name in arrays.files
            if name.startswith("file:")
        }
        return Golden(
            files, arrays["prompt"], arrays["hidden"], arrays["logits"], arrays["generated"]
        )


def relative_error(actual: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """Return the largest error over the largest magnitude."""
    return float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))
