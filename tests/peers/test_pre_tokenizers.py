"""Byte-level tokenizers of GGUF files as llama.cpp has them, by every name of a rule."""

from __future__ import annotations

import ctypes
import json
import unicodedata
from typing import TYPE_CHECKING

import llama_cpp  # type: ignore[import-not-found, unused-ignore]
import pytest
import tokenizers
from vocabularies import TEXTS, byte_level_metadata, train_byte_level, write_gguf

from ryzanstein.loaders.gguf_tokenizer import tokenizer_json
from ryzanstein.loaders.pre_tokenizers import known_rules, pre_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

# llama.cpp has no rule of the name falcon_e, and cuts words at the marks of Hindi and Thai where
# the tokenizer.json of Mistral does not.
_RULES = sorted(set(known_rules()) - {"falcon_e"})
_MARKS = "हिन्दी"


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator, misc, unused-ignore]
def _silent(level: int, text: bytes, user: ctypes.c_void_p) -> None:
    """Drop llama.cpp's log."""


def theirs(path: Path, texts: list[str]) -> list[list[int]]:
    """Return the tokens that llama.cpp makes of texts."""
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    options = llama_cpp.llama_model_default_params()
    options.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
    assert model, f"llama.cpp cannot load {path}"
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    room = (llama_cpp.llama_token * 1024)()
    found = []
    for text in texts:
        data = text.encode()
        count = llama_cpp.llama_tokenize(vocabulary, data, len(data), room, 1024, False, True)
        assert count >= 0
        found.append(list(room[:count]))
    llama_cpp.llama_model_free(model)
    return found


@pytest.mark.parametrize("name", _RULES)
def test_texts_are_cut_as_llama_cpp_cuts_them(name: str, tmp_path: Path) -> None:
    metadata = byte_level_metadata(train_byte_level("gpt-2"), name)
    metadata["tokenizer.ggml.add_bos_token"] = False
    write_gguf(tmp_path / "model.gguf", metadata)
    # llama.cpp normalises no text, and ends one at a zero byte.
    form = pre_tokenizer(name).normalizer
    texts = [text.replace("\0", "") for text in TEXTS]
    texts = [unicodedata.normalize("NFC", text) if form == "NFC" else text for text in texts]
    texts = [text for text in texts if name != "tekken" or _MARKS not in text]
    ours = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(metadata)))
    expected = theirs(tmp_path / "model.gguf", texts)
    for text, ids in zip(texts, expected, strict=True):
        assert ours.encode(text, add_special_tokens=False).ids == ids, text
