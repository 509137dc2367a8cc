from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import TEXTS, byte_level_metadata, train_byte_level, write_gguf

from ryzanstein import CorruptFileError, UnsupportedFormatError
from ryzanstein.chat_template import ChatTemplate
from ryzanstein.loaders import gguf_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

PRE_TOKENIZERS = ["gpt-2", "smollm", "llama-bpe", "qwen2", "falcon"]
# A vocabulary of every character and one merge, for what only the metadata decides.
SMALL = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "<|eot_id|>", "<|im_end|>", "</s>"],
    "tokenizer.ggml.token_type": [1, 1, 1, 3, 4, 1],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 2,
}


def backend(metadata: dict[str, Any]) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(gguf_tokenizer.tokenizer_json(metadata)))


def read_all(metadata: dict[str, Any]) -> None:
    gguf_tokenizer.tokenizer_json(metadata)
    gguf_tokenizer.tokenizer_config(metadata)


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_byte_level_files_tokenize_as_the_original(pre: str, tmp_path: Path) -> None:
    original = train_byte_level(pre)
    metadata = write_gguf(tmp_path / "model.gguf", byte_level_metadata(original, pre))
    made = backend(metadata)
    assert made.get_vocab() == original.get_vocab()
    for text in TEXTS:
        ids = original.encode(text).ids
        assert made.encode(text).ids == ids, text
        for skip in (True, False):
            assert made.decode(ids, skip) == original.decode(ids, skip), text


@settings(max_examples=50)
@given(st.text(), st.lists(st.integers(0, 599), max_size=30))
def test_any_text_and_any_tokens(text: str, ids: list[int]) -> None:
    for pre in PRE_TOKENIZERS:
        original = train_byte_level(pre)
        made = backend(byte_level_metadata(original, pre))
        assert made.encode(text).ids == original.encode(text).ids
        assert made.decode(ids) == original.decode(ids)


def test_pre_tokenizers_cut_where_the_models_do() -> None:
    characters = sorted({c for text in TEXTS for c in text if c.isascii() and c.isprintable()})
    tokens = ["\u0120", *(c for c in characters if c != " ")]
    cuts = {
        "deepseek-llm": ["\u4e2d", " Don", "'", "t", " x"],
        "deepseek-coder": [" Don", "'", "t", " x"],
        "deepseek-v3": [" Don", "'t", " x"],
        "tekken": [" Don", "'t", " x"],
        "command-r": [" Don", "'t", " x"],
        "default": [" Don", "'", "t", " x"],
    }
    for name, expected in cuts.items():
        metadata = SMALL | {
            "tokenizer.ggml.pre": name,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [1] * len(tokens),
            "tokenizer.ggml.merges": [],
        }
        text = "".join(expected)
        cutter = backend(metadata).pre_tokenizer
        assert cutter is not None
        pieces = [text[slice(*span)] for _, span in cutter.pre_tokenize_str(text)]
        assert pieces == expected, name


def test_merges_of_what_is_no_token_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """llama.cpp accepts them; the tokenizers library refuses the whole file."""
    metadata = SMALL | {
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": ["a", "b", "c", "ab", "xab"],
        "tokenizer.ggml.token_type": [1] * 5,
        "tokenizer.ggml.merges": ["b c", "a b", "x ab"],
    }
    assert backend(metadata).encode("abc").tokens == ["ab", "c"]
    assert "2 of 3 merges are left out" in caplog.text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tokenizer.ggml.pre": "llama-bpe"}, True),
        ({"tokenizer.ggml.pre": "tekken"}, True),
        ({"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}, False),
        ({}, False),
        ({"tokenizer.ggml.add_bos_token": True}, True),
        ({"tokenizer.ggml.model": "llama"}, True),
    ],
)
def test_whether_the_bos_token_is_added(changes: dict[str, Any], expected: bool) -> None:
    config = gguf_tokenizer.tokenizer_config(SMALL | changes)
    assert config["add_bos_token"] is expected
    assert config["add_eos_token"] is False


def test_special_tokens_are_named() -> None:
    ids = {"bos_token_id": 0, "eos_token_id": 3, "unknown_token_id": 1, "padding_token_id": 2}
    changes = {f"tokenizer.ggml.{key}": value for key, value in ids.items()}
    config = gguf_tokenizer.tokenizer_config(SMALL | changes)
    names = {role: config[role] for role in config if role.startswith(("bos", "eos", "unk", "pad"))}
    assert names == {
        "bos_token": "a",
        "eos_token": "<|eot_id|>",
        "unk_token": "b",
        "pad_token": "ab",
    }


def test_every_token_that_ends_a_turn_is_found() -> None:
    # The last is ordinary text, as a vocabulary may well have.
    assert gguf_tokenizer.generation_config(SMALL) == {"eos_token_id": [2, 3, 4]}
    more = {"tokenizer.ggml.eot_token_id": 0, "tokenizer.ggml.eom_token_id": 1}
    assert gguf_tokenizer.generation_config(SMALL | more) == {"eos_token_id": [0, 1, 2, 3, 4]}
    plain = SMALL | {"tokenizer.ggml.token_type": [1] * 6, "tokenizer.ggml.eos_token_id": None}
    assert gguf_tokenizer.generation_config(plain) == {}


