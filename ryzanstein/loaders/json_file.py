"""JSON files of a checkpoint, read with every failure turned into an error that names the file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ryzanstein.errors import CorruptFileError, ModelLoadError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["parse_json_object", "read_json_object"]

# The largest real index (a thousand shards) is under 10 MB.
_MAX_JSON_BYTES = 64 << 20


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the name {key!r} appears twice")
            seen.add(key)
    return values


def parse_json_object(text: bytes, where: str) -> dict[str, object]:
    """Return the JSON object in `text`.

    Args:
        text: UTF-8 bytes.
        where: what to call the text in an error.

    Raises:
        CorruptFileError: not UTF-8, not JSON, not an object, nested too deeply, or a name twice.
    """
    try:
        value: object = json.loads(text.decode("utf-8"), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptFileError(
            f"{where} must be a JSON object, found {type(value).__name__}; "
            "download the checkpoint again"
        )
    return value


def read_json_object(path: Path) -> dict[str, object]:
    """Return the JSON object in a file.

    Raises:
        ModelLoadError: the file is missing or cannot be read.
        CorruptFileError: as for `parse_json_object`, or the file is absurdly large.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_JSON_BYTES:
            raise CorruptFileError(
                f"{path} has {size} bytes, more than the {_MAX_JSON_BYTES} a JSON file may have"
            )
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelLoadError(
            f"{path} does not exist; point at a directory in the Hugging Face layout "
            "(config.json and *.safetensors)"
        ) from error
    except CorruptFileError:
        raise
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror or error}") from error
    return parse_json_object(text, str(path))
