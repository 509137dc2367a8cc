from __future__ import annotations

import numpy as np
from support import make_sequence, random_tokens


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
