"""Each filter, and chains of them in any order, against the float64 oracle."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from itertools import pairwise, permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference import sampling as oracle
from reference.sampling import Chain

from ryzanstein import SamplingParams, _core
from ryzanstein.sampling.sampler import make_sampler
from ryzanstein.sampling.strategies import ORDERS

if TYPE_CHECKING:
    from ryzanstein._core import F32Array, I32Array

NO_HISTORY: I32Array = np.zeros(0, np.int32)
VOCAB = 128256
XTC = 1
# Weights are float32 on a grid of 2^-34, 4e-7 from exact; entropies add their errors up. A cut or
# a draw nearer than this to a border may fall on either side.
TOLERANCE = 2e-5
ORDER = Chain().order


def sampler(chain: Chain, seed: int) -> _core.Sampler:
    return _core.Sampler(**dataclasses.asdict(chain), seed=seed)


def normals(size: int, *, spread: float = 1.0, seed: int = 0) -> F32Array:
    return np.random.default_rng(seed).normal(scale=spread, size=size).astype(np.float32)


def compare(logits: F32Array, chain: Chain, *, seed: int, positions: range) -> int:
    """Compare draws with the oracle's, and return how many were clear of a border."""
    native, compared = sampler(chain, seed), 0
    for position in positions:
        chance = oracle.uniform(seed, position, XTC)
        exact = oracle.distribution(logits, (), chain, chance)
        expected, margin = exact.draw(oracle.uniform(seed, position))
        got = native.sample(logits, NO_HISTORY, position)
        if min(margin, exact.margin) > TOLERANCE:
            assert got == expected, position
            compared += 1
    return compared


ALONE = [
    Chain(dynatemp_range=0.5),
    Chain(temperature=0.8, dynatemp_range=1.5, dynatemp_exponent=0.5),
    Chain(top_n_sigma=1.0),
    Chain(top_n_sigma=2.5, temperature=1.7),
    Chain(typical_p=0.2),
    Chain(typical_p=0.95),
    Chain(typical_p=0.5, temperature=0.5),
    Chain(xtc_probability=1.0, xtc_threshold=0.05),
    Chain(xtc_probability=0.5, xtc_threshold=0.1),
    Chain(xtc_probability=1.0, xtc_threshold=0.001, min_keep=3),
    Chain(min_p=0.9, min_keep=5),
    Chain(top_p=0.01, min_keep=7),
    Chain(typical_p=0.01, min_keep=4),
]


@pytest.mark.parametrize("chain", ALONE, ids=str)
@pytest.mark.parametrize("size", [1, 2, 65, 2048, 3001])
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_one_filter_draws_as_the_oracle(chain: Chain, size: int, spread: float) -> None:
    compare(normals(size, spread=spread, seed=size), chain, seed=5, positions=range(10))


@pytest.mark.parametrize("chain", ALONE, ids=str)
@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_one_filter_at_a_real_vocabulary(chain: Chain, spread: float) -> None:
    if chain.xtc_probability:
        chain = dataclasses.replace(chain, xtc_threshold=chain.xtc_threshold / 100)
    compare(normals(VOCAB, spread=spread), chain, seed=3, positions=range(2))


@pytest.mark.parametrize(
    "chain",
    [
        Chain(top_p=0.7, temperature=0.8),
        Chain(top_p=0.95, min_p=0.05, temperature=1.7),
        Chain(top_p=0.8, typical_p=0.3, dynatemp_range=0.5),
        Chain(top_k=1100, typical_p=0.9, temperature=1.4, xtc_probability=1.0, xtc_threshold=3e-3),
    ],
    ids=str,
)
def test_a_temperature_after_cuts(chain: Chain) -> None:
    """What is left, still too many for a list, is weighed anew as a row of its own."""
    order = ("top_k", "top_p", "typical_p", "min_p", "temperature", "xtc", "top_n_sigma")
    chain = dataclasses.replace(chain, order=order)
    kept = dataclasses.replace(chain, order=order[:4])
    compared = 0
    for seed in range(8):
        logits = normals(5000, spread=1.5, seed=seed)
        assert 80 < len(oracle.distribution(logits, (), kept).ids) < 1250
        compared += compare(logits, chain, seed=3, positions=range(20))
    assert compared > 20


