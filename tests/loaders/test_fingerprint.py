from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest
from blake3 import blake3

from ryzanstein.errors import CorruptFileError, ModelLoadError
from ryzanstein.loaders import fingerprint
from ryzanstein.loaders.fingerprint import FileHash, known_hash, verify_file

if TYPE_CHECKING:
    from pathlib import Path

DATA = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RYZANSTEIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(DATA)
    return path


def damage(path: Path) -> None:
    """Change a byte, but neither size, time nor inode."""
    status = path.stat()
    with path.open("r+b") as opened:
        opened.seek(777)
        opened.write(b"!")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_hash_is_made_once_and_compared_from_then_on(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "_CHUNK_BYTES", 1000)
    digest = blake3(DATA).hexdigest()
    assert known_hash(file) is None
    moved: list[int] = []
    assert verify_file(file, moved.append) == FileHash(digest, is_known=False, matches_hub=False)
    assert sum(moved) == len(DATA)
    assert len(moved) == 11
    assert known_hash(file) == digest
    assert verify_file(file) == FileHash(digest, is_known=True, matches_hub=False)


def test_damage_is_noticed(file: Path) -> None:
    verify_file(file)
    damage(file)
    with pytest.raises(CorruptFileError, match=r"has changed although its size and time have not"):
        verify_file(file)
    with pytest.raises(CorruptFileError):  # it has not been forgotten either
        verify_file(file)


def test_a_file_that_was_replaced_is_another(file: Path) -> None:
    verify_file(file)
    file.write_bytes(DATA[::-1])
    os.utime(file, ns=(1, 1))
    assert known_hash(file) is None
    assert verify_file(file).is_known is False


def test_files_of_the_hub_are_checked_against_it(tmp_path: Path) -> None:
    blobs = tmp_path / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    blob = blobs / hashlib.sha256(DATA).hexdigest()
    blob.write_bytes(DATA)
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert verify_file(link).matches_hub
    small = blobs / ("a" * 40)  # of files that are not stored as large ones, git's hash
    small.write_bytes(DATA)
    assert not verify_file(small).matches_hub
    damage(blob)
    with pytest.raises(CorruptFileError, match=r"is not the file on the hub: its SHA-256 is "):
        verify_file(link)


def test_a_cache_that_cannot_be_written(file: Path, cache: Path) -> None:
    cache.write_text("not a directory")
    for _ in range(2):
        assert verify_file(file).is_known is False
    assert known_hash(file) is None


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"missing cannot be read"):
        verify_file(tmp_path / "missing")
    (tmp_path / "empty").touch()
    with pytest.raises(ModelLoadError, match=r"empty cannot be read"):
        verify_file(tmp_path / "empty")
