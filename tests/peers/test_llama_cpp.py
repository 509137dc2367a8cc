"""Files that `convert` writes, in llama.cpp: `pip install llama-cpp-python`, `pytest tests/peers`.

Both compute from the same file, llama.cpp in Q8_0 and this engine from the same codes, both with
activations of 8 bits in blocks of 32. What differs is the order of sums.
"""

from __future__ import annotations

import ctypes
import json
from typing import TYPE_CHECKING

import llama_cpp  # type: ignore[import-not-found, unused-ignore]
import numpy as np
import pytest
from checkpoints import random_tensors, write_checkpoint
from golden.engine import Sequence
from golden.files import relative_error
from golden.specs import SPECS
from support import byte_level

from ryzanstein.convert import convert_model
from ryzanstein.loaders.model_files import DirectoryFiles, open_files
from ryzanstein.models import load_model

if TYPE_CHECKING:
    from pathlib import Path

    from checkpoints import Config
    from numpy.typing import NDArray

_SIZES = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
_SIZES |= {"intermediate_size": 512, "vocab_size": 260, "tie_word_embeddings": True}
# Where llama.cpp decides, what it decides for real models.
_REAL: dict[str, Config] = {
    # Beyond the original context from the first token on, as both engines count.
    "llama_longrope": {
        "rope_scaling": {
            "rope_type": "longrope",
            "short_factor": [1.0 + i / 8 for i in range(32)],
            "long_factor": [1.0 + i * 1.5 for i in range(32)],
        }
    },
    "qwen2": {"use_sliding_window": False},
    "gemma2": {"query_pre_attn_scalar": 64},
    "gemma3": {"query_pre_attn_scalar": 64},
}
# Longer than Gemma's window, as long as Mistral's, in which GGUF says nothing of it.
_PROMPTS = {"mistral": np.arange(1, 13)}
_PROMPT = np.arange(1, 41)
_ROUNDED_ACTIVATIONS = 0.05
_FAMILIES = [
    "llama_dense",
    "llama_longrope",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
]


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator, misc, unused-ignore]
def _silent(level: int, text: bytes, user: ctypes.c_void_p) -> None:
    """Drop llama.cpp's log."""


def theirs(path: Path, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the logits of every token that llama.cpp computes."""
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    model = llama_cpp.llama_model_load_from_file(
        str(path).encode(), llama_cpp.llama_model_default_params()
    )
    assert model, f"llama.cpp cannot load {path}"
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = 64
    options.type_k = options.type_v = 0  # float32
    options.flash_attn_type = 0
    context = llama_cpp.llama_init_from_model(model, options)
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.logits[i] = int(token), i, 1
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
    assert llama_cpp.llama_decode(context, batch) == 0
    size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    rows = (llama_cpp.llama_get_logits_ith(context, i) for i in range(len(tokens)))
    logits = np.stack([np.ctypeslib.as_array(row, (size,)) for row in rows])
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return logits


def compare(config: Config, to: str, tokens: NDArray[np.int64], directory: Path) -> None:
    """Logits are as near as rounded activations leave them, and so are the choices of tokens."""
    model = write_checkpoint(directory / "model", config, random_tensors(config, 1, "F32"))
    tokenizer = json.loads(byte_level().to_str())
    tokenizer["model"]["vocab"]["he"] = 257
    tokenizer["model"]["merges"] = [["h", "e"]]  # without any, llama.cpp refuses a vocabulary
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    path = convert_model(DirectoryFiles(model), directory / "out.gguf", to).path
    ours = Sequence(load_model(open_files(path), threads=2, isa=None), 64).extend(tokens)[1]
    found = theirs(path, tokens)
    assert relative_error(found, ours) < _ROUNDED_ACTIVATIONS
    best = np.sort(ours, axis=1)
    clear = best[:, -1] - best[:, -2] > 2 * np.abs(found - ours).max()
    assert clear.sum() > len(tokens) // 3
    assert np.array_equal(found.argmax(axis=1)[clear], ours.argmax(axis=1)[clear])


@pytest.mark.parametrize("to", ["q8_0", "q4_0"])
@pytest.mark.parametrize("name", _FAMILIES)
def test_dense_families(name: str, to: str, tmp_path: Path) -> None:
    config = next(spec.config for spec in SPECS if spec.name == name)
    config = config | _SIZES | _REAL.get(name, {})
    compare(config, to, _PROMPTS.get(name, _PROMPT), tmp_path)


@pytest.mark.parametrize("to", ["tq2_0", "tq1_0", "q8_0", "q4_0"])
@pytest.mark.parametrize("name", ["llama_divide", "bitnet_1bitllm"])
def test_ternary_families(name: str, to: str, tmp_path: Path) -> None:
    config = next(spec.config for spec in SPECS if spec.name == name)
    compare(config | _SIZES, to, _PROMPT, tmp_path)
