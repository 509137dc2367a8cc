from __future__ import annotations

import dataclasses
import math
import threading
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import sampling as oracle
from reference.sampling import Chain

from ryzanstein import _core
from ryzanstein.errors import DistributionError, ValidationError

if TYPE_CHECKING:
    from ryzanstein._core import F32Array, I32Array

NO_HISTORY: I32Array = np.zeros(0, np.int32)
# A cut or a draw nearer than this to a border may fall on either side: the sampler's weights are
# float32, 4e-7 from exact.
MASS_TOLERANCE = 1e-6
LOG_PROB_TOLERANCE = 1e-6

# Sizes around the block (64) and the largest sets that are sorted; then a real vocabulary.
SIZES = (1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 129, 2047, 2049, 5000)
VOCAB = 128256


def f32(*values: float) -> F32Array:
    return np.array(values, np.float32)


def sample(
    logits: F32Array,
    chain: Chain,
    *,
    seed: int = 0,
    position: int = 0,
    history: I32Array = NO_HISTORY,
) -> int:
    return _core.Sampler(**dataclasses.asdict(chain), seed=seed).sample(logits, history, position)


def support(logits: F32Array, chain: Chain, history: I32Array = NO_HISTORY) -> set[int]:
    """Every token drawn in 200 positions: enough for the few and likely ones of these tests."""
    sampler = _core.Sampler(**dataclasses.asdict(chain), seed=11)
    return {sampler.sample(logits, history, position) for position in range(200)}


def assert_draws_as_oracle(
    logits: F32Array, chain: Chain, *, seed: int, positions: range, history: I32Array = NO_HISTORY
) -> None:
    exact = oracle.distribution(logits, history.tolist(), chain)
    if exact.margin <= MASS_TOLERANCE:
        return
    for position in positions:
        expected, margin = exact.draw(oracle.uniform(seed, position))
        got = sample(logits, chain, seed=seed, position=position, history=history)
        if margin > MASS_TOLERANCE:
            assert got == expected, position


# The generator


def test_philox_oracle_gives_the_known_answers_of_random123() -> None:
    ones = 0xFFFFFFFF
    assert oracle.philox4x32([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert oracle.philox4x32([ones] * 4, [ones] * 2) == [
        0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD,
    ]  # fmt: skip
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    assert oracle.philox4x32(pi, [0xA4093822, 0x299F31D0]) == [
        0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1,
    ]  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1, 0x0123456789ABCDEF])
@pytest.mark.parametrize("position", [0, 1, 2**31, 2**32 + 5, 2**63 - 1])
def test_equal_logits_show_the_top_bits_of_the_generator(seed: int, position: int) -> None:
    logits = np.zeros(65536, np.float32)
    expected = math.floor(oracle.uniform(seed, position) * 65536)
    assert sample(logits, Chain(), seed=seed, position=position) == expected


def test_draw_depends_on_seed_and_position_alone() -> None:
    logits = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    sampler = _core.Sampler(temperature=0.9, top_p=0.95, seed=7)
    forward = [sampler.sample(logits, NO_HISTORY, position) for position in range(50)]
    backward = [sampler.sample(logits.copy(), NO_HISTORY, p) for p in reversed(range(50))]
    assert forward == backward[::-1]
    other = _core.Sampler(temperature=0.9, top_p=0.95, seed=8)
    assert forward != [other.sample(logits, NO_HISTORY, position) for position in range(50)]


def test_threads_do_not_disturb_each_other() -> None:
    rng = np.random.default_rng(1)
    rows = [rng.normal(size=20_000).astype(np.float32) for _ in range(2)]
    sampler = _core.Sampler(top_p=0.9, repetition_penalty=1.2, seed=3)
    history = np.arange(100, dtype=np.int32)
    expected = [[sampler.sample(row, history, p) for p in range(40)] for row in rows]
    got: dict[int, list[int]] = {}

    def work(index: int) -> None:
        got[index] = [sampler.sample(rows[index], history, p) for p in range(40)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[0], got[1]] == expected


# Each filter by hand


