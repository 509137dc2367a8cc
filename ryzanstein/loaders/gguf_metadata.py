"""What a GGUF file says of its model, value by value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ryzanstein.errors import ModelLoadError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ryzanstein.loaders.gguf import GgufFile, GgufTensor

__all__ = ["Metadata"]


class Metadata:
    """The values under a file's architecture, and its tensors."""

    def __init__(self, file: GgufFile) -> None:
        """Take a file that names its architecture."""
        self.path = file.path
        self._file = file
        self._prefix = file.metadata["general.architecture"]

    def value(self, key: str, default: Any = None) -> Any:
        """Return a value, a float as the shortest decimal that has its 32 bits.

        That is what was meant: where config.json says 1e-05, the file has the nearest float32.
        """
        value = self._file.metadata.get(f"{self._prefix}.{key}", default)
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def required(self, key: str) -> Any:
        """Return a value that every file has.

        Raises:
            ModelLoadError: this one has not.
        """
        value = self.value(key)
        if value is None:
            raise ModelLoadError(
                f"{self.path}: metadata {self._prefix}.{key} is missing; download the file again"
            )
        return value

    def __contains__(self, tensor: str) -> bool:
        return tensor in self._file

    def tensor(self, name: str) -> GgufTensor:
        """Return a tensor that every file has.

        Raises:
            ModelLoadError: this one has not.
        """
        if name not in self._file:
            raise ModelLoadError(
                f"{self.path}: tensor {name!r} is missing; is it a language model?"
            )
        return self._file.tensor(name)

    def vector(self, name: str) -> NDArray[np.float32]:
        """Return the values of a tensor of one dimension.

        Raises:
            ModelLoadError: there is no such tensor.
        """
        tensor = self.tensor(name)
        values: NDArray[np.float32] = tensor.type.dequantize(
            self._file.view(name), (1, tensor.shape[-1]), 0, 1
        )[0]
        return values
