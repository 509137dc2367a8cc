from __future__ import annotations

import pytest
from support import TinyModel, byte_level, make_sequence, random_tokens, tiny_decoder, tiny_engine

from ryzanstein import ContextLengthError, DistributionError, Piece, SamplingParams, ValidationError
from ryzanstein.engine.request import Request
from ryzanstein.engine.shared import SharedEngine
from ryzanstein.tokenizer import Tokenizer

MODEL = tiny_decoder(3)
TOKENIZER = Tokenizer(byte_level())


def request(seed: int, max_tokens: int = 40, **options: object) -> Request:
    params = SamplingParams(temperature=1.0, seed=seed, **options)  # type: ignore[arg-type]
    prompt = random_tokens(seed, 9) % 70
    sequence = make_sequence(prompt, max_tokens, temperature=1.0, seed=seed, logprobs=1)
    return Request(sequence, params, TOKENIZER)


def shared(model: TinyModel = MODEL) -> SharedEngine:
    return SharedEngine(tiny_engine(model))


def text(pieces: list[tuple[int, Piece]]) -> str:
    return "".join(piece.text for _, piece in pieces)


def test_a_reader_that_lags_sees_the_same_text() -> None:
    whole = text(list(shared().run([request(1)])))
    stop = whole[10:13]
    expected = list(shared().run([request(1, stop=stop)]))
    assert text(expected) == whole[: whole.index(stop)]

    engine = shared()
    lagging = engine.run([request(1, stop=stop)])
    first = next(lagging)
    # Its sequence runs on past the stop string while another is read to the end.
    assert list(engine.run([request(2, max_tokens=60)]))
    pieces = [first, *lagging]
    assert text(pieces) == text(expected)
    ours, theirs = pieces[-1][1].completion, expected[-1][1].completion
    assert ours is not None
    assert theirs is not None
    assert (ours.token_ids, ours.logprobs) == (theirs.token_ids, theirs.logprobs)
    assert ours.finish_reason == "stop"


def test_an_error_reaches_only_the_one_it_belongs_to() -> None:
    expected = text(list(shared().run([request(1)])))
    engine = shared(tiny_decoder(3, nan_token=70))
    stream = engine.run([request(1)])
    pieces = [next(stream)]
    broken = request(2)
    broken.sequences[0].buffer[3] = 70
    with pytest.raises(DistributionError):
        list(engine.run([broken]))
    assert text([*pieces, *stream]) == expected
    assert engine.num_free_blocks == 64


def test_a_refused_request_takes_its_companions_along() -> None:
    engine = shared()
    with pytest.raises(ContextLengthError):
        list(engine.run([request(1), request(2, max_tokens=1000)]))
    assert engine._engine is not None
    assert not engine._engine.scheduler.has_work
    assert len(text(list(engine.run([request(1)])))) > 0


def test_a_generator_finalised_during_a_step_is_freed_by_the_next() -> None:
    engine = shared()
    other = engine.run([request(2)])
    next(other)
    free = engine.num_free_blocks
    abandoned = engine.run([request(1, max_tokens=400)])
    next(abandoned)
    with engine._lock:  # as when the garbage collector runs inside a step
        abandoned.close()
        assert engine.num_free_blocks < free
    next(other)
    assert engine.num_free_blocks == free


def test_an_abandoned_generator_is_freed_at_once() -> None:
    engine = shared()
    abandoned = engine.run([request(1), request(2)])
    next(abandoned)
    assert engine.num_free_blocks < 64
    abandoned.close()
    assert engine.num_free_blocks == 64


def test_a_closed_engine() -> None:
    engine = shared()
    stream = engine.run([request(1)])
    next(stream)
    engine.close()
    for use in (lambda: next(stream), lambda: engine.context_length):
        with pytest.raises(ValidationError, match="this LLM is closed"):
            use()