def test_greedy_takes_the_lowest_id_of_ties() -> None:
    assert sample(f32(0, 3, 1, 3), Chain(temperature=0)) == 1
    assert sample(f32(-5, -5), Chain(temperature=0)) == 0
    assert sample(f32(-0.0, 0.0), Chain(temperature=0)) == 0


@pytest.mark.parametrize("size", SIZES)
def test_greedy_finds_the_maximum_wherever_it_is(size: int) -> None:
    for place in {0, size // 2, size - 1}:
        logits = np.full(size, -1.0, np.float32)
        logits[place] = -0.5
        assert sample(logits, Chain(temperature=0)) == place


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_once() -> None:
    chain = Chain(temperature=0, repetition_penalty=2.0)
    seen = np.array([0, 0, 0], np.int32)
    assert sample(f32(3, 1), chain, history=seen) == 0  # 1.5 after one division, 0.375 after three
    assert sample(f32(3, 2), chain, history=seen) == 1
    assert sample(f32(-1, -1.5), chain, history=seen) == 1  # -2 against -1.5
    assert sample(f32(-1, -3), chain, history=seen) == 0
    assert sample(f32(1, 1.5), Chain(temperature=0, repetition_penalty=0.5), history=seen) == 0


def test_repetition_penalty_leaves_the_logits_alone() -> None:
    logits = f32(3, 2)
    sample(logits, Chain(repetition_penalty=2.0), history=np.zeros(1, np.int32))
    assert logits.tolist() == [3, 2]


def test_top_k_keeps_exactly_k_and_the_lowest_ids_of_ties() -> None:
    assert support(f32(1, 2, 2, 2, 0), Chain(top_k=2)) == {1, 2}
    assert support(f32(1, 2, 2, 2, 0), Chain(top_k=4)) == {0, 1, 2, 3}
    assert support(f32(0, 0, 0), Chain(top_k=99)) == {0, 1, 2}
    assert support(f32(0, 5, 5), Chain(top_k=1)) == {1}


def test_top_p_keeps_the_smallest_prefix_that_reaches_it() -> None:
    logits = np.log(f32(0.1, 0.5, 0.25, 0.15))
    assert support(logits, Chain(top_p=0.4)) == {1}
    assert support(logits, Chain(top_p=0.51)) == {1, 2}
    assert support(logits, Chain(top_p=0.76)) == {1, 2, 3}
    assert support(f32(0, 0, 0, 0), Chain(top_p=0.5)) == {0, 1}  # exactly reached: no third one
    assert support(f32(0, 0, 0, 0), Chain(top_p=1e-9)) == {0}


def test_min_p_keeps_what_reaches_its_share_of_the_best() -> None:
    logits = np.log(f32(0.05, 0.5, 0.3, 0.15))
    assert support(logits, Chain(min_p=0.29)) == {1, 2, 3}
    assert support(logits, Chain(min_p=0.31)) == {1, 2}
    assert support(logits, Chain(min_p=0.61)) == {1}
    assert support(f32(2, 1, 2), Chain(min_p=1.0)) == {0, 2}


def test_filters_follow_the_temperature() -> None:
    logits = np.log(f32(0.5, 0.3, 0.2))
    assert support(logits, Chain(min_p=0.7)) == {0}
    assert support(logits, Chain(min_p=0.7, temperature=2.0)) == {0, 1}  # sqrt(0.6) = 0.77
    assert support(logits, Chain(top_p=0.55)) == {0, 1}
    assert support(logits, Chain(top_p=0.55, temperature=0.2)) == {0}


def test_top_p_renormalises_over_what_top_k_left() -> None:
    logits = np.log(f32(0.4, 0.3, 0.2, 0.1))
    assert support(logits, Chain(top_p=0.6)) == {0, 1}
    assert support(logits, Chain(top_p=0.56, top_k=2)) == {0}  # 0.4 / 0.7 = 0.571


def test_masked_tokens_are_never_drawn() -> None:
    inf = math.inf
    assert support(f32(-inf, 1, -inf, 1), Chain()) == {1, 3}
    assert support(f32(-inf, 1, -inf, 1), Chain(top_k=3, top_p=0.99, min_p=0.01)) == {1, 3}
    wide = np.full(5000, -inf, np.float32)
    wide[[7, 4099]] = -3
    assert support(wide, Chain()) == {7, 4099}
    assert support(wide, Chain(top_k=3000)) == {7, 4099}


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e-3])
def test_tiny_temperature_approaches_greedy(temperature: float) -> None:
    logits = np.random.default_rng(2).normal(size=3000).astype(np.float32)
    logits[[5, 2500]] = 9.0
    assert support(logits, Chain(temperature=temperature)) == {5, 2500}
    assert support(logits, Chain(temperature=temperature, top_p=0.4)) == {5}


