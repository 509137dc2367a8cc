"""Hashes of a model's files: made once, remembered while size, time of change and inode stay.

A file whose bytes change although these three do not has been damaged, by a disk or by memory.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ryzanstein.config import cache_directory
from ryzanstein.errors import CorruptFileError, ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["FileHash", "known_hash", "verify_file"]

_CHUNK_BYTES = 64 << 20  # enough to keep every core busy between two moves of a progress bar
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileHash:
    """What verifying a file found.

    Args:
        blake3: the hash of its bytes, in hexadecimal.
        is_known: whether an earlier hash was there to compare with, and was the same.
        matches_hub: whether the hub's own hash was there to compare with, and was the same.
    """

    blake3: str
    is_known: bool
    matches_hub: bool


def known_hash(path: Path) -> str | None:
    """Return the blake3 hash that `verify_file` once found, None where the file is another now."""
    record = _record(path)
    try:
        return None if record is None else record.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return None


def verify_file(path: Path, advance: Callable[[int], None] = lambda _: None) -> FileHash:
    """Hash a file, compare with what is known of it, and remember the hash.

    Args:
        path: the file. Where it is a link into the hub's cache, whose large files are named by
            their SHA-256, that is compared too.
        advance: told how many bytes were read.

    Raises:
        CorruptFileError: the bytes are not what they were.
        ModelLoadError: the file cannot be read.
    """
    expected = _hub_sha256(path)
    blake3, sha256 = _hash(path, advance, with_sha256=expected is not None)
    if expected not in (None, sha256):
        raise CorruptFileError(
            f"{path} is not the file on the hub: its SHA-256 is {sha256}, not {expected}. Delete "
            f"{path.resolve()} and pull the model again"
        )
    known = known_hash(path)
    if known not in (None, blake3):
        raise CorruptFileError(
            f"{path} has changed although its size and time have not: its hash is {blake3}, and "
            f"was {known}. Download it again, and check the disk"
        )
    if known is None:
        _remember(path, blake3)
    return FileHash(blake3, known is not None, expected is not None)


def _hash(
    path: Path, advance: Callable[[int], None], *, with_sha256: bool
) -> tuple[str, str | None]:
    from blake3 import blake3

    fast, standard = blake3(max_threads=blake3.AUTO), hashlib.sha256()
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
            memoryview(data) as view,
        ):
            for begin in range(0, len(view), _CHUNK_BYTES):
                with view[begin : begin + _CHUNK_BYTES] as chunk:
                    fast.update(chunk)
                    if with_sha256:
                        standard.update(chunk)
                    advance(len(chunk))
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise ModelLoadError(f"{path} cannot be read: {error}") from error
    return fast.hexdigest(), standard.hexdigest() if with_sha256 else None


def _hub_sha256(path: Path) -> str | None:
    """Return the SHA-256 that the hub's cache names a file by, None where it does not."""
    target = path.resolve()
    is_blob = target.parent.name == "blobs" and _SHA256.fullmatch(target.name) is not None
    return target.name if is_blob else None


def _record(path: Path) -> Path | None:
    """Return where a file's hash is kept; the name says which state of it was hashed."""
    directory = cache_directory()
    if directory is None:
        return None
    status = path.stat()
    return directory / "hashes" / f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"


def _remember(path: Path, digest: str) -> None:
    """Write a record in one move; where that cannot be done, the next time is the first again."""
    record = _record(path)
    if record is None:
        return
    with suppress(OSError):
        record.parent.mkdir(parents=True, exist_ok=True)
        temporary = record.with_name(f"{record.name}.{secrets.token_hex(4)}")
        temporary.write_text(digest, "ascii")
        temporary.replace(record)
