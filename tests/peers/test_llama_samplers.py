"""Chains of the order `llama.cpp` beside llama.cpp's own samplers: `pytest tests/peers`.

The samplers run through the C API on a row of logits; most need no model. What they leave is
compared with the float64 oracle, and draws of ours with those that its probabilities give for our
random numbers. Rows whose cut is within rounding of one token more or less are passed over.
"""

from __future__ import annotations

import ctypes
import json
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import llama_cpp as ll  # type: ignore[import-not-found, unused-ignore]
import numpy as np
import pytest
import tokenizers
from reference import sampling as oracle
from vocabularies import byte_level_metadata, train_byte_level, write_gguf

from ryzanstein import SamplingParams
from ryzanstein.loaders.gguf_tokenizer import tokenizer_json
from ryzanstein.sampling.sampler import make_sampler
from ryzanstein.sampling.words import NO_WORDS, Words, find_words
from ryzanstein.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from ryzanstein._core import F32Array, I32Array

# Sums of llama.cpp are float32, one token after the other.
_CLEAR = 1e-4
_SEED = 7
_NO_TEXT: I32Array = np.zeros(0, np.int32)
# top-p sorts in another way above 1024 tokens, top-k above 128.
_SIZES = [2, 40, 1000, 5000]
_TOKEN = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


@ll.llama_log_callback  # type: ignore[untyped-decorator, misc, unused-ignore]
def _silent(level: int, text: bytes, user: ctypes.c_void_p) -> None:
    """Drop llama.cpp's log."""


def options(**fields: Any) -> SamplingParams:
    return SamplingParams(order="llama.cpp", **fields)


def normals(size: int, spread: float, seed: int) -> F32Array:
    return np.random.default_rng(seed).normal(scale=spread, size=size).astype(np.float32)


def edited(logits: F32Array, text: I32Array, params: SamplingParams, words: Words) -> F32Array:
    """Return what penalties and DRY make of logits."""
    window = text[max(len(text) - params.penalty_last_n, 0) :].tolist()
    result: F32Array = oracle.penalise(
        logits,
        window,
        params.repetition_penalty,
        window,
        params.frequency_penalty,
        params.presence_penalty,
    ).astype(np.float32)
    if params.dry_multiplier > 0:
        repeats = oracle.dry_penalties(
            text[max(len(text) - params.dry_penalty_last_n, 0) :].tolist(),
            params.dry_multiplier,
            params.dry_base,
            params.dry_allowed_length,
            set(words.breakers),
        )
        for token, penalty in repeats.items():
            result[token] -= penalty
    return result


def exact(logits: F32Array, params: SamplingParams) -> oracle.Distribution:
    """Return what the oracle leaves of edited logits, XTC acting."""
    chain = oracle.Chain(
        order=tuple(name for name in params.order if name not in ("penalties", "dry")),
        **{name: getattr(params, name) for name in _FILTER_FIELDS},
    )
    return oracle.distribution(logits, (), chain, 0.0)


_FILTER_FIELDS = (
    "temperature", "dynatemp_range", "dynatemp_exponent", "top_n_sigma", "top_k", "typical_p",
    "top_p", "min_p", "xtc_probability", "xtc_threshold", "min_keep",
)  # fmt: skip


