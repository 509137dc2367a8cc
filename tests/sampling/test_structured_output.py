from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from support import CHAT_TEMPLATE, copy_embedded

from ryzanstein import LLM, DistributionError, SamplingParams, ValidationError

if TYPE_CHECKING:
    from pathlib import Path

    from ryzanstein import Completion

PROMPT = "def describe(user):\n    return "
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["student", "teacher"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
REGEX = r"(import|from) [a-z]{2,8}(, [a-z]{2,5}){0,2} # naïve"
CHOICES = ["yes", "no", 'neither "a.c" nor \\', "café 🙂"]
GRAMMAR = 'start: NUMBER (" + " NUMBER){1,3}\nNUMBER: /[0-9]{1,3}/'
KINDS: dict[str, Any] = {
    "json_schema": SCHEMA,
    "regex": REGEX,
    "choice": CHOICES,
    "grammar": GRAMMAR,
}
SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"seed": 1},
    {"seed": 2, "temperature": 1.5, "top_k": 20, "repetition_penalty": 1.2},
    {"seed": 3, "mirostat": 2},
    {"seed": 4, "top_n_sigma": 1.0, "typical_p": 0.9, "xtc_probability": 0.5},
]


def follows(kind: str, text: str) -> bool:
    if kind == "json_schema":
        value = json.loads(text)
        return (
            list(value) == ["name", "age", "kind"]
            and isinstance(value["name"], str)
            and len(value["name"]) <= 8
            and 0 <= value["age"] <= 150
            and value["kind"] in ("student", "teacher")
        )
    if kind == "choice":
        return text in CHOICES
    pattern = REGEX if kind == "regex" else r"\d{1,3}( \+ \d{1,3}){1,3}"
    return re.fullmatch(pattern, text) is not None


def params(kind: str, **options: Any) -> SamplingParams:
    return SamplingParams(max_tokens=200, logprobs=2, **{kind: KINDS[kind]}, **options)


def seen(out: Completion) -> tuple[object, ...]:
    return out.text, out.token_ids, out.logprobs, out.finish_reason


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_is_what_was_asked_for(embedded: LLM, kind: str) -> None:
    for sampling in SAMPLINGS:
        out = embedded.generate(PROMPT, params(kind, **sampling))
        assert follows(kind, out.text), out.text
        assert out.finish_reason == "stop"
        assert out.token_ids[-1] in embedded.tokenizer.eos_token_ids


def test_the_batch_and_the_threads_do_not_show(embedded: LLM) -> None:
    asked = [params(kind, **sampling) for kind in KINDS for sampling in SAMPLINGS]
    asked.append(SamplingParams(max_tokens=30, temperature=0, logprobs=2))
    prompts = [PROMPT * (1 + i % 3) for i in range(len(asked))]
    alone = [seen(embedded.generate(*job)) for job in zip(prompts, asked, strict=True)]
    with LLM(threads=2, prefix_cache=False) as other:
        assert [seen(out) for out in other.generate(prompts, asked)] == alone
    assert [seen(out) for out in embedded.generate(prompts, asked)] == alone


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_a_stream_concatenate(embedded: LLM, kind: str) -> None:
    asked = params(kind, seed=5)
    pieces = list(embedded.stream(PROMPT, asked))
    expected = embedded.generate(PROMPT, asked)
    assert "".join(piece.text for piece in pieces) == expected.text
    assert sum((piece.token_ids for piece in pieces), ()) == expected.token_ids
    assert pieces[-1].completion is not None
    assert seen(pieces[-1].completion) == seen(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_max_tokens_cuts_short(embedded: LLM, kind: str) -> None:
    whole = embedded.generate(PROMPT, params(kind, seed=6))
    for count in range(1, len(whole.token_ids)):
        cut = embedded.generate(PROMPT, replace(params(kind, seed=6), max_tokens=count))
        assert cut.token_ids == whole.token_ids[:count]
        assert cut.finish_reason == "length"


def test_a_stop_string_may_end_it_before(embedded: LLM) -> None:
    out = embedded.generate(PROMPT, replace(params("json_schema"), stop='"age"'))
    assert out.finish_reason == "stop"
    assert re.fullmatch(r'\{"name": ".*", ', out.text)


def test_forced_tokens_were_certain(embedded: LLM) -> None:
    out = embedded.generate(PROMPT, params("choice", temperature=0))
    assert out.logprobs is not None
    assert out.logprobs[0].logprob < 0.0
    assert len(out.logprobs[0].top) == 2
    assert (out.logprobs[-1].logprob, out.logprobs[-1].top) == (0.0, ())
    assert [entry.token_id for entry in out.logprobs] == list(out.token_ids)


def test_a_conversation(tmp_path: Path) -> None:
    path = copy_embedded(tmp_path / "model", tokenizer_config={"chat_template": CHAT_TEMPLATE})
    with LLM(path, threads=1) as llm:
        out = llm.chat([{"role": "user", "content": "Who?"}], params("json_schema", seed=1))
    assert follows("json_schema", out.text)


def test_a_schema_may_be_a_text(embedded: LLM) -> None:
    asked = params("json_schema", temperature=0)
    text = replace(asked, json_schema=json.dumps(SCHEMA))
    assert text == asked
    assert hash(text) == hash(asked)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"regex": "a", "choice": ["b"]}, "regex and choice exclude one another"),
        ({"json_schema": 3}, "json_schema must be a dict or a text, got 3"),
        ({"json_schema": {"type": {1}}}, "json_schema is not JSON"),
        ({"regex": b"a"}, "regex must be a string, got b'a'"),
        ({"grammar": 1}, "grammar must be a string, got 1"),
        ({"choice": []}, r"choice must be a list of non-empty strings, got \[\]"),
        ({"choice": ["a", ""]}, "choice must be a list of non-empty strings"),
        ({"choice": "ab"}, "choice must be a list of non-empty strings, got 'ab'"),
        ({"regex": "a", "ignore_eos": True}, "ignore_eos is True, but the text ends where regex"),
        ({"regex": "a", "min_tokens": 2}, "min_tokens is 2, but the text ends where regex does"),
    ],
)
def test_wrong_options_name_the_field(options: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValidationError, match=wanted):
        SamplingParams(**options)


@pytest.mark.parametrize(
    "options",
    [{"regex": "("}, {"regex": "a" * (1 << 20) + "b"}, {"json_schema": {"enum": []}}],
    ids=["wrong", "oversized", "impossible"],
)
def test_what_cannot_be_met_is_refused_before_anything_runs(
    embedded: LLM, options: dict[str, Any]
) -> None:
    free = embedded._engine.num_free_blocks
    (kind,) = options
    for call in (embedded.generate, embedded.stream):
        with pytest.raises(ValidationError, match=kind):
            call(PROMPT, SamplingParams(**options))
    assert embedded._engine.num_free_blocks == free


def test_words_that_are_banned_and_needed_are_an_error(embedded: LLM) -> None:
    with pytest.raises(DistributionError):
        embedded.generate(PROMPT, SamplingParams(choice=["7", "8"], bad_words=["7", "8"]))
