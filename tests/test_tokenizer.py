from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import byte_level
from tokenizers import decoders, models, processors

from ryzanstein import (
    CorruptFileError,
    ModelLoadError,
    UnsupportedFormatError,
    ValidationError,
)
from ryzanstein.loaders.hub import EMBEDDED_MODEL
from ryzanstein.loaders.model_files import open_files
from ryzanstein.tokenizer import Detokenizer, Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

MIXED = "naïve café 日本語 👩‍👩‍👧 🇫🇷 \ufffd e\u0301\n\ttab  spaces"
# Bytes that are characters, halves of characters, or neither.
TRICKY = [0x61, 0x80, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0xED, 0xA0, 0xEF, 0xBF, 0xBD]


def byte_fallback() -> Tokenizer:
    """As SentencePiece does: words begin with a space, other bytes are 4.., no leading space."""
    vocab = {"<unk>": 0, "▁a": 1, "▁b": 2, "c": 3} | {f"<0x{b:02X}>": 4 + b for b in range(256)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return Tokenizer(backend)


BYTES = Tokenizer(byte_level(), special_tokens={"bos_token": "<s>"})
FALLBACK = byte_fallback()
EMBEDDED = Tokenizer.from_files(open_files(EMBEDDED_MODEL))


def stream(tokenizer: Tokenizer, ids: list[int], prompt: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt or [])
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


@example(MIXED)
@given(st.text())
def test_text_survives_encoding_and_streams_in_whole_characters(text: str) -> None:
    for tokenizer in (BYTES, EMBEDDED):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
        pieces = stream(tokenizer, ids)
        assert "".join(pieces) == text
        assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=400)
@given(st.lists(st.integers(0, 256) | st.sampled_from(TRICKY), max_size=40))
def test_any_bytes_stream_as_they_decode(ids: list[int]) -> None:
    assert "".join(stream(BYTES, ids)) == BYTES.decode(ids)


@settings(max_examples=300)
@given(st.lists(st.integers(0, EMBEDDED.vocab_size - 1), max_size=40))
def test_any_embedded_tokens_stream_as_they_decode(ids: list[int]) -> None:
    assert "".join(stream(EMBEDDED, ids)) == EMBEDDED.decode(ids)


@given(st.lists(st.sampled_from(["▁a", "▁b", "c", "é", "€", "😀"]), max_size=20))
def test_byte_fallback_streams_as_it_decodes(words: list[str]) -> None:
    fixed = {"▁a": [1], "▁b": [2], "c": [3]}
    ids = [i for word in words for i in fixed.get(word) or [4 + b for b in word.encode()]]
    assert "".join(stream(FALLBACK, ids)) == FALLBACK.decode(ids)


@settings(max_examples=300)
@given(
    st.lists(st.integers(0, 259) | st.sampled_from([4 + b for b in TRICKY]), max_size=20),
    st.lists(st.integers(1, 259) | st.sampled_from([4 + b for b in TRICKY]), max_size=20),
)
def test_any_bytes_of_byte_fallback_stream_as_they_decode(
    prompt: list[int], ids: list[int]
) -> None:
    assert "".join(stream(FALLBACK, ids)) == FALLBACK.decode(ids)
    # The last token of the prompt is whole, so its text cannot change with what follows.
    whole = FALLBACK.decode([*prompt, 3, *ids])
    assert (
        "".join(stream(FALLBACK, ids, [*prompt, 3])) == whole[len(FALLBACK.decode([*prompt, 3])) :]
    )


def test_bytes_after_a_prompt_of_bytes() -> None:
    face = [4 + b for b in "😀".encode()]
    assert "".join(stream(FALLBACK, [*face, 3], face * 3)) == "😀c"


def test_a_character_appears_when_its_last_byte_does() -> None:
    ids = list("é€😀".encode())
    assert stream(BYTES, ids) == ["", "é", "", "", "€", "", "", "", "😀", ""]


def test_unfinished_bytes_appear_at_the_end() -> None:
    assert stream(BYTES, [0x61, 0xF0, 0x9F]) == ["a", "", "", "\ufffd"]


def test_the_space_of_the_first_word_depends_on_the_prompt() -> None:
    assert "".join(stream(FALLBACK, [1, 2])) == "a b"
    assert "".join(stream(FALLBACK, [1, 2], prompt=[3])) == " a b"


def test_special_tokens_have_no_text() -> None:
    assert stream(BYTES, [0xC3, 256, 0xA9, 0x61]) == ["", "", "é", "a", ""]
    assert BYTES.is_special(256)
    assert BYTES.decode([0x61, 256]) == "a"
    assert BYTES.decode([0x61, 256], skip_special_tokens=False) == "a<s>"


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("add_bos", [True, False, None])
def test_bos_is_added_as_configured(template: bool, add_bos: bool | None) -> None:
    backend = byte_level()
    if template:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 256)]
        )
    tokenizer = Tokenizer(backend, special_tokens={"bos_token": "<s>"}, add_bos=add_bos)
    wants_bos = template if add_bos is None else add_bos
    assert tokenizer.encode("a") == ([256, 0x61] if wants_bos else [0x61])
    assert tokenizer.encode("a", add_special_tokens=False) == [0x61]


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("add_eos", [True, False])
def test_eos_is_added_as_configured(template: bool, add_eos: bool) -> None:
    backend = byte_level()
    if template:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 256)]
        )
    specials = {"bos_token": "<s>", "eos_token": "b"}
    tokenizer = Tokenizer(backend, special_tokens=specials, add_eos=add_eos)
    assert tokenizer.encode("a") == [256] * template + [0x61] + [0x62] * add_eos
    assert tokenizer.encode("a", add_special_tokens=False) == [0x61]


