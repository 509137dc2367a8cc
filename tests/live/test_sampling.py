"""The `hf` order against an installed transformers, live: `pytest tests/live` in the parity job."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from ryzanstein import SamplingParams
from ryzanstein.sampling.sampler import make_sampler

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHAINS: list[dict[str, Any]] = [
    {"temperature": 0.7, "top_k": 12},
    {"temperature": 1.6, "top_p": 0.8},
    {"temperature": 2.0, "min_p": 0.1},
    {"typical_p": 0.6},
    {"repetition_penalty": 1.4, "temperature": 0.8, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.3, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.8},
]


@pytest.fixture(scope="module")
def model() -> Any:
    """The smallest model there is: only its choice of processors is asked for."""
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    return LlamaForCausalLM(config)


def warped(model: Any, chain: dict[str, Any], history: Any, logits: Any) -> NDArray[np.float64]:
    """Return the distribution that transformers would sample from."""
    config = GenerationConfig(do_sample=True, **({"top_k": 0} | chain))
    processors = model._get_logits_processor(config, input_ids_seq_length=len(history))
    scores = processors(torch.tensor(history[None].astype(np.int64)), torch.tensor(logits[None]))
    result: NDArray[np.float64] = torch.softmax(scores.double(), dim=-1)[0].numpy()
    return result


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_frequencies_follow_the_warped_distribution(model: Any, chain: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(scale=2.5, size=300).astype(np.float32)
    history = rng.integers(0, 300, 60).astype(np.int32)
    probabilities, draws = warped(model, chain, history, logits), 20_000
    sampler = make_sampler(SamplingParams(**chain, order="hf"), seed=1)
    observed = np.bincount(
        [sampler.sample(logits, history, p) for p in range(draws)], minlength=300
    )
    assert not observed[probabilities == 0].any()
    expected = probabilities * draws
    common = expected >= 5
    statistic = float(np.sum((observed - expected)[common] ** 2 / expected[common]))
    freedom = int(common.sum())
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)
    # Nothing likely is missing: the sets that are kept are the same.
    assert observed[expected > 15].all()
