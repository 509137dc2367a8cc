"""Rotary scaling and windows with sinks, from the front door."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import copy_embedded, random_tokens

from ryzanstein import LLM, SamplingParams, ValidationError
from ryzanstein.loaders.hub import EMBEDDED_MODEL

if TYPE_CHECKING:
    from pathlib import Path

THETA, HEAD_DIM = 10000.0, 64
PROMPT = random_tokens(1, 100, 4096).tolist()


def embedded(directory: Path, context: int, **config: Any) -> LLM:
    """Return the embedded model under another configuration, of the same shape."""
    stored = json.loads((EMBEDDED_MODEL / "config.json").read_text())
    assert (stored["rope_theta"], stored["hidden_size"]) == (THETA, 4 * HEAD_DIM)
    changes = {"max_position_embeddings": context, **config}
    return LLM(copy_embedded(directory, config=changes), threads=1, weight_cache=False)


def raised(stretch: float) -> float:
    return float(THETA * stretch ** (HEAD_DIM / (HEAD_DIM - 2)))


def test_dynamic_scaling_is_a_larger_theta_by_what_may_come(tmp_path: Path) -> None:
    scaling = {"rope_type": "dynamic", "factor": 4.0}
    greedy = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, logprobs=1)
    dynamic = embedded(tmp_path / "dynamic", 64, rope_scaling=scaling)
    assert (dynamic.context_length, dynamic.config.max_context) == (64, 256)
    whole = LLM(dynamic.path, context_length=256, threads=1, weight_cache=False)
    for tokens, length in ((PROMPT[:40], 64), (PROMPT[:60], 128), (PROMPT, 128)):
        theta = raised(4.0 * length / 64 - 3.0)
        plain = embedded(tmp_path / f"theta{len(tokens)}", 256, rope_theta=theta)
        ours, theirs = (llm.generate(tokens, greedy) for llm in (whole, plain))
        assert ours.token_ids == theirs.token_ids
        assert ours.logprobs == theirs.logprobs
        if len(tokens) + 20 <= 64 or len(tokens) > 64:
            assert np.array_equal(whole.logits(tokens), plain.logits(tokens))


def test_a_draft_model_is_rotated_as_what_it_guesses_for(tmp_path: Path) -> None:
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 32, "long_factor": [5.0] * 32}
    model = embedded(
        tmp_path / "model", 256, rope_scaling=scaling, original_max_position_embeddings=32
    )
    draft = LLM(model.path, threads=1, weight_cache=False)
    checked = LLM(model.path, threads=1, weight_cache=False, speculative=draft)
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    whole = checked.generate(PROMPT, params)
    assert whole.token_ids == model.generate(PROMPT, params).token_ids
    assert whole.timings.drafted_tokens == whole.timings.accepted_tokens


def test_a_window_hides_all_but_sinks_and_recent_tokens() -> None:
    tokens, other = list(PROMPT[:50]), list(PROMPT[:50])
    other[5:12] = PROMPT[60:67]
    with (
        LLM(threads=1) as plain,
        LLM(threads=1, attention_window=7, attention_sinks=3) as short,
        LLM(threads=1, attention_window=50, attention_sinks=3) as long,
    ):
        assert np.array_equal(long.logits(tokens), plain.logits(tokens))
        hidden = short.logits(tokens)
        assert not np.allclose(hidden[20:], plain.logits(tokens)[20:])
        # Four layers pass on what one token sees, six tokens back each.
        changed = short.logits(other)
        assert np.array_equal(changed[12 + 4 * 6 :], hidden[12 + 4 * 6 :])
        assert not np.array_equal(changed[12], hidden[12])
        other[2] = PROMPT[70]  # a sink: everyone sees it
        assert not np.array_equal(short.logits(other)[-1], hidden[-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_window": 0}, "attention_window must be in 1"),
        ({"attention_window": 8, "attention_sinks": -1}, "attention_sinks must be in 0"),
        ({"attention_sinks": 4}, "attention_sinks=4 needs an attention_window"),
        ({"attention_window": 8.0}, "attention_window must be in 1"),
    ],
)
def test_what_cannot_be_seen(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LLM(**options)
