from __future__ import annotations

import dataclasses
import gc
import json
import pickle
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import CHAT_TEMPLATE, copy_embedded, random_tokens, run_python

import ryzanstein
from ryzanstein import (
    LLM,
    Completion,
    ContextLengthError,
    CorruptFileError,
    DistributionError,
    ModelLoadError,
    OutOfMemoryError,
    Piece,
    RyzansteinError,
    SamplingParams,
    ValidationError,
    generate,
)
from ryzanstein.config import EngineConfig, plan_engine
from ryzanstein.cpu import read_host
from ryzanstein.loaders.weight_cache import WeightCache

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GREEDY = SamplingParams(max_tokens=16, temperature=0)
LONG = SamplingParams(max_tokens=70, temperature=0, ignore_eos=True)


@pytest.fixture
def llm(embedded: LLM) -> Iterator[LLM]:
    """The shared model, with a check that the test left no page in use."""
    free = embedded._engine.num_free_blocks
    yield embedded
    assert embedded._engine.num_free_blocks == free


def test_public_names_are_sorted_and_complete() -> None:
    names = [name for name in ryzanstein.__all__ if name != "__version__"]
    assert names == sorted(names, key=lambda name: (not name.isupper(), name.islower(), name))
    for name in ryzanstein.__all__:
        assert getattr(ryzanstein, name) is not None
    errors = {c.__name__ for c in vars(ryzanstein.errors).values() if isinstance(c, type)}
    assert errors <= set(ryzanstein.__all__)
    assert issubclass(ValidationError, ValueError)
    assert issubclass(ModelLoadError, OSError)
    assert issubclass(OutOfMemoryError, MemoryError)


