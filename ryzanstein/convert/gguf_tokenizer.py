"""A model's tokenizer.json as a GGUF file's metadata says it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gguf import Keys, TokenType

from ryzanstein.chat_template import find_template
from ryzanstein.errors import CorruptFileError, ModelLoadError, UnsupportedFormatError
from ryzanstein.loaders.pre_tokenizers import PreTokenizer, pre_tokenizer, rule_name
from ryzanstein.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from ryzanstein.loaders.model_files import ModelFiles

__all__ = ["write_tokenizer"]

_SPACE = "\u2581"
# Converters call ids that a model has, and its tokenizer has not, by this name.
_FILLER = "[PAD{}]"
# What tokenizer.json calls GPT-2's rule where it does not spell it out.
_GPT2 = pre_tokenizer("gpt-2").patterns
_DIGIT = r"\p{N}"


def write_tokenizer(writer: GGUFWriter, files: ModelFiles, vocab_size: int) -> list[str]:
    """Write a model's vocabulary, special tokens and chat template.

    Returns:
        What GGUF cannot say of them, as sentences.

    Raises:
        ModelLoadError: there is no tokenizer.json.
        CorruptFileError: it has more tokens than the model.
        UnsupportedFormatError: a kind of tokenizer that GGUF readers do not know.
    """
    text = files.read_text("tokenizer.json")
    if text is None:
        raise ModelLoadError(f"{files.where('tokenizer.json')} does not exist")
    tokenizer = Tokenizer.from_files(files)
    if tokenizer.vocab_size > vocab_size:
        raise CorruptFileError(
            f"{files.where('tokenizer.json')} has {tokenizer.vocab_size} tokens, but the model "
            f"only {vocab_size}; the files belong to different models"
        )
    content = json.loads(text)
    model = content["model"]
    if model.get("type") != "BPE":
        raise UnsupportedFormatError(
            f"{files.where('tokenizer.json')} is of the kind {model.get('type')!r}; only BPE can "
            "be written to GGUF"
        )
    added = {token["id"]: token for token in content.get("added_tokens") or ()}
    tokens, types = _vocabulary(model, added, vocab_size)
    notes: list[str] = []
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(_scores(tokens, types, model))
        writer.add_add_space_prefix(_prepends_space(content))
    else:
        writer.add_tokenizer_model("gpt2")
        notes += _write_rule(writer, content, text)
        writer.add_token_merges([_joined(pair) for pair in model["merges"]])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _write_special_tokens(writer, tokenizer, tokens, find_template(files))
    return notes


def _vocabulary(
    model: dict[str, Any], added: dict[int, dict[str, Any]], vocab_size: int
) -> tuple[list[str], list[TokenType]]:
    tokens = [_FILLER.format(index) for index in range(vocab_size)]
    types = [TokenType.UNUSED] * vocab_size
    for token, index in model["vocab"].items():
        tokens[index], types[index] = token, TokenType.NORMAL
        if model.get("byte_fallback") and _is_byte(token):
            types[index] = TokenType.BYTE
    for index, token in added.items():
        tokens[index] = token["content"]
        types[index] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    unknown = model.get("unk_token")
    if model.get("byte_fallback") and unknown in model["vocab"]:
        types[model["vocab"][unknown]] = TokenType.UNKNOWN
    return tokens, types


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _joined(pair: str | list[str]) -> str:
    """Return a merge in the older of its two spellings, which is GGUF's."""
    return pair if isinstance(pair, str) else " ".join(pair)


def _scores(tokens: list[str], types: list[TokenType], model: dict[str, Any]) -> list[float]:
    """Return SentencePiece's score of each token: what is merged first scores highest."""
    rank: dict[str, int] = {}
    for index, pair in enumerate(model["merges"]):
        rank.setdefault(_joined(pair).replace(" ", ""), index)
    lowest = len(rank)
    return [
        -float(rank.get(token, lowest)) if kind is TokenType.NORMAL else 0.0
        for token, kind in zip(tokens, types, strict=True)
    ]


def _prepends_space(content: dict[str, Any]) -> bool:
    """Return whether a text gets a space before its first word."""
    for part in _parts(content.get("normalizer"), "normalizers"):
        if part.get("type") == "Prepend" and part.get("prepend") == _SPACE:
            return True
    for part in _parts(content.get("pre_tokenizer"), "pretokenizers"):
        if part.get("type") == "Metaspace":
            return bool(part.get("prepend_scheme", "always") != "never")
    return False


def _parts(section: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if section is None:
        return []
    return list(section[key]) if section.get("type") == "Sequence" else [section]


def _write_rule(writer: GGUFWriter, content: dict[str, Any], text: str) -> list[str]:
    """Write the name of how a text is cut into words; where it has none, tokenizer.json whole."""
    rule = _rule(content)
    name = None if rule is None else rule_name(rule)
    if name is not None:
        writer.add_tokenizer_pre(name)
        return []
    writer.add_tokenizer_pre("default")
    writer.add_string(Keys.Tokenizer.HF_JSON, text)
    return [
        "GGUF has no name for how this tokenizer cuts text into words. tokenizer.json is in the "
        "file for readers that take it from there; others, llama.cpp among them, will cut some "
        "texts differently"
    ]


def _rule(content: dict[str, Any]) -> PreTokenizer | None:
    """Return how a text is cut, None where that is not by patterns one after the other."""
    patterns: list[str] = []
    for part in _parts(content.get("pre_tokenizer"), "pretokenizers"):
        kind, pattern = part.get("type"), part.get("pattern") or {}
        if kind == "Split" and part.get("behavior") == "Isolated" and "Regex" in pattern:
            patterns.append(pattern["Regex"])
        elif kind == "Digits" and part.get("individual_digits"):
            patterns.append(_DIGIT)
        elif kind == "ByteLevel" and not part.get("add_prefix_space"):
            patterns += _GPT2 if part.get("use_regex", True) else ()
        else:
            return None
    normalizers = [part.get("type") for part in _parts(content.get("normalizer"), "normalizers")]
    if len(normalizers) > 1:
        return None
    return PreTokenizer(
        tuple(patterns),
        normalizer=normalizers[0] if normalizers else None,
        ignore_merges=bool(content["model"].get("ignore_merges", False)),
    )


def _write_special_tokens(
    writer: GGUFWriter, tokenizer: Tokenizer, tokens: list[str], template: str | None
) -> None:
    index_of = {token: index for index, token in enumerate(tokens)}
    ids = {role: index_of.get(text) for role, text in tokenizer.special_tokens.items()}
    handlers = {
        "bos_token": writer.add_bos_token_id,
        "unk_token": writer.add_unk_token_id,
        "pad_token": writer.add_pad_token_id,
    }
    for role, handler in handlers.items():
        index = ids.get(role)
        if index is not None:
            handler(index)
    ends = list(tokenizer.eos_token_ids)
    last = ids.get("eos_token")
    if last is None and ends:
        last = ends[0]
    if last is not None:
        writer.add_eos_token_id(last)
    # GGUF has room for one more, the end of a turn.
    for index in [other for other in ends if other != last][:1]:
        writer.add_eot_token_id(index)
    framed, plain = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and framed[:1] != plain[:1])
    writer.add_add_eos_token(framed[-1:] != plain[-1:])
    if template is not None:
        writer.add_chat_template(template)
