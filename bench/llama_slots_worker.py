"""A worker that replays traces on llama.cpp as llama-server would; `bench.concurrency` starts it.

`bench.llama_slots` says what goes into a batch, the library computes it, and the next token is that
with the highest logit. Each slot has a cache of its own, as in llama-server where `--parallel` is
given; one for all was as fast. HTTP, JSON and text, a server's other work, are left out.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import llama_cpp as ll  # type: ignore[import-not-found, unused-ignore]
import numpy as np

from bench.concurrency_traces import Request, Timeline, length, make_prompts
from bench.llama_library import BATCH, LlamaModel, submit
from bench.llama_slots import Slots
from bench.worker import answer_lines

if TYPE_CHECKING:
    from bench.llama_slots import Entry


class _Server:
    def __init__(self, model: LlamaModel) -> None:
        self._model = model
        self._batch = ll.llama_batch_init(BATCH, 0, 1)

    def replay(self, job: dict[str, Any]) -> dict[str, Any]:
        trace = tuple(Request(**fields) for fields in job["trace"])
        prompts = make_prompts(trace, self._model.vocab, job["seed"])
        context = self._model.open(len(trace), length(trace), unified=False)
        slots = Slots(BATCH)
        timeline = Timeline(trace)
        while True:
            for index in timeline.arrive():
                slots.start(index, prompts[index], trace[index].generate)
            entries = slots.next_batch()
            if not entries:
                break
            drawn = self._compute(context, entries)
            slots.accept(drawn)
            for index in drawn:
                timeline.add(index, 1)
        ll.llama_free(context)
        return timeline.to_json()

    def _compute(self, context: object, entries: list[Entry]) -> dict[int, int]:
        """Return slot -> next token for the slots that get one."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for i, entry in enumerate(entries):
            batch.token[i] = entry.token
            batch.pos[i] = entry.position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = entry.slot
            batch.logits[i] = entry.wants_logits
        submit(context, batch)
        return {
            entry.slot: self._likeliest(context, i)
            for i, entry in enumerate(entries)
            if entry.wants_logits
        }

    def _likeliest(self, context: object, row: int) -> int:
        logits = ll.llama_get_logits_ith(context, row)
        return int(np.ctypeslib.as_array(logits, (self._model.vocab,)).argmax())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.llama_slots_worker", description=__doc__)
    parser.add_argument("gguf", help="the model file")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    model = LlamaModel(args.gguf, args.threads)
    answer_lines(model.describe(), _Server(model).replay)


if __name__ == "__main__":
    main()
