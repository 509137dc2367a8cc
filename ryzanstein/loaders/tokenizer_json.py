"""The content of a tokenizer.json, built from a vocabulary.

Two kinds: byte-level BPE (GPT-2, Llama 3, Qwen) and SentencePiece BPE with byte fallback (Llama 2,
Mistral, Gemma). Both end as the same model in the `tokenizers` library: a vocabulary and merges.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ryzanstein.loaders.pre_tokenizers import PreTokenizer

__all__ = ["SpacePrefix", "added_token", "byte_level_bpe", "sentencepiece_bpe"]

_SPACE = "\u2581"  # what stands for a space in a SentencePiece vocabulary


class SpacePrefix(Enum):
    """Where SentencePiece puts a space that the text does not have."""

    NEVER = "never"
    """Nowhere (Gemma)."""
    ALWAYS = "always"
    """Before the text and after every special token, as SentencePiece itself does (Llama 2)."""
    FIRST = "first"
    """Before the text, unless it begins with one (transformers' `legacy=False`)."""


def added_token(token_id: int, content: str, *, special: bool) -> dict[str, object]:
    """Return a token that is found in the text before anything is cut or merged.

    Args:
        token_id: its id.
        content: its text, matched as it is.
        special: whether decoding leaves it out.
    """
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, **flags, "special": special}


def byte_level_bpe(
    vocab: Mapping[str, int],
    merges: Sequence[str] | Sequence[Sequence[str]],
    rule: PreTokenizer,
    added_tokens: Sequence[Mapping[str, object]],
) -> dict[str, object]:
    """Return a byte-level BPE tokenizer.

    Args:
        vocab: token, in the byte alphabet, to id.
        merges: pairs in order of precedence, or "left right".
        rule: how a text is cut into the pieces that are merged.
        added_tokens: what `added_token` returned.
    """
    cuts = [
        {
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        }
        for pattern in rule.patterns
    ]
    alphabet = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "added_tokens": list(added_tokens),
        "normalizer": None if rule.normalizer is None else {"type": rule.normalizer},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, alphabet]},
        "post_processor": None,
        "decoder": alphabet,
        "model": _bpe(vocab, merges, ignore_merges=rule.ignore_merges),
    }


def sentencepiece_bpe(
    vocab: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    added_tokens: Sequence[Mapping[str, object]],
    *,
    unk_token: str | None,
    byte_fallback: bool,
    prefix: SpacePrefix,
) -> dict[str, object]:
    """Return a SentencePiece BPE tokenizer: no cutting, spaces are a character of the vocabulary.

    Args:
        vocab: token to id.
        merges: pairs in order of precedence.
        added_tokens: what `added_token` returned.
        unk_token: what a character outside the vocabulary becomes without byte fallback.
        byte_fallback: whether it becomes its UTF-8 bytes, tokens `<0x00>` to `<0xFF>`, instead.
        prefix: where a space is put before the text, which decoding takes away again.
    """
    spaces: dict[str, object] = {
        "type": "Replace",
        "pattern": {"String": " "},
        "content": _SPACE,
    }
    normalizers = [spaces]
    if prefix is SpacePrefix.ALWAYS:
        normalizers.insert(0, {"type": "Prepend", "prepend": _SPACE})
    steps: list[dict[str, object]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix is not SpacePrefix.NEVER:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    metaspace = {
        "type": "Metaspace",
        "replacement": _SPACE,
        "prepend_scheme": "first",
        "split": False,
    }
    first = prefix is SpacePrefix.FIRST
    return {
        "version": "1.0",
        "added_tokens": list(added_tokens),
        "normalizer": None if first else {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": metaspace if first else None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": _bpe(
            vocab, merges, unk_token=unk_token, fuse_unk=True, byte_fallback=byte_fallback
        ),
    }


def _bpe(
    vocab: Mapping[str, int],
    merges: Sequence[str] | Sequence[Sequence[str]],
    *,
    unk_token: str | None = None,
    fuse_unk: bool = False,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> dict[str, object]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk_token,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": fuse_unk,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": vocab,
        "merges": merges,
    }