class Peer:
    """llama.cpp's samplers of `params`, in a chain.

    Args:
        params: of this engine.
        size: of the vocabulary.
        vocab: llama.cpp's, which sequence breakers need.
        left_by_sigma: how many tokens top-n-sigma leaves. llama.cpp only makes the others -inf,
            which the next samplers then see: typical gets a NaN for its entropy, and the dynamic
            temperature counts them. A top-k takes them out.
    """

    def __init__(
        self,
        params: SamplingParams,
        size: int,
        vocab: Any = None,
        left_by_sigma: int | None = None,
    ) -> None:
        self._chain = ll.llama_sampler_chain_init(ll.llama_sampler_chain_default_params())
        breakers = [text.encode() for text in params.dry_sequence_breakers] if vocab else []
        makers = {
            "penalties": lambda: ll.llama_sampler_init_penalties(
                size,
                params.penalty_last_n,
                params.repetition_penalty,
                params.frequency_penalty,
                params.presence_penalty,
            ),
            "dry": lambda: ll.llama_sampler_init_dry(
                vocab,
                params.dry_multiplier,
                params.dry_base,
                params.dry_allowed_length,
                params.dry_penalty_last_n,
                (ctypes.c_char_p * len(breakers))(*breakers),
                len(breakers),
            ),
            "top_n_sigma": lambda: ll.llama_sampler_init_top_n_sigma(params.top_n_sigma),
            "top_k": lambda: ll.llama_sampler_init_top_k(params.top_k),
            "typical_p": lambda: ll.llama_sampler_init_typical(params.typical_p, params.min_keep),
            "top_p": lambda: ll.llama_sampler_init_top_p(params.top_p, params.min_keep),
            "min_p": lambda: ll.llama_sampler_init_min_p(params.min_p, params.min_keep),
            "xtc": lambda: ll.llama_sampler_init_xtc(
                params.xtc_probability, params.xtc_threshold, params.min_keep, 1
            ),
            "temperature": lambda: ll.llama_sampler_init_temp_ext(
                params.temperature, params.dynatemp_range, params.dynatemp_exponent
            ),
        }
        order = ("temperature",) if params.mirostat else params.order
        for name in order:
            self.add(makers[name]())
            if name == "top_n_sigma" and left_by_sigma is not None:
                self.add(ll.llama_sampler_init_top_k(left_by_sigma))
        if params.mirostat:
            self.add(ll.llama_sampler_init_mirostat_v2(1, params.mirostat_tau, params.mirostat_eta))

    def add(self, sampler: Any) -> None:
        """Append a sampler, which the chain then owns."""
        assert sampler
        ll.llama_sampler_chain_add(self._chain, sampler)

    def left(self, logits: F32Array, text: Iterable[int] = ()) -> tuple[Any, int]:
        """Return the tokens left of a row, as `_TOKEN`s, and the one that was drawn, or -1."""
        for token in text:
            ll.llama_sampler_accept(self._chain, int(token))
        tokens = np.zeros(len(logits), _TOKEN)
        tokens["id"], tokens["logit"] = np.arange(len(logits)), logits
        data = tokens.ctypes.data_as(ll.llama_token_data_p)
        array = ll.llama_token_data_array(data, len(tokens), -1, False)
        ll.llama_sampler_apply(self._chain, ctypes.byref(array))
        address = ctypes.cast(array.data, ctypes.c_void_p).value
        found = np.frombuffer((ctypes.c_char * (array.size * 12)).from_address(address), _TOKEN)
        drawn = -1 if array.selected < 0 else int(found["id"][array.selected])
        return found[found["logit"] > -np.inf].copy(), drawn

    def close(self) -> None:
        ll.llama_sampler_free(self._chain)


@contextmanager
def peer(params: SamplingParams, size: int, **more: Any) -> Iterator[Peer]:
    chain = Peer(params, size, **more)
    yield chain
    chain.close()


def compare(
    logits: F32Array,
    params: SamplingParams,
    text: I32Array = _NO_TEXT,
    *,
    vocab: Any = None,
    words: Words = NO_WORDS,
) -> int:
    """Compare what is left, and draws of ours. Return how many draws were compared."""
    row = edited(logits, text, params, words)
    expected = exact(row, params)
    if expected.margin <= _CLEAR:
        return 0
    left_by_sigma = len(exact(row, options(top_n_sigma=params.top_n_sigma)).ids)
    with peer(params, len(logits), vocab=vocab, left_by_sigma=left_by_sigma) as chain:
        tokens, _ = chain.left(logits, text)
    tokens = tokens[np.lexsort((tokens["id"], -row[tokens["id"]]))]
    assert tokens["id"].tolist() == expected.ids.tolist()
    shares = np.exp(tokens["logit"].astype(np.float64) - tokens["logit"].max())
    shares /= shares.sum()
    np.testing.assert_allclose(shares, expected.probabilities, rtol=1e-4, atol=1e-9)
    theirs = oracle.Distribution(expected.ids, shares, expected.margin)
    ours, compared = make_sampler(params, seed=_SEED, words=words), 0
    for position in range(8):
        token, near = theirs.draw(oracle.uniform(_SEED, position))
        if near > _CLEAR:
            assert ours.sample(logits, text, position) == token
            compared += 1
    return compared