def test_a_missing_pre_tokenizer_of_llama_3_vocabularies() -> None:
    metadata = byte_level_metadata(train_byte_level("llama-bpe"), None)
    with pytest.raises(UnsupportedFormatError, match=r"tokenizer\.ggml\.pre is missing"):
        gguf_tokenizer.tokenizer_json(metadata)
    metadata["tokenizer.ggml.tokens"][0] = "<|begin_of_text|>"
    made = backend(metadata)
    for text in TEXTS[:-1]:
        assert made.encode(text).ids == train_byte_level("llama-bpe").encode(text).ids
    assert gguf_tokenizer.tokenizer_config(metadata)["add_bos_token"] is True


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"tokenizer.ggml.model": "bert"}, "the tokenizer kind 'bert'"),
        ({"tokenizer.ggml.model": "t5"}, "the tokenizer kind 't5'"),
        ({"tokenizer.ggml.pre": "new"}, "'new' is not supported; supported are command-r, deep"),
    ],
)
def test_what_is_not_supported(changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(UnsupportedFormatError, match=wanted):
        gguf_tokenizer.tokenizer_json(SMALL | changes)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"model": None}, "tokenizer.ggml.model is missing"),
        ({"model": 3}, "tokenizer.ggml.model must be a str, found 3"),
        ({"tokens": None}, "tokens must be a list of strings"),
        ({"tokens": ["a", 1]}, "tokens must be a list of strings"),
        ({"merges": "a b"}, "merges must be a list of strings"),
        ({"token_type": [1]}, "token_type must be a list with one entry for each of the 6"),
        ({"model": "llama"}, "scores must be a list of 6 numbers"),
        ({"model": "llama", "scores": [1.0]}, "scores must be a list of 6 numbers"),
        ({"model": "llama", "scores": ["x"] * 6}, "scores must be a list of 6 numbers"),
        ({"model": "llama", "scores": [0.0] * 6, "tokens": [*"abcde", "x" * 600]}, "600 char"),
        ({"eos_token_id": 6}, "eos_token_id is 6, outside the vocabulary of 6 tokens"),
        ({"eos_token_id": True}, "eos_token_id must be a int, found True"),
        ({"add_bos_token": 1}, "add_bos_token must be a bool, found 1"),
        ({"tokens": ["a", "b", "a", "c", "d", "e"]}, "tokens has 'a' twice"),
    ],
)
def test_malformed_fields(changes: dict[str, Any], wanted: str) -> None:
    metadata = SMALL | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(CorruptFileError, match=wanted):
        read_all(metadata)


def test_the_wrong_template_of_the_2b_4t_file_is_corrected(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wrong = "{{ 'Human: ' + messages[0].content + '\\n\\nBITNETAssistant: ' }}"
    metadata = {"general.architecture": "bitnet-b1.58", "tokenizer.chat_template": wrong}
    with caplog.at_level(logging.WARNING):
        source = gguf_tokenizer.chat_template(metadata)
    assert source is not None
    note = gguf_tokenizer.template_source(metadata).note
    assert note is not None
    assert note in caplog.text
    conversation = [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "hi"}]
    template = ChatTemplate(source, {"bos_token": "<|begin_of_text|>"})
    assert template.render(conversation[1:]) == "<|begin_of_text|>User: hi<|eot_id|>Assistant: "
    assert template.render(conversation, add_generation_prompt=False) == (
        "<|begin_of_text|>System: Be brief.<|eot_id|>User: hi<|eot_id|>"
    )


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"general.architecture": "bitnet-b1.58", "tokenizer.chat_template": "right"},
        {"general.architecture": "llama", "tokenizer.chat_template": "BITNETAssistant"},
    ],
)
def test_other_templates_are_left_alone(metadata: dict[str, Any]) -> None:
    source = gguf_tokenizer.template_source(metadata)
    assert source == (metadata.get("tokenizer.chat_template"), None)


def test_a_template_that_is_no_text() -> None:
    with pytest.raises(CorruptFileError, match=r"tokenizer\.chat_template must be a str"):
        gguf_tokenizer.chat_template({"tokenizer.chat_template": 3})


def test_a_large_sentencepiece_vocabulary_takes_linear_time() -> None:
    tokens = [f"{i:x}" for i in range(1 << 16)]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.scores": [-float(i) for i in range(len(tokens))],
    }
    started = time.process_time()
    made: Any = gguf_tokenizer.tokenizer_json(metadata)
    # It takes 0.2 s alone on a core; anything quadratic would take minutes.
    assert time.process_time() - started < 3
    # Whatever begins with a digit other than 0 is a token: 0xABCD comes from A BCD, AB CD, ABC D.
    assert made["model"]["merges"][:2] == ["1 0", "1 1"]
    assert sum(merge.replace(" ", "") == "abcd" for merge in made["model"]["merges"]) == 3