def test_most_draws_are_clear_of_borders() -> None:
    """Or the comparisons above would compare nothing."""
    compared = sum(
        compare(normals(65, spread=2.0, seed=8), chain, seed=5, positions=range(20))
        for chain in ALONE
    )
    assert compared > 0.8 * 20 * len(ALONE)


chains = st.builds(
    Chain,
    order=st.permutations(ORDER).map(tuple),
    temperature=st.floats(0.2, 3.0),
    dynatemp_range=st.sampled_from([0.0, 0.0, 0.3, 2.0]),
    dynatemp_exponent=st.floats(0.5, 2.0),
    top_n_sigma=st.sampled_from([0.0, 0.0, 1.0, 3.0]),
    top_k=st.sampled_from([0, 0, 1, 7, 40]),
    typical_p=st.sampled_from([1.0, 1.0, 0.3, 0.9]),
    top_p=st.sampled_from([1.0, 1.0, 0.4, 0.97]),
    min_p=st.sampled_from([0.0, 0.0, 0.02, 0.4]),
    xtc_probability=st.sampled_from([0.0, 0.5, 1.0]),
    xtc_threshold=st.floats(0.01, 0.5),
    min_keep=st.integers(1, 4),
)


@given(chain=chains, size=st.sampled_from([3, 50, 2100, 5000]), noise=st.integers(0, 2**32 - 1))
@settings(max_examples=250, deadline=None)
def test_any_order_draws_as_the_oracle(chain: Chain, size: int, noise: int) -> None:
    compare(normals(size, spread=3.0, seed=noise), chain, seed=noise, positions=range(4))


@given(
    order=st.permutations(ORDER).map(tuple),
    typical_p=st.floats(0.001, 0.999),
    min_keep=st.sampled_from([1, 1, 20, 2500]),
    temperature=st.sampled_from([1.0, 0.3, 4.0]),
    top_k=st.sampled_from([0, 2600]),
    xtc_probability=st.sampled_from([0.0, 1.0]),
    spread=st.sampled_from([1e-3, 0.3, 2.0, 20.0]),
    masked=st.sampled_from([0, 500]),
    noise=st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, deadline=None)
def test_typical_finds_the_nearest_among_many(
    spread: float, masked: int, noise: int, **fields: Any
) -> None:
    """Of more tokens than are put into a list."""
    logits = normals(3000, spread=spread, seed=noise)
    logits[:masked] = -math.inf
    compare(logits, Chain(xtc_threshold=1e-4, **fields), seed=noise, positions=range(6))


def support(logits: F32Array, chain: Chain, draws: int = 300) -> set[int]:
    """What comes out in many positions: of few and likely tokens, all that can."""
    native = sampler(chain, 11)
    return {native.sample(logits, NO_HISTORY, position) for position in range(draws)}


@given(chain=chains, noise=st.integers(0, 2**32 - 1), masked=st.integers(0, 90))
@settings(max_examples=100, deadline=None)
def test_something_is_left_and_nothing_masked(chain: Chain, noise: int, masked: int) -> None:
    logits = normals(100, spread=4.0, seed=noise)
    logits[:masked] = -math.inf
    assert min(support(logits, chain, 10)) >= masked


@given(chain=chains, noise=st.integers(0, 2**32 - 1), size=st.sampled_from([40, 2500]))
@settings(max_examples=60, deadline=None)
def test_permuting_the_vocabulary_permutes_the_draw(chain: Chain, noise: int, size: int) -> None:
    rng = np.random.default_rng(noise)
    logits = rng.permutation(np.linspace(-4, 4, size)).astype(np.float32)  # no ties
    shuffle = rng.permutation(size)
    exact = oracle.distribution(logits, (), chain, oracle.uniform(noise, 0, XTC))
    assume(exact.margin > TOLERANCE)  # a mean is only the same up to rounding
    straight = sampler(chain, noise).sample(logits, NO_HISTORY, 0)
    assert shuffle[sampler(chain, noise).sample(logits[shuffle], NO_HISTORY, 0)] == straight


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("top_n_sigma", [0.5, 1.0, 2.0, 4.0]),
        ("top_k", [1, 2, 5, 9]),
        ("typical_p", [0.2, 0.5, 0.8, 0.99]),
        ("top_p", [0.2, 0.5, 0.8, 0.99]),
        ("min_p", [0.9, 0.5, 0.2, 0.05]),
        ("min_keep", [1, 3, 5, 8]),
    ],
)
def test_looser_filters_keep_more(field: str, values: list[Any]) -> None:
    logits = np.log(np.array([20, 18, 15, 12, 10, 8, 7, 5, 3, 2], np.float32))
    base = Chain(top_p=0.01) if field == "min_keep" else Chain()
    kept = [support(logits, dataclasses.replace(base, **{field: value})) for value in values]
    assert all(tight < loose for tight, loose in pairwise(kept))


