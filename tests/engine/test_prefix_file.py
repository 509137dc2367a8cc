from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import (
    copy_embedded,
    finish,
    make_sequence,
    random_tokens,
    run_python,
    tiny_decoder,
    tiny_engine,
)

from ryzanstein import (
    LLM,
    CorruptFileError,
    ModelLoadError,
    SamplingParams,
    ValidationError,
    _core,
)

if TYPE_CHECKING:
    from pathlib import Path

    from ryzanstein.config import KVDtype
    from ryzanstein.engine.sequence import Sequence

MODEL = tiny_decoder(3)


def jobs(count: int = 6) -> list[Sequence]:
    shared = random_tokens(1, 80)
    made = [
        make_sequence(np.concatenate([shared, random_tokens(2 + i, 40)]), 20, seed=i, logprobs=2)
        for i in range(count)
    ]
    made[-1].cache_salt = "other"
    return made


@pytest.mark.parametrize("kv_dtype", ["f16", "f32", "int8"])
def test_a_restart_changes_no_bit(tmp_path: Path, kv_dtype: KVDtype) -> None:
    path = tmp_path / "pages.kv"
    first, again = jobs(), jobs()
    engine = tiny_engine(MODEL, kv_dtype=kv_dtype)
    expected = finish(engine, first)
    saved = engine.save_prefixes(path)
    assert saved > 10

    restarted = tiny_engine(MODEL, kv_dtype=kv_dtype)
    assert restarted.load_prefixes(path) == saved
    restarted.blocks.check()
    assert restarted.load_prefixes(path) == 0, "all are there already"
    assert finish(restarted, again) == expected
    assert [s.logprobs for s in again] == [s.logprobs for s in first]
    assert all(len(s.prefix.pages) == 3 for s in again)


def test_pages_come_back_under_the_frequencies_they_were_computed_with(tmp_path: Path) -> None:
    path = tmp_path / "pages.kv"
    prompt = random_tokens(1, 80)

    def pair() -> list[Sequence]:
        return [make_sequence(prompt, count, temperature=0, logprobs=2) for count in (8, 30)]

    first, again = pair(), pair()
    engine = tiny_engine(MODEL, rope_limits=(100,))
    finish(engine, first)
    saved = engine.save_prefixes(path)
    assert saved == 2 + 3, "two of the short one, three of the long one, none shared"
    restarted = tiny_engine(MODEL, rope_limits=(100,))
    assert restarted.load_prefixes(path) == saved
    finish(restarted, again)
    assert [len(s.prefix.pages) for s in again] == [2, 2]
    assert [s.logprobs for s in again] == [s.logprobs for s in first]
    assert first[0].logprobs != first[1].logprobs[:8]


def test_what_does_not_fit_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "pages.kv"
    engine = tiny_engine(MODEL)
    finish(engine, jobs())
    engine.save_prefixes(path)
    small = tiny_engine(MODEL, num_blocks=5, context_length=150)
    assert 0 < small.load_prefixes(path) <= 5
    small.blocks.check()


def test_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "pages.kv"
    engine = tiny_engine(MODEL)
    finish(engine, jobs())
    engine.save_prefixes(path)
    whole = path.read_bytes()
    for name, data in {
        "empty": b"",
        "magic": b"X" + whole[1:],
        "header": whole[:40] + b"\xff" * 10 + whole[50:],
        "short": whole[:-1],
        "page": whole[:-1] + bytes([whole[-1] ^ 1]),
        "length": whole[:8] + b"\xff" * 8 + whole[16:],
    }.items():
        path.write_bytes(data)
        fresh = tiny_engine(MODEL)
        with pytest.raises(CorruptFileError):
            fresh.load_prefixes(path)
        fresh.blocks.check()
        assert fresh.blocks.num_free == 64, name
    with pytest.raises(ModelLoadError, match="there is no file"):
        engine.load_prefixes(tmp_path / "none.kv")
    with pytest.raises(ModelLoadError, match="cannot be written"):
        engine.save_prefixes(tmp_path / "none" / "pages.kv")


