"""A GGUF file's tokenizer as the Hugging Face files of the same model would say it.

The functions take the file's metadata, a mapping of key to Python scalars and lists, and return
what tokenizer.json, tokenizer_config.json, generation_config.json and chat_template.jinja hold.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

from ryzanstein.errors import CorruptFileError, UnsupportedFormatError
from ryzanstein.loaders.json_file import parse_json_object
from ryzanstein.loaders.pre_tokenizers import PreTokenizer, pre_tokenizer
from ryzanstein.loaders.sentencepiece import Pieces, PieceType, is_filler, pieces_to_json
from ryzanstein.loaders.tokenizer_json import SpacePrefix, added_token, byte_level_bpe

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "TemplateSource",
    "chat_template",
    "generation_config",
    "template_source",
    "tokenizer_config",
    "tokenizer_json",
]

_LOGGER = logging.getLogger(__name__)
_Value = TypeVar("_Value")

_PREFIX = "tokenizer.ggml."
_CHAT_TEMPLATE = "tokenizer.chat_template"
# All of tokenizer.json, where a converter found that the other fields cannot say it.
_WHOLE = "tokenizer.huggingface.json"
_BITNET_2B = ("bitnet-25", "bitnet-b1.58")

# The ids a GGUF file names, and what tokenizer_config.json calls the tokens.
_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
# What SentencePiece gives these ids where a file does not say.
_SENTENCEPIECE_DEFAULTS = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}

# Tokens that end a turn, whatever the file calls its end of text: a file has room for one of them,
# and models were published with the wrong one.
_END_OF_TURN = frozenset(
    {
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<|end|>",
        "<end_of_turn>",
        "<EOT>",
        "</s>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    }
)

# What the 2B-4T model was trained on. Its GGUF file says "Human: ... BITNETAssistant:" instead.
_BITNET_TEMPLATE = (
    "{% for message in messages %}{{ bos_token if loop.first }}"
    "{{ message['role'] | capitalize }}: {{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)


class TemplateSource(NamedTuple):
    """A chat template, and why it is not the one in the file if it is not."""

    template: str | None
    note: str | None


def tokenizer_json(metadata: Mapping[str, Any]) -> dict[str, object]:
    """Return the content of tokenizer.json.

    Raises:
        UnsupportedFormatError: a kind of tokenizer or a pre-tokenizer that is not supported.
        CorruptFileError: a field is missing, malformed or contradicts another.
    """
    whole = _get(metadata, _WHOLE, str, None)
    if whole is not None:
        return parse_json_object(whole.encode(), _WHOLE)
    kind = _kind(metadata)
    tokens, types = _tokens(metadata)
    if kind == "gpt2":
        vocab = {token: i for i, token in enumerate(tokens) if not is_filler(i, token, types[i])}
        merges = _usable_merges(_strings(metadata, "merges"), vocab)
        return byte_level_bpe(vocab, merges, _rule(metadata), _added_tokens(tokens, types))
    return _sentencepiece(metadata, tokens, types)


def tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, object]:
    """Return the content of tokenizer_config.json: special tokens, add_bos_token, add_eos_token.

    Raises:
        UnsupportedFormatError: a kind of tokenizer or a pre-tokenizer that is not supported.
        CorruptFileError: a field is malformed or an id is outside the vocabulary.
    """
    tokens, _ = _tokens(metadata)
    config: dict[str, object] = {
        role: tokens[token_id]
        for role, key in _ROLES.items()
        if (token_id := _token_id(metadata, key, len(tokens))) is not None
    }
    adds_bos = _kind(metadata) == "llama" or _rule(metadata).add_bos
    config["add_bos_token"] = _get(metadata, _PREFIX + "add_bos_token", bool, adds_bos)
    config["add_eos_token"] = _get(metadata, _PREFIX + "add_eos_token", bool, False)
    return config


def generation_config(metadata: Mapping[str, Any]) -> dict[str, object]:
    """Return the content of generation_config.json: every token that ends a turn.

    Raises:
        UnsupportedFormatError: a kind of tokenizer that is not supported.
        CorruptFileError: a field is malformed or an id is outside the vocabulary.
    """
    tokens, types = _tokens(metadata)
    named = [
        _token_id(metadata, key, len(tokens))
        for key in ("eos_token_id", "eot_token_id", "eom_token_id")
    ]
    found = {token_id for token_id in named if token_id is not None}
    found |= {
        i
        for i, token in enumerate(tokens)
        if token in _END_OF_TURN and types[i] in (PieceType.CONTROL, PieceType.USER_DEFINED)
    }
    return {"eos_token_id": sorted(found)} if found else {}


def template_source(metadata: Mapping[str, Any]) -> TemplateSource:
    """Return the chat template, corrected where the file's is known to be wrong, and the reason.

    Raises:
        CorruptFileError: the field is not a string.
    """
    template = _get(metadata, _CHAT_TEMPLATE, str)
    wrong = template is not None and "BITNETAssistant" in template
    if wrong and metadata.get("general.architecture") in _BITNET_2B:
        return TemplateSource(
            _BITNET_TEMPLATE,
            "the file's chat template (Human: ... BITNETAssistant:) is not the one the model was "
            "trained on; using User: ...<|eot_id|>Assistant: instead",
        )
    return TemplateSource(template, None)


def chat_template(metadata: Mapping[str, Any]) -> str | None:
    """Return the content of chat_template.jinja, if there is one; a correction is logged.

    Raises:
        CorruptFileError: the field is not a string.
    """
    template, note = template_source(metadata)
    if note is not None:
        _LOGGER.warning("%s", note)
    return template


def _kind(metadata: Mapping[str, Any]) -> str:
    kind = _get(metadata, _PREFIX + "model", str)
    if kind is None:
        raise CorruptFileError(f"{_PREFIX}model is missing: the file has no tokenizer")
    if kind not in ("gpt2", "llama"):
        raise UnsupportedFormatError(
            f"the tokenizer kind {kind!r} ({_PREFIX}model) is not supported; supported are gpt2 "
            "(byte-level BPE) and llama (SentencePiece BPE)"
        )
    return kind


def _usable_merges(merges: list[str], vocab: Mapping[str, int]) -> list[str]:
    """Return the merges that lead from tokens to a token.

    Files have others, which llama.cpp accepts and the tokenizers library refuses.
    """
    usable = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        if left in vocab and right in vocab and left + right in vocab:
            usable.append(merge)
    if len(usable) < len(merges):
        _LOGGER.warning(
            "%d of %d merges are left out: their tokens are not in the vocabulary",
            len(merges) - len(usable),
            len(merges),
        )
    return usable


def _rule(metadata: Mapping[str, Any]) -> PreTokenizer:
    name = _get(metadata, _PREFIX + "pre", str)
    if name is not None:
        return pre_tokenizer(name)
    # Microsoft's 2B-4T file and the first files of Llama 3 lack the field; both are Llama 3's.
    if "<|begin_of_text|>" in _strings(metadata, "tokens"):
        return pre_tokenizer("llama-bpe")
    raise UnsupportedFormatError(
        f"{_PREFIX}pre is missing, so how text is cut into words is unknown; convert the model "
        "again with a converter that writes it"
    )


def _tokens(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    tokens = _strings(metadata, "tokens")
    if len(set(tokens)) != len(tokens):
        twice = next(token for token, times in Counter(tokens).items() if times > 1)
        raise CorruptFileError(f"{_PREFIX}tokens has {twice!r:.80} twice")
    types = metadata.get(_PREFIX + "token_type")
    if types is None:
        types = [PieceType.NORMAL] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens):
        raise CorruptFileError(
            f"{_PREFIX}token_type must be a list with one entry for each of the {len(tokens)} "
            "tokens"
        )
    return tokens, types


def _added_tokens(tokens: list[str], types: list[int]) -> list[dict[str, object]]:
    return [
        added_token(i, tokens[i], special=kind != PieceType.USER_DEFINED)
        for i, kind in enumerate(types)
        if kind in (PieceType.CONTROL, PieceType.UNKNOWN, PieceType.USER_DEFINED)
        and not is_filler(i, tokens[i], kind)
    ]


def _sentencepiece(
    metadata: Mapping[str, Any], tokens: list[str], types: list[int]
) -> dict[str, object]:
    scores = metadata.get(_PREFIX + "scores")
    if (
        not isinstance(scores, list)
        or len(scores) != len(tokens)
        or not all(isinstance(score, int | float) for score in scores)
    ):
        raise CorruptFileError(f"{_PREFIX}scores must be a list of {len(tokens)} numbers")
    add_space = _get(metadata, _PREFIX + "add_space_prefix", bool, True)
    return pieces_to_json(
        Pieces(tokens, scores, types),
        prefix=SpacePrefix.ALWAYS if add_space else SpacePrefix.NEVER,
        unk_id=_token_id(metadata, "unknown_token_id", len(tokens)),
    )


def _token_id(metadata: Mapping[str, Any], key: str, num_tokens: int) -> int | None:
    token_id = _get(metadata, _PREFIX + key, int)
    if token_id is None and _kind(metadata) == "llama":
        token_id = _SENTENCEPIECE_DEFAULTS.get(key)
    if token_id is not None and not 0 <= token_id < num_tokens:
        raise CorruptFileError(
            f"{_PREFIX}{key} is {token_id}, outside the vocabulary of {num_tokens} tokens"
        )
    return token_id


def _strings(metadata: Mapping[str, Any], name: str) -> list[str]:
    value = metadata.get(_PREFIX + name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise CorruptFileError(f"{_PREFIX}{name} must be a list of strings")
    return value


@overload
def _get(metadata: Mapping[str, Any], key: str, kind: type[_Value]) -> _Value | None: ...
@overload
def _get(metadata: Mapping[str, Any], key: str, kind: type[_Value], default: _Value) -> _Value: ...
def _get(
    metadata: Mapping[str, Any], key: str, kind: type[_Value], default: _Value | None = None
) -> _Value | None:
    value = metadata.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise CorruptFileError(f"{key} must be a {kind.__name__}, found {value!r:.80}")
    return value
