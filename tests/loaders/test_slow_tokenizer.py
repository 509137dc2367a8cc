from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import TEXTS, train_byte_level, train_sentencepiece, write_gguf

from ryzanstein import CorruptFileError, UnsupportedFormatError
from ryzanstein.loaders import gguf_tokenizer
from ryzanstein.loaders.model_files import open_files
from ryzanstein.loaders.sentencepiece import parse_model
from ryzanstein.tokenizer import Detokenizer, Tokenizer

MODEL = train_sentencepiece()
ORACLE = sentencepiece.SentencePieceProcessor(model_proto=MODEL)
# SentencePiece takes NUL for the end of a text, and special tokens for text.
PLAIN = [text for text in TEXTS if "<s>" not in text and "\x00" not in text]


def metadata(**changes: Any) -> dict[str, Any]:
    """Return what llama.cpp's converter writes of MODEL."""
    pieces = parse_model(MODEL, "model")
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": pieces.texts,
        "tokenizer.ggml.scores": pieces.scores,
        "tokenizer.ggml.token_type": pieces.types,
    } | changes


def made(path: Path, **files: object) -> Tokenizer:
    """Return the tokenizer of a directory with a tokenizer.model and JSON files."""
    path.mkdir(exist_ok=True)
    (path / "tokenizer.model").write_bytes(MODEL)
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return Tokenizer.from_files(open_files(path))


with tempfile.TemporaryDirectory() as _directory:
    TOKENIZER = made(Path(_directory))


def test_a_model_is_read_as_sentencepiece_reads_it() -> None:
    pieces = parse_model(MODEL, "model")
    size = ORACLE.get_piece_size()
    assert pieces.texts == [ORACLE.id_to_piece(i) for i in range(size)]
    assert pieces.scores == [ORACLE.get_score(i) for i in range(size)]
    checks = {2: ORACLE.is_unknown, 3: ORACLE.is_control, 5: ORACLE.is_unused, 6: ORACLE.is_byte}
    for kind, check in checks.items():
        assert [i for i in range(size) if pieces.types[i] == kind] == [*filter(check, range(size))]
    assert pieces.add_prefix


def test_ids_and_texts_are_those_of_sentencepiece(tmp_path: Path) -> None:
    from_gguf = json.dumps(gguf_tokenizer.tokenizer_json(write_gguf(tmp_path / "m", metadata())))
    (tmp_path / "tokenizer.json").write_text(from_gguf)
    converted = Tokenizer.from_files(open_files(tmp_path))
    for text in PLAIN:
        ids = ORACLE.encode(text.replace("[USER]", ""))
        for each in (TOKENIZER, converted):
            assert each.encode(text.replace("[USER]", ""), add_special_tokens=False) == ids, text
            assert each.decode(ids) == ORACLE.decode(ids), text


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])))
def test_any_text(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    if "[USER]" not in text and not any(special in text for special in ("<s>", "</s>", "<unk>")):
        assert ids == ORACLE.encode(text)
    assert TOKENIZER.decode(ids) == text


@settings(max_examples=200)
@given(st.lists(st.integers(3, ORACLE.get_piece_size() - 1), max_size=30))
def test_any_tokens_stream_as_they_decode(ids: list[int]) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [*(detokenizer.push(i) for i in ids), detokenizer.flush()]
    assert "".join(pieces) == TOKENIZER.decode(ids)


def test_special_tokens_in_the_text_and_around_it(tmp_path: Path) -> None:
    ids = ORACLE.encode
    user = ORACLE.piece_to_id("[USER]")
    # As SentencePiece called for each part: each begins with a space that the text does not have.
    assert TOKENIZER.encode("a</s> b[USER]c") == [1, *ids("a"), 2, *ids(" b"), user, *ids("c")]
    assert TOKENIZER.encode("a", add_special_tokens=False) == ids("a")
    assert TOKENIZER.decode([1, *ids("a b"), 2]) == "a b"
    settings = {"add_bos_token": False, "add_eos_token": True, "eos_token": "</s>"}
    assert made(tmp_path, tokenizer_config=settings).encode("a") == [*ids("a"), 2]


def test_the_space_before_the_text(tmp_path: Path) -> None:
    ids = ORACLE.encode
    first = made(tmp_path / "first", tokenizer_config={"legacy": False})
    assert first.encode("a</s>b") == [1, *ids("a"), 2, ORACLE.piece_to_id("b")]
    assert first.encode(" a") == [1, *ids("a")]
    never = made(tmp_path / "never", tokenizer_config={"add_prefix_space": False})
    assert never.encode("b") == [1, ORACLE.piece_to_id("b")]
    assert never.decode(ids("b")) == " b"
    converted = gguf_tokenizer.tokenizer_json(
        metadata(**{"tokenizer.ggml.add_space_prefix": False})
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(converted))
    assert made(tmp_path).encode("b") == [ORACLE.piece_to_id("b")]


def test_runs_of_spaces_are_user_defined_tokens(tmp_path: Path) -> None:
    # Gemma's, which converters spell with spaces and give a score below that of common words.
    texts = ["<unk>", "\u2581", "\u2581a", "a", "  ", "   ", "    "]
    made_json = gguf_tokenizer.tokenizer_json(
        metadata(
            **{
                "tokenizer.ggml.tokens": texts,
                "tokenizer.ggml.scores": [0.0, -4.0, -1.0, -5.0, -1000.0, -1000.0, -1000.0],
                "tokenizer.ggml.token_type": [2, 1, 1, 1, 4, 4, 4],
                "tokenizer.ggml.add_space_prefix": False,
            }
        )
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(made_json))
    spaces = made(tmp_path)
    assert [spaces.encode(" " * n + "a") for n in range(6)] == [
        [3],
        [2],
        [4, 3],
        [5, 3],
        [6, 3],
        [6, 2],
    ]
    assert spaces.decode([6, 2]) == "     a"


def test_added_tokens(tmp_path: Path) -> None:
    size = ORACLE.get_piece_size()
    extended = made(
        tmp_path,
        added_tokens={"[TOOL]": size},
        tokenizer_config={
            "added_tokens_decoder": {str(size + 2): {"content": "<pad>", "special": True}}
        },
    )
    assert extended.encode("[TOOL]<pad>", add_special_tokens=False) == [size, size + 2]
    assert extended.decode([size, size + 2]) == "[TOOL]"
    assert extended.vocab_size == size + 2


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "it has no pieces"),
        (b"\xff" * 12, "a number is too long"),
        (MODEL[:-1], "is not a SentencePiece model"),
        (b"\x0a\x04\x0a\x02\xff\xff", "is not a SentencePiece model"),
        (b"\x0b", "unknown field type 3"),
    ],
)
def test_damaged_models(content: bytes, wanted: str) -> None:
    with pytest.raises(CorruptFileError, match=wanted):
        parse_model(content, "tokenizer.model")


