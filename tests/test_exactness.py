"""The exactness contract: a sequence's bits do not depend on anything else that happens.

For one model, tier and KV format, equality of bytes, never closeness: over thread counts, batch
neighbours, prefill chunking, fork, truncate, preemption, seeds and the engine's own limits.
One thing at a time: everything at once is in `test_random_schedules`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import (
    TinyModel,
    Workbench,
    finish,
    make_sequence,
    random_tokens,
    tiny_decoder,
    tiny_engine,
)
from twins import Shape, twins

from ryzanstein import LLM, SamplingParams

if TYPE_CHECKING:
    from ryzanstein import Completion
    from ryzanstein._core import F32Array, I32Array
    from ryzanstein.config import KVDtype

KV_DTYPES: list[KVDtype] = ["f16", "f32", "int8"]
# Several pages, the last one partial.
TOKENS = random_tokens(1, 150)


@pytest.fixture
def model(isa: str) -> TinyModel:
    return tiny_decoder(7, isa=isa)


def cuts(rng: np.random.Generator, tokens: I32Array) -> list[I32Array]:
    """Cut tokens into pieces at random places."""
    at = np.sort(rng.choice(len(tokens) - 1, rng.integers(1, 9), replace=False)) + 1
    return np.split(tokens, at)


def in_pieces(bench: Workbench, pieces: list[I32Array]) -> F32Array:
    table = bench.blocks.allocate()
    logits = np.concatenate([bench.step([(table, piece)])[0] for piece in pieces])
    bench.blocks.free(table)
    return logits


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_thread_counts(isa: str, kv_dtype: KVDtype) -> None:
    # Long enough for attention to be split between threads.
    tokens = random_tokens(2, 700)
    expected = b""
    for threads in (1, 2, 3):
        bench = Workbench(tiny_decoder(7, isa=isa, threads=threads), dtype=kv_dtype)
        pieces = [tokens[:600], *np.split(tokens[600:], 20)]
        logits = in_pieces(bench, pieces).tobytes()
        expected = expected or logits
        assert logits == expected


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_prompt_in_random_chunks(model: TinyModel, kv_dtype: KVDtype) -> None:
    bench = Workbench(model, dtype=kv_dtype)
    whole = bench.whole(TOKENS).tobytes()
    rng = np.random.default_rng(3)
    for _ in range(10):
        assert in_pieces(bench, cuts(rng, TOKENS)).tobytes() == whole
    assert in_pieces(bench, np.split(TOKENS, len(TOKENS))).tobytes() == whole


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_batch_of_seven_with_random_neighbours(model: TinyModel, kv_dtype: KVDtype) -> None:
    bench = Workbench(model, num_blocks=96, dtype=kv_dtype)
    rng = np.random.default_rng(4)
    sequences = [TOKENS, *(random_tokens(20 + i, int(rng.integers(1, 200))) for i in range(6))]
    alone = [bench.whole(tokens) for tokens in sequences]
    for _ in range(4):
        tables = [bench.blocks.allocate() for _ in sequences]
        done = [0] * len(sequences)
        while any(n < len(s) for n, s in zip(done, sequences, strict=True)):
            order = [i for i in rng.permutation(7).tolist() if done[i] < len(sequences[i])]
            parts = [sequences[i][done[i] :][: int(rng.integers(1, 70))] for i in order]
            results = bench.step([(tables[i], part) for i, part in zip(order, parts, strict=True)])
            for i, logits in zip(order, results, strict=True):
                rows = alone[i][done[i] : done[i] + len(logits)]
                assert logits.tobytes() == rows.tobytes()
                done[i] += len(logits)
        for table in tables:
            bench.blocks.free(table)


def test_kernel_regimes_by_batch_size(model: TinyModel) -> None:
    """One token, a few and many take different kernels, which must agree to the bit."""
    bench = Workbench(model)
    whole = bench.whole(TOKENS)
    for size in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33):
        pieces = np.split(TOKENS, range(size, len(TOKENS), size))
        assert in_pieces(bench, pieces).tobytes() == whole.tobytes()


# Besides the ternary model of the other tests: every part that is not in it.
OTHERS = {
    "dense": Shape(kinds=("bf16",) * 7, hidden=40, biases=True, activation="gelu_tanh"),
    "window": Shape(windows=(37, 0, 300), layers=3, output_norms=True, ropes=(1, 0)),
    "sinks": Shape(windows=(37, 5, 300), sinks=(4, 40, 33), layers=3),
    "soft caps": Shape(attention_softcap=3.0, final_softcap=3.0, gain=3.0, head_norms=True),
    "grouped": Shape(kinds=("int4", "int8", "int2", "int4", "int8", "int4", "int4"), inner=150),
    "several kinds": Shape(kinds=("ternary", "f16", "ternary", "f32", "bf16", "bf16", "ternary")),
}


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("name", OTHERS)
def test_threads_chunks_and_neighbours_of_other_models(
    name: str, kv_dtype: KVDtype, isa: str
) -> None:
    tokens = random_tokens(2, 570, 61)  # over three splits of attention
    one, three = (twins(1, OTHERS[name], isa=isa, threads=n).native for n in (1, 3))
    bench = Workbench(one, dtype=kv_dtype)
    whole = bench.whole(tokens)
    rng = np.random.default_rng(3)
    for model in (one, three):
        bench = Workbench(model, dtype=kv_dtype)
        assert in_pieces(bench, cuts(rng, tokens)).tobytes() == whole.tobytes()
        pieces = [tokens[:540], *np.split(tokens[540:], 10)]
        assert in_pieces(bench, pieces).tobytes() == whole.tobytes()
        # Decoded beside another prompt's prefill.
        table, other = bench.blocks.allocate(), bench.blocks.allocate()
        bench.step([(table, tokens[:560])])
        for i in range(560, 570):
            ours, _ = bench.step([(table, tokens[i : i + 1]), (other, tokens[: i - 540])])
            assert ours.tobytes() == whole[i : i + 1].tobytes()


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("keep", [0, 1, 31, 32, 33, 64, 97, 149, 150])
def test_fork_truncate_and_append_again(keep: int, model: TinyModel, kv_dtype: KVDtype) -> None:
    bench = Workbench(model, dtype=kv_dtype)
    other = np.concatenate([TOKENS[:keep], random_tokens(5, 60)])
    expected = bench.whole(other)[keep:]
    original = bench.whole(np.concatenate([TOKENS, other[:40]]))[150:]

    parent = bench.blocks.allocate()
    bench.step([(parent, TOKENS)])
    child = bench.blocks.fork(parent)
    bench.blocks.truncate(child, keep)
    # Both grow in the same step: the child in a copy of the page that they share.
    ours, theirs = bench.step([(child, other[keep:]), (parent, other[:40])])
    assert ours.tobytes() == expected.tobytes()
    assert theirs.tobytes() == original.tobytes()
    bench.blocks.check()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_history_of_forks_truncates_and_appends(data: st.DataObject, model: TinyModel) -> None:
    """Whatever led to a table, its next logits are those of its tokens computed whole."""
    bench = Workbench(model)
    tables = [bench.blocks.allocate()]
    tokens = [np.empty(0, np.int32)]
    for step in range(data.draw(st.integers(1, 8))):
        if data.draw(st.booleans()):
            source = data.draw(st.integers(0, len(tables) - 1))
            keep = data.draw(st.integers(0, len(tokens[source])))
            tables.append(bench.blocks.fork(tables[source]))
            bench.blocks.truncate(tables[-1], keep)
            tokens.append(tokens[source][:keep])
        some = st.lists(st.integers(0, len(tables) - 1), min_size=1, max_size=3, unique=True)
        grown = data.draw(some)
        parts = [random_tokens(step * 9 + i, 5 + 13 * n) for n, i in enumerate(grown)]
        results = bench.step([(tables[i], part) for i, part in zip(grown, parts, strict=True)])
        for i, part, logits in zip(grown, parts, results, strict=True):
            tokens[i] = np.concatenate([tokens[i], part])
            assert logits.tobytes() == bench.whole(tokens[i])[-len(part) :].tobytes()


SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 1.3, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "seed": 11},
    "penalised": {"temperature": 0.9, "repetition_penalty": 1.4, "seed": 12},
}


def jobs() -> list[tuple[I32Array, int]]:
    rng = np.random.default_rng(6)
    return [
        (random_tokens(30 + i, int(rng.integers(1, 120))), int(rng.integers(1, 40)))
        for i in range(7)
    ]


def generated(engine_options: dict[str, Any], model: TinyModel, sampling: str) -> Any:
    """Tokens and log-probabilities of seven sequences run together."""
    sequences = [
        make_sequence(prompt, count, logprobs=3, **SAMPLINGS[sampling]) for prompt, count in jobs()
    ]
    tokens = finish(tiny_engine(model, **engine_options), sequences)
    return tokens, [sequence.logprobs for sequence in sequences]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_engine_limits_do_not_show(sampling: str, model: TinyModel) -> None:
    """One at a time, together, in small chunks, or preempted for want of pages: the same tokens."""
    alone = generated({"max_sequences": 1}, model, sampling)
    for options in (
        {},
        {"token_budget": 8},
        {"token_budget": 500},
        {"num_blocks": 6, "context_length": 192},
        {"num_blocks": 7, "token_budget": 16, "max_sequences": 3, "context_length": 192},
    ):
        assert generated(options, model, sampling) == alone


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_cached_pages_hold_what_computing_again_writes(isa: str, kv_dtype: KVDtype) -> None:
    """A second turn after a hit has the tokens and log-probabilities of one without."""
    model = tiny_decoder(7, isa=isa)
    first = make_sequence(TOKENS, 40, logprobs=3, temperature=0)
    engine = tiny_engine(model, kv_dtype=kv_dtype)
    (answer,) = finish(engine, [first])
    prompt = np.concatenate([TOKENS, np.array(answer, np.int32), random_tokens(8, 20)])
    turns = [make_sequence(prompt, 20, logprobs=3, temperature=0) for _ in range(2)]
    finish(engine, turns[:1])
    finish(tiny_engine(model, kv_dtype=kv_dtype, prefix_cache=False), turns[1:])
    assert len(turns[0].prefix.pages) == (len(TOKENS) + len(answer) - 1) // 32
    assert not turns[1].prefix.pages
    assert turns[0].generated.tolist() == turns[1].generated.tolist()
    assert turns[0].logprobs == turns[1].logprobs


def test_a_sequence_keeps_the_frequencies_of_its_capacity(isa: str) -> None:
    """Also beside others, and where a page of the same tokens is cached under other frequencies."""
    model = tiny_decoder(7, isa=isa)
    short, long = (make_sequence(TOKENS, count, logprobs=3, temperature=0) for count in (10, 50))
    engine = tiny_engine(model, rope_limits=(len(TOKENS) + 10,))
    finish(engine, [short])
    finish(engine, [long])
    assert not long.prefix.pages
    again = [make_sequence(TOKENS, count, logprobs=3, temperature=0) for count in (10, 50)]
    finish(engine, again)
    assert [len(sequence.prefix.pages) for sequence in again] == [len(TOKENS) // 32] * 2
    for sequence, known, rope_set in zip(again, (short, long), (0, 1), strict=True):
        assert sequence.rope_set == known.rope_set == rope_set
        assert sequence.generated.tolist() == known.generated.tolist()
        assert sequence.logprobs == known.logprobs
    # Other frequencies are other logits, from the second token on.
    assert short.logprobs != long.logprobs[:10]
    ((_, scored),) = list(engine.logits(TOKENS[:1]))
    rows = np.concatenate([rows for _, rows in engine.logits(TOKENS)])
    top = [int(row.argmax()) for row in rows]
    assert scored.tobytes() == rows[:1].tobytes()
    assert top[-1] == short.generated[0]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_thread_counts_of_the_engine(sampling: str, isa: str) -> None:
    one, two, three = (
        generated({}, tiny_decoder(7, isa=isa, threads=threads), sampling) for threads in (1, 2, 3)
    )
    assert one == two == three


def embedded_outcomes(llm: LLM) -> list[Any]:
    """The same completions, made one by one, batched and streamed."""
    prompts = ["import os\n", "def fibonacci(n):"]
    outcomes = []
    for temperature in (0.8, 0.0):
        params = SamplingParams(max_tokens=8, logprobs=2, temperature=temperature, seed=5)
        runs: list[list[Completion | None]] = [
            [llm.generate(prompt, params) for prompt in prompts],
            [*reversed(llm.generate(prompts[::-1], params))],
            [list(llm.stream(prompt, params))[-1].completion for prompt in prompts],
        ]
        texts = [[(c.text, c.token_ids, c.logprobs) for c in run if c] for run in runs]
        assert texts[0] == texts[1] == texts[2]
        outcomes.append(texts[0])
    return outcomes


def test_the_embedded_model(isa: str) -> None:
    text = "def f(x):\n    return x\n" * 20
    seen = []
    for threads in (1, 2, 3):
        with LLM(threads=threads, isa=isa) as llm:
            assert llm.isa == isa
            seen.append(
                (embedded_outcomes(llm), llm.logits(text).tobytes(), llm.score(text).tobytes())
            )
    assert seen[0] == seen[1] == seen[2]
