"""A GGUF file as the files of a model in the Hugging Face layout."""

from __future__ import annotations

import json
import math
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ryzanstein.errors import CorruptFileError, ModelLoadError, UnsupportedFormatError
from ryzanstein.loaders import gguf_tokenizer
from ryzanstein.loaders.gguf import GgufFile
from ryzanstein.loaders.gguf_config import architecture_of, is_tied, model_config, ternary_mode
from ryzanstein.loaders.gguf_grouped import (
    GroupedRows,
    GroupedTensor,
    grouped_format,
    grouped_rows,
)
from ryzanstein.loaders.gguf_types import TERNARY_TYPES, row_scales
from ryzanstein.loaders.safetensors import TensorInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from ryzanstein.loaders.gguf import GgufTensor
    from ryzanstein.loaders.gguf_config import GgufArchitecture

__all__ = ["GgufFiles", "GgufWeights"]

T = TypeVar("T")

_CHUNK_WEIGHTS = 1 << 18  # decoded at a time
# How far quantising may put a ternary weight off, as a share of the row's largest: of Q4_0's codes
# -8 to 7, one end stands for it and the other is a step short.
_ROUNDED_TERNARY = 1 / 8
_PERMUTED = re.compile(r"\.([qk])_proj\.(?:weight|bias)$")
_JSON_FILES = {
    "tokenizer.json": gguf_tokenizer.tokenizer_json,
    "tokenizer_config.json": gguf_tokenizer.tokenizer_config,
    "generation_config.json": gguf_tokenizer.generation_config,
}


class GgufFiles:
    """A GGUF file, made out as config.json, tokenizer files and tensors."""

    def __init__(self, path: Path) -> None:
        """Map a file and check its header.

        Raises:
            ModelLoadError: the file is missing or unreadable, or is no model.
            CorruptFileError: the header contradicts itself or the file's length.
            UnsupportedFormatError: an architecture or tensor type that is not supported.
        """
        self.path = path
        self._file = GgufFile(path)
        self._architecture = architecture_of(self._file)

    @cached_property
    def _tied(self) -> bool:
        return is_tied(self._file)

    def where(self, name: str) -> str:
        """Return the file, and what is made of it."""
        return f"{self.path} (as {name})"

    def read_json(self, name: str) -> dict[str, object] | None:
        """Return what a file would hold, None where the model would have none of the name."""
        if name == "config.json":
            return model_config(self._file, self._architecture, tied=self._tied)
        make = _JSON_FILES.get(name)
        return None if make is None else self._made(make)

    def read_text(self, name: str) -> str | None:
        """Return a file's text, None where the model would have none of the name."""
        if name == "chat_template.jinja":
            return self._made(gguf_tokenizer.chat_template)
        values = self.read_json(name)
        return None if values is None else json.dumps(values, ensure_ascii=False)

    def notes(self) -> list[str]:
        """Return why the chat template is not the one in the file, if it is not."""
        note = self._made(gguf_tokenizer.template_source).note
        return [] if note is None else [note]

    def _made(self, make: Callable[[Mapping[str, Any]], T]) -> T:
        """Return what is made of the metadata; its errors do not know the file."""
        try:
            return make(self._file.metadata)
        except ModelLoadError as error:
            raise type(error)(f"{self.path}: {error}") from error

    def open_weights(self) -> GgufWeights:
        """Return the tensors by the names that transformers has for them."""
        ternary = ternary_mode(self._file, self._architecture) is not None
        return GgufWeights(self._file, self._architecture, tied=self._tied, ternary=ternary)


