from __future__ import annotations

import numpy as np
import pytest

from ryzanstein import _core
from ryzanstein.llm import LLM
from ryzanstein.loaders.hub import EMBEDDED_MODEL
from ryzanstein.loaders.model_files import open_files
from ryzanstein.models import LoadedModel, load_model
from ryzanstein.sampling import SamplingParams
from ryzanstein.speculative.draft_model import DraftModelProposer

PROMPT = "def fibonacci(n):"


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(open_files(EMBEDDED_MODEL), threads=1, isa=None)


@pytest.fixture(scope="module")
def text() -> list[int]:
    """Return prompt and greedy continuation, as the engine has them."""
    with LLM(threads=1) as llm:
        out = llm.generate(PROMPT, SamplingParams(max_tokens=24, temperature=0, ignore_eos=True))
    return [*out.prompt_token_ids, *out.token_ids]


def proposer(model: LoadedModel, blocks: int = 4) -> DraftModelProposer:
    config = model.config
    cache = _core.PagedCache(config.num_layers, config.num_kv_heads, config.head_dim, blocks, "f16")
    return DraftModelProposer(model.decoder, config.vocab_size, cache)


def test_guesses_are_the_models_own_greedy_tokens(model: LoadedModel, text: list[int]) -> None:
    known = len(text) - 24
    guesser = proposer(model)
    guesser.extend(text[:known])
    assert list(guesser.propose(6).token_ids) == text[known : known + 6]


def test_wrong_guesses_leave_no_trace(model: LoadedModel, text: list[int]) -> None:
    known = len(text) - 24
    guesser = proposer(model)
    # Told of other tokens than it guessed, and of its own again, in any mixture.
    guesser.extend(text[:3])
    for end in range(3, known + 8):
        guesser.propose(3)
        guesser.extend([text[end]])
    assert list(guesser.propose(5).token_ids) == text[known + 8 : known + 13]


def test_a_full_cache_ends_the_draft(model: LoadedModel, text: list[int]) -> None:
    guesser = proposer(model, blocks=1)
    filler = np.resize(text, _core.PAGE_TOKENS - 2).tolist()
    guesser.extend(filler)
    assert len(guesser.propose(8).token_ids) == 2
    guesser.extend([1, 2])
    assert list(guesser.propose(8).token_ids) == []


def test_a_token_that_it_does_not_know_ends_the_guesses(
    model: LoadedModel, text: list[int]
) -> None:
    """The model it guesses for may have rows for more tokens, of images for example."""
    guesser = proposer(model)
    guesser.extend(text[:4])
    assert len(guesser.propose(2).token_ids) == 2
    guesser.extend([model.config.vocab_size])
    guesser.extend(text[4:6])
    assert list(guesser.propose(2).token_ids) == []
