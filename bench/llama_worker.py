"""A worker that times llama.cpp through the C API that llama-cpp-python wraps.

Runs in the peer's own environment; `bench.peers` starts it. Settings are those of llama-bench:
batch 2048, micro-batch 512, mapped weights, automatic flash attention.
"""

from __future__ import annotations

import argparse
import ctypes
import re
from pathlib import Path

import llama_cpp as ll  # type: ignore[import-not-found, unused-ignore]

from bench.worker import Job, random_tokens, serve

_BATCH = 2048
_MICRO_BATCH = 512


@ll.llama_log_callback  # type: ignore[untyped-decorator, misc, unused-ignore]
def _silent(level: int, text: bytes, user: ctypes.c_void_p) -> None:
    """Drop llama.cpp's log: its debug lines would swamp the figures."""


class LlamaCpp:
    """llama.cpp on one model file."""

    def __init__(self, path: str, threads: int) -> None:
        ll.llama_log_set(_silent, ctypes.c_void_p(0))
        ll.llama_backend_init()
        model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
        if model is None:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self._model = model
        self._file = Path(path).stem
        self._threads = threads
        self._vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
        self._prepared: Job | None = None
        self._context: int | None = None

    def describe(self) -> str:
        """Return name, version, the vector instructions it was built for, and the file."""
        pairs = re.findall(r"(AVX\w+) = 1", ll.llama_print_system_info().decode())
        return f"llama-cpp-python {ll.__version__} ({' '.join(pairs)}), {self._file}"

    def prepare(self, job: Job) -> None:
        """Bring the cache to the depth: fill one sequence and share it, or drop a run's tokens."""
        if job == self._prepared:
            memory = ll.llama_get_memory(self._context)
            for sequence in range(job.sequences):
                ll.llama_memory_seq_rm(memory, sequence, job.depth, -1)
            return
        self._open(job)
        memory = ll.llama_get_memory(self._context)
        for begin in range(0, job.depth, _BATCH):
            self._decode(min(_BATCH, job.depth - begin))
        for sequence in range(1, job.sequences if job.depth else 1):
            ll.llama_memory_seq_cp(memory, 0, sequence, -1, -1)

    def run(self, job: Job) -> None:
        """Process the tokens; every decode step waits for its logits, as a sampler would."""
        if job.sequences == 1:
            for begin in range(0, job.prompt, _BATCH):
                self._decode(min(_BATCH, job.prompt - begin))
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
        params = ll.llama_context_default_params()
        # Shared depth needs one unified buffer; then n_ctx is the total over the sequences.
        params.kv_unified = job.sequences > 1
        length = job.depth + job.prompt + job.generate
        params.n_ctx = length * job.sequences
        params.n_batch = _BATCH
        params.n_ubatch = _MICRO_BATCH
        params.n_seq_max = job.sequences
        params.n_threads = params.n_threads_batch = self._threads
        self._context = ll.llama_init_from_model(self._model, params)
        self._prepared = job

    def _decode(self, count: int) -> None:
        tokens = (ll.llama_token * count)(*random_tokens(count, self._vocab))
        self._submit(ll.llama_batch_get_one(tokens, count))

    def _decode_many(self, position: int, count: int, sequences: int) -> None:
        """Decode `count` tokens of each sequence from `position` on, logits for each last one."""
        batch = ll.llama_batch_init(count * sequences, 0, 1)
        batch.n_tokens = count * sequences
        tokens = random_tokens(count * sequences, self._vocab)
        for index in range(count * sequences):
            sequence, offset = divmod(index, count)
            batch.token[index] = tokens[index]
            batch.pos[index] = position + offset
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = offset == count - 1
        self._submit(batch)
        ll.llama_batch_free(batch)

    def _submit(self, batch: ll.llama_batch) -> None:
        status = ll.llama_decode(self._context, batch)
        if status != 0:
            raise SystemExit(f"llama_decode failed with status {status}")
        ll.llama_synchronize(self._context)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.llama_worker", description=__doc__)
    parser.add_argument("gguf", help="the model file")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    serve(LlamaCpp(args.gguf, args.threads))


if __name__ == "__main__":
    main()
