"""Beam search against an installed transformers, live: `pytest tests/live` in the parity job."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from golden.files import load_golden
from golden.hf import Reference
from golden.specs import SPECS, TEXT_TOKENS
from support import byte_level

from ryzanstein import SamplingParams, _core
from ryzanstein.config import EngineConfig
from ryzanstein.engine.beam_request import BeamRequest
from ryzanstein.engine.beam_search import BeamSearch
from ryzanstein.engine.engine import Engine
from ryzanstein.engine.sequence import Sequence
from ryzanstein.engine.shared import SharedEngine
from ryzanstein.loaders.model_files import open_files
from ryzanstein.models import load_model, read_config
from ryzanstein.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ryzanstein import Completion

# Where nothing is rounded to integers, log-probabilities differ by 1e-6 only.
FLOATS = [spec for spec in SPECS if spec.name in ("llama_dense", "mistral", "qwen3", "gemma2")]
MAX_TOKENS = 14
RULES: list[dict[str, Any]] = [
    {},
    {"early_stopping": True},
    {"early_stopping": "never"},
    {"length_penalty": 0.0},
    {"length_penalty": -1.0, "early_stopping": True},
    {"length_penalty": 2.0, "early_stopping": "never"},
]


@dataclass(frozen=True, slots=True)
class Pair:
    """One checkpoint in transformers, and in an engine."""

    reference: Any
    engine: SharedEngine
    prompt: Any

    def theirs(
        self, width: int, stop_ids: list[int], **rules: Any
    ) -> list[tuple[list[int], float]]:
        ids = torch.from_numpy(self.prompt.astype(np.int64))[None]
        out = self.reference._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=MAX_TOKENS,
            eos_token_id=stop_ids or None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            **rules,
        )
        texts = out.sequences[:, len(self.prompt) :].tolist()
        ends = [
            next((i for i, t in enumerate(text, 1) if t in stop_ids), len(text)) for text in texts
        ]
        scores = out.sequences_scores.tolist()
        return [(text[:end], score) for text, end, score in zip(texts, ends, scores, strict=True)]

    def ours(self, width: int, stop_ids: list[int], **rules: Any) -> Completion:
        params = SamplingParams(logprobs=0)
        sequence = Sequence.create(self.prompt, params, max_tokens=MAX_TOKENS)
        search = BeamSearch(width, MAX_TOKENS, stop_ids=stop_ids, **rules)
        request = BeamRequest(sequence, search, Tokenizer(byte_level()))
        ((_, piece),) = self.engine.run([request])
        assert piece.completion is not None
        return piece.completion


@pytest.fixture(scope="module", params=FLOATS, ids=lambda spec: spec.name)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    golden = load_golden(request.param)
    directory = golden.write(tmp_path_factory.mktemp("checkpoint"))
    files = open_files(directory)
    config = read_config(files)
    shape = (config.num_layers, config.num_kv_heads, config.head_dim)
    cache = _core.PagedCache(*shape, 64, "f32")
    limits = EngineConfig(
        context_length=256, num_blocks=64, kv_dtype="f32", rope_limits=config.rope_limits
    )
    engine = Engine(load_model(files, threads=1, isa=None).decoder, cache, limits)
    stored = json.loads(golden.files["config.json"])
    reference = Reference(directory, stored, TEXT_TOKENS)
    return Pair(reference, SharedEngine(engine), golden.prompt)


@pytest.mark.parametrize("width", [2, 5])
@pytest.mark.parametrize("rules", RULES, ids=str)
def test_the_beams_are_those_of_transformers(pair: Pair, rules: dict[str, Any], width: int) -> None:
    # End tokens that come up: without them no rule about ends is tried.
    free = pair.ours(width, [])
    stops = sorted({choice.token_ids[i] for choice in free.choices for i in (4, 8)})
    for stop_ids in ([], stops[:1], stops):
        texts = pair.theirs(width, stop_ids, **rules)
        found = pair.ours(width, stop_ids, **rules)
        assert [list(choice.token_ids) for choice in found.choices] == [t for t, _ in texts]
        penalty = rules.get("length_penalty", 1.0)
        scores = [
            (choice.cumulative_logprob or 0.0) / len(choice.token_ids) ** penalty
            for choice in found.choices
        ]
        np.testing.assert_allclose(scores, [score for _, score in texts], rtol=1e-4)