@pytest.mark.parametrize("template", ["<s> $A", "$A <s>", "<s> $A <s>", "$A"])
def test_a_token_that_is_both_bos_and_eos_stays_where_it_was(template: str) -> None:
    backend = byte_level()
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 256)]
    )
    expected = backend.encode("b").ids
    begins = template.startswith("<s>")
    specials = {"bos_token": "<s>", "eos_token": "<s>"}
    tokenizer = Tokenizer(backend, special_tokens=specials, add_bos=begins)
    assert tokenizer.encode("b") == expected


def test_the_embedded_model_reads_a_text_without_its_end() -> None:
    ids = Tokenizer.from_files(open_files(EMBEDDED_MODEL)).encode("def f(x):")
    assert ids == [0, 305, 288, 1609, 292]  # as transformers has it


def test_what_is_not_text_is_refused() -> None:
    number: Any = 7
    with pytest.raises(ValidationError, match="a text must be a string, got int"):
        BYTES.encode(number)
    with pytest.raises(ValidationError, match=r"not valid Unicode: .* surrogates not allowed"):
        BYTES.encode("a\ud800")


def write(directory: Path, **files: object) -> Path:
    byte_level().save(str(directory / "tokenizer.json"))
    for name, value in files.items():
        (directory / f"{name}.json").write_text(json.dumps(value))
    return directory


def test_directory_with_the_tokenizer_alone(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_files(open_files(write(tmp_path)))
    assert tokenizer.eos_token_ids == ()
    assert tokenizer.bos_token_id is None
    assert tokenizer.vocab_size == 257


def test_special_tokens_in_both_spellings(tmp_path: Path) -> None:
    write(
        tmp_path,
        special_tokens_map={"eos_token": "b", "unk_token": None},
        tokenizer_config={"bos_token": {"content": "<s>"}, "pad_token": "missing", "x": 1},
    )
    tokenizer = Tokenizer.from_files(open_files(tmp_path))
    expected = {"eos_token": "b", "bos_token": "<s>", "pad_token": "missing"}
    assert tokenizer.special_tokens == expected
    assert tokenizer.bos_token_id == 256
    assert tokenizer.eos_token_ids == (0x62,)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 3}, {"eos_token_id": 4}, (3,)),
        ({"eos_token_id": [5, 3]}, {}, (3, 5)),
        ({}, {"eos_token_id": 4}, (4,)),
        ({"eos_token_id": None}, {"eos_token_id": [4]}, (4,)),
        ({}, {}, ()),
    ],
)
def test_eos_ids(generation: object, config: object, expected: object, tmp_path: Path) -> None:
    write(tmp_path, generation_config=generation, config=config)
    assert Tokenizer.from_files(open_files(tmp_path)).eos_token_ids == expected


@pytest.mark.parametrize("value", ["x", -1, [1, True], 1.5, {"a": 1}])
def test_malformed_eos_id(value: object, tmp_path: Path) -> None:
    write(tmp_path, generation_config={"eos_token_id": value})
    with pytest.raises(CorruptFileError, match=r"generation_config\.json: eos_token_id must be"):
        Tokenizer.from_files(open_files(tmp_path))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json does not exist; save the tokenizer"):
        Tokenizer.from_files(open_files(tmp_path))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 3}'])
def test_damaged_file(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CorruptFileError, match=r"tokenizer\.json is not a tokenizer: "):
        Tokenizer.from_files(open_files(tmp_path))


def saved(path: Path, model: dict[str, Any] | None = None, **parts: object) -> Path:
    """Write tokenizer.json of a tokenizer of two letters, with parts of it replaced."""
    vocabulary = {"a": 0, "\u00e9": 1, "a\u00e9": 2}
    content = json.loads(tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[])).to_str())
    content |= parts
    content["model"] |= model or {}
    (path / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False))
    return path


def test_texts_are_neither_cut_nor_filled_up(tmp_path: Path) -> None:
    """tokenizer.json may still say how long the texts of the training were."""
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 8},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 1,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    files = open_files(saved(tmp_path, truncation=truncation, padding=padding))
    assert Tokenizer.from_files(files).encode("aaaa") == [0, 0, 0, 0]


def _template(special: str, sequence: str) -> dict[str, object]:
    begin = {"SpecialToken": {"id": special, "type_id": 0}}
    text = {"Sequence": {"id": sequence, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, text] if special else [text],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {},
    }


@pytest.mark.parametrize(
    "parts",
    [
        {"post_processor": _template("<s>", "A")},
        {"post_processor": _template("", "B")},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    ],
)
def test_panics_of_the_library_are_errors(parts: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"tokenizer\.json is not a tokenizer: "):
        Tokenizer.from_files(open_files(saved(tmp_path, **parts)))


@pytest.mark.parametrize("escaped", [False, True])
def test_prefixes_that_would_end_the_process(escaped: bool, tmp_path: Path) -> None:
    model = {"continuing_subword_prefix": "#", "merges": [["a", "\u00e9"]]}
    path = saved(tmp_path, model) / "tokenizer.json"
    if escaped:
        path.write_text(path.read_text().replace("_subword", "\\u005fsubword"))
    with pytest.raises(UnsupportedFormatError, match=r"json: continuing_subword_prefix is '#'"):
        Tokenizer.from_files(open_files(tmp_path))
