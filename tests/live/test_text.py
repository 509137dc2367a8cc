"""Tokenizers and chat templates against an installed transformers, live."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from templates import CONVERSATIONS, FAMILIES, SPECIAL_TOKENS
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast
from vocabularies import TEXTS, byte_level_metadata, train_byte_level, train_sentencepiece

from ryzanstein import ValidationError
from ryzanstein.chat_template import ChatTemplate
from ryzanstein.loaders import gguf_tokenizer
from ryzanstein.loaders.model_files import open_files
from ryzanstein.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

FLAGS = [{}, {"add_bos_token": True}, {"add_bos_token": False, "add_eos_token": True}]


def check(reference: Any, tokenizer: Tokenizer, texts: list[str]) -> None:
    for text in texts:
        ids = reference.encode(text)
        assert tokenizer.encode(text) == ids, text
        plain = tokenizer.encode(text, add_special_tokens=False)
        assert plain == reference.encode(text, add_special_tokens=False), text
        # Every other token, and all but the last: characters that are cut, so invalid UTF-8.
        for some in (ids, ids[::2], ids[:-1]):
            for skip in (True, False):
                decoded = tokenizer.decode(some, skip_special_tokens=skip)
                assert decoded == reference.decode(
                    some, skip_special_tokens=skip, clean_up_tokenization_spaces=False
                )


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "falcon", "smollm"])
def test_byte_level(pre: str, flags: dict[str, bool], tmp_path: Path) -> None:
    metadata = byte_level_metadata(train_byte_level(pre), pre)
    settings = {**SPECIAL_TOKENS, **flags, "tokenizer_class": "PreTrainedTokenizerFast"}
    made = json.dumps(gguf_tokenizer.tokenizer_json(metadata))
    (tmp_path / "tokenizer.json").write_text(made)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    reference = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    # From a file this class reads neither flag, only its subclasses do.
    for name, value in flags.items():
        setattr(reference, name, value)
    check(reference, Tokenizer.from_files(open_files(tmp_path)), TEXTS)


@pytest.mark.parametrize("flags", FLAGS[1:])
def test_sentencepiece(flags: dict[str, bool], tmp_path: Path) -> None:
    settings = {**SPECIAL_TOKENS, **flags, "legacy": False, "tokenizer_class": "LlamaTokenizer"}
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    reference = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(reference, LlamaTokenizer)
    check(reference, Tokenizer.from_files(open_files(tmp_path)), TEXTS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompt", [True, False])
def test_templates(family: str, prompt: bool) -> None:
    reference = PreTrainedTokenizerFast(
        tokenizer_object=train_byte_level("gpt-2"), chat_template=FAMILIES[family], **SPECIAL_TOKENS
    )
    template = ChatTemplate(FAMILIES[family], SPECIAL_TOKENS)
    for messages in CONVERSATIONS:
        try:
            expected = reference.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # jinja2's, from raise_exception
            with pytest.raises(ValidationError, match=f"rejects the messages: {error}"):
                template.render(messages, add_generation_prompt=prompt)
            continue
        assert template.render(messages, add_generation_prompt=prompt) == expected
