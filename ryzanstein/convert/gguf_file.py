"""A model as one GGUF file, written and read back a slab of rows at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from gguf import GGUFWriter, LlamaFileType
from gguf.constants import GGML_QUANT_SIZES, GGML_QUANT_VERSION
from gguf.quants import quantize

from ryzanstein.convert.gguf_layout import choose_layout
from ryzanstein.convert.gguf_storage import (
    TERNARY,
    TYPES,
    check_values,
    choose_type,
    ternary_blocks,
)
from ryzanstein.convert.gguf_tokenizer import write_tokenizer
from ryzanstein.convert.report import FLOAT_ACTIVATIONS, ChangeMeter, TensorChange
from ryzanstein.errors import QuantizationError, UnsupportedFormatError
from ryzanstein.loaders.gguf import GgufFile
from ryzanstein.progress import byte_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedWriter
    from pathlib import Path

    from numpy.typing import NDArray

    from ryzanstein._core import F32Array, I32Array
    from ryzanstein.convert.gguf_layout import GgufLayout
    from ryzanstein.convert.source import ModelSource, SourceTensor

__all__ = ["GgufFormat"]


@dataclass(frozen=True, slots=True)
class _Planned:
    """A tensor of the file: what it is called, its type, and where its rows come from."""

    name: str
    type: GGMLType
    tensor: SourceTensor
    order: I32Array | None
    offset: float
    note: str | None

    @property
    def nbytes(self) -> int:
        block, size = GGML_QUANT_SIZES[self.type]
        return self.tensor.size // block * size


class _LazyTensor:
    """What a GGUFWriter asks of a tensor: its size, and that it writes itself."""

    def __init__(self, nbytes: int, slabs: Iterator[NDArray[Any]]) -> None:
        self.nbytes = nbytes
        self._slabs = slabs

    def tofile(self, file: BufferedWriter) -> None:
        for slab in self._slabs:
            slab.tofile(file)


class GgufFormat:
    """Writes a model as a GGUF file whose matrices are of one type.

    Args:
        source: the model.
        name: "tq2_0", "tq1_0", "q8_0" or "q4_0".

    Raises:
        UnsupportedFormatError: GGUF has no place for something of the model, or the type is one
            for ternary weights and the model has none.
    """

    def __init__(self, source: ModelSource, name: str) -> None:
        self._source = source
        self._type = TYPES[name]
        self._layout: GgufLayout = choose_layout(source.config)
        self._plan = [self._planned(tensor) for tensor in source.tensors]
        self._rope_factors = self._layout.rope_factors(source.config)
        self.nbytes = sum(planned.nbytes for planned in self._plan)

    def _planned(self, tensor: SourceTensor) -> _Planned:
        is_embedding = tensor.name in self._source.embeddings
        stored = choose_type(tensor, self._type, is_embedding=is_embedding)
        if self._type in TERNARY and len(tensor.shape) == 2 and not is_embedding:
            self._check_ternary(tensor, stored.type)
        return _Planned(
            self._layout.tensor_name(tensor.name),
            stored.type,
            tensor,
            self._layout.row_order(tensor, self._source.config),
            self._layout.offset(tensor),
            stored.note,
        )

    def _check_ternary(self, tensor: SourceTensor, kind: GGMLType) -> None:
        """Refuse a linear that is not ternary, or that loading would not take for ternary."""
        block = GGML_QUANT_SIZES[kind][0]
        if kind in TERNARY and not (tensor.is_ternary or self._source.is_ternary_by(tensor, block)):
            raise UnsupportedFormatError(
                f"{tensor.name} is not ternary, so {self._type.name} would ruin it; "
                "convert to q8_0 or q4_0"
            )
        if not self._layout.architecture.ternary and kind is not self._type:
            raise UnsupportedFormatError(
                f"{tensor.name} has rows of {tensor.shape[-1]}, not whole blocks of "
                f"{GGML_QUANT_SIZES[self._type][0]}; GGUF's architecture {self._layout.name} has "
                "no other way to hold ternary weights. Convert to hf"
            )

    def write(self, path: Path) -> tuple[list[TensorChange], list[str]]:
        """Write the file and read it back.

        Returns:
            How each tensor was stored, and what GGUF cannot say of the model, as sentences.

        Raises:
            QuantizationError: the file does not hold what it should.
        """
        notes = self._write(path)
        return self._check(path), notes

    def _write(self, path: Path) -> list[str]:
        config = self._source.config
        writer = GGUFWriter(path, self._layout.name)
        try:
            writer.add_name(self._source.files.path.stem)
            writer.add_file_type(LlamaFileType[f"MOSTLY_{self._type.name}"])
            writer.add_quantization_version(GGML_QUANT_VERSION)
            self._layout.write_parameters(writer, config)
            notes = self._layout.notes(config)
            if self._type in TERNARY and config.quantization is None:
                notes.append(FLOAT_ACTIVATIONS)
            notes += write_tokenizer(writer, self._source.files, config.vocab_size)
            self._add_tensors(writer)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            with byte_progress("Writing", self.nbytes) as advance:
                for factors in self._rope_factors.values():
                    writer.write_tensor_data(factors)
                for planned in self._plan:
                    lazy = _LazyTensor(planned.nbytes, self._slabs(planned, advance))
                    writer.write_tensor_data(cast("NDArray[Any]", lazy))
        finally:
            writer.close()
        return notes

    def _add_tensors(self, writer: GGUFWriter) -> None:
        plain = np.dtype(np.float32)
        for name, factors in self._rope_factors.items():
            writer.add_tensor_info(name, factors.shape, plain, factors.nbytes)
        for planned in self._plan:
            shape = planned.tensor.shape
            writer.add_tensor_info(planned.name, shape, plain, planned.nbytes, planned.type)

    def _slabs(self, planned: _Planned, advance: Callable[[int], None]) -> Iterator[NDArray[Any]]:
        for values in self._values(planned):
            slab = _quantized(values, planned.type, is_ternary=planned.tensor.is_ternary)
            yield slab
            advance(slab.nbytes)

    def _values(self, planned: _Planned) -> Iterator[F32Array]:
        """Yield a tensor's weights as the file is to have them."""
        for values in self._source.values(planned.tensor, planned.order):
            yield values + np.float32(planned.offset) if planned.offset else values

    def _check(self, path: Path) -> list[TensorChange]:
        """Read the file as loading would, and compare."""
        written = GgufFile(path)
        with byte_progress("Checking", self.nbytes) as advance:
            return [self._compare(planned, written, advance) for planned in self._plan]

    def _compare(
        self, planned: _Planned, written: GgufFile, advance: Callable[[int], None]
    ) -> TensorChange:
        meter = ChangeMeter()
        stored, data = written.tensor(planned.name), written.view(planned.name)
        # A norm is read as rows of one weight, as the source has it.
        shape = stored.shape if len(stored.shape) > 1 else (*stored.shape, 1)
        begin = 0
        for before in self._values(planned):
            end = begin + len(before)
            after = stored.type.dequantize(data, shape, begin, end).reshape(before.shape)
            begin = end
            try:
                check_values(planned.type, before, after)
            except QuantizationError as error:
                raise QuantizationError(f"{planned.tensor.name}: {error}") from error
            meter.add(before, after)
            advance(planned.nbytes * len(before) // planned.tensor.shape[0])
        written.release(planned.name)
        return TensorChange(
            planned.tensor.name,
            planned.tensor.kind,
            planned.type.name,
            meter.relative,
            planned.note,
        )


def _quantized(values: F32Array, kind: GGMLType, *, is_ternary: bool) -> NDArray[Any]:
    if is_ternary and (blocks := ternary_blocks(kind, values)) is not None:
        return blocks
    # Values that do not fit become infinite, which the check finds and names.
    with np.errstate(over="ignore"):
        data = quantize(values, kind)
    return data
