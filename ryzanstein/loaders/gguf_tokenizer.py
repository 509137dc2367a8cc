"""A GGUF file's tokenizer as the Hugging Face files of the same model would say it.

The functions take the file's metadata, a mapping of key to Python scalars and lists, and return
what tokenizer.json, tokenizer_config.json, generation_config.json and chat_template.jinja hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ryzanstein.errors import UnsupportedFormatError

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
    raise UnsupportedFormatError(f"not yet: {metadata.get('tokenizer.ggml.model')}")


def tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, object]:
    """Return the content of tokenizer_config.json: special tokens, add_bos_token, add_eos_token.

    Raises:
        CorruptFileError: a field is malformed or an id is outside the vocabulary.
    """
    return {}


def generation_config(metadata: Mapping[str, Any]) -> dict[str, object]:
    """Return the content of generation_config.json: every token that ends a turn.

    Raises:
        CorruptFileError: a field is malformed or an id is outside the vocabulary.
    """
    return {}


def template_source(metadata: Mapping[str, Any]) -> TemplateSource:
    """Return the chat template, corrected where the file's is known to be wrong, and the reason.

    Raises:
        CorruptFileError: the field is not a string.
    """
    return TemplateSource(metadata.get("tokenizer.chat_template"), None)


def chat_template(metadata: Mapping[str, Any]) -> str | None:
    """Return the content of chat_template.jinja, if there is one; a correction is logged.

    Raises:
        CorruptFileError: the field is not a string.
    """
    return template_source(metadata).template
