"""Going on where the context is full, which a caller has to ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Guesses, draft_with, finish, make_sequence, random_tokens, tiny_decoder
from support import tiny_engine as engine_of

from ryzanstein import LLM, ContextLengthError, SamplingParams, ValidationError
from ryzanstein.engine.sequence import Sequence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ryzanstein._core import I32Array

MODEL = tiny_decoder(7)
GREEDY: dict[str, Any] = {"temperature": 0.0, "logprobs": 2}
SAMPLED: dict[str, Any] = {
    "temperature": 1.2,
    "top_k": 30,
    "frequency_penalty": 0.3,
    "dry_multiplier": 0.5,
    "logprobs": 2,
    "seed": 5,
}


def shifting(
    prompt: I32Array, max_tokens: int, context_length: int, kept: int, **options: Any
) -> Sequence:
    params = SamplingParams(context_shift=kept, **options)
    return Sequence.create(prompt, params, max_tokens=max_tokens, context_length=context_length)


@pytest.mark.parametrize("kept", [0, 5, 32, 48])
@pytest.mark.parametrize("num_prompt", [1, 40, 95])
def test_each_stretch_is_what_a_prompt_of_the_tokens_left_gives(num_prompt: int, kept: int) -> None:
    context_length = 96
    sequence = shifting(random_tokens(1, num_prompt), 250, context_length, kept, **GREEDY)
    finish(engine_of(MODEL), [sequence])
    assert len(sequence.generated) == len(sequence.logprobs) == 250
    assert sequence.finish_reason == "length"

    seen = sequence.buffer[:num_prompt].tolist()
    tokens: list[int] = []
    logprobs: list[Any] = []
    while len(tokens) < 250:
        room = min(context_length - len(seen), 250 - len(tokens))
        stretch = make_sequence(np.array(seen, np.int32), room, **GREEDY)
        (new,) = finish(engine_of(MODEL), [stretch])
        tokens, seen, logprobs = tokens + new, seen + new, logprobs + stretch.logprobs
        seen = seen[:kept] + seen[kept + (len(seen) - kept + 1) // 2 :]
    assert sequence.generated.tolist() == tokens
    assert sequence.logprobs == logprobs


@st.composite
def jobs(draw: st.DrawFn) -> list[dict[str, Any]]:
    context_length = draw(st.integers(40, 100))
    job = st.fixed_dictionaries(
        {
            "prompt": st.integers(1, 39),
            "max_tokens": st.integers(1, 160),
            "kept": st.integers(0, 20),
            "is_greedy": st.booleans(),
            "right": st.sampled_from([None, 0.8, 1.0]),
        }
    )
    drawn = draw(st.lists(job, min_size=1, max_size=4))
    return [{**one, "context_length": context_length} for one in drawn]


@settings(max_examples=15)
@given(work=jobs(), num_blocks=st.integers(5, 16), budget=st.integers(8, 90))
def test_neighbours_preemption_and_guesses_do_not_show(
    work: list[dict[str, Any]], num_blocks: int, budget: int
) -> None:
    def sequences() -> Iterator[Sequence]:
        for i, job in enumerate(work):
            sampling = GREEDY if job["is_greedy"] else SAMPLED
            prompt = random_tokens(i % 2, job["prompt"])
            yield shifting(
                prompt, job["max_tokens"], job["context_length"], job["kept"], **sampling
            )

    alone, together = list(sequences()), list(sequences())
    for sequence in alone:
        finish(engine_of(MODEL, prefix_cache=False), [sequence])
    engine = engine_of(
        MODEL, num_blocks=num_blocks, token_budget=budget, context_length=num_blocks * 32
    )
    for sequence, known, job in zip(together, alone, work, strict=True):
        if job["right"] is not None:
            draft_with(sequence, Guesses(known.buffer, job["right"]))
    finish(engine, together)
    assert [s.buffer.tolist() for s in together] == [s.buffer.tolist() for s in alone]
    assert [s.logprobs for s in together] == [s.logprobs for s in alone]
    assert [s.num_dropped for s in together] == [s.num_dropped for s in alone]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(context_length=96) as model:
        yield model


def test_never_unless_asked(llm: LLM) -> None:
    with pytest.raises(ContextLengthError, match="ask for at most"):
        llm.generate([5] * 20, SamplingParams(max_tokens=200))
    whole = llm.generate([5] * 20, SamplingParams(ignore_eos=True, temperature=0))
    assert (len(whole.token_ids), whole.finish_reason) == (76, "length")
    with pytest.raises(ValidationError, match=r"context_shift must be in 0\.\.48, got 49"):
        llm.generate("x", SamplingParams(context_shift=49))
    with pytest.raises(ValidationError, match="context_shift must be an integer"):
        SamplingParams(context_shift=-1)


def test_a_stream_usage_and_stop_strings(llm: LLM) -> None:
    params = SamplingParams(
        max_tokens=300, context_shift=4, temperature=0.9, seed=3, ignore_eos=True, logprobs=0
    )
    whole = llm.generate("def main():", params)
    assert len(whole.token_ids) == whole.usage.completion_tokens == 300
    assert whole.logprobs is not None
    assert [entry.token_id for entry in whole.logprobs] == list(whole.token_ids)
    assert whole.usage.prompt_tokens == len(whole.prompt_token_ids) < 10
    assert whole.finish_reason == "length"
    pieces = list(llm.stream("def main():", params))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [i for piece in pieces for i in piece.token_ids] == list(whole.token_ids)
    # A text that comes late ends it there.
    stop = whole.text[-60:-40]
    assert whole.text.index(stop) > 100
    early = llm.generate(
        "def main():",
        SamplingParams(
            max_tokens=300, context_shift=4, temperature=0.9, seed=3, ignore_eos=True, stop=stop
        ),
    )
    assert early.text == whole.text[: whole.text.index(stop)]
    assert early.finish_reason == "stop"


def test_a_regex_goes_on_across_shifts(llm: LLM) -> None:
    params = SamplingParams(regex="[a-z ]{400}", max_tokens=500, context_shift=0, seed=1)
    text = llm.generate("Once", params).text
    assert len(text) == 400
