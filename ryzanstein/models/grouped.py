"""Matrices in groups of columns: rounded to them at load, or kept in the groups of their file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ryzanstein._core import GroupedMatrix
from ryzanstein.errors import QuantizationError
from ryzanstein.loaders.gguf_grouped import GroupedFormat
from ryzanstein.models.tensors import fused_shape, linear_shapes, slabs

if TYPE_CHECKING:
    from ryzanstein._core import U8Array
    from ryzanstein.config import WeightKind
    from ryzanstein.loaders.model_files import WeightSource
    from ryzanstein.models.config import ModelConfig
    from ryzanstein.models.family import Family

__all__ = [
    "ROUNDED_FORMATS",
    "codes_bytes",
    "fused_formats",
    "grouped_matrix",
    "grouped_shapes",
    "held_format",
    "pack_grouped",
]

# Of the weights that are rounded at load.
ROUNDED_FORMATS: dict[WeightKind, GroupedFormat] = {
    "int8": GroupedFormat(8, 32),
    "int4": GroupedFormat(4, 32),
}


def held_format(checkpoint: WeightSource, weight: str, kind: WeightKind) -> GroupedFormat | None:
    """Return the format that a linear is held in, None where it is held as floats."""
    stored = checkpoint.grouped_rows(weight) if kind == "auto" else None
    return ROUNDED_FORMATS.get(kind) if stored is None else stored.format


def fused_formats(
    checkpoint: WeightSource, prefix: str, names: tuple[str, ...], kind: WeightKind
) -> list[tuple[tuple[str, ...], GroupedFormat | None]]:
    """Return which linears make one matrix, and the format of each: all, if grouped alike."""
    formats = [held_format(checkpoint, f"{prefix}{name}.weight", kind) for name in names]
    if formats[0] is not None and len(set(formats)) == 1:
        return [(names, formats[0])]
    return [((name,), grouped) for name, grouped in zip(names, formats, strict=True)]


def grouped_shapes(
    checkpoint: WeightSource, config: ModelConfig, family: Family, kind: WeightKind
) -> set[tuple[int, int, int]]:
    """Return out-features, in-features and bits of the matrices in groups that a model has."""
    if config.quantization is not None:
        return set()
    shapes = linear_shapes(config, family)
    fused = (family.attn_in, (family.o_proj,), family.mlp_in, (family.down_proj,))
    return {
        (*fused_shape(shapes, part), grouped.bits)
        for index in range(config.num_layers)
        for names in fused
        for part, grouped in fused_formats(
            checkpoint, family.layer.format(index=index), names, kind
        )
        if grouped is not None
    }


def grouped_matrix(
    shape: tuple[int, int], grouped: GroupedFormat, arrays: dict[str, U8Array] | None = None
) -> GroupedMatrix:
    """Return a matrix of a format, of `arrays` or to be packed.

    Raises:
        ValidationError: arrays that are not what such a matrix has.
    """
    bits, group, scale_dtype, has_minimum = grouped
    return GroupedMatrix(*shape, bits, group, scale_dtype, has_minimum, arrays)


def codes_bytes(checkpoint: WeightSource, weight: str) -> int:
    """Return what a matrix stored as codes in groups takes, 0 for any other."""
    grouped = held_format(checkpoint, weight, "auto")
    if grouped is None:
        return 0
    rows, columns = checkpoint.info(weight).shape
    # Reserved, and never touched: the system gives it no memory.
    return grouped_matrix((rows, columns), grouped).nbytes


def pack_grouped(
    matrix: GroupedMatrix, row: int, checkpoint: WeightSource, weight: str, kind: WeightKind
) -> None:
    """Fill the rows from `row` on from a tensor, in the format that `held_format` returned.

    Pages of the tensor go as they are packed: they never lie beside the whole matrix.

    Raises:
        QuantizationError: a weight or scale that is not finite or too large.
        UnsupportedFormatError: bytes that the tensor's type never has.
    """
    stored = checkpoint.grouped_rows(weight) if kind == "auto" else None
    try:
        if stored is None:
            for begin, end in slabs(checkpoint.info(weight).shape):
                matrix.pack_float(row + begin, checkpoint.rows(weight, begin, end))
                checkpoint.release(weight)
        else:
            for begin, rows in stored.parts:
                matrix.pack_codes(row + begin, *rows)
                checkpoint.release(weight)
    except QuantizationError as error:
        raise QuantizationError(f"{checkpoint.where(weight)}: {error}") from error
