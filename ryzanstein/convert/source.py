"""The tensors of a model as the engine computes with them, a slab of rows at a time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ryzanstein._core import TernaryMatrix
from ryzanstein.errors import CorruptFileError, QuantizationError, UnsupportedFormatError
from ryzanstein.models import read_architecture
from ryzanstein.models.tensors import check_tensors, linear_shapes, slabs
from ryzanstein.quant import exact_ternary, first_non_finite, output_scale, to_float32

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from ryzanstein._core import F32Array, I8Array, I32Array
    from ryzanstein.loaders.model_files import ModelFiles

__all__ = ["ModelSource", "SourceTensor", "Ternary"]

_SCALE = "_scale"
_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """One tensor: its name in the Hugging Face layout, its shape, and how it is stored.

    `kind` is "ternary" for weights the engine computes with as codes and scales, otherwise the name
    of a float type, or of a GGUF type.
    """

    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def is_ternary(self) -> bool:
        """Return whether the weights are codes and scales."""
        return self.kind == "ternary"

    @property
    def dtype(self) -> str:
        """Return the float type that the weights are read in: GGUF types are decoded."""
        return self.kind if self.kind in _FLOATS else "F32"

    @property
    def size(self) -> int:
        """Return the number of weights."""
        return int(np.prod(self.shape))


@dataclass(frozen=True, slots=True)
class Ternary:
    """Ternary weights: codes int8 [N, K] in {-1, 0, 1}, scales float32 [N] to multiply rows by."""

    codes: I8Array
    scales: F32Array


class ModelSource:
    """A checked model, ready to be read.

    `config` and `tensors` are its configuration and tensors, those that nothing reads left out.
    """

    def __init__(self, files: ModelFiles, *, ternary: bool = False) -> None:
        """Read the configuration and check every tensor's header.

        With `ternary`, the linears of a model of floats are taken for codes and scales too, which
        takes that each of their rows holds one magnitude.

        Raises:
            As `load_model` for models that cannot be loaded.
            UnsupportedFormatError: linears are to be ternary, and one is not.
        """
        self.files = files
        self.config, family = read_architecture(files)
        self._weights = files.open_weights()
        check_tensors(self._weights, self.config, family)
        shapes = linear_shapes(self.config, family)
        linears = {
            f"{family.layer.format(index=index)}{linear}.weight": shape
            for index in range(self.config.num_layers)
            for linear, shape in shapes.items()
            if ternary or self.config.quantization is not None
        }
        skipped = {name + _SCALE for name in linears}
        if self.config.tie_word_embeddings:
            skipped.add(family.lm_head)
        self.tensors = [
            SourceTensor(name, linears[name], "ternary")
            if name in linears
            else SourceTensor(name, self._weights.info(name).shape, self._weights.info(name).dtype)
            for name in sorted(self._weights, key=_natural)
            if name not in skipped and not name.endswith(family.ignored)
        ]
        self.embeddings = {family.embedding, family.lm_head}
        if ternary and self.config.quantization is None:
            for tensor in self.tensors:
                if tensor.is_ternary and not self.is_ternary_by(tensor, tensor.shape[1]):
                    raise UnsupportedFormatError(
                        f"{self._weights.where(tensor.name)} is not ternary: a row holds other "
                        "than one number of either sign and zeros; convert to q8_0"
                    )

    def is_ternary_by(self, tensor: SourceTensor, columns: int) -> bool:
        """Return whether so many adjacent weights of a row always hold one magnitude and zeros."""
        for values in self.stored(tensor):
            magnitudes = np.abs(to_float32(values)).reshape(-1, columns)
            largest = magnitudes.max(axis=1, keepdims=True)
            if not ((magnitudes == largest) | (magnitudes == 0)).all():
                return False
        return True

    def ternary(self, tensor: SourceTensor) -> Ternary:
        """Return a ternary tensor, ternarised as loading does where it is stored as masters.

        Raises:
            QuantizationError: a code, master weight or scale that cannot be represented.
        """
        rows, columns = tensor.shape
        matrix = TernaryMatrix(rows, columns)
        quantization = self.config.quantization
        try:
            if (parts := self._weights.ternary_rows(tensor.name)) is not None:
                for begin, codes, scales in parts:
                    matrix.pack_codes(begin, codes, scales)
            elif quantization is None:
                exact = exact_ternary(self._weights.view(tensor.name))
                assert exact is not None  # as was found out before
                matrix.pack_codes(0, *exact)
            elif quantization.mode == "online":
                matrix.pack_master(0, self._weights.view(tensor.name))
            else:
                stored = self._weights.view(tensor.name + _SCALE)
                scale = output_scale(quantization.linear_class, stored)
                matrix.pack_hf(0, self._weights.view(tensor.name), scale)
        except QuantizationError as error:
            raise QuantizationError(f"{self._weights.where(tensor.name)}: {error}") from error
        self._weights.release(tensor.name)
        codes, scales = matrix.codes(), np.array(matrix.row_scales())
        # A row of zeros has no scale, and files store anything: it takes that of the others.
        is_zero = np.zeros(rows, bool)
        is_zero[matrix.zero_rows()] = True
        scales[is_zero] = scales[np.argmin(is_zero)]
        return Ternary(codes, scales)

    def stored(
        self, tensor: SourceTensor, order: I32Array | None = None
    ) -> Iterator[NDArray[np.generic]]:
        """Yield a float tensor in its `dtype` (bfloat16 as uint16), slab by slab.

        Its rows come in another order if one is given.

        Raises:
            CorruptFileError: a NaN or infinity in it.
        """
        for begin, end in slabs(tensor.shape):
            slab = self._rows(tensor, begin, end, order)
            if first_non_finite(slab) is not None:
                raise CorruptFileError(
                    f"{self._weights.where(tensor.name)} holds a NaN or infinity; download the "
                    "file again"
                )
            yield slab
        self._weights.release(tensor.name)

    def _rows(
        self, tensor: SourceTensor, begin: int, end: int, order: I32Array | None
    ) -> NDArray[np.generic]:
        if len(tensor.shape) == 1:
            view = self._weights.view(tensor.name)
            return view[begin:end] if order is None else view[order[begin:end]]
        if order is None:
            return self._weights.rows(tensor.name, begin, end)
        taken = order[begin:end]  # none far from its place
        first = int(taken.min())
        return self._weights.rows(tensor.name, first, int(taken.max()) + 1)[taken - first]

    def values(self, tensor: SourceTensor, order: I32Array | None = None) -> Iterator[F32Array]:
        """Yield a tensor's weights as float32, slab by slab, its rows in another order if given.

        Raises:
            As `ternary` and `stored`.
        """
        if not tensor.is_ternary:
            yield from (to_float32(slab) for slab in self.stored(tensor, order))
            return
        ternary = self.ternary(tensor)
        for begin, end in slabs(tensor.shape):
            rows = slice(begin, end) if order is None else order[begin:end]
            yield ternary.codes[rows] * ternary.scales[rows, None]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort layer 10 behind layer 9."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
