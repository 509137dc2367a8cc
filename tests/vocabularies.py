"""Small vocabularies trained by the outside libraries, and texts that tokenizers trip over."""

from __future__ import annotations

import io
import json
from functools import cache
from typing import TYPE_CHECKING, Any

import gguf
import sentencepiece
import tokenizers
from gguf import GGUFReader, GGUFWriter
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["TEXTS", "byte_level_metadata", "train_byte_level", "train_sentencepiece", "write_gguf"]

TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    "\t\n \n\n  \r\n\r",
    "Hello, World! It's you'RE we'll  I'D",
    " leading and trailing  ",
    "   three   spaces     everywhere      ",
    "3 33 333 3333 33333 333333 1,234.56 ½ ²³ ٣٤٥ १२३",
    "naïve café e\u0301 Å A\u030a ﬁ ﬂ ǅ",
    "日本語のテキスト、中文（简体）。한국어 조사",
    "Привет, мир! Ελληνικά ΑΒΓ עברית العربية हिन्दी ไทย မြန်မာ",
    "👩‍👩‍👧 🇫🇷 🦙.cpp 😀\ufe0f ✅",
    "def f(x):\n    return x**2 + [1, 2][0]  # comment\n\tif x != 0 and y >= 1:\n\t\tpass\n",
    "camelCaseWord HTTPServer snake_case_word /usr/local/bin https://a.b/c?d=e&f=g",
    "$+<=>^~|` @#%&* '' \"\" «» — … ;;;",
    "\ufffd \x00\x01\x7f \u200b\u00a0\u3000\ufeff \U0010ffff",
    "<s> a special token in text</s> [USER]and a defined one[USER]  spaces",
]

_CORPUS = [text for text in TEXTS if "<s>" not in text] * 4


@cache
def train_byte_level(pre: str) -> tokenizers.Tokenizer:
    """Return a tokenizer in the way of the models that a `tokenizer.ggml.pre` is named after.

    Their cutting is spelt as their own tokenizer.json files spell it.
    """
    llama3 = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    cuts: dict[str, list[Any]] = {
        "gpt-2": [gpt2],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), gpt2],
        "llama-bpe": [pre_tokenizers.Split(tokenizers.Regex(llama3), "isolated"), alphabet],
        "qwen2": [
            pre_tokenizers.Split(tokenizers.Regex(llama3.replace("{1,3}", "")), "isolated"),
            alphabet,
        ],
        "falcon": [
            pre_tokenizers.Punctuation("contiguous"),
            gpt2,
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(tokenizers.Regex("[0-9][0-9][0-9]"), "isolated"),
        ],
    }
    trained = tokenizers.Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    trained.pre_tokenizer = pre_tokenizers.Sequence(cuts[pre])
    trained.normalizer = normalizers.NFC() if pre == "qwen2" else None
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        show_progress=False,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    trained.train_from_iterator(_CORPUS, trainer)
    trained.add_tokens([tokenizers.AddedToken("[USER]", normalized=False)])
    return trained


@cache
def train_sentencepiece() -> bytes:
    """Return a tokenizer.model like Llama 2's: BPE, bytes for what it lacks, text left as it is."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in _CORPUS for line in text.splitlines() if line]),
        model_writer=written,
        model_type="bpe",
        vocab_size=700,
        character_coverage=0.98,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["[USER]"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return written.getvalue()


def byte_level_metadata(trained: tokenizers.Tokenizer, pre: str | None) -> dict[str, Any]:
    """Return what llama.cpp's converter writes of a byte-level tokenizer, with two unused ids."""
    model = json.loads(trained.to_str())["model"]
    added = trained.get_added_tokens_decoder()
    by_id = {token_id: text for text, token_id in trained.get_vocab().items()}
    tokens = [by_id[i] for i in range(len(by_id))]
    types = [
        gguf.TokenType.NORMAL
        if i not in added
        else gguf.TokenType.CONTROL
        if added[i].special
        else gguf.TokenType.USER_DEFINED
        for i in range(len(tokens))
    ]
    fillers = [f"[PAD{len(tokens) + i}]" for i in range(2)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens + fillers,
        "tokenizer.ggml.token_type": [int(kind) for kind in types] + [5, 5],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    } | ({} if pre is None else {"tokenizer.ggml.pre": pre})


def write_gguf(path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """Write a GGUF file of metadata alone and return what the `gguf` package reads back."""
    writer = GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return {key: field.contents() for key, field in GGUFReader(path).fields.items()}
