"""The files of a model, wherever they are.

A model is a set of named files in the Hugging Face layout: config.json, tokenizer.json,
tokenizer_config.json, generation_config.json, chat_template.jinja and tensors. A directory has
them on disk; other containers make them up from what they hold. Whoever needs one asks for it by
name and never learns where it came from.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

from ryzanstein.errors import CorruptFileError, ModelLoadError
from ryzanstein.loaders.checkpoint import Checkpoint, require_directory
from ryzanstein.loaders.gguf import GGUF_MAGIC
from ryzanstein.loaders.gguf_files import GgufFiles
from ryzanstein.loaders.json_file import read_json_object
from ryzanstein.loaders.multimodal import (
    text_model_config,
    text_tensor_name,
    text_tokenizer,
    wrapper_of,
)
from ryzanstein.loaders.slow_tokenizer import made_tokenizer_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from ryzanstein.loaders.gguf_grouped import GroupedTensor
    from ryzanstein.loaders.safetensors import TensorInfo

__all__ = ["DirectoryFiles", "ModelFiles", "TextModelFiles", "WeightSource", "open_files"]

_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"


class WeightSource(Protocol):
    """Named tensors, mapped: nothing is read until a view is touched."""

    path: Path

    def __iter__(self) -> Iterator[str]: ...

    def __contains__(self, name: object) -> bool: ...

    def info(self, name: str) -> TensorInfo:
        """Return dtype, shape and size of a tensor."""
        ...

    def view(self, name: str) -> NDArray[Any]:
        """Return a tensor as a read-only array (bfloat16 as uint16 bit patterns)."""
        ...

    def rows(self, name: str, begin: int, end: int) -> NDArray[Any]:
        """Return rows [begin, end) of a matrix as `view` has them, decoding no others."""
        ...

    def ternary_rows(
        self, name: str
    ) -> Iterator[tuple[int, NDArray[np.int8], NDArray[np.float32]]] | None:
        """Return a tensor stored as ternary codes with scales of its own, some rows at a time.

        None for any other tensor. Each item is the index of its first row, codes int8 [n, K] and
        the scales of its rows, float32 [n].

        Raises:
            UnsupportedFormatError: while iterating, a row with several scales.
        """
        ...

    def grouped_rows(self, name: str) -> GroupedTensor | None:
        """Return a matrix stored as codes in groups of columns, to be read some rows at a time.

        None for any other tensor.

        Raises:
            UnsupportedFormatError: while iterating, bytes that the tensor's type never has.
        """
        ...

    def identity(self) -> dict[str, object]:
        """Return what changes when the weights do, as JSON values."""
        ...

    def release(self, name: str) -> None:
        """Let the kernel drop a tensor's resident pages."""
        ...

    def where(self, name: str) -> str:
        """Return the file and tensor, for errors."""
        ...


class ModelFiles(Protocol):
    """The files of one model; `path` is where they are, for errors and titles."""

    path: Path

    def where(self, name: str) -> str:
        """Return what to call a file in an error."""
        ...

    def read_json(self, name: str) -> dict[str, object] | None:
        """Return a file's JSON object, None where there is no such file.

        Raises:
            ModelLoadError: it cannot be read.
            CorruptFileError: it is not a JSON object.
        """
        ...

    def read_text(self, name: str) -> str | None:
        """Return a file's text, None where there is no such file.

        Raises:
            ModelLoadError: it cannot be read.
            CorruptFileError: it is not UTF-8.
        """
        ...

    def notes(self) -> list[str]:
        """Return as sentences what was corrected, because files like these are known to say it
        wrong, and what was left out.
        """
        ...

    def open_weights(self) -> WeightSource:
        """Return the tensors, their headers checked.

        Raises:
            ModelLoadError: a file is missing.
            CorruptFileError: a header is damaged.
        """
        ...


class DirectoryFiles:
    """A directory in the Hugging Face layout.

    A tokenizer.json that it lacks is made from the files tokenizers had before, if those are there.
    Its tokens are those of texts: no image is ever read.
    """

    def __init__(self, path: Path) -> None:
        """Take a directory.

        Raises:
            ModelLoadError: there is none.
            UnsupportedFormatError: it is a file.
        """
        require_directory(path)
        self.path = path

    def where(self, name: str) -> str:
        """Return the path of a file."""
        return str(self.path / name)

    def read_json(self, name: str) -> dict[str, object] | None:
        """Return a file's JSON object, None where there is no such file."""
        path = self.path / name
        return read_json_object(path) if path.is_file() else None

    def read_text(self, name: str) -> str | None:
        """Return a file's text, None where there is no such file."""
        text = self._stored_text(name)
        if name != _TOKENIZER:
            return text
        if text is None and (made := made_tokenizer_json(self.path)) is not None:
            text = json.dumps(made, ensure_ascii=False)
        return None if text is None else text_tokenizer(text)

    def _stored_text(self, name: str) -> str | None:
        path = self.path / name
        if not path.is_file():
            return None
        try:
            return path.read_text("utf-8")
        except OSError as error:
            raise ModelLoadError(f"{path} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise CorruptFileError(f"{path} is not UTF-8: {error}") from error

    def notes(self) -> list[str]:
        """Return nothing: these files are what the model was trained with."""
        return []

    def open_weights(self) -> Checkpoint:
        """Map every weight file and check every header."""
        return Checkpoint(self.path)


class TextModelFiles(DirectoryFiles):
    """A directory in the Hugging Face layout of a model of images and text, as its text model's."""

    def where(self, name: str) -> str:
        """Return the path of a file, and what part of it is taken."""
        path = super().where(name)
        return f"{path} (its text model)" if name == _CONFIG else path

    def read_json(self, name: str) -> dict[str, object] | None:
        """Return a file's JSON object, None where there is no such file."""
        values = super().read_json(name)
        if name != _CONFIG or values is None:
            return values
        return text_model_config(values, super().where(name))

    def notes(self) -> list[str]:
        """Return what is left out of the model."""
        wrapper = wrapper_of(super().read_json(_CONFIG) or {})
        left_out = self.open_weights().left_out
        return [
            f"this is the text model of {wrapper}: images cannot be given to it, and {left_out} "
            "tensors for them are not read"
        ]

    def open_weights(self) -> Checkpoint:
        """Map every weight file and check every header; tensors for images have no name."""
        return Checkpoint(self.path, text_tensor_name)


def open_files(path: Path) -> ModelFiles:
    """Return the files of the model at a path.

    Raises:
        ModelLoadError: there is nothing there, or it cannot be read.
        CorruptFileError: a GGUF file whose header is damaged, or a config.json that is no object.
        UnsupportedFormatError: it is in no form that can be loaded.
    """
    named = path.suffix == ".gguf" and not path.is_dir()
    if named or (path.is_file() and _starts_with_magic(path)):
        return GgufFiles(path)
    directory = DirectoryFiles(path)
    wraps = wrapper_of(directory.read_json(_CONFIG) or {}) is not None
    return TextModelFiles(path) if wraps else directory


def _starts_with_magic(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror or error}") from error