_ALONE: list[dict[str, Any]] = [
    {"top_n_sigma": 1.0},
    {"top_n_sigma": 2.5},
    {"top_k": 1},
    {"top_k": 30},
    {"top_k": 700},
    {"typical_p": 0.2},
    {"typical_p": 0.95},
    {"typical_p": 0.1, "min_keep": 4},
    {"top_p": 0.5},
    {"top_p": 0.99},
    {"top_p": 0.05, "min_keep": 7},
    {"min_p": 0.02},
    {"min_p": 0.6, "min_keep": 5},
    {"xtc_probability": 1.0, "xtc_threshold": 0.02},
    {"xtc_probability": 1.0, "xtc_threshold": 0.2},
    {"xtc_probability": 1.0, "xtc_threshold": 0.51},
    {"xtc_probability": 1.0, "xtc_threshold": 0.001, "min_keep": 3},
    {"temperature": 0.3},
    {"temperature": 1.8},
    {"dynatemp_range": 0.5},
    {"temperature": 0.7, "dynatemp_range": 0.9, "dynatemp_exponent": 0.5},
]


@pytest.mark.parametrize("fields", _ALONE, ids=str)
def test_each_filter_leaves_what_llama_cpp_leaves(fields: dict[str, Any]) -> None:
    compared = sum(
        compare(normals(size, spread, seed), options(**fields))
        for size in _SIZES
        for spread in (0.5, 2.0, 5.0)
        for seed in range(3)
    )
    assert compared > 60


def any_filters(rng: np.random.Generator) -> dict[str, Any]:
    """Return some of all filters, with numbers as people use them."""
    choices: dict[str, Any] = {
        "top_n_sigma": rng.uniform(0.5, 4),
        "top_k": int(rng.integers(1, 200)),
        "typical_p": rng.uniform(0.1, 0.99),
        "top_p": rng.uniform(0.2, 0.99),
        "min_p": rng.uniform(0.01, 0.5),
        "xtc_probability": 1.0,
        "xtc_threshold": rng.uniform(0.01, 0.4),
        "temperature": rng.uniform(0.3, 2),
        "dynatemp_range": rng.uniform(0.1, 1),
    }
    chosen = {name: value for name, value in choices.items() if rng.random() < 0.6}
    return chosen | {"min_keep": int(rng.integers(1, 4))}


@pytest.mark.parametrize("size", _SIZES)
def test_all_filters_together_leave_what_llama_cpp_leaves(size: int) -> None:
    compared = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        logits = normals(size, rng.uniform(0.5, 5), seed)
        compared += compare(logits, options(**any_filters(rng)))
    assert compared > 500


def repetitive(rng: np.random.Generator, size: int, length: int) -> I32Array:
    """Return a text of few tokens, with passages that come again."""
    text = rng.integers(0, min(size, 12), length).astype(np.int32)
    begin = int(rng.integers(0, max(length // 2, 1)))
    return np.append(text, text[begin : begin + 10])


@pytest.mark.parametrize("last_n", [0, 5, 64, 1000])
@pytest.mark.parametrize(
    "penalties",
    [
        {"repetition_penalty": 1.4},
        {"frequency_penalty": 0.3},
        {"presence_penalty": 0.7},
        {"repetition_penalty": 0.9, "frequency_penalty": -0.2, "presence_penalty": 0.4},
    ],
    ids=str,
)
def test_penalties_are_llama_cpps(penalties: dict[str, float], last_n: int) -> None:
    compared = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        logits, text = normals(20, 2.0, seed), repetitive(rng, 20, int(rng.integers(0, 100)))
        compared += compare(logits, options(**penalties, penalty_last_n=last_n, top_k=15), text)
    assert compared > 60


@pytest.mark.parametrize("allowed", [1, 2, 4])
@pytest.mark.parametrize("last_n", [7, 40, 1000])
def test_dry_is_llama_cpps(allowed: int, last_n: int) -> None:
    compared = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        logits, text = normals(20, 2.0, seed), repetitive(rng, 20, int(rng.integers(0, 100)))
        dry = options(
            dry_multiplier=rng.uniform(0.2, 2),
            dry_base=rng.uniform(1, 2),
            dry_allowed_length=allowed,
            dry_penalty_last_n=last_n,
        )
        compared += compare(logits, dry, text)
    assert compared > 100


def test_dry_stops_at_the_breakers_that_llama_cpp_finds(tmp_path: Path) -> None:
    metadata = byte_level_metadata(train_byte_level("gpt-2"), "gpt-2")
    write_gguf(tmp_path / "model.gguf", metadata)
    ll.llama_log_set(_silent, ctypes.c_void_p(0))
    model_options = ll.llama_model_default_params()
    model_options.vocab_only = True
    model = ll.llama_model_load_from_file(str(tmp_path / "model.gguf").encode(), model_options)
    assert model
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(metadata))))
    size = len(tokenizer.token_texts)
    compared = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        text = repetitive(rng, size, 60) + 64
        params = options(
            dry_multiplier=0.8, dry_penalty_last_n=200, dry_sequence_breakers=("\n", ":", "e")
        )
        words = find_words(params, tokenizer)
        assert set(words.breakers) & set(text.tolist())
        vocab = ll.llama_model_get_vocab(model)
        compared += compare(normals(size, 2.0, seed), params, text, vocab=vocab, words=words)
    ll.llama_model_free(model)
    assert compared > 80


