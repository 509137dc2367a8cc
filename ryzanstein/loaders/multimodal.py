"""The text model inside a model of images and text, as the files of a model of its own.

Such a checkpoint nests its text model's configuration in `text_config`, and keeps tensors for
images beside those of the text model, whose names have a prefix. Here both become what the class of
the text model alone would have saved, and what images need is left out.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ryzanstein.errors import CorruptFileError, UnsupportedFormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "TEXT_MODELS",
    "TextModel",
    "text_model_config",
    "text_tensor_name",
    "text_tokenizer",
    "wrapper_of",
]


@dataclass(frozen=True, slots=True)
class TextModel:
    """What transformers calls the text model of a class, by itself."""

    architecture: str
    model_type: str


TEXT_MODELS = {
    "Gemma3ForConditionalGeneration": TextModel("Gemma3ForCausalLM", "gemma3_text"),
    "Mistral3ForConditionalGeneration": TextModel("MistralForCausalLM", "mistral"),
}
_SECTION = "text_config"
# The first two are those of published files, the last is what newer releases of transformers call
# their modules. A head that is nobody's submodule has its own name already.
_PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
}
_IMAGE_PARTS = ("vision_tower.", "multi_modal_projector.")
# Of Gemma 3's tokenizer, that of the models without images too.
_IMAGE_TOKEN = "<image_soft_token>"
_ADDED_TOKENS = re.compile(r'"added_tokens"\s*:\s*(?=\[)')
_OF_IMAGES = (*_IMAGE_PARTS, *(f"model.{part}" for part in _IMAGE_PARTS))


def wrapper_of(config: Mapping[str, object]) -> str | None:
    """Return the class of a config.json if it is one around a text model, None for any other."""
    return next((name for name in TEXT_MODELS if config.get("architectures") == [name]), None)


def text_model_config(config: Mapping[str, object], where: str) -> dict[str, object]:
    """Return the config.json that the text model of a class around it would have by itself.

    Raises:
        CorruptFileError: `text_config` is no object.
        UnsupportedFormatError: it is of another text model than those the class was known with.
    """
    wrapper = wrapper_of(config)
    assert wrapper is not None
    text_model = TEXT_MODELS[wrapper]
    section = config.get(_SECTION)
    inner = {} if section is None else section
    if not isinstance(inner, dict):
        raise CorruptFileError(
            f"{where}: field {_SECTION!r} must be an object, found {str(inner)[:60]!r}; download "
            "the checkpoint's config.json again"
        )
    model_type = inner.get("model_type", text_model.model_type)
    if model_type != text_model.model_type:
        raise UnsupportedFormatError(
            f"{where}: field '{_SECTION}.model_type' is {model_type!r}; supported in {wrapper} is "
            f"{text_model.model_type!r}"
        )
    # What is said of the whole model holds for its text model too.
    shared = {key: config[key] for key in ("eos_token_id", "quantization_config") if key in config}
    named = {"architectures": [text_model.architecture], "model_type": model_type}
    text: dict[str, object] = {**inner, **shared, **named}
    # Either of the two may say that the head is a tensor of its own: which one counts has changed
    # between releases of transformers.
    if config.get("tie_word_embeddings") is False:
        text["tie_word_embeddings"] = False
    return text


def text_tensor_name(stored: str) -> str | None:
    """Return what the text model alone calls a tensor, None for one that only images need.

    A name that is not known stays, for whoever checks names to refuse.
    """
    if stored.startswith(_OF_IMAGES):
        return None
    for prefix, plain in _PREFIXES.items():
        if stored.startswith(prefix):
            return plain + stored.removeprefix(prefix)
    return stored


def text_tokenizer(content: str) -> str:
    """Return a tokenizer.json without the token that stands for a piece of an image, if it is last.

    The smallest Gemma 3 has no row for it. Without it a text that holds its name is only text, as
    it is in the files of llama.cpp's converter. Only the list it is in is parsed: files are long.
    """
    found = _ADDED_TOKENS.search(content) if _IMAGE_TOKEN in content else None
    if found is None:
        return content
    try:
        tokens, end = json.JSONDecoder().raw_decode(content, found.end())
        last = max(tokens, key=lambda token: int(token["id"]))
        if last["content"] != _IMAGE_TOKEN:  # the ids of tokens after it would move
            return content
    except (ValueError, LookupError, TypeError, RecursionError):
        return content  # no tokenizer, which its reader finds
    tokens.remove(last)
    return f"{content[: found.end()]}{json.dumps(tokens, ensure_ascii=False)}{content[end:]}"
