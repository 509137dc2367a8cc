"""llama.cpp's model file and context, through the C API that llama-cpp-python wraps.

Runs in the peer's own environment. Settings are those of llama-bench and llama-server: batch 2048,
micro-batch 512, mapped weights, automatic flash attention.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import llama_cpp as ll  # type: ignore[import-not-found, unused-ignore]

__all__ = ["BATCH", "LlamaModel", "submit"]

BATCH = 2048
_MICRO_BATCH = 512


@ll.llama_log_callback  # type: ignore[untyped-decorator, misc, unused-ignore]
def _silent(level: int, text: bytes, user: ctypes.c_void_p) -> None:
    """Drop llama.cpp's log: its debug lines would swamp the figures."""


class LlamaModel:
    """A loaded model file."""

    def __init__(self, path: str, threads: int) -> None:
        ll.llama_log_set(_silent, ctypes.c_void_p(0))
        ll.llama_backend_init()
        self._model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
        if self._model is None:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self._file = Path(path).stem
        self._threads = threads
        self.vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self._model))

    def describe(self) -> str:
        """Return name, version, the vector instructions it was built for, and the file."""
        pairs = re.findall(r"(AVX\w+) = 1", ll.llama_print_system_info().decode())
        return f"llama-cpp-python {ll.__version__} ({' '.join(pairs)}), {self._file}"

    def open(self, sequences: int, length: int, *, unified: bool) -> object:
        """Return a context for so many sequences of so many tokens each.

        Args:
            unified: one buffer for all, as shared prefixes need it; else one per sequence.
        """
        params = ll.llama_context_default_params()
        params.kv_unified = unified
        params.n_ctx = length * sequences
        params.n_batch = BATCH
        params.n_ubatch = _MICRO_BATCH
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = self._threads
        context: object = ll.llama_init_from_model(self._model, params)
        if context is None:
            raise SystemExit(f"llama.cpp has no room for {sequences} sequences of {length} tokens")
        return context


def submit(context: object, batch: ll.llama_batch) -> None:
    """Compute a batch and wait for its logits, as a sampler would."""
    status = ll.llama_decode(context, batch)
    if status != 0:
        raise SystemExit(f"llama_decode failed with status {status}")
    ll.llama_synchronize(context)