def test_everything_together_is_llama_cpps() -> None:
    compared = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        size = int(rng.choice(_SIZES[1:]))
        params = options(
            **any_filters(rng),
            repetition_penalty=rng.uniform(0.9, 1.5),
            frequency_penalty=rng.uniform(-0.2, 0.5),
            presence_penalty=rng.uniform(-0.2, 0.5),
            penalty_last_n=64,
            dry_multiplier=rng.uniform(0.2, 2),
            dry_base=1.2,  # or a probability becomes 0, and typical loses its entropy (see below)
            dry_penalty_last_n=100,
        )
        text = repetitive(rng, size, int(rng.integers(0, 100)))
        compared += compare(normals(size, 2.0, seed), params, text)
    assert compared > 500


def test_temperature_0_takes_llama_cpps_token() -> None:
    for seed in range(20):
        logits = normals(500, 2.0, seed)
        params = options(temperature=0.0, top_k=40)
        with peer(params, len(logits)) as chain:
            tokens, _ = chain.left(logits)
        assert tokens["id"].tolist() == [make_sampler(params, seed=1).sample(logits, _NO_TEXT, 0)]


@pytest.mark.parametrize(("tau", "eta"), [(5.0, 0.1), (2.0, 0.5)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_mirostat_is_llama_cpps(tau: float, eta: float, temperature: float) -> None:
    """Ours draws under seed after seed until it has the other's token, and goes on from there."""
    params = options(mirostat=2, mirostat_tau=tau, mirostat_eta=eta, temperature=temperature)
    ours, compared = make_sampler(params, seed=0), 0
    with peer(params, 300) as chain:
        for position in range(40):
            logits = normals(300, 2.0, position)
            state = oracle.in_order(logits)
            state.temperature = temperature
            state = oracle.mirostat(state, ours.mu)
            tokens, drawn = chain.left(logits)
            if state.margin > _CLEAR:
                assert sorted(tokens["id"]) == sorted(state.ids)
                compared += 1
            forks = (ours.fork(seed) for seed in range(10_000))
            ours = next(f for f in forks if f.sample(logits, _NO_TEXT, position) == drawn)
    assert compared > 30


# Where it differs on purpose, as docs/sampling.md says


def test_llama_cpp_counts_what_top_n_sigma_cut_in_the_dynamic_temperature() -> None:
    logits = normals(200, 2.0, 0)
    params = options(top_n_sigma=1.0, dynatemp_range=0.5)
    with peer(params, len(logits)) as chain:
        tokens, _ = chain.left(logits)
    kept = np.sort(logits[tokens["id"]].astype(np.float64))[::-1]
    p = np.exp(kept - kept[0])
    p /= p.sum()
    entropy = -np.sum(p * np.log(p))
    scaled = np.sort(tokens["logit"])[::-1]
    assert kept[0] / scaled[0] == pytest.approx(0.5 + entropy / math.log(len(logits)), rel=1e-5)
    ours = exact(logits, params)
    assert ours.probabilities[0] != pytest.approx(1 / np.sum(np.exp(scaled - scaled[0])), rel=0.01)


@pytest.mark.parametrize("fields", [{"top_n_sigma": 1.0}, {}])
def test_llama_cpp_loses_the_entropy_of_typical_to_a_probability_of_0(
    fields: dict[str, float],
) -> None:
    """0 times the logarithm of 0 is NaN, and no token is nearer to that than another."""
    logits = normals(200, 2.0, 0)
    logits[0] -= 200 * (not fields)
    params = options(typical_p=0.3, **fields)
    with peer(params, len(logits)) as chain:
        tokens, _ = chain.left(logits)
    assert sorted(tokens["id"]) != sorted(exact(logits, params).ids)
