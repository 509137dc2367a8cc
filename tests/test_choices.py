"""What a caller gets who asks for several texts, or for the prompt besides."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ryzanstein import LLM, ContextLengthError, SamplingParams, ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ryzanstein import Choice, Piece

PROMPT = "def fibonacci(n):"
SAMPLED = SamplingParams(max_tokens=20, temperature=1.2, seed=5, stop=["\n\n"])


@pytest.fixture
def llm(embedded: LLM) -> Iterator[LLM]:
    """The shared model, with a check that the test left no page in use."""
    free = embedded._engine.num_free_blocks
    yield embedded
    assert embedded._engine.num_free_blocks == free


def same(ours: Choice, theirs: Choice) -> bool:
    names = ("text", "token_ids", "logprobs", "finish_reason", "seed")
    return all(getattr(ours, name) == getattr(theirs, name) for name in names)


def one_by_one(llm: LLM, count: int, **changes: Any) -> list[Choice]:
    params = [dataclasses.replace(SAMPLED, seed=5 + i, **changes) for i in range(count)]
    return [llm.generate(PROMPT, one) for one in params]


def test_every_choice_is_what_its_seed_gives(llm: LLM) -> None:
    out = llm.generate(PROMPT, dataclasses.replace(SAMPLED, n=4, logprobs=1))
    singles = one_by_one(llm, 4, logprobs=1)
    assert [choice.index for choice in out.choices] == [0, 1, 2, 3]
    assert all(map(same, out.choices, singles))
    assert out.choices[0] is out
    assert out.cumulative_logprob == sum(entry.logprob for entry in out.logprobs or ())
    assert out.usage.prompt_tokens == len(llm.tokenizer.encode(PROMPT))
    assert out.usage.completion_tokens == sum(len(choice.token_ids) for choice in out.choices)
    assert pickle.loads(pickle.dumps(out)) == out
    json.dumps(dataclasses.asdict(out))


def test_one_choice_is_the_completion(llm: LLM) -> None:
    out = llm.generate(PROMPT, SAMPLED)
    assert (out.choices, out.others, out.index) == ((out,), (), 0)
    assert out.cumulative_logprob is None
    assert out.prompt_logprobs is None


def test_seeds_that_are_drawn_reproduce(llm: LLM) -> None:
    params = SamplingParams(max_tokens=12, temperature=1.5, n=3)
    for choice in llm.generate("x", params).choices:
        again = llm.generate("x", dataclasses.replace(params, n=1, seed=choice.seed))
        assert again.token_ids == choice.token_ids


def test_the_best_are_the_likeliest(llm: LLM) -> None:
    out = llm.generate(PROMPT, dataclasses.replace(SAMPLED, n=2, best_of=6))
    singles = one_by_one(llm, 6, logprobs=0)
    singles.sort(key=lambda choice: -(choice.cumulative_logprob or 0))
    assert [c.seed for c in out.choices] == [c.seed for c in singles[:2]]
    assert [c.text for c in out.choices] == [c.text for c in singles[:2]]
    assert [c.cumulative_logprob for c in out.choices] == [
        c.cumulative_logprob for c in singles[:2]
    ]
    assert [c.index for c in out.choices] == [0, 1]
    assert out.logprobs is None, "they were not asked for"
    assert out.usage.completion_tokens == sum(len(c.token_ids) for c in singles)


def test_a_list_of_prompts_with_choices(llm: LLM) -> None:
    params = [dataclasses.replace(SAMPLED, n=n) for n in (3, 1, 2)]
    outs = llm.generate([PROMPT] * 3, params)
    singles = one_by_one(llm, 3)
    for out, one in zip(outs, params, strict=True):
        assert len(out.choices) == one.n
        assert all(map(same, out.choices, singles))


def follow(pieces: list[Piece]) -> None:
    """Check that the pieces of a stream add up to its choices."""
    completion = pieces[-1].completion
    assert completion is not None
    assert all(piece.completion is None for piece in pieces[:-1])
    for choice in completion.choices:
        own = [piece for piece in pieces if piece.index == choice.index]
        assert "".join(piece.text for piece in own) == choice.text
        assert tuple(t for piece in own for t in piece.token_ids) == choice.token_ids
        assert [piece.finish_reason for piece in own] == [None] * (len(own) - 1) + [
            choice.finish_reason
        ]


def test_a_stream_tells_choices_apart(llm: LLM) -> None:
    params = dataclasses.replace(SAMPLED, n=3)
    pieces = list(llm.stream(PROMPT, params))
    follow(pieces)
    completion = pieces[-1].completion
    assert completion is not None
    assert all(map(same, completion.choices, llm.generate(PROMPT, params).choices))
    assert [p.index for p in pieces[:4]] == [0, 1, 2, 0], "they come side by side"


def test_a_stream_left_early_frees_every_choice(llm: LLM) -> None:
    stream = llm.stream(PROMPT, dataclasses.replace(SAMPLED, n=3, max_tokens=200, stop=()))
    for _ in range(5):
        next(stream)
    stream.close()  # the fixture counts the pages


def test_streams_of_asyncio_tell_choices_apart(llm: LLM) -> None:
    params = dataclasses.replace(SAMPLED, n=3)

    async def read() -> list[list[Piece]]:
        async with llm.serve() as engine:

            async def one() -> list[Piece]:
                return [piece async for piece in engine.stream(PROMPT, params)]

            return [*await asyncio.gather(one(), one())]

    for pieces in asyncio.run(read()):
        follow(pieces)


def test_best_of_cannot_be_streamed(llm: LLM) -> None:
    params = dataclasses.replace(SAMPLED, n=1, best_of=2)
    with pytest.raises(ValidationError, match="best_of cannot be streamed"):
        llm.stream(PROMPT, params)


def test_choices_of_a_structured_output(llm: LLM) -> None:
    params = SamplingParams(regex="(red|green|blue), [0-9]{2}!", temperature=2.0, seed=5, n=4)
    out = llm.generate(PROMPT, params)
    for choice in out.choices:
        alone = llm.generate(PROMPT, dataclasses.replace(params, n=1, seed=choice.seed))
        assert alone.text == choice.text
    assert len({choice.text for choice in out.choices}) > 1


def test_choices_with_speculation(llm: LLM) -> None:
    repetitive = "x = [1, 2, 3]\n" * 8
    params = SamplingParams(max_tokens=40, temperature=0.6, seed=3, n=3)
    expected = llm.generate(repetitive, params)
    with LLM(threads=1, speculative="suffix") as guessing:
        out = guessing.generate(repetitive, params)
    assert [c.token_ids for c in out.choices] == [c.token_ids for c in expected.choices]


def test_echo_puts_the_prompt_in_front(llm: LLM) -> None:
    plain = llm.generate(PROMPT, dataclasses.replace(SAMPLED, n=2))
    params = dataclasses.replace(SAMPLED, n=2, echo=True)
    out = llm.generate(PROMPT, params)
    for ours, theirs in zip(out.choices, plain.choices, strict=True):
        assert ours.text == PROMPT + theirs.text
        assert ours.token_ids == theirs.token_ids
    follow(list(llm.stream(PROMPT, params)))
    ids = llm.tokenizer.encode(PROMPT)
    assert llm.generate(ids, params).text == llm.tokenizer.decode(ids) + plain.text


def test_a_stop_string_in_an_echoed_prompt_does_not_count(llm: LLM) -> None:
    params = SamplingParams(max_tokens=8, temperature=0, echo=True, stop="fibonacci(n)")
    out = llm.generate(PROMPT, params)
    assert out.text.startswith(PROMPT)
    assert len(out.text) > len(PROMPT)


def test_prompt_logprobs_are_the_scores(llm: LLM) -> None:
    out = llm.generate(PROMPT, SamplingParams(max_tokens=2, temperature=0, prompt_logprobs=2))
    assert out.prompt_logprobs is not None
    first, *others = out.prompt_logprobs
    assert first is None
    assert [entry.token_id for entry in others if entry] == list(out.prompt_token_ids[1:])
    scores = [entry.logprob for entry in others if entry]
    np.testing.assert_allclose(scores, llm.score(PROMPT), atol=1e-6)
    assert all(len(entry.top) == 2 for entry in others if entry)
    assert out.logprobs is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n must be in 1..1024, got 0"),
        ({"n": 3, "best_of": 2}, "best_of must be in 3..1024, got 2"),
        ({"n": 2, "temperature": 0}, "n is 2, but temperature 0 draws one text only"),
        ({"best_of": 2, "temperature": 0}, "best_of is 2, but temperature 0"),
        ({"prompt_logprobs": -1}, "prompt_logprobs must be an integer >= 0, got -1"),
        ({"echo": 1}, "echo must be True or False, got 1"),
    ],
)
def test_what_cannot_be_asked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SamplingParams(**options)


def test_log_probabilities_beyond_the_vocabulary(llm: LLM) -> None:
    with pytest.raises(ValidationError, match="prompt_logprobs must be in"):
        llm.generate(PROMPT, SamplingParams(prompt_logprobs=llm.config.vocab_size + 1))


def test_beam_search_finds_likelier_texts_than_greedy_decoding(llm: LLM) -> None:
    greedy = llm.generate(PROMPT, SamplingParams(max_tokens=12, temperature=0, logprobs=0))
    out = llm.beam_search(PROMPT, beam_width=4, max_tokens=12, length_penalty=0.0)
    assert len(out.choices) == 4
    sums = [choice.cumulative_logprob or 0.0 for choice in out.choices]
    assert sums == sorted(sums, reverse=True)
    assert sums[0] >= (greedy.cumulative_logprob or 0.0)
    assert len({choice.text for choice in out.choices}) > 1
    for choice in out.choices:
        prompt = list(out.prompt_token_ids)
        scores = llm.score([*prompt, *choice.token_ids])[len(prompt) - 1 :]
        assert choice.cumulative_logprob == pytest.approx(scores.sum(), abs=1e-4)
    assert (out.usage.prompt_tokens, out.logprobs) == (len(out.prompt_token_ids), None)
    assert out.timings.total_s >= out.timings.time_to_first_token_s > 0


def test_one_beam_is_greedy_decoding(llm: LLM) -> None:
    greedy = llm.generate(PROMPT, SamplingParams(max_tokens=12, temperature=0))
    out = llm.beam_search(PROMPT, beam_width=1, max_tokens=12)
    assert (out.text, out.token_ids) == (greedy.text, greedy.token_ids)
    assert out.finish_reason == greedy.finish_reason


def test_beams_end_at_end_tokens(llm: LLM) -> None:
    free = llm.beam_search(PROMPT, beam_width=2, max_tokens=8, ignore_eos=True)
    assert {choice.finish_reason for choice in free.choices} == {"length"}
    stop = free.token_ids[3]
    out = llm.beam_search(PROMPT, beam_width=2, max_tokens=8, stop_token_ids=[stop])
    ended = [choice for choice in out.choices if choice.finish_reason == "stop"]
    assert ended
    for choice in ended:
        assert choice.token_ids[-1] == stop
        assert choice.text == llm.tokenizer.decode(choice.token_ids[:-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_width": 0}, "beam_width must be an integer >= 1, got 0"),
        ({"length_penalty": float("nan")}, "length_penalty must be a number"),
        ({"early_stopping": "often"}, "early_stopping must be True, False or 'never', got 'often'"),
        ({"max_tokens": 0}, "max_tokens must be an integer >= 1, got 0"),
    ],
)
def test_what_beam_search_cannot_do(llm: LLM, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        llm.beam_search(PROMPT, **options)


def test_beams_fit_in_the_context(llm: LLM) -> None:
    with pytest.raises(ContextLengthError, match="exceed the context"):
        llm.beam_search(PROMPT, max_tokens=llm.context_length)