class GgufWeights:
    """The tensors of a GGUF file, in names, order of rows and values as transformers has them."""

    def __init__(
        self, file: GgufFile, architecture: GgufArchitecture, *, tied: bool, ternary: bool
    ) -> None:
        """Take a checked file; a head that is `tied` is left out, `ternary` is of the linears.

        Raises:
            CorruptFileError: two tensors that transformers would give one name.
        """
        self.path = file.path
        self._file = file
        self._architecture = architecture
        self._ternary = ternary
        self._names: dict[str, str] = {}
        for stored in file:
            name = architecture.tensor_name(stored)
            if name is None or (tied and stored == "output.weight"):
                continue
            if name in self._names:
                raise CorruptFileError(
                    f"{file.path}: tensors {stored!r} and {self._names[name]!r} are both {name!r}; "
                    "download the file again"
                )
            self._names[name] = stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def info(self, name: str) -> TensorInfo:
        """Return type, shape and size of a tensor; quantised types go by their GGUF names."""
        tensor = self._tensor(name)
        return TensorInfo(name, tensor.type.name, tensor.shape, tensor.nbytes)

    def view(self, name: str) -> NDArray[Any]:
        """Return a tensor as a read-only array (bfloat16 as uint16 bit patterns).

        Plain numbers that transformers stores the same way are read in place, all others are copied
        to float32.
        """
        tensor = self._tensor(name)
        if (dtype := self._dtype_in_place(name)) is not None:
            return self._file.view(tensor.name, dtype, tensor.shape)
        shape = _by_rows(tensor.shape)
        values = np.empty(shape, np.float32)
        for begin, end in _chunks(shape, self._permuted_head_dim(name) or 1):
            values[begin:end] = self._float_rows(name, begin, end)
        values = values.reshape(tensor.shape)
        values.flags.writeable = False
        return values

    def rows(self, name: str, begin: int, end: int) -> NDArray[Any]:
        """Return rows [begin, end) of a matrix as `view` has them, decoding no others but those of
        the same heads, where rows of heads are permuted. The rows of a vector are its elements.
        """
        if self._dtype_in_place(name) is None:
            return self._float_rows(name, begin, end)
        return self.view(name).reshape(_by_rows(self._tensor(name).shape))[begin:end]

    def _float_rows(self, name: str, begin: int, end: int) -> NDArray[np.float32]:
        tensor = self._tensor(name)
        head_dim = self._permuted_head_dim(name) or 1
        first, last = begin // head_dim * head_dim, -(-end // head_dim) * head_dim
        data = self._file.view(tensor.name)
        values = tensor.type.dequantize(data, _by_rows(tensor.shape), first, last)
        if head_dim > 1:
            values = _unpermute(values, head_dim)
        if self._is_shifted(name):  # exact: what is stored was made by adding 1
            values -= np.float32(1)
        return values[begin - first : end - first]

    def _dtype_in_place(self, name: str) -> str | None:
        """Return the dtype of a tensor whose view is of the file itself, None for others."""
        changes = self._is_shifted(name) or self._permuted_head_dim(name) is not None
        return None if changes else self._tensor(name).type.dense

    def _is_shifted(self, name: str) -> bool:
        return self._architecture.shifted_norms and name.endswith("norm.weight")

    def ternary_rows(
        self, name: str
    ) -> Iterator[tuple[int, NDArray[np.int8], NDArray[np.float32]]] | None:
        """Return a ternary tensor some rows at a time: the first's index, codes and row scales.

        None where it is not ternary. Codes are int8 [n, K], scales float32 [n].

        Raises:
            UnsupportedFormatError: a linear of floats in a ternary file that has no masters.
            UnsupportedFormatError: while iterating, a row with several scales, or bytes that the
                tensor's type never has.
        """
        tensor = self._tensor(name)
        if tensor.type.name in TERNARY_TYPES:
            return self._ternary_rows(name)
        if not self._ternary or len(tensor.shape) != 2:
            return None
        parts = self._ternary_values(name)
        if parts is None and not self._architecture.ternary:
            raise UnsupportedFormatError(
                f"{self.where(name)} is not ternary, as other linears of the file are; get a file "
                "whose linears are all of one type"
            )
        return parts

    def _ternary_rows(
        self, name: str
    ) -> Iterator[tuple[int, NDArray[np.int8], NDArray[np.float32]]]:
        tensor = self._tensor(name)
        head_dim = self._permuted_head_dim(name)
        data = self._file.view(tensor.name)
        for begin, end in _chunks(tensor.shape, head_dim or 1):
            try:
                codes, groups = tensor.type.decode(data, tensor.shape, begin, end)
            except UnsupportedFormatError as error:
                raise UnsupportedFormatError(f"{self.where(name)}: {error}") from error
            scales = row_scales(codes, groups)
            if scales is None:
                raise UnsupportedFormatError(
                    f"{self.where(name)} has several scales in a row; supported is one"
                )
            if head_dim is not None:
                codes, scales = _unpermute(codes, head_dim), _unpermute(scales, head_dim)
            yield begin, codes, scales

    def _ternary_values(
        self, name: str
    ) -> Iterator[tuple[int, NDArray[np.int8], NDArray[np.float32]]] | None:
        """Return the codes of weights that are 0 and one number of either sign, else None.

        Converters write BitNet linears so where they write them as floats, or quantise those. Their
        absmean is not that number, so ternarising them as masters would give them another scale.
        """
        tensor = self._tensor(name)
        # Of the types with few bits, a number and its negative need not both have a code.
        tolerance = 0.0 if tensor.type.dense is not None else _ROUNDED_TERNARY
        ranges = list(_chunks(tensor.shape, self._permuted_head_dim(name) or 1))

        def ternary(begin: int, end: int) -> tuple[NDArray[np.int8], NDArray[np.float32], bool]:
            values = self._float_rows(name, begin, end)
            scales = np.abs(values).max(axis=1)
            with np.errstate(invalid="ignore"):  # infinities: not ternary, and found by who packs
                levels = values / np.where(scales, scales, np.float32(1))[:, None]
            codes = np.rint(levels)
            return codes.astype(np.int8), scales, bool((np.abs(levels - codes) <= tolerance).all())

        if not all(ternary(begin, end)[2] for begin, end in ranges):
            return None
        return ((begin, *ternary(begin, end)[:2]) for begin, end in ranges)

    def grouped_rows(self, name: str) -> GroupedTensor | None:
        """Return a quantised matrix as codes in groups, to be read some rows at a time.

        None for plain numbers.

        Raises:
            UnsupportedFormatError: while iterating, bytes that the tensor's type never has.
        """
        grouped = grouped_format(self._tensor(name).type)
        return None if grouped is None else GroupedTensor(grouped, self._grouped_parts(name))

    def _grouped_parts(self, name: str) -> Iterator[tuple[int, GroupedRows]]:
        tensor = self._tensor(name)
        head_dim = self._permuted_head_dim(name)
        data = self._file.view(tensor.name)
        for begin, end in _chunks(tensor.shape, head_dim or 1):
            try:
                rows = grouped_rows(tensor.type, data, tensor.shape, begin, end)
            except UnsupportedFormatError as error:
                raise UnsupportedFormatError(f"{self.where(name)}: {error}") from error
            if head_dim is not None:
                minima = rows.minima
                rows = GroupedRows(
                    _unpermute(rows.codes, head_dim),
                    _unpermute(rows.scales, head_dim),
                    None if minima is None else _unpermute(minima, head_dim),
                )
            yield begin, rows

    def identity(self) -> dict[str, object]:
        """Return what changes when the weights do, as JSON values."""
        status = self._file.status
        return {
            self.path.name: [
                *(status.st_size, status.st_mtime_ns, status.st_ino),
                sorted(self._names),
            ]
        }

    def release(self, name: str) -> None:
        """Let the kernel drop a tensor's resident pages."""
        self._file.release(self._names[name])

    def where(self, name: str) -> str:
        """Return the file and tensor, by the name in the file, for errors."""
        return f"{self.path}: tensor {self._names[name]!r}"

    def _tensor(self, name: str) -> GgufTensor:
        return self._file.tensor(self._names[name])

    def _permuted_head_dim(self, name: str) -> int | None:
        """Return the rows of a head of a tensor whose rows are permuted, None for any other."""
        part = _PERMUTED.search(name) if self._architecture.permuted else None
        if part is None:
            return None
        prefix = self._file.metadata["general.architecture"]
        heads = self._file.metadata[f"{prefix}.attention.head_count"]
        if part[1] == "k":
            heads = self._file.metadata.get(f"{prefix}.attention.head_count_kv", heads)
        shape = self._tensor(name).shape
        return int((shape[0]) // heads)


def _by_rows(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape of a tensor as a matrix: plain vectors are a column."""
    return (shape[0], 1) if len(shape) == 1 else (math.prod(shape[:-1]), shape[-1])


def _chunks(shape: tuple[int, ...], multiple: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows that are worth decoding together, each of whole multiples."""
    rows = math.prod(shape[:-1])
    step = max(1, _CHUNK_WEIGHTS // shape[-1] // multiple) * multiple
    for begin in range(0, rows, step):
        yield begin, min(begin + step, rows)


def _unpermute(rows: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """Return the rows of whole heads from adjacent pairs to pairs half a head apart."""
    pairs = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