@pytest.mark.parametrize(
    ("suffix", "wanted"),
    [
        (b"\x12\x02\x18\x01", "is not a BPE model"),
        (b"\x1a\x02\x20\x01", "changes the text"),
        (b"\x1a\x03\x12\x01x", "changes the text"),
    ],
)
def test_models_that_are_not_supported(suffix: bytes, wanted: str) -> None:
    with pytest.raises(UnsupportedFormatError, match=wanted):
        parse_model(MODEL + suffix, "tokenizer.model")


@settings(max_examples=100)
@given(st.integers(0, len(MODEL) - 1), st.binary(max_size=4))
def test_a_damaged_model_is_read_or_refused(at: int, junk: bytes) -> None:
    try:
        parse_model(MODEL[:at] + junk + MODEL[at + len(junk) :], "tokenizer.model")
    except (CorruptFileError, UnsupportedFormatError):
        return


@pytest.mark.parametrize("pre", ["gpt-2", "qwen2"])
def test_vocab_and_merges(pre: str, tmp_path: Path) -> None:
    original = train_byte_level(pre)
    original.model.save(str(tmp_path))
    added = {
        str(i): {"content": token.content, "special": token.special}
        for i, token in original.get_added_tokens_decoder().items()
    }
    settings = {
        "tokenizer_class": {"gpt-2": "GPT2TokenizerFast", "qwen2": "Qwen2Tokenizer"}[pre],
        "added_tokens_decoder": added,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer.from_files(open_files(tmp_path))
    for text in TEXTS:
        ids = original.encode(text).ids
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == original.decode(ids)


@pytest.mark.parametrize(
    ("name", "content", "error", "wanted"),
    [
        ("tokenizer_config.json", "{}", UnsupportedFormatError, "tokenizer_class '' that is not"),
        ("vocab.json", '{"a": -1}', CorruptFileError, "must map tokens to ids"),
        ("merges.txt", "\udcff", CorruptFileError, "is not UTF-8"),
        ("added_tokens.json", '{"a": "b"}', CorruptFileError, "added tokens are malformed"),
    ],
)
def test_malformed_files(
    name: str, content: str, error: type[Exception], wanted: str, tmp_path: Path
) -> None:
    train_byte_level("gpt-2").model.save(str(tmp_path))
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(error, match=wanted):
        Tokenizer.from_files(open_files(tmp_path))