def test_without_a_cache_nothing_can_be_saved_or_loaded(tmp_path: Path) -> None:
    path = tmp_path / "pages.kv"
    engine = tiny_engine(MODEL, prefix_cache=False)
    finish(engine, jobs())
    with pytest.raises(ValidationError, match=r"no prefix cache to write .* prefix_cache=True"):
        engine.save_prefixes(path)
    assert not path.exists()
    with pytest.raises(ValidationError, match=r"no prefix cache to enter .* prefix_cache=True"):
        engine.load_prefixes(path)


def test_another_engine_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pages.kv"
    prompt = list(range(1, 90))
    params = SamplingParams(max_tokens=4, temperature=0)
    with LLM(threads=1, context_length=256) as llm:
        expected = llm.generate(prompt, params)
        assert llm.save_prefixes(path) == 2
    with LLM(threads=1, context_length=200) as llm:
        assert llm.load_prefixes(path) == 2
        warm = llm.generate(prompt, params)
        assert warm.usage.cached_tokens == 64
        assert warm.token_ids == expected.token_ids
    others: dict[str, dict[str, Any]] = {
        "KV format": {"kv_dtype": "int8"},
        "configuration": {"attention_window": 32, "attention_sinks": 4},
        "model": {"model": copy_embedded(tmp_path / "copy")},
    }
    for isa in set(_core.available_isas()) - {llm.isa}:
        others["tier"] = {"isa": isa}
        others["tier and another KV format"] = {"isa": isa, "kv_dtype": "f32"}
    for what, options in others.items():
        with (
            LLM(threads=1, context_length=256, **options) as llm,
            pytest.raises(ValidationError, match=f"computed with another {what};"),
        ):
            llm.load_prefixes(path)


def test_only_what_prompts_begin_with(tmp_path: Path) -> None:
    path = tmp_path / "pages.kv"
    first, *others = jobs()
    engine = tiny_engine(MODEL)
    finish(engine, [first, *others])
    whole = engine.save_prefixes(path)
    text = first.buffer[: first.num_tokens]
    assert engine.save_prefixes(path, [text]) == 4 + 2, "two under the other salt"
    assert engine.save_prefixes(path, [text[:127]]) == 3 + 2
    assert engine.save_prefixes(path, [s.buffer[: s.num_tokens] for s in (first, *others)]) == whole
    assert engine.save_prefixes(path, [text[1:]]) == 0
    assert engine.save_prefixes(path, [text, text[:40]]) == 6
    restarted = tiny_engine(MODEL)
    assert restarted.load_prefixes(path) == 6
    again = jobs()
    finish(restarted, again)
    assert [len(s.prefix.pages) for s in again] == [3, 2, 2, 2, 2, 2]
    assert [s.logprobs for s in again] == [s.logprobs for s in (first, *others)]


def test_a_conversation_survives_a_restart(tmp_path: Path) -> None:
    """In another process: computed from where it was, to the same bits, and refused elsewhere."""
    path = tmp_path / "pages.kv"
    greedy = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
    tokens = random_tokens(1, 900, 4096).tolist()
    with LLM(threads=1) as llm:
        out = llm.generate(tokens, greedy)
        llm.generate(random_tokens(2, 100, 4096).tolist(), greedy)
        tokens = [*out.prompt_token_ids, *out.token_ids]
        assert llm.save_prefixes(path, tokens) == llm.save_prefixes(path, [tokens, [1, 2]]) == 28
        with pytest.raises(ValidationError, match="the prompt is empty"):
            llm.save_prefixes(path, "")
        expected = llm.generate([*tokens, 5], greedy)
    code = f"""if True:
        from ryzanstein import LLM, SamplingParams, ValidationError
        params = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
        llm = LLM(threads=1)
        cold = llm.generate({[*tokens, 5]}, params, cache_salt="cold")
        print(llm.load_prefixes({str(path)!r}))
        warm = llm.generate({[*tokens, 5]}, params)
        assert cold.token_ids == warm.token_ids
        assert 2 * warm.timings.time_to_first_token_s < cold.timings.time_to_first_token_s
        print(warm.usage.cached_tokens, *warm.token_ids)
        try:
            LLM(threads=1, kv_dtype="f32").load_prefixes({str(path)!r})
        except ValidationError as error:
            print(error)
    """
    result = run_python("-c", code)
    assert not result.returncode, result.stderr
    loaded, warm, refused = result.stdout.splitlines()
    assert (loaded, warm) == ("28", " ".join(map(str, [28 * 32, *expected.token_ids])))
    assert "another KV format" in refused