def test_huge_temperature_approaches_uniform() -> None:
    assert support(f32(-1e30, 0, 1e30), Chain(temperature=3e38)) == {0, 1, 2}


# Against the oracle

chains = st.builds(
    Chain,
    temperature=st.floats(0.05, 5.0),
    top_k=st.one_of(st.just(0), st.integers(1, 80)),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 0.999)),
    min_p=st.one_of(st.just(0.0), st.floats(0.001, 0.99)),
    repetition_penalty=st.one_of(st.just(1.0), st.floats(0.5, 2.0)),
)


@given(
    chain=chains,
    size=st.sampled_from(SIZES),
    spread=st.sampled_from([0.0, 0.3, 1.0, 4.0, 30.0]),
    noise=st.integers(0, 2**32 - 1),
    ties=st.booleans(),
)
# The penalty rounds to a half and makes a tie, which goes to the lowest id.
@example(
    chain=Chain(temperature=3.0, repetition_penalty=0.5000000000000001),
    size=15,
    spread=4.0,
    noise=1,
    ties=True,
)
@settings(max_examples=300, deadline=None)
def test_draws_equal_the_oracle(
    chain: Chain, size: int, spread: float, noise: int, ties: bool
) -> None:
    rng = np.random.default_rng(noise)
    logits = rng.normal(scale=spread, size=size)
    row = (np.round(logits) if ties else logits).astype(np.float32)
    history = rng.integers(0, size, size=int(rng.integers(0, 20))).astype(np.int32)
    assert_draws_as_oracle(row, chain, seed=noise, positions=range(8), history=history)


@pytest.mark.parametrize(
    "chain",
    [
        Chain(),
        Chain(temperature=0.3),
        Chain(top_k=40),
        Chain(top_k=2004),
        Chain(top_k=2005),
        Chain(top_k=60_000, top_p=0.9),
        Chain(top_p=0.9),
        Chain(top_p=0.9999),
        Chain(top_p=0.95, min_p=0.05),
        Chain(top_p=0.999, min_p=0.4),
        Chain(min_p=0.02),
        Chain(min_p=0.9),
        Chain(temperature=1.3, top_k=500, top_p=0.8, min_p=0.01),
    ],
    ids=str,
)
@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0, 3.0])
def test_draws_equal_the_oracle_at_a_real_vocabulary(chain: Chain, spread: float) -> None:
    logits = np.random.default_rng(5).normal(scale=spread, size=VOCAB).astype(np.float32)
    assert_draws_as_oracle(logits, chain, seed=99, positions=range(12))


@pytest.mark.parametrize("size", [50, 3000])
@pytest.mark.parametrize(
    "chain",
    [Chain(), Chain(top_k=20), Chain(top_p=0.8), Chain(temperature=0.7, min_p=0.1)],
    ids=str,
)
def test_frequencies_follow_the_exact_distribution(size: int, chain: Chain) -> None:
    """A chi-square test; the seed is fixed, so it either always passes or never."""
    logits = np.random.default_rng(size).normal(scale=2.0, size=size).astype(np.float32)
    exact = oracle.distribution(logits, (), chain)
    draws = 20_000
    sampler = _core.Sampler(**dataclasses.asdict(chain), seed=size)
    counts = Counter(sampler.sample(logits, NO_HISTORY, position) for position in range(draws))
    assert set(counts) <= set(exact.ids.tolist())
    expected = exact.probabilities * draws
    observed = np.array([counts[token] for token in exact.ids.tolist()], np.float64)
    common = expected >= 5
    expected = np.append(expected[common], expected[~common].sum())
    observed = np.append(observed[common], observed[~common].sum())
    statistic = float(np.sum((observed - expected) ** 2 / np.maximum(expected, 1e-9)))
    freedom = len(expected) - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


