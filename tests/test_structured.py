from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ryzanstein.errors import DistributionError, ValidationError
from ryzanstein.loaders.hub import EMBEDDED_MODEL
from ryzanstein.loaders.model_files import open_files
from ryzanstein.sampling.structured_output import StructuredOutput
from ryzanstein.structured import Constraint, ConstraintCompiler
from ryzanstein.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ryzanstein._core import I32Array

TOKENIZER = Tokenizer.from_files(open_files(EMBEDDED_MODEL))
VOCAB_SIZE = TOKENIZER.vocab_size + 7  # models pad their heads
COMPILER = ConstraintCompiler(TOKENIZER, VOCAB_SIZE)

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def compiled(kind: str, source: object) -> Constraint:
    text = source if isinstance(source, str) else json.dumps(source)
    return COMPILER.compile(StructuredOutput(kind, text))  # type: ignore[arg-type]


def written(constraint: Constraint, seed: int, *, force: bool, limit: int = 400) -> str:
    """Return a random text under the constraint, its forced tokens taken or drawn."""
    rng = np.random.default_rng(seed)
    tokens: list[int] = []
    while len(tokens) < limit:
        constraint.follow(np.array(tokens, np.int32))
        new = constraint.forced() if force else []
        if not new:
            logits = rng.standard_normal(VOCAB_SIZE).astype(np.float32)
            new = [int(constraint.apply(logits).argmax())]
        tokens += new
        if tokens[-1] in TOKENIZER.eos_token_ids:
            return TOKENIZER.decode(tokens)
    raise AssertionError(f"no end after {limit} tokens: {TOKENIZER.decode(tokens)!r}")


def tokens_of(text: str) -> I32Array:
    """One token per character."""
    ids = [TOKENIZER.encode(character, add_special_tokens=False) for character in text]
    return np.concatenate(ids).astype(np.int32)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_random_texts_follow_the_regex(seed: int, force: bool) -> None:
    pattern = r"(red|green) [0-9]{2,4}( and [a-c]{1,3}){0,3}"
    text = written(compiled("regex", pattern), seed, force=force)
    assert re.fullmatch(pattern, text)


@pytest.mark.parametrize("seed", range(5))
def test_random_texts_follow_the_schema(seed: int) -> None:
    value = json.loads(written(compiled("json_schema", SCHEMA), seed, force=True))
    assert set(value) == {"name", "age"}
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 8
    assert isinstance(value["age"], int)


def test_choices_are_texts_not_patterns() -> None:
    choices = ["a.c", 'say "hi"', "naïve \\ path"]
    texts = {written(compiled("choice", choices), seed, force=False) for seed in range(30)}
    assert texts == set(choices)


def test_a_grammar_in_larks_notation() -> None:
    source = 'start: NUMBER ("+" NUMBER){0,3}\nNUMBER: /[0-9]{1,3}/'
    assert re.fullmatch(
        r"\d{1,3}(\+\d{1,3}){0,3}", written(compiled("grammar", source), 0, force=True)
    )


def test_padding_of_the_vocabulary_is_never_allowed() -> None:
    logits = compiled("regex", ".*").apply(np.zeros(VOCAB_SIZE, np.float32))
    assert np.isneginf(logits[TOKENIZER.vocab_size :]).all()
    assert np.isfinite(logits[: TOKENIZER.vocab_size]).any()


def test_forks_go_their_own_ways() -> None:
    one = compiled("choice", ["ab", "cd"])
    other = one.fork()
    one.follow(tokens_of("a"))
    again = one.fork()
    other.follow(tokens_of("c"))
    again.follow(tokens_of("ab"))
    assert TOKENIZER.decode(one.forced()) == "b"
    assert TOKENIZER.decode(other.forced()) == "d"
    assert again.forced() == [TOKENIZER.eos_token_ids[0]]


def test_what_was_compiled_once_is_kept_as_it_was() -> None:
    for _ in range(2):
        constraint = compiled("choice", ["ab", "ac"])
        assert constraint.forced() == []
        constraint.follow(tokens_of("ab"))


def test_a_token_that_may_not_come_is_an_error() -> None:
    with pytest.raises(DistributionError, match=r"cannot go on as asked: [^\n]*$"):
        compiled("choice", ["ab"]).follow(tokens_of("x"))


@pytest.mark.parametrize(
    ("kind", "source", "reason"),
    [
        ("regex", "(", "unclosed group"),
        ("json_schema", '{"type": ', "json_schema cannot be used: EOF while parsing"),
        ("json_schema", {"type": "string", "minLength": 5, "maxLength": 2}, "minLength"),
        ("json_schema", {"type": "nothing"}, "nothing"),
        ("json_schema", "false", "object schema"),
        ("regex", r"a[^\s\S]", "no text follows it"),
        ("grammar", "start: missing", "missing"),
        ("grammar", "begin: 'a'", "grammar cannot be used"),
        ("regex", "\ud800", "regex cannot be used: .*surrogates"),
        ("regex", "a" * (1 << 20) + "b", "more than the 1048576 allowed"),
    ],
)
def test_what_cannot_be_met_is_refused(kind: str, source: object, reason: str) -> None:
    started = time.perf_counter()
    with pytest.raises(ValidationError, match=reason):
        compiled(kind, source)
    assert time.perf_counter() - started < 5.0


def test_a_pattern_of_a_billion_states_is_followed_as_fast_as_any() -> None:
    constraint = compiled("regex", "((a|b)*c(a|b){500}){500}x" * 20)
    started = time.perf_counter()
    tokens = tokens_of("abab" * 50)
    for count in range(len(tokens)):
        constraint.apply(np.zeros(VOCAB_SIZE, np.float32))
        constraint.follow(tokens[: count + 1])
    assert time.perf_counter() - started < 5.0


def test_a_tokenizer_without_an_end_token_cannot_be_constrained() -> None:
    endless = Tokenizer(TOKENIZER._backend)
    with pytest.raises(ValidationError, match="end token"):
        ConstraintCompiler(endless, endless.vocab_size).compile(StructuredOutput("regex", "a"))
