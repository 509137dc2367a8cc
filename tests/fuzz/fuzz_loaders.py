"""Coverage-guided fuzzing of what reads model files, with atheris.

Each input is a file's bytes: it either loads and steps, or raises a RyzansteinError. A crash, any
other exception, a second of work or a gigabyte of memory ends the run with the input that did it.

Examples:
  python tests/fuzz/fuzz_loaders.py gguf --seconds 30
  python tests/fuzz/fuzz_loaders.py safetensors --input crash-0123456789abcdef
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

with atheris.instrument_imports(include=["ryzanstein"]):
    import ryzanstein.loaders.gguf_files
    import ryzanstein.models  # noqa: F401

import numpy as np
from gguf_bytes import GgufBytes
from gguf_models import BITNET, LLAMA, TernaryModel
from golden.engine import Sequence

from ryzanstein.chat_template import ChatTemplate
from ryzanstein.errors import RyzansteinError
from ryzanstein.loaders.model_files import open_files
from ryzanstein.models import inspect_tensors, load_model
from ryzanstein.sampling.presets import read_defaults
from ryzanstein.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

_TINY = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "vocab_size": 16,
    "max_position_embeddings": 64,
}
_BITNET, _LLAMA = TernaryModel(BITNET | _TINY), TernaryModel(LLAMA | _TINY)
_TOKENS = ["<unk>", "<s>", "</s>", *"abcdefghij", "ab", "abc", "\u2581a"]
_BYTE_LEVEL = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "llama-bpe",
    "tokenizer.ggml.tokens": _TOKENS,
    "tokenizer.ggml.token_type": [2, 3, 3] + [1] * 13,
    "tokenizer.ggml.merges": ["a b", "ab c"],
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.chat_template": "{{ messages[0]['content'] }}",
}
_SENTENCE_PIECE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": _TOKENS,
    "tokenizer.ggml.scores": [0.0] * 13 + [-1.0, -2.0, -3.0],
    "tokenizer.ggml.token_type": [2, 3, 3] + [1] * 13,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}


def load(path: Path) -> None:
    """Read all that a file holds, build the model, and compute two tokens."""
    with suppress(RyzansteinError):
        files = open_files(path)
        inspect_tensors(files)
        with suppress(RyzansteinError):
            tokenizer = Tokenizer.from_files(files)
            ChatTemplate.from_files(files, tokenizer.special_tokens)
            read_defaults(files)
        model = load_model(files, threads=1, isa=None)
        Sequence(model, 2).extend(np.array([0, 1]) % model.config.vocab_size)


def gguf(directory: Path) -> tuple[Callable[[bytes], None], list[bytes]]:
    """Return what to do with a GGUF file's bytes, and sound ones to start from."""
    path = directory / "model.gguf"

    def target(data: bytes) -> None:
        path.unlink(missing_ok=True)  # the old bytes may still be mapped
        path.write_bytes(data)
        load(path)

    bitnets = [_BITNET.gguf(kind, "bitnet-b1.58") for kind in ("I2_S", "IQ1_BN")]
    llamas = [_LLAMA.gguf(kind, "llama") for kind in ("I2_S", "IQ2_BN")]
    seeds = [with_tokenizer(seed, _BYTE_LEVEL) for seed in bitnets]
    seeds += [with_tokenizer(seed, _SENTENCE_PIECE) for seed in llamas]
    return target, [seed.serialize() for seed in seeds]


def with_tokenizer(content: GgufBytes, tokenizer: dict[str, Any]) -> GgufBytes:
    return GgufBytes({**content.metadata, **tokenizer}, content.tensors)


def safetensors(directory: Path) -> tuple[Callable[[bytes], None], list[bytes]]:
    """Return what to do with a safetensors file's bytes, and sound ones to start from."""
    packed = _BITNET.write_huggingface(directory / "packed", masters=False)
    masters = _BITNET.write_huggingface(directory / "masters", masters=True)
    seeds = [(place / "model.safetensors").read_bytes() for place in (packed, masters)]

    def target(data: bytes) -> None:
        for place in (packed, masters):
            path = place / "model.safetensors"
            path.unlink(missing_ok=True)
            path.write_bytes(data)
            load(place)

    return target, seeds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("format", choices=["gguf", "safetensors"])
    parser.add_argument("--seconds", type=int, default=30, help="how long (default: 30)")
    parser.add_argument("--input", type=Path, help="only this input, which an earlier run left")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="ryzanstein-fuzz-"))
    target, seeds = {"gguf": gguf, "safetensors": safetensors}[args.format](directory)
    if args.input is not None:
        target(args.input.read_bytes())
        return
    corpus = directory / "corpus"
    corpus.mkdir()
    for index, seed in enumerate(seeds):
        (corpus / str(index)).write_bytes(seed)
        target(seed)
    longest = 2 * max(len(seed) for seed in seeds)
    limits = [f"-max_total_time={args.seconds}", "-timeout=1", "-rss_limit_mb=1024"]
    atheris.Setup([sys.argv[0], *limits, f"-max_len={longest}", str(corpus)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
