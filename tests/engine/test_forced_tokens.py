"""Sequences that grow by several tokens at once, because a grammar leaves no choice."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from support import (
    END_TOKEN,
    finish,
    letter_constraints,
    random_tokens,
    tiny_decoder,
    tiny_engine,
)

from ryzanstein import SamplingParams
from ryzanstein.config import EngineConfig
from ryzanstein.engine.block_manager import BlockManager
from ryzanstein.engine.scheduler import Scheduler
from ryzanstein.engine.sequence import Sequence

VOCAB = 73
# Forced runs longer than a page, between places where the model draws.
PATTERN = f"{'A' * 40}[0-9]{{3}}(BC|DE){'F' * 70}[a-m]{{2,9}}G"


COMPILER = letter_constraints()


def constrained(
    prompt: int, pattern: str = PATTERN, max_tokens: int = 140, **options: Any
) -> Sequence:
    params = SamplingParams(regex=pattern, **options)
    assert params.structured_output is not None
    return Sequence.create(
        random_tokens(prompt, 5 + 7 * prompt),
        params,
        max_tokens=max_tokens,
        eos_token_ids=[END_TOKEN],
        constraint=COMPILER.compile(params.structured_output),
    )


def text(tokens: list[int]) -> str:
    return "".join(chr(48 + token) for token in tokens if token != END_TOKEN)


def five() -> list[Sequence]:
    samplings: list[dict[str, Any]] = [{"temperature": 0}, {"seed": 1}, {"seed": 2, "top_k": 3}]
    samplings += [{"seed": 3, "mirostat": 2}, {"seed": 4, "top_n_sigma": 1.0, "typical_p": 0.5}]
    return [constrained(n, logprobs=2, **one) for n, one in enumerate(samplings)]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"token_budget": 8},
        {"token_budget": 500, "prefix_cache": False},
        {"num_blocks": 7, "context_length": 224},
        {"num_blocks": 8, "token_budget": 16, "max_sequences": 3, "context_length": 224},
    ],
)
def test_batches_chunks_preemption_and_threads_do_not_show(
    options: dict[str, Any], threads: int
) -> None:
    alone = five()
    for sequence in alone:
        (tokens,) = finish(tiny_engine(tiny_decoder(7), prefix_cache=False), [sequence])
        assert re.fullmatch(PATTERN, text(tokens))
        assert sequence.finish_reason == "stop"
    together = five()
    finish(tiny_engine(tiny_decoder(7, threads=threads), **options), together)
    assert [s.generated.tolist() for s in together] == [s.generated.tolist() for s in alone]
    assert [s.logprobs for s in together] == [s.logprobs for s in alone]


def test_forced_tokens_take_no_step_of_their_own() -> None:
    sequence = constrained(1, "A{40}[0-9]{3}F{30}[a-m]{9}", temperature=0, logprobs=0)
    engine = tiny_engine(tiny_decoder(7), token_budget=128)
    engine.add(sequence)
    engine.step()
    assert text(sequence.generated.tolist()) == "A" * 40
    assert sequence.num_pending == 40
    num_steps = 1
    while not sequence.is_finished:
        engine.step()
        num_steps += 1
    drawn = [entry for entry in sequence.logprobs if entry.logprob < 0.0]
    assert len(sequence.logprobs) == len(sequence.generated) == 83
    assert num_steps == 1 + len(drawn) == 13
    assert [entry.token_id for entry in sequence.logprobs] == sequence.generated.tolist()


def test_forced_tokens_end_with_the_room_or_a_stop_token() -> None:
    full = constrained(1, max_tokens=13)
    full.extend(np.zeros(VOCAB, np.float32))
    assert (text(full.generated.tolist()), full.finish_reason) == ("A" * 13, "length")
    stopped = constrained(1, "ABCDE", stop_token_ids=[ord("C") - 48])
    stopped.extend(np.zeros(VOCAB, np.float32))
    assert (text(stopped.generated.tolist()), stopped.finish_reason) == ("ABC", "stop")


def test_decodes_go_before_forced_tokens() -> None:
    blocks = BlockManager(100, 4)
    config = EngineConfig(context_length=1000, num_blocks=100, token_budget=8, max_sequences=4)
    scheduler = Scheduler(blocks, config)
    forced, decoding = constrained(0), constrained(0)
    for sequence in (forced, decoding):
        scheduler.add(sequence)
    while any(sequence.num_pending for sequence in (forced, decoding)):
        for sequence, chunk in scheduler.schedule():
            sequence.num_computed = chunk.start + len(chunk.token_ids)
    forced.num_tokens += 30
    decoding.num_tokens += 1
    planned = scheduler.schedule()
    assert [sequence for sequence, _ in planned] == [decoding, forced]
    assert planned[0][1].num_logit_rows == 1
