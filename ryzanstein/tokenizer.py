"""Text to token ids and back, whole or as a stream."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import tokenizers

from ryzanstein.errors import CorruptFileError, ModelLoadError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ryzanstein.loaders.model_files import ModelFiles

__all__ = ["Detokenizer", "Tokenizer"]

_REPLACEMENT = "\ufffd"
# Enough of the prompt for a decoder that treats the first word of a text specially.
_PROMPT_TAIL_TOKENS = 6


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
        add_bos: whether an encoded text begins with the bos token; None leaves it to the backend.

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
    ) -> None:
        self._backend = backend
        self.special_tokens = dict(special_tokens or {})
        self.eos_token_ids = tuple(sorted(set(eos_token_ids)))
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        self._special_ids = frozenset(
            token_id
            for token_id, token in backend.get_added_tokens_decoder().items()
            if token.special
        )
        self._add_bos = add_bos
        self.bos_token_id = self._find("bos_token")

    @classmethod
    def from_files(cls, files: ModelFiles) -> Tokenizer:
        """Read tokenizer.json, tokenizer_config.json, generation_config.json and config.json.

        Only the first is required.

        Raises:
            ModelLoadError: tokenizer.json is missing.
            CorruptFileError: a file cannot be parsed.
        """
        where = files.where("tokenizer.json")
        text = files.read_text("tokenizer.json")
        if text is None:
            raise ModelLoadError(
                f"{where} does not exist; save the tokenizer in the fast format "
                "(AutoTokenizer.from_pretrained(...).save_pretrained(...))"
            )
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise CorruptFileError(f"{where} is not a tokenizer: {error}") from error
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
        add_bos = settings.get("add_bos_token")
        return cls(
            backend,
            special_tokens=specials,
            eos_token_ids=eos,
            add_bos=add_bos if isinstance(add_bos, bool) else None,
        )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return token ids; the model's bos token comes first if the model wants one.

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
        if add_special_tokens and self._add_bos is not None and self.bos_token_id is not None:
            if ids[:1] == [self.bos_token_id]:
                ids = ids[1:]
            if self._add_bos:
                ids = [self.bos_token_id, *ids]
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids; bytes that are not UTF-8 become U+FFFD."""
        text: str = self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    @functools.cached_property
    def token_texts(self) -> tuple[str, ...]:
        """Return the text of each token by itself."""
        ids = [[token_id] for token_id in range(self.vocab_size)]
        return tuple(self._backend.decode_batch(ids, skip_special_tokens=False))

    def is_special(self, token_id: int) -> bool:
        """Return whether the token is left out of decoded text."""
        return token_id in self._special_ids

    def _find(self, role: str) -> int | None:
        token = self.special_tokens.get(role)
        if token is None:
            return None
        found: int | None = self._backend.token_to_id(token)
        return found


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
    until it becomes a character or the stream ends. The pieces and `flush()` concatenate to what
    decoding the whole stream at once gives.

    Only a short window is decoded per token, from the last place where the text ended cleanly.

    Args:
        tokenizer: whose tokens these are.
        prompt_ids: what came before; decoders that strip the first space of a text need it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        tail = [int(i) for i in prompt_ids[-_PROMPT_TAIL_TOKENS:]]
        self._window = [i for i in tail if not tokenizer.is_special(i)]
        self._clean = len(self._window)
        self._emitted = len(tokenizer.decode(self._window))

    def push(self, token_id: int) -> str:
        """Return the text that this token settles, often all of its own."""
        # Special tokens have no text, and in the window would hide what a decoder wants to see.
        if self._tokenizer.is_special(token_id):
            return ""
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        # The whole run: byte-fallback decoders turn a run of bytes into one U+FFFD each until the
        # last character in it is complete.
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
