"""The pages of a prefix cache in a file, so that a long prompt survives a restart.

Layout: a magic with the version, the length of a header in JSON (u64, little-endian), its CRC-32
(u32), the header, and from the next multiple of 64 bytes on the pages as the cache stores them, one
after the other. The header has fingerprints of all that computed the pages, by name, and of each
page the one before it, its tokens, the salt and a CRC-32. Pages are mapped and copied one at a
time.
"""

from __future__ import annotations

import json
import secrets
import zlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from ryzanstein.errors import CorruptFileError, ModelLoadError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from ryzanstein._core import U8Array

__all__ = ["PrefixFile", "StoredPage", "write_prefix_file"]

_MAGIC = b"RYZKV\x00\x00\x03"
_PREAMBLE_BYTES = len(_MAGIC) + 8 + 4
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class StoredPage:
    """A page of the file, in the order of the file: every page comes after its parent.

    Args:
        parent: index of the page before it; -1 for the first of a sequence.
        token_ids: its own tokens.
        rope_set: of its namespace.
        salt: likewise.
    """

    parent: int
    token_ids: list[int]
    rope_set: int
    salt: str


def write_prefix_file(
    path: Path,
    fingerprints: Mapping[str, str],
    pages: Sequence[StoredPage],
    read: Callable[[int], U8Array],
) -> None:
    """Write pages, of which `read` returns the bytes by index, twice the same.

    The file is whole or not there.

    Raises:
        ModelLoadError: it cannot be written.
    """
    header = {
        "fingerprints": dict(fingerprints),
        "page_bytes": len(read(0)) if pages else 0,
        "pages": [asdict(page) for page in pages],
        "crcs": [_crc(read(index)) for index in range(len(pages))],
    }
    text = json.dumps(header).encode()
    preamble = _MAGIC + len(text).to_bytes(8, "little") + zlib.crc32(text).to_bytes(4, "little")
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(preamble + text + bytes(-(len(preamble) + len(text)) % _ALIGNMENT))
            for index in range(len(pages)):
                file.write(read(index).data)
        temporary.replace(path)
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _crc(body: U8Array) -> int:
    return zlib.crc32(body.data)


class PrefixFile:
    """A mapped file of pages.

    Args:
        path: the file.
        fingerprints: of what would use the pages, by name.

    Raises:
        ModelLoadError: there is no such file, or it cannot be read.
        CorruptFileError: it is damaged or no such file.
        ValidationError: something else made it; says what differs.
    """

    def __init__(self, path: Path, fingerprints: Mapping[str, str]) -> None:
        self._path = path
        try:
            self._bytes: U8Array = np.memmap(path, np.uint8, "r")
        except FileNotFoundError as error:
            raise ModelLoadError(f"there is no file {path}") from error
        except (OSError, ValueError) as error:
            raise CorruptFileError(f"{path} cannot be mapped: {error}") from error
        preamble = self._bytes[:_PREAMBLE_BYTES].tobytes()
        if not preamble.startswith(_MAGIC):
            raise CorruptFileError(f"{path} holds no cached pages, or those of another version")
        end = _PREAMBLE_BYTES + int.from_bytes(preamble[len(_MAGIC) : -4], "little")
        text = self._bytes[_PREAMBLE_BYTES:end].tobytes()
        if zlib.crc32(text) != int.from_bytes(preamble[-4:], "little"):
            raise CorruptFileError(f"{path}: its header is damaged")
        header = json.loads(text)
        theirs = header["fingerprints"]
        others = [name for name in fingerprints if theirs.get(name) != fingerprints[name]]
        if others:
            raise ValidationError(
                f"{path} was computed with another {' and another '.join(others)}; "
                "its pages would not be what this one computes"
            )
        self.pages = [StoredPage(**page) for page in header["pages"]]
        self._crcs: list[int] = header["crcs"]
        self._page_bytes: int = header["page_bytes"]
        self._start = end + -end % _ALIGNMENT
        if len(self._bytes) != self._start + len(self.pages) * self._page_bytes:
            raise CorruptFileError(f"{path} is truncated, or longer than its header says")

    def read(self, index: int) -> U8Array:
        """Return the bytes of a page, uint8 [page_bytes], in place.

        Raises:
            CorruptFileError: they are not those that were written.
        """
        start = self._start + index * self._page_bytes
        body = np.asarray(self._bytes[start : start + self._page_bytes])
        if _crc(body) != self._crcs[index]:
            raise CorruptFileError(f"{self._path}: page {index} is damaged")
        return body

    def path_to(self, index: int) -> list[int]:
        """Return the pages from the first of a sequence to this one."""
        found = [index]
        while (parent := self.pages[found[-1]].parent) >= 0:
            found.append(parent)
        return found[::-1]

    def leaves(self) -> list[int]:
        """Return the pages behind which there is none."""
        return sorted(set(range(len(self.pages))) - {page.parent for page in self.pages})