def test_mapped_weights_are_no_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool must not be given the page cache that the weights are in."""
    cache = WeightCache(tmp_path / "cache", 1 << 30, minimum_bytes=0)
    host = dataclasses.replace(read_host(), free_bytes=1 << 30)
    monkeypatch.setattr(ryzanstein.llm, "default_weight_cache", lambda: cache)
    monkeypatch.setattr(ryzanstein.llm, "read_host", lambda: host)
    planned: list[int] = []

    def plan(*, free_bytes: int, **shape: Any) -> EngineConfig:
        planned.append(free_bytes)
        return plan_engine(free_bytes=free_bytes, **shape)

    monkeypatch.setattr(ryzanstein.llm, "plan_engine", plan)
    model = copy_embedded(tmp_path / "model")
    texts = []
    for _ in range(2):
        with LLM(model, threads=1) as llm:
            texts.append(llm.generate("def f(", GREEDY).text)
    (file,) = cache.directory.iterdir()
    assert planned[0] == 1 << 30
    assert 0.9 * file.stat().st_size < planned[0] - planned[1] <= file.stat().st_size
    assert texts[0] == texts[1]


def test_generate_returns_everything(llm: LLM) -> None:
    out = llm.generate("import os\n", dataclasses.replace(GREEDY, logprobs=2))
    prompt = llm.tokenizer.encode("import os\n")
    assert isinstance(out, Completion)
    assert list(out.prompt_token_ids) == prompt
    assert out.usage.prompt_tokens == len(prompt)
    assert out.usage.completion_tokens == len(out.token_ids) <= 16
    assert out.usage.total_tokens == len(prompt) + len(out.token_ids)
    assert out.text == llm.tokenizer.decode(out.token_ids)
    assert out.logprobs is not None
    assert [entry.token_id for entry in out.logprobs] == list(out.token_ids)
    assert all(len(entry.top) == 2 and entry.logprob <= 0 for entry in out.logprobs)
    assert out.finish_reason in ("stop", "length")
    assert 0 < out.timings.time_to_first_token_s <= out.timings.total_s
    assert out.timings.prefill_tokens_per_s > 0
    assert pickle.loads(pickle.dumps(out)) == out
    json.dumps(dataclasses.asdict(out))


def test_the_module_function_uses_the_embedded_model(llm: LLM) -> None:
    expected = llm.generate("def fibonacci(n):", GREEDY)
    out = generate("def fibonacci(n):", GREEDY)
    assert (out.text, out.token_ids) == (expected.text, expected.token_ids)
    assert ryzanstein.llm._embedded() is ryzanstein.llm._embedded()


def test_token_ids_are_a_prompt(llm: LLM) -> None:
    ids = llm.tokenizer.encode("x = 1\n")
    expected = llm.generate("x = 1\n", GREEDY).token_ids
    assert llm.generate(ids, GREEDY).token_ids == expected
    assert llm.generate(np.array(ids, np.int32), GREEDY).token_ids == expected
    assert [o.token_ids for o in llm.generate([ids, ids], GREEDY)] == [expected, expected]


def test_lists_give_lists_in_order(llm: LLM) -> None:
    prompts = [f"x{i} = " for i in range(20)]  # more than run at once
    params = [SamplingParams(max_tokens=1 + i % 5, temperature=1.0, seed=i) for i in range(20)]
    outs = llm.generate(prompts, params)
    for out, prompt, one in zip(outs, prompts, params, strict=True):
        alone = llm.generate(prompt, one)
        assert (alone.text, alone.token_ids) == (out.text, out.token_ids)
    assert len(llm.generate(["a"], GREEDY)) == 1


def test_a_seed_reproduces_and_none_does_not(llm: LLM) -> None:
    free = SamplingParams(max_tokens=24, temperature=1.5)
    first = llm.generate("x", free)
    assert llm.generate("x", dataclasses.replace(free, seed=first.seed)).text == first.text
    assert len({llm.generate("x", free).text for _ in range(4)}) > 1
    assert free.seed is None


def test_a_stream_adds_up_to_the_completion(llm: LLM) -> None:
    params = SamplingParams(max_tokens=60, temperature=1.4, seed=3, stop=["\n\n"])
    whole = llm.generate("import ", params)
    pieces = list(llm.stream("import ", params))
    assert all(isinstance(piece, Piece) for piece in pieces)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert tuple(i for piece in pieces for i in piece.token_ids) == whole.token_ids
    assert [p.finish_reason for p in pieces] == [None] * (len(pieces) - 1) + [whole.finish_reason]
    assert len(pieces) > 2
    last = pieces[-1].completion
    assert last is not None
    assert (last.text, last.token_ids) == (whole.text, whole.token_ids)


def test_closing_a_stream_frees_its_pages(llm: LLM) -> None:
    free = llm._engine.num_free_blocks
    stream = llm.stream("def ", LONG)
    next(stream)
    assert llm._engine.num_free_blocks < free
    stream.close()
    assert llm._engine.num_free_blocks == free
    stream = llm.stream("def ", LONG)
    next(stream)
    del stream
    gc.collect()
    assert llm._engine.num_free_blocks == free
    unused = llm.stream("def ", LONG)
    assert llm._engine.num_free_blocks == free
    del unused


def test_streams_interleave_with_each_other_and_with_calls(llm: LLM) -> None:
    prompts = ["import ", "class ", "for "]
    expected = [llm.generate(prompt, LONG).text for prompt in prompts]
    streams = [llm.stream(prompt, LONG) for prompt in prompts]
    texts = ["", "", ""]
    for turn in range(3):
        texts = [t + next(s).text for t, s in zip(texts, streams, strict=True)]
        assert llm.generate("x", GREEDY).usage.completion_tokens
        assert llm.score("a = b").shape
        assert turn < 3
    texts = [t + "".join(p.text for p in s) for t, s in zip(texts, streams, strict=True)]
    assert texts == expected


def test_threads_share_a_model(llm: LLM) -> None:
    prompts = [f"def f{i}(" for i in range(4)]
    expected = [llm.generate(prompt, LONG).text for prompt in prompts]
    results: dict[int, str] = {}
    barrier = threading.Barrier(4)

    def work(index: int) -> None:
        barrier.wait()
        results[index] = llm.generate(prompts[index], LONG).text

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[i] for i in range(4)] == expected


def test_stop_strings_cross_token_borders(llm: LLM) -> None:
    whole = llm.generate("import os\n", LONG).text
    for start, length in ((0, 1), (5, 3), (20, 7), (41, 12)):
        stop = whole[start : start + length]
        cut = whole[: whole.index(stop)]
        out = llm.generate("import os\n", dataclasses.replace(LONG, stop=[stop, "\x00never"]))
        assert (out.text, out.finish_reason) == (cut, "stop")
        assert len(llm.tokenizer.decode(out.token_ids)) >= len(cut)
        streamed = llm.stream("import os\n", dataclasses.replace(LONG, stop=stop))
        assert "".join(piece.text for piece in streamed) == cut


def test_stop_tokens_end_the_text(llm: LLM) -> None:
    ids = llm.generate("import os\n", LONG).token_ids
    token = ids[10]
    first = ids.index(token)
    out = llm.generate("import os\n", dataclasses.replace(LONG, stop_token_ids=[token]))
    assert out.token_ids == ids[: first + 1]
    assert out.text == llm.tokenizer.decode(ids[:first])
    assert out.finish_reason == "stop"


def test_the_end_token_ends_unless_ignored(tmp_path: Path, llm: LLM) -> None:
    ids = llm.generate("import os\n", LONG).token_ids
    directory = copy_embedded(tmp_path / "m", generation_config={"eos_token_id": [ids[3]]})
    with LLM(directory, threads=1) as other:
        out = other.generate("import os\n", SamplingParams(max_tokens=50, temperature=0))
        assert out.finish_reason == "stop"
        assert out.token_ids == ids[: ids.index(ids[3]) + 1]
        assert other.generate("import os\n", LONG).token_ids == ids


def test_the_models_defaults_apply_without_params(tmp_path: Path) -> None:
    stored = {"do_sample": True, "temperature": 0.5, "top_k": 7, "max_new_tokens": 5}
    stored["repetition_penalty"] = 1.0
    directory = copy_embedded(tmp_path / "m", generation_config=stored | {"top_p": None})
    with LLM(directory, threads=1) as llm:
        assert llm.defaults.params == SamplingParams(temperature=0.5, top_k=7)
        assert llm.generate("x = ").usage.completion_tokens <= 5
        room = llm.context_length - 3
        assert llm.generate([5] * room).usage.completion_tokens <= 3
        assert llm.generate("x = ", SamplingParams(max_tokens=2)).usage.completion_tokens <= 2


def test_logits_and_score_agree(llm: LLM) -> None:
    text = "def fibonacci(n):\n    return n\n"
    ids = llm.tokenizer.encode(text)
    logits = llm.logits(text)
    assert logits.shape == (len(ids), llm.config.vocab_size)
    assert logits.dtype == np.float32
    assert llm.logits(ids).tobytes() == logits.tobytes()
    wide = logits[:-1].astype(np.float64)
    log_sums = np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1)) + wide.max(1)
    expected = wide[np.arange(len(ids) - 1), ids[1:]] - log_sums
    scores = llm.score(text)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=2e-5)


def test_a_text_of_the_whole_context_can_be_scored(llm: LLM) -> None:
    ids = np.random.default_rng(0).integers(1, 300, llm.context_length)
    assert llm.score(ids.tolist()).shape == (llm.context_length - 1,)
    with pytest.raises(ContextLengthError, match=f"{len(ids) + 1} tokens do not fit in a context"):
        llm.score([1, *ids.tolist(), 1])


@pytest.mark.parametrize("prompt", ["", [], np.empty(0, np.int32)])
def test_an_empty_prompt(prompt: Any, llm: LLM) -> None:
    for call in (llm.generate, llm.stream, llm.logits, llm.score):
        with pytest.raises(ValidationError, match="the prompt is empty; give some text"):
            call(prompt)


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ([1, -1], r"a prompt's token id must be in 0\.\.\d+, got -1"),
        ([10**6], "got 1000000"),
        ([1.5], r"got 1\.5"),
        ([True], "got True"),
        (3, "a prompt must be a text or a list of token ids, got int"),
        (None, "got NoneType"),
        (b"bytes", "got bytes"),
        (["a", 3], "got int"),
        ([[1, "x"]], "got 'x'"),
        ("\ud800", "not valid Unicode"),
    ],
)
def test_malformed_prompts(prompt: Any, wanted: str, llm: LLM) -> None:
    with pytest.raises(ValidationError, match=wanted):
        llm.generate(prompt)


def test_malformed_params(llm: LLM) -> None:
    wrong: Any = {"temperature": 0}
    with pytest.raises(ValidationError, match="params must be SamplingParams, got dict"):
        llm.generate("a", wrong)
    many: Any = [GREEDY]
    with pytest.raises(ValidationError, match="2 prompts need as many params, got 1"):
        llm.generate(["a", "b"], many)
    with pytest.raises(ValidationError, match="params must be SamplingParams, got list"):
        llm.generate("a", many)
    with pytest.raises(ValidationError, match=r"stop_token_ids must be in 0\.\.\d+, got 99999"):
        llm.generate("a", SamplingParams(stop_token_ids=[99999]))
    with pytest.raises(ValidationError, match=r"logprobs must be in 0\.\.\d+, got 99999"):
        llm.generate("a", SamplingParams(logprobs=99999))


def test_a_prompt_that_does_not_fit_names_both_numbers() -> None:
    with LLM(threads=1, context_length=40) as llm:
        assert llm.context_length == 40
        for count in (40, 41, 500):
            with pytest.raises(
                ContextLengthError, match=f"the prompt has {count} tokens, but the context of 40"
            ):
                llm.generate([5] * count)
        with pytest.raises(
            ContextLengthError, match="30 prompt tokens and max_tokens=11 exceed the context of 40"
        ):
            llm.generate([5] * 30, SamplingParams(max_tokens=11))
        exact = SamplingParams(max_tokens=10, temperature=0, ignore_eos=True)
        assert llm.generate([5] * 30, exact).usage.completion_tokens == 10
        out = llm.generate([5] * 30, SamplingParams(temperature=0, ignore_eos=True))
        assert (out.usage.completion_tokens, out.finish_reason) == (10, "length")
        assert llm.logits([5] * 40).shape[0] == 40


def test_default_max_tokens(llm: LLM) -> None:
    out = llm.generate("x", SamplingParams(temperature=0, ignore_eos=True))
    expected = (llm.defaults.max_tokens, "length")
    assert (out.usage.completion_tokens, out.finish_reason) == expected


def test_usage_tells_what_was_cached() -> None:
    prompt = list(range(1, 101))
    with LLM(threads=1, context_length=256) as llm:
        cold = llm.generate(prompt, GREEDY)
        warm = llm.generate(prompt, GREEDY)
        longer = llm.generate([*prompt, *cold.token_ids, 5, 6], GREEDY)
        other = llm.generate(prompt, GREEDY, cache_salt="mine")
        again = list(llm.stream(prompt, GREEDY, cache_salt="mine"))[-1].completion
    assert (cold.usage.cached_tokens, cold.usage.cache_miss) == (0, "new")
    assert (warm.usage.cached_tokens, warm.usage.cache_miss) == (96, "short")
    assert (warm.token_ids, warm.text) == (cold.token_ids, cold.text)
    assert longer.usage.cached_tokens == (100 + len(cold.token_ids) - 1) // 32 * 32
    assert (other.usage.cached_tokens, other.usage.cache_miss) == (0, "new")
    assert again is not None
    assert again.usage.cached_tokens == 96
    assert again.token_ids == cold.token_ids


def test_the_prefix_cache_can_be_off() -> None:
    with LLM(threads=1, context_length=256, prefix_cache=False) as llm:
        for _ in range(2):
            usage = llm.generate(list(range(1, 101)), GREEDY).usage
            assert (usage.cached_tokens, usage.cache_miss) == (0, "off")


def test_priorities_are_checked(llm: LLM) -> None:
    with pytest.raises(ValidationError, match="priority must be in"):
        llm.generate("a", GREEDY, priority=1 << 30)


def test_score_needs_two_tokens(llm: LLM) -> None:
    with pytest.raises(ValidationError, match="score needs at least two tokens"):
        llm.score([5])


def test_logits_that_do_not_fit_in_memory(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(np, "empty", refuse)
        with pytest.raises(OutOfMemoryError, match=r"logits of 3 tokens need \d+ MiB"):
            llm.logits([1, 2, 3])


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"threads": 0}, r"threads must be in 1\.\.1024, got 0"),
        ({"threads": 1.5}, "threads must be"),
        ({"context_length": 0}, r"context_length must be in 1\.\.\d+, got 0"),
        ({"context_length": 10**9}, r"context_length must be in 1\.\.\d+, got 1000000000"),
        ({"kv_dtype": "int4"}, "kv_dtype must be one of .*, got 'int4'"),
        ({"lm_head": "int6"}, "lm_head must be one of .*, got 'int6'"),
        ({"prefix_cache": None}, "prefix_cache must be True or False, got None"),
        ({"eviction": "mru"}, "eviction must be one of .*'lru'.*, got 'mru'"),
        ({"scheduling": "lifo"}, "scheduling must be one of .*'fcfs'.*, got 'lifo'"),
        ({"isa": "mmx"}, "mmx"),
        ({"skip_zeros": "up"}, "skip_zeros must be None or one of .*'down'.*, got 'up'"),
        ({"model": ""}, "model must be a directory, a GGUF file, a hub id or None"),
        ({"model": 3}, "model must be"),
    ],
)
def test_arguments_out_of_range(options: Any, wanted: str) -> None:
    with pytest.raises(ValidationError, match=wanted):
        LLM(**options)


def test_skipping_zeros_is_handed_on_and_changes_no_token(llm: LLM) -> None:
    with LLM(skip_zeros="all") as skipping:
        assert (
            skipping.generate("def f(", GREEDY).token_ids
            == llm.generate("def f(", GREEDY).token_ids
        )
        counts = skipping._engine._live().decoder.channel_counts()
    assert all(layer["steps"] > 0 for layer in counts)


@pytest.mark.parametrize("name", ["draft_model", "n_ctx"])
def test_unknown_options(name: str) -> None:
    options: dict[str, Any] = {name: None}
    with pytest.raises(TypeError, match=name):
        LLM(**options)


def test_models_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelLoadError, match="no model directory"):
        LLM(tmp_path / "missing")
    with pytest.raises(ModelLoadError, match=r"model\.gguf does not exist"):
        LLM("model.gguf")


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    directory = copy_embedded(tmp_path / "m")
    config = json.loads((directory / "config.json").read_text())
    config["vocab_size"] -= 1
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(CorruptFileError, match="the files belong to different models"):
        LLM(directory)


def test_memory_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    host = dataclasses.replace(ryzanstein.cpu.read_host(), free_bytes=1000)
    monkeypatch.setattr(ryzanstein.llm, "read_host", lambda: host)
    with pytest.raises(OutOfMemoryError, match="of memory is free; lower context_length"):
        LLM(threads=1)


def test_nan_weights_are_reported(tmp_path: Path) -> None:
    directory = copy_embedded(tmp_path / "m")
    path = directory / "model.safetensors"
    data = bytearray(path.read_bytes())
    header_size = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + header_size])["model.embed_tokens.weight"]
    begin = 8 + header_size + entry["data_offsets"][0]
    width = 4 if entry["dtype"] == "F32" else 2
    data[begin + 9 * width : begin + 10 * width] = b"\xff" * width
    path.write_bytes(data)
    with pytest.raises((DistributionError, RyzansteinError), match=r"(?i)nan|finite"):
        LLM(directory, threads=1).generate("a")


def test_chat(tmp_path: Path) -> None:
    directory = copy_embedded(tmp_path / "m", tokenizer_config={"chat_template": CHAT_TEMPLATE})
    messages = [{"role": "user", "content": "hi"}]
    with LLM(directory, threads=1) as llm:
        prompt = llm.chat_prompt(messages)
        assert llm.tokenizer.decode(prompt) == "<user>hi\n<assistant>"
        out = llm.chat(messages, GREEDY)
        assert list(out.prompt_token_ids) == prompt
        assert "".join(piece.text for piece in llm.stream(prompt, GREEDY)) == out.text
        with pytest.raises(ValidationError, match="messages is empty"):
            llm.chat([])


def test_chat_without_a_template(llm: LLM) -> None:
    with pytest.raises(ValidationError, match="has no chat template, so it cannot chat; use"):
        llm.chat([{"role": "user", "content": "hi"}])


def test_a_closed_model(tmp_path: Path) -> None:
    llm = LLM(threads=1)
    stream = llm.stream("x", LONG)
    next(stream)
    llm.close()
    llm.close()
    with pytest.raises(ValidationError, match="this LLM is closed"):
        llm.generate("x")
    with pytest.raises(ValidationError, match="this LLM is closed"):
        next(stream)


def test_forks_and_truncations_are_prompts_that_begin_alike(embedded: LLM) -> None:
    params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    out = embedded.generate(random_tokens(70, 100, 4096).tolist(), params)
    tokens, question = [*out.prompt_token_ids, *out.token_ids], [5, 6, 7]
    for prompt, cached in ((tokens + question, 128), (tokens[:100] + question, 96)):
        alone = embedded.generate(prompt, params, cache_salt="alone")
        continued = embedded.generate(prompt, params)
        assert continued.usage.cached_tokens == cached
        assert continued.token_ids == alone.token_ids


def test_ctrl_c_frees_the_sequence_and_propagates() -> None:
    code = """if True:
        import os, signal, threading
        from ryzanstein import LLM, SamplingParams
        llm = LLM(threads=2)
        free = llm._engine.num_free_blocks
        params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=900)
        expected = llm.generate("x", SamplingParams(temperature=0)).text
        for seconds in (0.01, 0.02, 0.05):
            timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            try:
                while True:
                    llm.generate(["x", "y"], params)
            except KeyboardInterrupt:
                pass
            assert llm._engine.num_free_blocks == free
        assert llm.generate("x", SamplingParams(temperature=0)).text == expected
        print("fine")
    """
    result = run_python("-c", code)
    assert result.stdout == "fine\n", result.stderr


def test_a_forked_child_gets_a_clear_error() -> None:
    code = """if True:
        import os, sys
        from ryzanstein import LLM, RyzansteinError, SamplingParams
        llm = LLM(threads=2)
        params = SamplingParams(max_tokens=2)
        llm.generate("x", params)
        child = os.fork()
        if child == 0:
            try:
                llm.generate("x", params)
            except RyzansteinError as error:
                print(error, flush=True)
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        llm.generate("x", params)
    """
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr
    assert "fork" in result.stdout


def test_a_wrong_isa_variable_is_an_error_at_import() -> None:
    result = run_python("-c", "import ryzanstein", RYZANSTEIN_ISA="pentium")
    assert result.returncode == 1
    assert "ValidationError" in result.stderr
    assert "pentium" in result.stderr
    result = run_python(
        "-c", "import ryzanstein; print(ryzanstein.LLM().isa)", RYZANSTEIN_ISA="scalar"
    )
    assert result.stdout == "scalar\n"
