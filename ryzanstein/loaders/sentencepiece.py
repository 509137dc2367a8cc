"""SentencePiece vocabularies, of a tokenizer.model or GGUF metadata, as a tokenizer.json."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from ryzanstein.errors import CorruptFileError, UnsupportedFormatError
from ryzanstein.loaders.tokenizer_json import SpacePrefix, added_token, sentencepiece_bpe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["PieceType", "Pieces", "is_filler", "parse_model", "pieces_to_json"]

_SPACE = "\u2581"  # what stands for a space in a piece

# Field numbers of sentencepiece_model.proto and its values for what is supported.
_MODEL_PIECES, _MODEL_TRAINER, _MODEL_NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_TRAINER_MODEL_TYPE = 3
_NORMALIZER_CHARSMAP, _NORMALIZER_ADD_PREFIX, _NORMALIZER_REMOVE_SPACES = 2, 3, 4
_MODEL_TYPE_UNIGRAM, _MODEL_TYPE_BPE = 1, 2


class PieceType(IntEnum):
    """What a token is, in SentencePiece's numbers, which GGUF files use for every tokenizer."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(slots=True)
class Pieces:
    """A SentencePiece BPE vocabulary, each list by token id."""

    texts: list[str]
    scores: list[float]
    types: list[int]
    add_prefix: bool = True


def is_filler(token_id: int, text: str, kind: int) -> bool:
    """Return whether a converter made the token up for an id that the tokenizer does not have."""
    return kind in (PieceType.UNUSED, PieceType.USER_DEFINED) and text == f"[PAD{token_id}]"


def pieces_to_json(
    pieces: Pieces, *, prefix: SpacePrefix, unk_id: int | None = None
) -> dict[str, object]:
    """Return the content of tokenizer.json for a vocabulary.

    Args:
        pieces: the vocabulary.
        prefix: where a space is put before the text.
        unk_id: the unknown token; None for the piece of that type.
    """
    # GGUF converters spell the spaces of user-defined pieces as spaces.
    texts = [
        text.replace(" ", _SPACE) if kind == PieceType.USER_DEFINED else text
        for text, kind in zip(pieces.texts, pieces.types, strict=True)
    ]
    if unk_id is None and PieceType.UNKNOWN in pieces.types:
        unk_id = pieces.types.index(PieceType.UNKNOWN)
    added = (PieceType.UNKNOWN, PieceType.CONTROL, PieceType.USER_DEFINED)
    kept = [
        (i, text, kind)
        for i, (text, kind) in enumerate(zip(texts, pieces.types, strict=True))
        if not is_filler(i, text, kind)
    ]
    return sentencepiece_bpe(
        {text: i for i, text, _ in kept},
        _derive_merges(texts, pieces.scores, pieces.types),
        [
            added_token(i, text, special=kind != PieceType.USER_DEFINED)
            for i, text, kind in kept
            if kind in added
        ],
        unk_token=None if unk_id is None else texts[unk_id],
        byte_fallback=PieceType.BYTE in pieces.types,
        prefix=prefix,
    )


def _derive_merges(
    texts: Sequence[str], scores: Sequence[float], types: Sequence[int]
) -> list[tuple[str, str]]:
    """Return the merges of a vocabulary, which stores scores instead.

    A piece is made of any two pieces that it is the concatenation of; the better score goes first,
    then the longer left part. User-defined pieces come before all others, whatever their score.
    """
    known = {
        text: np.inf if kind == PieceType.USER_DEFINED else score
        for text, score, kind in zip(texts, scores, types, strict=True)
        if kind in (PieceType.NORMAL, PieceType.USER_DEFINED)
    }
    merges = []
    keys = []
    for text, score in known.items():
        for cut in range(len(text) - 1, 0, -1):
            left = text[:cut]
            if left in known and text[cut:] in known:
                merges.append((left, text[cut:]))
                keys.append((score, cut))
    if not merges:
        return []
    score, cut = np.array(keys).T
    return [merges[i] for i in np.lexsort((-cut, -score))]


def parse_model(data: bytes, where: str) -> Pieces:
    """Return the vocabulary of a tokenizer.model.

    Args:
        data: the file.
        where: what to call it in an error.

    Raises:
        CorruptFileError: it is not a SentencePiece model.
        UnsupportedFormatError: a model that is not BPE, or one that normalises its text.
    """
    pieces = Pieces([], [], [])
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    try:
        for field, value in _fields(data):
            if field == _MODEL_PIECES:
                piece = dict(_fields(_bytes(value)))
                pieces.texts.append(_bytes(piece.get(_PIECE_TEXT, b"")).decode())
                pieces.scores.append(_float(piece.get(_PIECE_SCORE, 0)))
                pieces.types.append(_int(piece.get(_PIECE_TYPE, PieceType.NORMAL)))
            elif field == _MODEL_TRAINER:
                trainer.update(_fields(_bytes(value)))
            elif field == _MODEL_NORMALIZER:
                normalizer.update(_fields(_bytes(value)))
    except (ValueError, struct.error, IndexError) as error:
        raise CorruptFileError(f"{where} is not a SentencePiece model: {error}") from error
    if not pieces.texts:
        raise CorruptFileError(f"{where} is not a SentencePiece model: it has no pieces")
    if trainer.get(_TRAINER_MODEL_TYPE, _MODEL_TYPE_UNIGRAM) != _MODEL_TYPE_BPE:
        raise UnsupportedFormatError(
            f"{where} is not a BPE model, the only kind of SentencePiece model that is supported; "
            "save the tokenizer in the fast format (tokenizer.json)"
        )
    if normalizer.get(_NORMALIZER_CHARSMAP) or normalizer.get(_NORMALIZER_REMOVE_SPACES, 1):
        raise UnsupportedFormatError(
            f"{where} changes the text it is given (normalisation or removal of spaces), which is "
            "not supported; save the tokenizer in the fast format (tokenizer.json)"
        )
    pieces.add_prefix = bool(normalizer.get(_NORMALIZER_ADD_PREFIX, 1))
    return pieces


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and value of every field of a protobuf message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"unknown field type {wire}")
        if size > len(data) - at:
            raise ValueError("it is cut short")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number is too long")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where text belongs")
    return value


def _int(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("text where a number belongs")
    return value


def _float(value: int | bytes) -> float:
    if isinstance(value, int):
        return float(value)
    (number,) = struct.unpack("<f", value)
    return float(number)