@given(noise=st.integers(0, 2**32 - 1), chain=chains)
@settings(max_examples=50, deadline=None)
def test_permuting_the_vocabulary_permutes_the_draw(noise: int, chain: Chain) -> None:
    rng = np.random.default_rng(noise)
    logits = rng.permutation(np.linspace(-4, 4, 3000)).astype(np.float32)  # no ties
    order = rng.permutation(len(logits))
    straight = sample(logits, chain, seed=noise)
    assert order[sample(logits[order], chain, seed=noise)] == straight


@pytest.mark.parametrize(
    "logits",
    [np.zeros(VOCAB), np.repeat([0.0, -1.0], VOCAB // 2), np.linspace(0, -1e-3, VOCAB)],
    ids=["equal", "two values", "nearly equal"],
)
@pytest.mark.parametrize("chain", [Chain(), Chain(top_p=0.7), Chain(min_p=0.2)], ids=str)
def test_degenerate_rows_draw_as_the_oracle(logits: F32Array, chain: Chain) -> None:
    assert_draws_as_oracle(logits.astype(np.float32), chain, seed=4, positions=range(5))


def test_filters_that_keep_everything_change_nothing() -> None:
    """Shortcuts sum the same masses: an inactive filter cannot move a draw."""
    logits = np.random.default_rng(8).normal(scale=2.0, size=6000).astype(np.float32)
    plain = [sample(logits, Chain(), position=p) for p in range(100)]
    for chain in (Chain(top_k=6000), Chain(top_k=6001), Chain(min_p=1e-12), Chain(top_p=1 - 1e-16)):
        assert [sample(logits, chain, position=p) for p in range(100)] == plain


# Log-probabilities


@pytest.mark.parametrize("size", [*SIZES, VOCAB])
@pytest.mark.parametrize("spread", [0.5, 5.0])
def test_log_probs_match_the_oracle(size: int, spread: float) -> None:
    logits = np.random.default_rng(size).normal(scale=spread, size=size).astype(np.float32)
    exact = oracle.log_softmax(logits)
    own, top = _core.log_probs(logits, size // 2, min(size, 20))
    assert own == pytest.approx(exact[size // 2], abs=LOG_PROB_TOLERANCE)
    ranked = np.argsort(-logits, kind="stable")[:20]
    assert [token for token, _ in top] == ranked.tolist()
    np.testing.assert_allclose([p for _, p in top], exact[ranked], atol=LOG_PROB_TOLERANCE)


def test_log_probs_of_ties_and_masked_tokens() -> None:
    own, top = _core.log_probs(f32(0, -math.inf, 0), 1, 3)
    assert own == -math.inf
    half = pytest.approx(-math.log(2), abs=LOG_PROB_TOLERANCE)
    assert top == [(0, half), (2, half), (1, -math.inf)]
    assert _core.log_probs(f32(7), 0, 0) == (0.0, [])


def test_score_rows_match_the_oracle() -> None:
    logits = np.random.default_rng(6).normal(scale=3.0, size=(7, 1001)).astype(np.float32)
    targets = np.arange(7, dtype=np.int32) * 150
    scores = _core.score_rows(logits, targets)
    assert scores.dtype == np.float32
    exact = oracle.log_softmax(logits)[np.arange(7), targets]
    np.testing.assert_allclose(scores, exact, rtol=1e-6)
    assert _core.score_rows(logits[:0], targets[:0]).shape == (0,)


# What is refused


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("temperature", -0.1, "temperature is -0.1"),
        ("temperature", math.nan, "temperature is nan"),
        ("temperature", math.inf, "temperature is inf"),
        ("top_k", -1, "top_k is -1"),
        ("top_p", 0.0, "top_p is 0"),
        ("top_p", 1.1, "top_p is 1.1"),
        ("top_p", math.nan, "top_p is nan"),
        ("min_p", -0.5, "min_p is -0.5"),
        ("min_p", 1.5, "min_p is 1.5"),
        ("repetition_penalty", 0.0, "repetition_penalty is 0"),
        ("repetition_penalty", math.inf, "repetition_penalty is inf"),
    ],
)
def test_parameters_out_of_range_are_refused(option: str, value: float, message: str) -> None:
    with pytest.raises(ValidationError, match=rf"\[sampler\] {message}.*expected"):
        _core.Sampler(**{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_beyond_64_bits_are_refused(seed: int) -> None:
    with pytest.raises(TypeError):
        _core.Sampler(seed=seed)


@pytest.mark.parametrize("size", [3, 64, 100, 5000])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_and_infinite_logits_are_refused(size: int, temperature: float) -> None:
    chain = Chain(temperature=temperature)
    for place in {0, size // 2, size - 1}:
        logits = np.zeros(size, np.float32)
        logits[place] = np.nan
        with pytest.raises(DistributionError, match=rf"\[sample\].*token {place} is NaN"):
            sample(logits, chain)
        logits[place] = np.inf
        with pytest.raises(DistributionError, match=rf"\[sample\].*token {place} is \+inf"):
            sample(logits, chain)
    with pytest.raises(DistributionError, match="every logit is -inf"):
        sample(np.full(size, -np.inf, np.float32), chain)


def test_a_penalty_that_overflows_is_refused() -> None:
    chain = Chain(repetition_penalty=1e-30)
    with pytest.raises(DistributionError, match=r"token 0 is \+inf"):
        sample(f32(1e30, 0), chain, history=np.zeros(1, np.int32))


def test_indices_out_of_range_are_refused() -> None:
    logits = f32(1, 2, 3)
    for token in (-1, 3):
        history = np.array([0, token], np.int32)
        with pytest.raises(ValidationError, match=rf"history\[1\] is {token}.*vocabulary of 3"):
            sample(logits, Chain(), history=history)
        with pytest.raises(ValidationError, match=rf"\[log_probs\] token is {token}"):
            _core.log_probs(logits, token, 0)
        with pytest.raises(ValidationError, match=rf"targets\[0\] is {token}"):
            _core.score_rows(logits[None], np.array([token], np.int32))
    for top in (-1, 4):
        with pytest.raises(ValidationError, match=rf"top is {top}, expected 0 to 3"):
            _core.log_probs(logits, 0, top)
    with pytest.raises(ValidationError, match="position is -1"):
        sample(logits, Chain(), position=-1)
    with pytest.raises(ValidationError, match="logits are empty"):
        sample(f32(), Chain())


def test_scores_of_damaged_rows_are_refused() -> None:
    with pytest.raises(DistributionError, match=r"\[log_probs\].*token 1 is NaN"):
        _core.log_probs(f32(0, math.nan), 0, 0)
    rows = np.array([[0, 0], [0, math.nan]], np.float32)
    with pytest.raises(DistributionError, match=r"\[score_rows\].*token 1 is NaN"):
        _core.score_rows(rows, np.zeros(2, np.int32))


def test_arrays_of_another_type_or_shape_are_refused() -> None:
    sampler = _core.Sampler()
    logits = np.zeros(8, np.float32)
    with pytest.raises(TypeError):
        sampler.sample(logits.astype(np.float64), NO_HISTORY, 0)
    with pytest.raises(TypeError):
        sampler.sample(logits[::2], NO_HISTORY, 0)
    with pytest.raises(TypeError):
        sampler.sample(logits, NO_HISTORY.astype(np.int64), 0)
    with pytest.raises(ValidationError, match="expected 1 dimensions"):
        sampler.sample(logits[None], NO_HISTORY, 0)
    with pytest.raises(ValidationError, match="one target per row"):
        _core.score_rows(np.zeros((2, 4), np.float32), np.zeros(3, np.int32))
    with pytest.raises(ValidationError, match="expected 2 dimensions"):
        _core.score_rows(logits, np.zeros(1, np.int32))
