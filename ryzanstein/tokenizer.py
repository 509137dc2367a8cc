"""Text to token ids and back, whole or as a stream."""

from __future__ import annotations

import functools
import json
import re
from contextlib import suppress
from itertools import takewhile
from typing import TYPE_CHECKING

import tokenizers
from tokenizers.processors import TemplateProcessing

from ryzanstein.errors import (
    CorruptFileError,
    ModelLoadError,
    UnsupportedFormatError,
    ValidationError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ryzanstein.loaders.model_files import ModelFiles

__all__ = ["Detokenizer", "Tokenizer"]

_REPLACEMENT = "\ufffd"
# Enough of the prompt for a decoder that treats the first word of a text specially.
_PROMPT_TAIL_TOKENS = 6
_ANY_TEXT = "a"
# One of every kind of character, which reaches every part of a tokenizer.
_PROBE = "A \u00e9\u4e2d 12,\n"
# A prefix of parts of words, or a letter spelt so that it may hide one. Most files have neither,
# and are too long to parse twice; two patterns are found faster than one of both.
_MAY_PREFIX = (
    re.compile(r'continuing_subword_prefix"\s*:\s*"[^"]'),
    re.compile(r"\\u00(?:5[fF]|[67][\da-fA-F])"),
)


def _token_text(value: object) -> str | None:
    """Return a special token's text, which files store as a string or as {"content": ...}."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


class Tokenizer:
    """A Hugging Face `tokenizer.json` with the model's special tokens.

    Args:
        backend: the tokenizer proper.
        special_tokens: role ("bos_token", "eos_token", ...) to text.
        eos_token_ids: tokens that end a generation.
        add_bos: whether an encoded text begins with the bos token.
        add_eos: whether it ends with the eos token.

    None leaves either as the backend has it.

    Example:
        >>> tokenizer = Tokenizer.from_files(files)
        >>> tokenizer.decode(tokenizer.encode("hello"))
        'hello'
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: dict[str, str] | None = None,
        eos_token_ids: Iterable[int] = (),
        add_bos: bool | None = None,
        add_eos: bool | None = None,
    ) -> None:
        self._backend = backend
        self.special_tokens = dict(special_tokens or {})
        if add_bos is not None or add_eos is not None:
            backend.post_processor = self._framing(add_bos, add_eos)
        self.eos_token_ids = tuple(sorted(set(eos_token_ids)))
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        self._special_ids = frozenset(
            token_id
            for token_id, token in backend.get_added_tokens_decoder().items()
            if token.special
        )
        self._byte_ids = _find_byte_tokens(backend)
        self.bos_token_id = self._find("bos_token")

    @classmethod
    def from_files(cls, files: ModelFiles) -> Tokenizer:
        """Read tokenizer.json, tokenizer_config.json, generation_config.json and config.json.

        Only the first is required.

        Raises:
            ModelLoadError: tokenizer.json is missing.
            CorruptFileError: a file cannot be parsed.
            UnsupportedFormatError: a prefix of parts of words, which no model here has.
        """
        where = files.where("tokenizer.json")
        text = files.read_text("tokenizer.json")
        if text is None:
            raise ModelLoadError(
                f"{where} does not exist; save the tokenizer in the fast format "
                "(AutoTokenizer.from_pretrained(...).save_pretrained(...))"
            )
        backend = _read_backend(text, where)
        settings = files.read_json("tokenizer_config.json") or {}
        mapped = files.read_json("special_tokens_map.json") or {}
        specials = {
            name: text
            for name, value in {**mapped, **settings}.items()
            if name.endswith("_token") and (text := _token_text(value)) is not None
        }
        eos = _configured_eos(files)
        if "eos_token" in specials:
            token_id = backend.token_to_id(specials["eos_token"])
            eos += [] if token_id is None else [token_id]
        return cls(
            backend,
            special_tokens=specials,
            eos_token_ids=eos,
            add_bos=_flag(settings, "add_bos_token"),
            add_eos=_flag(settings, "add_eos_token"),
        )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return token ids, between the model's bos and eos tokens where the model wants them.

        Special tokens in the text become their ids, with or without `add_special_tokens`.

        Raises:
            ValidationError: text is not a string, or holds lone surrogates.
        """
        if not isinstance(text, str):
            raise ValidationError(f"a text must be a string, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValidationError(f"the text is not valid Unicode: {error}") from error
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids; bytes that are not UTF-8 become U+FFFD.

        Of byte-fallback tokens, every byte of a run does if the run is not UTF-8.
        """
        text: str = self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    @functools.cached_property
    def token_texts(self) -> tuple[str, ...]:
        """Return the text of each token by itself."""
        ids = [[token_id] for token_id in range(self.vocab_size)]
        return tuple(self._backend.decode_batch(ids, skip_special_tokens=False))

    def to_json(self) -> str:
        """Return the content of a tokenizer.json."""
        text: str = self._backend.to_str()
        return text

    @property
    def vocabulary(self) -> dict[str, int]:
        """Return the id of each token."""
        ids: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        return ids

    def is_special(self, token_id: int) -> bool:
        """Return whether the token is left out of decoded text."""
        return token_id in self._special_ids

    def is_byte(self, token_id: int) -> bool:
        """Return whether the token is one byte, whose text depends on the bytes beside it."""
        return token_id in self._byte_ids

    def _framing(self, add_bos: bool | None, add_eos: bool | None) -> TemplateProcessing:
        # Seen around a text: bos and eos may be one token, which is then on one side of it only.
        seen = self._backend.encode(_ANY_TEXT)
        pairs = list(zip(seen.ids, seen.sequence_ids, strict=True))
        before, after = (
            [token_id for token_id, _ in takewhile(lambda pair: pair[1] is None, side)]
            for side in (pairs, reversed(pairs))
        )
        bos, eos = (
            [(self.special_tokens[role], token_id)]
            if (token_id := self._find(role)) is not None
            and (token_id in present if wanted is None else wanted)
            else []
            for role, wanted, present in (
                ("bos_token", add_bos, before),
                ("eos_token", add_eos, after),
            )
        )
        template = [*(token for token, _ in bos), "$A", *(token for token, _ in eos)]
        return TemplateProcessing(single=template, special_tokens=[*bos, *eos])

    def _find(self, role: str) -> int | None:
        token = self.special_tokens.get(role)
        if token is None:
            return None
        found: int | None = self._backend.token_to_id(token)
        return found


