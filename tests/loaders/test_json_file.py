from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from ryzanstein.errors import CorruptFileError, ModelLoadError
from ryzanstein.loaders import json_file
from ryzanstein.loaders.json_file import parse_json_object, read_json_object

if TYPE_CHECKING:
    from pathlib import Path


def test_object(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": [1, {"b": null}], "ü": 1e3}')
    assert read_json_object(path) == {"a": [1, {"b": None}], "ü": 1000.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not valid JSON"),
        (b'{"a": 1', "is not valid JSON"),
        (b'{"a": "\xff"}', "can't decode byte 0xff"),
        (b'{"a": 1, "b": 2, "a": 3}', "the name 'a' appears twice"),
        (b"[1, 2]", "must be a JSON object, found list"),
        (b"17", "must be a JSON object, found int"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b'{"a": ' * 100_000, "is not valid JSON"),
    ],
    ids=["empty", "cut", "utf8", "twice", "list", "number", "digits", "nested"],
)
def test_bad_text(text: bytes, message: str) -> None:
    with pytest.raises(CorruptFileError, match=re.escape(message)) as caught:
        parse_json_object(text, "some file")
    assert str(caught.value).startswith("some file ")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=re.escape(f"{tmp_path / 'x.json'} does not exist")):
        read_json_object(tmp_path / "x.json")


def test_directory_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="cannot be read: Is a directory"):
        read_json_object(tmp_path)


def test_absurdly_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_file, "_MAX_JSON_BYTES", 10)
    path = tmp_path / "config.json"
    path.write_text('{"a": 1234567}')
    with pytest.raises(CorruptFileError, match="14 bytes, more than the 10"):
        read_json_object(path)
