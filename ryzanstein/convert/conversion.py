"""From a model's files to a file or directory in another format."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ryzanstein.convert.hugging_face import HuggingFaceFormat
from ryzanstein.convert.output import new_output
from ryzanstein.convert.source import ModelSource
from ryzanstein.errors import ModelLoadError, ValidationError

if TYPE_CHECKING:
    from pathlib import Path

    from ryzanstein.convert.report import TensorChange
    from ryzanstein.loaders.model_files import ModelFiles

__all__ = ["FORMATS", "Conversion", "Format", "convert_model"]

FORMATS = ("hf", "tq2_0", "tq1_0", "q8_0", "q4_0")
_SUFFIX = ".gguf"


class Format(Protocol):
    """A model that is going to be written; `nbytes` are what its tensors will take."""

    nbytes: int

    def write(self, path: Path) -> tuple[list[TensorChange], list[str]]:
        """Write it and read it back; return how tensors were stored, and what cannot be said."""
        ...


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion wrote.

    Args:
        path: the file or directory.
        nbytes: its size.
        tensors: how each tensor was stored.
        notes: what the format cannot say of the model, as sentences.
    """

    path: Path
    nbytes: int
    tensors: list[TensorChange]
    notes: list[str]

    @property
    def lossy(self) -> list[TensorChange]:
        """Return the tensors whose weights changed."""
        return [tensor for tensor in self.tensors if tensor.relative_change > 0]


def convert_model(files: ModelFiles, path: Path, to: str) -> Conversion:
    """Write a model in another format, read back what was written, and name it then.

    Never holds more than one ternary matrix, or a few megabytes of any other tensor. A progress bar
    is shown on standard error, if it is a terminal.

    Args:
        files: those of the model.
        path: the file or directory to make; nothing may be there yet.
        to: "hf" for a directory of packed ternary weights, "tq2_0", "tq1_0", "q8_0" or "q4_0" for
            a GGUF file.

    Raises:
        ValidationError: an unknown format, or a path that exists or does not suit it.
        ModelLoadError: the model cannot be loaded, or the disk has no room.
        UnsupportedFormatError: the format has no place for something of the model.
        QuantizationError: the format cannot hold the weights.

    Example:
        >>> conversion = convert_model(open_files(Path("model")), Path("model.gguf"), "tq2_0")
        >>> len(conversion.lossy)
        0
    """
    if to not in FORMATS:
        raise ValidationError(f"the format must be one of {', '.join(FORMATS)}, got {to!r}")
    if (path.suffix == _SUFFIX) != (to != "hf"):
        wanted = "a directory, not a .gguf file" if to == "hf" else f"a file that ends in {_SUFFIX}"
        raise ValidationError(f"{to} is written to {wanted}; got {path}")
    with new_output(path) as temporary:
        form = _open_format(files, to)
        free = shutil.disk_usage(temporary.parent).free
        if form.nbytes > free:
            raise ModelLoadError(
                f"{path} will take {form.nbytes >> 20} MiB, but its disk has {free >> 20} MiB left"
            )
        tensors, notes = form.write(temporary)
    size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))
    return Conversion(path, size, tensors, notes)


def _open_format(files: ModelFiles, to: str) -> Format:
    if to == "hf":
        return HuggingFaceFormat(ModelSource(files, ternary=True))
    from ryzanstein.convert.gguf_file import GgufFormat  # the gguf package takes 0.1 s to import

    return GgufFormat(ModelSource(files), to)
