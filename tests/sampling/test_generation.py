"""What of sampling needs a model, a tokenizer or an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ryzanstein import SamplingParams, ValidationError
from ryzanstein.sampling.words import find_words

if TYPE_CHECKING:
    from ryzanstein import LLM
    from ryzanstein._core import F32Array, I32Array

PROMPT = "def fibonacci(n):"
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}


def test_a_bias_and_a_ban_reach_the_head(embedded: LLM) -> None:
    token = embedded.generate(PROMPT, SamplingParams(**GREEDY)).token_ids[0]
    banned = embedded.generate(PROMPT, SamplingParams(**GREEDY, logit_bias={token: -np.inf}))
    assert token not in banned.token_ids
    pushed = embedded.generate(PROMPT, SamplingParams(**GREEDY, logit_bias={77: 1000.0}))
    assert pushed.token_ids == (77,) * 12
    with pytest.raises(ValidationError, match="logit_bias must be in"):
        embedded.generate(PROMPT, SamplingParams(logit_bias={embedded.config.vocab_size: 1.0}))


def test_bad_words_do_not_appear(embedded: LLM) -> None:
    plain = embedded.generate(PROMPT, SamplingParams(**GREEDY)).text
    word = max(plain.split(), key=len)
    assert word not in embedded.generate(PROMPT, SamplingParams(**GREEDY, bad_words=[word])).text


def test_a_bad_word_counts_after_a_space_too(embedded: LLM) -> None:
    words = find_words(SamplingParams(bad_words=["return"]), embedded.tokenizer)
    assert {embedded.tokenizer.decode(list(word)) for word in words.bad} == {"return", " return"}


def test_breakers_are_the_tokens_that_hold_them(embedded: LLM) -> None:
    params = SamplingParams(dry_multiplier=1.0, dry_sequence_breakers=["\n", ":"])
    texts = [
        embedded.tokenizer.token_texts[i] for i in find_words(params, embedded.tokenizer).breakers
    ]
    assert texts
    assert all("\n" in text or ":" in text for text in texts)
    assert ":\n" in texts or ":" in texts


def test_min_tokens_holds_back_end_tokens_and_stop_strings(embedded: LLM) -> None:
    plain = embedded.generate(PROMPT, SamplingParams(**GREEDY))
    stops: dict[str, Any] = {"stop_token_ids": [plain.token_ids[2]]}
    assert len(embedded.generate(PROMPT, SamplingParams(**GREEDY, **stops)).token_ids) == 3
    later = embedded.generate(PROMPT, SamplingParams(**GREEDY, **stops, min_tokens=6))
    assert plain.token_ids[2] not in later.token_ids[:6]
    assert len(later.token_ids) >= 6
    first = plain.text[:1]
    assert len(embedded.generate(PROMPT, SamplingParams(**GREEDY, stop=first)).token_ids) == 1
    held = embedded.generate(PROMPT, SamplingParams(**GREEDY, stop=first, min_tokens=5))
    assert len(held.token_ids) >= 5


def test_a_logits_processor_sees_tokens_and_every_logit(embedded: LLM) -> None:
    seen: list[list[int]] = []

    def only(tokens: I32Array, logits: F32Array) -> None:
        assert np.isfinite(logits).all()
        with pytest.raises(ValueError, match="read-only"):
            tokens[0] = 1
        seen.append(tokens.tolist())
        logits[np.arange(len(logits)) != 40 + len(seen)] = -np.inf

    out = embedded.generate(PROMPT, SamplingParams(**GREEDY, logits_processor=only))
    assert out.token_ids == tuple(range(41, 53))
    prompt = list(out.prompt_token_ids)
    assert seen == [prompt + list(range(41, 41 + n)) for n in range(12)]


def test_a_logits_processor_may_return_logits_and_comes_first(embedded: LLM) -> None:
    def other(_: I32Array, logits: F32Array) -> F32Array:
        result = np.full_like(logits, -1.0)
        result[[5, 6]] = (3.0, 2.0)
        return result

    params = SamplingParams(**GREEDY, logits_processor=other, logit_bias={6: 2.0}, logprobs=0)
    out = embedded.generate(PROMPT, params)
    assert out.token_ids == (6,) * 12
    assert out.logprobs is not None
    assert out.logprobs[0].logprob < -1  # the model's own


def test_a_logits_processor_that_fails_ends_its_own_sequence_only(embedded: LLM) -> None:
    missing: dict[str, F32Array] = {}

    def fail(_: I32Array, logits: F32Array) -> F32Array:
        return logits[:3]

    with pytest.raises(ValidationError, match=r"logits_processor must return None or an array"):
        embedded.generate(PROMPT, SamplingParams(**GREEDY, logits_processor=fail))
    raising = SamplingParams(**GREEDY, logits_processor=lambda *_: missing["missing"])
    healthy = embedded.stream(PROMPT, SamplingParams(**GREEDY))
    next(healthy)
    with pytest.raises(ValidationError, match=r"logits_processor failed: KeyError\('missing'\)"):
        embedded.generate(PROMPT, raising)
    pieces = [piece.text for piece in healthy]
    assert pieces


def test_every_chain_is_the_same_alone_and_in_a_batch(embedded: LLM) -> None:
    """Mirostat's mu and every draw belong to the sequence."""
    options: list[dict[str, Any]] = [
        {"mirostat": 2, "mirostat_tau": 3.0},
        {"order": "llama.cpp", "top_k": 40, "min_p": 0.05, "temperature": 0.8},
        {"typical_p": 0.9, "xtc_probability": 0.5, "dry_multiplier": 0.8},
        {"top_n_sigma": 1.0, "frequency_penalty": 0.4, "presence_penalty": 0.2},
        {"dynatemp_range": 0.5, "min_p": 0.1},
    ]
    chains = [SamplingParams(max_tokens=16, seed=s, **chosen) for s, chosen in enumerate(options)]
    alone = [embedded.generate(PROMPT, params).token_ids for params in chains]
    together = embedded.generate([PROMPT] * len(chains), chains)
    assert [out.token_ids for out in together] == alone
