"""A checkpoint directory in the Hugging Face layout: one safetensors file, or indexed shards."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ryzanstein.errors import CorruptFileError, ModelLoadError, UnsupportedFormatError
from ryzanstein.loaders.json_file import read_json_object
from ryzanstein.loaders.safetensors import SafetensorsFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from ryzanstein.loaders.safetensors import TensorInfo

__all__ = ["Checkpoint", "require_directory"]

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def require_directory(directory: Path) -> None:
    """Raise unless the path is a directory.

    Raises:
        ModelLoadError: it does not exist.
        UnsupportedFormatError: it is a file.
    """
    if directory.is_dir():
        return
    if directory.exists():
        raise UnsupportedFormatError(
            f"{directory} is not a GGUF file; point at one, or at the directory that holds "
            f"config.json and {_SINGLE}"
        )
    raise ModelLoadError(
        f"no model directory {directory}; check the path, or download the checkpoint first"
    )


class Checkpoint:
    """The tensors of a checkpoint directory by name, whichever file holds them.

    `left_out` counts those that it holds besides, which have no name here.
    """

    def __init__(self, directory: Path, name_of: Callable[[str], str | None] | None = None) -> None:
        """Map every weight file and check every header.

        `name_of` tells what a stored tensor is called, None for one to leave out; by default all
        are called what they are.

        Raises:
            ModelLoadError: the directory or one of its files is missing.
            CorruptFileError: a header or the index is damaged, or two tensors have one name.
        """
        require_directory(directory)
        self.path = directory
        if (directory / _SINGLE).exists():
            only = SafetensorsFile(directory / _SINGLE)
            files = dict.fromkeys(only, only)
        elif (directory / _INDEX).exists():
            files = _open_shards(directory)
        else:
            raise ModelLoadError(_nothing_found(directory))
        self.left_out = 0
        self._stored: dict[str, str] = {}
        for stored in files:
            name = stored if name_of is None else name_of(stored)
            if name is None:
                self.left_out += 1
            elif name in self._stored:
                raise CorruptFileError(
                    f"{directory}: tensors {stored!r} and {self._stored[name]!r} are both "
                    f"{name!r}; download the checkpoint again"
                )
            else:
                self._stored[name] = stored
        self._files = {name: files[stored] for name, stored in self._stored.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def info(self, name: str) -> TensorInfo:
        """Return dtype, shape and size of a tensor."""
        return replace(self._files[name].info(self._stored[name]), name=name)

    def view(self, name: str) -> NDArray[Any]:
        """Return a tensor as a read-only array (bfloat16 as uint16 bit patterns)."""
        return self._files[name].view(self._stored[name])

    def rows(self, name: str, begin: int, end: int) -> NDArray[Any]:
        """Return rows [begin, end) of a matrix."""
        return self.view(name)[begin:end]

    def ternary_rows(self, name: str) -> None:
        """Return None: safetensors have no type for ternary codes."""

    def grouped_rows(self, name: str) -> None:
        """Return None: safetensors have no type for codes in groups."""

    def identity(self) -> dict[str, object]:
        """Return what changes when the weights do, as JSON values.

        Of each file the size, time of change and inode, which stay when the directory is moved, and
        the names of the tensors taken from it.
        """
        files = {file.path.name: file for file in self._files.values()}
        return {
            name: [
                *(file.status.st_size, file.status.st_mtime_ns, file.status.st_ino),
                sorted(tensor for tensor, holder in self._files.items() if holder is file),
            ]
            for name, file in sorted(files.items())
        }

    def release(self, name: str) -> None:
        """Let the kernel drop a tensor's resident pages."""
        self._files[name].release(self._stored[name])

    def where(self, name: str) -> str:
        """Return the file and tensor, by the name in the file, for errors."""
        return f"{self._files[name].path}: tensor {self._stored[name]!r}"


def _open_shards(directory: Path) -> dict[str, SafetensorsFile]:
    index = directory / _INDEX
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CorruptFileError(f"{index}: 'weight_map' must be an object; download it again")
    shards: dict[str, SafetensorsFile] = {}
    files: dict[str, SafetensorsFile] = {}
    for name, shard in weight_map.items():
        # A path out of the directory, or one the file system refuses, is not a shard's name.
        if not isinstance(shard, str) or not shard.isprintable() or "/" in shard:
            raise CorruptFileError(
                f"{index}: tensor {name!r} is in {shard!r}, which is not a plain file name"
            )
        if shard not in shards:
            shards[shard] = SafetensorsFile(directory / shard)
        if name not in shards[shard]:
            raise CorruptFileError(
                f"{index}: tensor {name!r} should be in {shard}, which does not hold it; "
                "download both again"
            )
        files[name] = shards[shard]
    return files


def _nothing_found(directory: Path) -> str:
    message = f"{directory} holds neither {_SINGLE} nor {_INDEX}"
    if files := sorted(path.name for path in directory.glob("*.gguf")):
        return f"{message}; point at one of its GGUF files: {', '.join(files[:3])}"
    if others := sorted(p.name for p in directory.iterdir() if p.suffix in {".bin", ".pt"}):
        return (
            f"{message}, only {', '.join(others[:3])}; get the safetensors form of the model, or "
            "load it in transformers and save it again with save_pretrained"
        )
    return f"{message}; download the checkpoint again"