@given(n=st.floats(0.1, 4.0), size=st.sampled_from([20, 2500]), noise=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_top_n_sigma_is_blind_to_scale(n: float, size: int, noise: int) -> None:
    """Logits twice as large are cut alike, and drawn alike at twice the temperature."""
    logits = normals(size, seed=noise)
    once = sampler(Chain(top_n_sigma=n, order=("top_n_sigma",)), noise)
    twice = sampler(
        Chain(top_n_sigma=n, temperature=2.0, order=("top_n_sigma", "temperature")), noise
    )
    for position in range(10):
        drawn = once.sample(logits, NO_HISTORY, position)
        assert twice.sample(2 * logits, NO_HISTORY, position) == drawn


@given(
    temperature=st.floats(0.3, 2.0),
    dynatemp_range=st.floats(0.1, 3.0),
    exponent=st.floats(0.2, 3.0),
    noise=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_dynamic_temperature_stays_in_its_range(
    temperature: float, dynatemp_range: float, exponent: float, noise: int
) -> None:
    """The place of a draw in the order grows with the temperature."""
    logits = normals(50, spread=2.0, seed=noise)
    places = np.empty(50, np.int64)
    places[np.argsort(-logits, kind="stable")] = np.arange(50)
    between = Chain(
        temperature=temperature, dynatemp_range=dynatemp_range, dynatemp_exponent=exponent
    )
    low = Chain(temperature=max(temperature - dynatemp_range, 1e-6))
    high = Chain(temperature=temperature + dynatemp_range)
    for position in range(20):
        drawn = [
            places[sampler(chain, noise).sample(logits, NO_HISTORY, position)]
            for chain in (low, between, high)
        ]
        assert drawn == sorted(drawn)


def test_xtc_leaves_the_least_likely_of_the_likely() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    assert support(logits, Chain(xtc_probability=1.0, xtc_threshold=0.15)) == {2, 3}
    assert support(logits, Chain(xtc_probability=1.0, xtc_threshold=0.35)) == {0, 1, 2, 3}
    assert support(logits, Chain(xtc_probability=1.0, xtc_threshold=0.6)) == {0, 1, 2, 3}
    assert 0 in support(logits, Chain(xtc_probability=0.5, xtc_threshold=0.15))


def test_xtc_acts_as_often_as_asked() -> None:
    logits = np.log(np.array([0.5, 0.5 - 1e-6, 1e-6], np.float32))  # token 0 only where it does not
    native, draws = sampler(Chain(xtc_probability=0.3, xtc_threshold=0.4), 2), 20_000
    first = sum(native.sample(logits, NO_HISTORY, p) == 0 for p in range(draws))
    expected = 0.7 * 0.5 * draws
    assert abs(first - expected) < 4 * math.sqrt(expected * (1 - 0.35))


def test_xtc_does_not_move_the_other_draws() -> None:
    """It takes numbers of its own."""
    logits = normals(1000)
    plain = sampler(Chain(), 3)
    beside = sampler(Chain(xtc_probability=1.0, xtc_threshold=0.9), 3)
    for position in range(50):
        assert plain.sample(logits, NO_HISTORY, position) == beside.sample(
            logits, NO_HISTORY, position
        )


def test_tail_weights_survive_dropping_the_head() -> None:
    """What XTC leaves may be e^-20 of what it drops."""
    logits = np.array([20.0, 20.0, 0.0, 0.0, 0.0, -1.0], np.float32)
    chain = Chain(xtc_probability=1.0, xtc_threshold=1e-10)
    assert support(logits, chain) == {5}
    drawn = [
        sampler(dataclasses.replace(chain, temperature=0.9), s).sample(logits, NO_HISTORY, 0)
        for s in range(400)
    ]
    assert set(drawn) == {4, 5}


@pytest.mark.parametrize(
    "chain",
    [
        Chain(typical_p=0.7),
        Chain(top_n_sigma=1.5),
        Chain(xtc_probability=0.5, xtc_threshold=0.02),
        Chain(dynatemp_range=0.7, top_k=30),
        Chain(dynatemp_range=0.9, dynatemp_exponent=0.4, temperature=1.2),
        Chain(order=ORDERS["llama.cpp"][2:], top_k=40, top_p=0.95, min_p=0.05, temperature=0.8),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [50, 3000])
def test_frequencies_follow_the_exact_distribution(chain: Chain, size: int) -> None:
    """A chi-square test; the seed is fixed, so it either always passes or never."""
    logits, draws = normals(size, spread=2.0, seed=size), 10_000
    acting = oracle.distribution(logits, (), chain, 0.0)
    idle = oracle.distribution(logits, (), chain, 1.0)
    probabilities = np.zeros(size)
    for share, exact in ((chain.xtc_probability, acting), (1 - chain.xtc_probability, idle)):
        probabilities[exact.ids] += share * exact.probabilities
    native = sampler(chain, size)
    counts = Counter(native.sample(logits, NO_HISTORY, p) for p in range(draws))
    observed = np.array([counts[token] for token in range(size)], np.float64)
    assert not observed[probabilities == 0].any()
    expected = probabilities * draws
    common = expected >= 5
    statistic = float(np.sum((observed - expected)[common] ** 2 / expected[common]))
    freedom = int(common.sum())
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


# Orders of the references


def of(params: SamplingParams, logits: F32Array, position: int) -> int:
    return make_sampler(params, seed=7).sample(logits, NO_HISTORY, position)


def test_llama_cpp_runs_its_published_chain() -> None:
    """common/common.h, `samplers`; its typ_p is typical_p here."""
    assert ORDERS["llama.cpp"] == (
        "penalties", "dry", "top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc",
        "temperature",
    )  # fmt: skip


def test_hf_runs_the_warpers_of_transformers_in_their_order() -> None:
    """_get_logits_processor: repetition penalty, temperature, top-k, top-p, min-p, typical."""
    theirs = ("penalties", "temperature", "top_k", "top_p", "min_p", "typical_p")
    assert tuple(name for name in ORDERS["hf"] if name in theirs) == theirs


def test_where_temperature_stands_decides_what_is_cut() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    chain = Chain(min_p=0.7, temperature=2.0)
    assert support(logits, chain) == {0, 1}  # sqrt(0.6) = 0.77
    assert support(logits, dataclasses.replace(chain, order=ORDERS["llama.cpp"][2:])) == {0}


def test_every_order_of_two_cuts_is_the_oracles() -> None:
    logits = normals(30, spread=2.0, seed=1)
    for order in permutations(("top_k", "top_p", "temperature", "typical_p")):
        chain = Chain(order=order, top_k=6, top_p=0.8, temperature=1.9, typical_p=0.6)
        assert compare(logits, chain, seed=1, positions=range(6)) > 0


@pytest.mark.parametrize("preset", ["hf", "llama.cpp"])
def test_presets_draw_as_the_oracle(preset: str) -> None:
    params = SamplingParams(
        order=preset, temperature=0.8, top_k=40, top_p=0.9, min_p=0.05, typical_p=0.9
    )
    chain = Chain(
        order=tuple(name for name in ORDERS[preset] if name not in ("penalties", "dry")),
        temperature=0.8,
        top_k=40,
        top_p=0.9,
        min_p=0.05,
        typical_p=0.9,
    )
    logits = normals(400, spread=3.0)
    for position in range(40):
        exact = oracle.distribution(logits, (), chain)
        token, margin = exact.draw(oracle.uniform(7, position))
        if min(margin, exact.margin) > TOLERANCE:
            assert of(params, logits, position) == token


# Mirostat


def walk(rows: F32Array, tau: float, eta: float, seed: int) -> tuple[list[int], list[float]]:
    """Return the oracle's tokens and its mu before each."""
    mu, tokens, mus = 2 * tau, [], []
    for position, row in enumerate(rows):
        mus.append(mu)
        state = oracle.mirostat(oracle.in_order(row), mu)
        p = state.probabilities
        edges = np.cumsum(p)
        index = int(np.searchsorted(edges, oracle.uniform(seed, position), side="right"))
        tokens.append(int(state.ids[index]))
        mu -= eta * (-math.log2(p[index]) - tau)
    return tokens, mus


@pytest.mark.parametrize("size", [60, 4000])
@pytest.mark.parametrize(("tau", "eta"), [(5.0, 0.1), (2.0, 0.5)])
def test_mirostat_follows_the_oracle(size: int, tau: float, eta: float) -> None:
    rows = np.random.default_rng(4).normal(scale=2.0, size=(30, size)).astype(np.float32)
    native = _core.Sampler(mirostat=2, mirostat_tau=tau, mirostat_eta=eta, seed=6)
    tokens, mus = walk(rows, tau, eta, 6)
    for position, row in enumerate(rows):
        assert native.mu == pytest.approx(mus[position], abs=1e-4)
        assert native.sample(row, NO_HISTORY, position) == tokens[position]


@given(
    size=st.sampled_from([5, 60, 2500]),
    tau=st.floats(0.1, 10.0),
    eta=st.floats(0.0, 1.0),
    temperature=st.floats(0.3, 3.0),
    noise=st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, deadline=None)
def test_mirostat_draws_nothing_above_mu_and_moves_it_to_its_target(
    size: int, tau: float, eta: float, temperature: float, noise: int
) -> None:
    rows = np.random.default_rng(noise).normal(scale=2.0, size=(6, size)).astype(np.float32)
    native = _core.Sampler(
        mirostat=2, mirostat_tau=tau, mirostat_eta=eta, temperature=temperature, seed=noise,
        order=["temperature"],
    )  # fmt: skip
    for position, row in enumerate(rows):
        mu = native.mu
        token = native.sample(row, NO_HISTORY, position)
        surprises = -oracle.log_softmax(row / np.float64(temperature)) / math.log(2)
        kept = surprises <= max(mu, surprises.min())
        assert surprises[token] <= max(mu, surprises.min()) + TOLERANCE
        assume(np.min(np.abs(surprises - mu)) > TOLERANCE)
        drawn = surprises[token] + math.log2(np.sum(np.exp2(-surprises[kept])))
        assert native.mu == pytest.approx(mu - eta * (drawn - tau), abs=1e-4)


def test_mirostat_reaches_its_target() -> None:
    logits = normals(2000, spread=2.0)
    native = _core.Sampler(mirostat=2, mirostat_tau=4.0, seed=1)
    log_p = np.log2(np.exp(oracle.log_softmax(logits)))
    surprises = []
    for position in range(600):
        mu = native.mu
        token = native.sample(logits, NO_HISTORY, position)
        kept = log_p >= -mu
        mass = np.sum(np.exp2(log_p[kept]))
        surprises.append(-(log_p[token] - math.log2(mass)))
    assert np.mean(surprises[100:]) == pytest.approx(4.0, abs=0.15)


def test_mirostat_draws_again_at_a_position_as_before() -> None:
    """A step that was interrupted between drawing and keeping the token is repeated."""
    rows = [normals(500, seed=s) for s in range(6)]
    once = _core.Sampler(mirostat=2, seed=3)
    twice = _core.Sampler(mirostat=2, seed=3)
    for position, row in enumerate(rows):
        token = once.sample(row, NO_HISTORY, position)
        assert [twice.sample(row, NO_HISTORY, position) for _ in range(3)] == [token] * 3
        assert twice.mu == once.mu


def test_mirostat_goes_on_in_a_fork_and_from_a_saved_mu() -> None:
    rows = [normals(500, seed=s) for s in range(10)]
    native = _core.Sampler(mirostat=2, seed=3)
    for position in range(5):
        native.sample(rows[position], NO_HISTORY, position)
    fork, other = native.fork(3), native.fork(4)
    loaded = _core.Sampler(mirostat=2, seed=3, mirostat_mu=native.mu)
    rest = [
        [s.sample(rows[p], NO_HISTORY, p) for p in range(5, 10)] for s in (native, fork, loaded)
    ]
    assert rest[0] == rest[1] == rest[2]
    assert [other.sample(rows[p], NO_HISTORY, p) for p in range(5, 10)] != rest[0]
