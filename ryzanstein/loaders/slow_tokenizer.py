"""tokenizer.json from the files that tokenizers had before it.

Those are tokenizer.model (SentencePiece), or vocab.json and merges.txt (byte-level BPE), with the
tokens added later in added_tokens.json and tokenizer_config.json.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ryzanstein.errors import CorruptFileError, ModelLoadError, UnsupportedFormatError
from ryzanstein.loaders.json_file import read_json_object
from ryzanstein.loaders.pre_tokenizers import pre_tokenizer
from ryzanstein.loaders.sentencepiece import PieceType, parse_model, pieces_to_json
from ryzanstein.loaders.tokenizer_json import SpacePrefix, added_token, byte_level_bpe

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["made_tokenizer_json"]

# Which rule cuts the text, by the class that tokenizer_config.json names.
_BYTE_LEVEL_CLASSES = {"GPT2Tokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}


def made_tokenizer_json(directory: Path) -> dict[str, object] | None:
    """Return what tokenizer.json would hold, None if there are no files to make it from.

    Raises:
        ModelLoadError: a file cannot be read.
        CorruptFileError: a file is malformed.
        UnsupportedFormatError: a kind of tokenizer that is not supported.
    """
    if (directory / "tokenizer.model").is_file():
        return _from_sentencepiece(directory)
    if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        return _from_merges(directory)
    return None


def _from_sentencepiece(directory: Path) -> dict[str, object]:
    pieces = parse_model(_read(directory / "tokenizer.model"), str(directory / "tokenizer.model"))
    settings = _settings(directory)
    # The tokens that begin and end a text have no role in the file but their place.
    bos = pieces.texts[1] if pieces.types[1:2] == [PieceType.CONTROL] else None
    for token_id, text, special in _added_tokens(directory, settings):
        kind = PieceType.CONTROL if special else PieceType.USER_DEFINED
        for i in range(len(pieces.texts), token_id + 1):
            pieces.texts.append(f"[PAD{i}]")
            pieces.scores.append(0.0)
            pieces.types.append(PieceType.UNUSED)
        pieces.texts[token_id] = text
        pieces.types[token_id] = kind
    prefix = SpacePrefix.NEVER
    if settings.get("add_prefix_space", pieces.add_prefix) is not False and pieces.add_prefix:
        # Without the setting the file is as old as SentencePiece's own way.
        prefix = SpacePrefix.FIRST if settings.get("legacy") is False else SpacePrefix.ALWAYS
    made = pieces_to_json(pieces, prefix=prefix)
    if bos is not None:
        made["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": bos, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [],
            "special_tokens": {bos: {"id": bos, "ids": [1], "tokens": [bos]}},
        }
    return made


def _from_merges(directory: Path) -> dict[str, object]:
    settings = _settings(directory)
    name = str(settings.get("tokenizer_class", "")).removesuffix("Fast")
    if name not in _BYTE_LEVEL_CLASSES or settings.get("add_prefix_space"):
        raise UnsupportedFormatError(
            f"{directory} has vocab.json and merges.txt of a tokenizer_class {name!r} that is not "
            f"supported without tokenizer.json (supported: {', '.join(_BYTE_LEVEL_CLASSES)}, "
            "without add_prefix_space); save the tokenizer in the fast format"
        )
    path = directory / "vocab.json"
    try:
        vocab = {text: _id(token_id) for text, token_id in read_json_object(path).items()}
    except ValueError as error:
        raise CorruptFileError(f"{path} must map tokens to ids: {error}") from error
    path = directory / "merges.txt"
    try:
        lines = _read(path).decode().split("\n")
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{path} is not UTF-8: {error}") from error
    merges = [line for line in lines if line and not line.startswith("#version")]
    added = []
    for token_id, text, special in _added_tokens(directory, settings):
        vocab[text] = token_id
        added.append(added_token(token_id, text, special=special))
    return byte_level_bpe(vocab, merges, pre_tokenizer(_BYTE_LEVEL_CLASSES[name]), added)


def _settings(directory: Path) -> dict[str, Any]:
    path = directory / "tokenizer_config.json"
    return read_json_object(path) if path.is_file() else {}


def _added_tokens(directory: Path, settings: dict[str, Any]) -> list[tuple[int, str, bool]]:
    """Return id, text and whether it is special of every token added to the vocabulary, by id."""
    found: dict[int, tuple[str, bool]] = {}
    path = directory / "added_tokens.json"
    try:
        for text, token_id in (read_json_object(path) if path.is_file() else {}).items():
            found[_id(token_id)] = (text, False)
        path = directory / "tokenizer_config.json"
        for key, token in (settings.get("added_tokens_decoder") or {}).items():
            found[_id(int(key))] = (str(token["content"]), bool(token.get("special")))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{path}: the added tokens are malformed: {error}") from error
    return [(token_id, text, special) for token_id, (text, special) in sorted(found.items())]


def _id(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 20:
        raise ValueError(f"{value!r} is no token id")
    return value


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror or error}") from error
