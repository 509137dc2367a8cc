from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import make_sequence, random_tokens


class InterruptedBuffer(np.ndarray[Any, Any]):
    """Cannot be written, as if Ctrl-C came just then."""

    def __setitem__(self, key: Any, value: Any) -> None:
        raise KeyboardInterrupt


def test_an_interrupted_draw_is_repeated() -> None:
    sequence = make_sequence(random_tokens(1, 3), 2, seed=1, logprobs=1)
    logits = np.linspace(0, 1, 73, dtype=np.float32)
    buffer = sequence.buffer
    sequence.buffer = buffer.view(InterruptedBuffer)
    with pytest.raises(KeyboardInterrupt):
        sequence.extend(logits)
    assert sequence.num_tokens == 3
    sequence.buffer = buffer
    sequence.extend(logits)
    assert [entry.token_id for entry in sequence.logprobs] == sequence.generated.tolist()


def test_the_end_of_a_sequence() -> None:
    sequence = make_sequence(random_tokens(1, 3), 2, temperature=0, stop_token_ids=[72])
    assert (sequence.finish_reason, sequence.capacity, sequence.num_pending) == (None, 5, 3)
    sequence.extend(np.linspace(1, 0, 73, dtype=np.float32))
    assert not sequence.is_finished
    sequence.extend(np.linspace(1, 0, 73, dtype=np.float32))
    assert sequence.finish_reason == "length"
    sequence.end_after(1, "stop")
    assert (sequence.generated.tolist(), sequence.finish_reason) == ([0], "stop")


def test_a_stop_token_in_the_prompt_does_not_count() -> None:
    prompt = np.array([72], np.int32)
    sequence = make_sequence(prompt, 2, temperature=0, stop_token_ids=[72])
    assert sequence.finish_reason is None
    sequence.extend(np.linspace(0, 1, 73, dtype=np.float32))
    assert sequence.finish_reason == "stop"