def _read_backend(text: str, where: str) -> tokenizers.Tokenizer:
    """Return a tokenizer that takes texts whole and has read one: some files fail only then.

    Raises:
        As `Tokenizer.from_files`.
    """
    _require_no_prefix(text, where)
    try:
        backend = tokenizers.Tokenizer.from_str(text)
        # Left over from training, where texts were cut or filled up to one length.
        backend.no_truncation()
        backend.no_padding()
        with suppress(Exception):  # such as a character that it has no token for
            backend.decode(backend.encode(_PROBE).ids)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library's panics are no Exception
        raise CorruptFileError(f"{where} is not a tokenizer: {error}") from error
    return backend


def _require_no_prefix(text: str, where: str) -> None:
    """Refuse merges of parts with a prefix: where one lacks it, the library ends the process."""
    if not any(pattern.search(text) for pattern in _MAY_PREFIX):
        return
    try:
        model = json.loads(text)["model"]
        prefix = model.get("continuing_subword_prefix") if model.get("merges") else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return  # no tokenizer, which the library finds too
    if prefix:
        raise UnsupportedFormatError(
            f"{where}: continuing_subword_prefix is {str(prefix)[:40]!r}; supported is none"
        )


def _find_byte_tokens(backend: tokenizers.Tokenizer) -> frozenset[int]:
    """Return the tokens `<0x00>` to `<0xFF>` if the decoder takes them for bytes."""
    found = [backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)]
    ids = [token_id for token_id in found if token_id is not None]
    decoded = {backend.decode([token_id]) for token_id in ids[-1:]}
    return frozenset(ids if decoded == {_REPLACEMENT} else ())


def _flag(settings: dict[str, object], name: str) -> bool | None:
    value = settings.get(name)
    return value if isinstance(value, bool) else None


def _configured_eos(files: ModelFiles) -> list[int]:
    """Return eos ids of generation_config.json or, if it has none, of config.json."""
    for name in ("generation_config.json", "config.json"):
        value = (files.read_json(name) or {}).get("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        if value is None:
            continue
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise CorruptFileError(
                f"{files.where(name)}: eos_token_id must be a token id or a list of them, "
                f"found {value!r}"
            )
        return list(ids)
    return []


class Detokenizer:
    """Turns a stream of tokens into a stream of text.

    A piece never ends in half a character: the trailing U+FFFD of unfinished bytes is held back
    until it becomes a character or the stream ends, and byte-fallback tokens until their run ends,
    because one byte that is not UTF-8 makes the whole run U+FFFD. The pieces and `flush()`
    concatenate to what decoding the whole stream at once gives.

    Only a short window is decoded per token, from the last place where the text ended cleanly.

    Args:
        tokenizer: whose tokens these are.
        prompt_ids: what came before; decoders that strip the first space of a text need it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        start = max(len(prompt_ids) - _PROMPT_TAIL_TOKENS, 0)
        # A run of bytes cut in two could decode to something else.
        while start > 0 and tokenizer.is_byte(int(prompt_ids[start])):
            start -= 1
        tail = [int(i) for i in prompt_ids[start:]]
        self._window = [i for i in tail if not tokenizer.is_special(i)]
        self._clean = len(self._window)
        self._emitted = len(tokenizer.decode(self._window))

    def push(self, token_id: int) -> str:
        """Return the text that this token settles, often all of its own."""
        # Special tokens have no text, and in the window would hide what a decoder wants to see.
        if self._tokenizer.is_special(token_id):
            return ""
        self._window.append(token_id)
        if self._tokenizer.is_byte(token_id):
            return ""
        text = self._tokenizer.decode(self._window)
        piece = text[self._emitted : len(text.rstrip(_REPLACEMENT))]
        self._emitted += len(piece)
        if piece and self._emitted == len(text):
            self._window = self._window[self._clean :]
            self._clean = len(self._window)
            self._emitted = len(self._tokenizer.decode(self._window))
        return piece

    def flush(self) -> str:
        """Return what was held back; the stream is over."""
        piece = self._tokenizer.decode(self._window)[self._emitted :]
        self._emitted += len(piece)
        return piece
