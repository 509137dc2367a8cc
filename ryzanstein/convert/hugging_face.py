"""A model as a directory in the Hugging Face layout, with packed ternary weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from ryzanstein.convert.report import FLOAT_ACTIVATIONS, TensorChange
from ryzanstein.convert.source import ModelSource, SourceTensor
from ryzanstein.errors import QuantizationError, UnsupportedFormatError
from ryzanstein.loaders.model_files import DirectoryFiles
from ryzanstein.models.tensors import slabs
from ryzanstein.progress import byte_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedWriter
    from pathlib import Path

    from numpy.typing import NDArray

    from ryzanstein._core import I8Array
    from ryzanstein.convert.source import Ternary

__all__ = ["HuggingFaceFormat"]

_WEIGHTS = "model.safetensors"
_TEXTS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
_SCALE = "_scale"
_ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "U8": 1}


class HuggingFaceFormat:
    """Writes a ternary model as transformers loads it: `AutoBitLinear`, offline.

    Codes are packed four rows to a byte, each matrix has a float32 scale to multiply by. Everything
    else is copied.

    Raises:
        UnsupportedFormatError: the model has matrices that cannot be packed.
    """

    def __init__(self, source: ModelSource) -> None:
        self._source = source
        for tensor in source.tensors:
            if tensor.is_ternary and tensor.shape[0] % 4:
                raise UnsupportedFormatError(
                    f"{tensor.name} has {tensor.shape[0]} rows; the packed form holds four in a "
                    "byte and needs a multiple of 4. Convert to tq2_0"
                )
        entries: list[tuple[str, str, tuple[int, ...]]] = []
        for tensor in source.tensors:
            if tensor.is_ternary:
                rows, columns = tensor.shape
                entries.append((tensor.name, "U8", (rows // 4, columns)))
                entries.append((tensor.name + _SCALE, "F32", (1,)))
            else:
                entries.append((tensor.name, tensor.dtype, tensor.shape))
        # Wide types first, so that every tensor is aligned.
        self._entries = sorted(entries, key=lambda entry: -_ITEM_BYTES[entry[1]])
        self.nbytes = sum(_nbytes(dtype, shape) for _, dtype, shape in entries)

    def write(self, path: Path) -> tuple[list[TensorChange], list[str]]:
        """Write the directory and read it back.

        Returns:
            How each tensor was stored, and what the format cannot say, as sentences.

        Raises:
            UnsupportedFormatError: a matrix has several scales.
            QuantizationError: the directory does not hold what it should.
        """
        path.mkdir()
        files = self._source.files
        for name in _TEXTS:
            text = files.read_text(name)
            if text is not None:
                (path / name).write_text(text, "utf-8")
        (path / "config.json").write_text(json.dumps(self._config(), indent=2) + "\n", "utf-8")
        with (path / _WEIGHTS).open("wb") as file:
            self._write_weights(file)
        notes = [] if self._source.config.quantization is not None else [FLOAT_ACTIVATIONS]
        return self._check(path), notes

    def _config(self) -> dict[str, object]:
        config = self._source.files.read_json("config.json") or {}
        quantization = self._source.config.quantization
        section: dict[str, object] = {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
            "modules_to_not_convert": ["lm_head"],
        }
        if quantization is not None and quantization.input_norm:
            section |= {"use_rms_norm": True, "rms_norm_eps": quantization.input_norm_eps}
        return {**config, "quantization_config": section}

    def _write_weights(self, file: BufferedWriter) -> None:
        tensors = {tensor.name: tensor for tensor in self._source.tensors}
        scales: dict[str, NDArray[np.float32]] = {}
        # Scales come first in the file and are known last: their place is filled at the end.
        header = _header(self._entries)
        file.write(header)
        position = len(header)
        places = {}
        with byte_progress("Writing", self.nbytes) as advance:
            for name, dtype, shape in self._entries:
                places[name] = position
                position += _nbytes(dtype, shape)
                if name in tensors:
                    file.seek(places[name])
                    for chunk in self._chunks(tensors[name], scales):
                        chunk.tofile(file)
                        advance(chunk.nbytes)
            for name, scale in scales.items():
                file.seek(places[name])
                scale.tofile(file)

    def _chunks(
        self, tensor: SourceTensor, scales: dict[str, NDArray[np.float32]]
    ) -> Iterator[NDArray[Any]]:
        if not tensor.is_ternary:
            yield from self._source.stored(tensor)
            return
        ternary = self._source.ternary(tensor)
        scales[tensor.name + _SCALE] = _one_scale(tensor, ternary)
        quarter = tensor.shape[0] // 4
        for begin, end in slabs((quarter, 4 * tensor.shape[1])):
            yield _packed(ternary.codes, begin, end)

    def _check(self, path: Path) -> list[TensorChange]:
        """Read the directory as loading would, and compare."""
        written = ModelSource(DirectoryFiles(path))
        found = {tensor.name: tensor for tensor in written.tensors}
        changes = []
        with byte_progress("Checking", self.nbytes) as advance:
            for tensor in self._source.tensors:
                copy = found[tensor.name]
                same = (self._same_ternary if tensor.is_ternary else self._same_floats)(
                    written, tensor, copy, advance
                )
                if not same:
                    raise QuantizationError(
                        f"{tensor.name}: what was written reads back as other weights; "
                        "is the disk sound?"
                    )
                stored = "packed" if tensor.is_ternary else tensor.dtype
                changes.append(TensorChange(tensor.name, tensor.kind, stored, 0.0))
        return changes

    def _same_ternary(
        self,
        written: ModelSource,
        tensor: SourceTensor,
        copy: SourceTensor,
        advance: Callable[[int], None],
    ) -> bool:
        before, after = self._source.ternary(tensor), written.ternary(copy)
        advance(tensor.size // 4)
        return np.array_equal(before.codes, after.codes) and np.array_equal(
            before.scales, after.scales
        )

    def _same_floats(
        self,
        written: ModelSource,
        tensor: SourceTensor,
        copy: SourceTensor,
        advance: Callable[[int], None],
    ) -> bool:
        for before, after in zip(self._source.stored(tensor), written.stored(copy), strict=True):
            if not np.array_equal(before, after):
                return False
            advance(before.nbytes)
        return True


def _one_scale(tensor: SourceTensor, ternary: Ternary) -> NDArray[np.float32]:
    """Return the scale of a matrix, float32 [1]."""
    scale = ternary.scales[:1]
    if (ternary.scales != scale).any():
        raise UnsupportedFormatError(
            f"{tensor.name} has several scales, and the packed form has one for each matrix; "
            "convert to tq2_0"
        )
    return scale


def _packed(codes: I8Array, begin: int, end: int) -> NDArray[np.uint8]:
    """Return bytes [begin, end) of the packed form: rows a quarter of the matrix apart."""
    rows, columns = codes.shape
    quarters = codes.reshape(4, rows // 4, columns)[:, begin:end]
    bits = (quarters + np.int8(1)).view(np.uint8)
    packed: NDArray[np.uint8] = bits[0] | bits[1] << 2 | bits[2] << 4 | bits[3] << 6
    return packed


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) * _ITEM_BYTES[dtype]


def _header(entries: list[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """Return the beginning of a safetensors file: the length of a JSON object, and the object."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape in entries:
        end = offset + _nbytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
