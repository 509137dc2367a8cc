"""A worker that times llama.cpp through the C API that llama-cpp-python wraps.

Runs in the peer's own environment; `bench.peers` starts it.
"""

from __future__ import annotations

import argparse

import llama_cpp as ll  # type: ignore[import-not-found, unused-ignore]

from bench.llama_library import BATCH, LlamaModel, submit
from bench.worker import Job, random_tokens, serve


class LlamaCpp:
    """llama.cpp on one model file."""

    def __init__(self, path: str, threads: int) -> None:
        self._model = LlamaModel(path, threads)
        self._prepared: Job | None = None
        self._context: object = None

    def describe(self) -> str:
        """As `LlamaModel.describe`."""
        return self._model.describe()

    def prepare(self, job: Job) -> None:
        """Bring the cache to the depth: fill one sequence and share it, or drop a run's tokens."""
        if job == self._prepared:
            memory = ll.llama_get_memory(self._context)
            for sequence in range(job.sequences):
                ll.llama_memory_seq_rm(memory, sequence, job.depth, -1)
            return
        self._open(job)
        memory = ll.llama_get_memory(self._context)
        for begin in range(0, job.depth, BATCH):
            self._decode(min(BATCH, job.depth - begin))
        for sequence in range(1, job.sequences if job.depth else 1):
            ll.llama_memory_seq_cp(memory, 0, sequence, -1, -1)

    def run(self, job: Job) -> None:
        """Process the tokens; every decode step waits for its logits, as a sampler would."""
        if job.sequences == 1:
            for begin in range(0, job.prompt, BATCH):
                self._decode(min(BATCH, job.prompt - begin))
            for _ in range(job.generate):
                self._decode(1)
        elif job.prompt:
            self._decode_many(job.depth, job.prompt, job.sequences)
        else:
            for step in range(job.generate):
                self._decode_many(job.depth + step, 1, job.sequences)

    def _open(self, job: Job) -> None:
        if self._context is not None:
            ll.llama_free(self._context)
        length = job.depth + job.prompt + job.generate
        # Shared depth needs one unified buffer.
        self._context = self._model.open(job.sequences, length, unified=job.sequences > 1)
        self._prepared = job

    def _decode(self, count: int) -> None:
        tokens = (ll.llama_token * count)(*random_tokens(count, self._model.vocab))
        submit(self._context, ll.llama_batch_get_one(tokens, count))

    def _decode_many(self, position: int, count: int, sequences: int) -> None:
        """Decode `count` tokens of each sequence from `position` on, logits for each last one."""
        batch = ll.llama_batch_init(count * sequences, 0, 1)
        batch.n_tokens = count * sequences
        tokens = random_tokens(count * sequences, self._model.vocab)
        for index in range(count * sequences):
            sequence, offset = divmod(index, count)
            batch.token[index] = tokens[index]
            batch.pos[index] = position + offset
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = offset == count - 1
        submit(self._context, batch)
        ll.llama_batch_free(batch)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.llama_worker", description=__doc__)
    parser.add_argument("gguf", help="the model file")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    serve(LlamaCpp(args.gguf, args.threads))


if __name__ == "__main__":
    main()
