"""Held-out bits per byte, beside what ``xz -9`` needs for the same text.

The rule: a file is the document token, its tokens, and the document token again. All but the first
are predicted, in windows of ``--window`` tokens that do not overlap: nothing is carried over from
one window to the next. The sum of -log2 p over all files is divided by their UTF-8 bytes. All
arithmetic is float32.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional

from training.corpus import Document, read_jsonl
from training.export import load_exported
from training.model import BitNet, set_compute_dtype
from training.tokenizer import END_OF_TEXT_ID
from training.train import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


def windows(ids: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Cut one document so that each token but the first is predicted exactly once."""
    for begin in range(0, len(ids) - 1, size):
        yield ids[begin : begin + size + 1]


@torch.no_grad()
def window_bits(model: BitNet, window: NDArray[np.int64]) -> float:
    """Sum of -log2 p of the tokens of one window after its first."""
    ids = torch.from_numpy(window)[None].to(model.cos.device)
    logits = model(ids[:, :-1]).float()
    nats = functional.cross_entropy(logits[0], ids[0, 1:], reduction="sum")
    return float(nats) / math.log(2)


def bits_per_byte(
    model: BitNet, tokenizer: Tokenizer, documents: list[Document], window: int
) -> float:
    """The model's figure by the rule above."""
    set_compute_dtype(torch.float32)
    model.eval()
    bits, size = 0.0, 0
    for document in documents:
        body = tokenizer.encode(document.text, add_special_tokens=False).ids
        ids = np.asarray([END_OF_TEXT_ID, *body, END_OF_TEXT_ID], dtype=np.int64)
        bits += sum(window_bits(model, w) for w in windows(ids, window))
        size += len(document.text.encode())
    return bits / size


def xz_bits_per_byte(documents: list[Document]) -> tuple[float, float]:
    """``xz -9`` over all files as one stream, and file by file."""
    texts = [d.text.encode() for d in documents]
    whole = b"".join(texts)
    alone = sum(len(lzma.compress(t, preset=9)) for t in texts)
    return 8 * len(lzma.compress(whole, preset=9)) / len(whole), 8 * alone / len(whole)


def load_any(path: Path, device: str) -> BitNet:
    """A checkpoint file of train.py or a directory of export.py."""
    model = load_exported(path) if path.is_dir() else load(path).model
    model.to(device)
    return model


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="held-out bits per byte of models and of xz -9")
    parser.add_argument("models", type=Path, nargs="*", help="checkpoints or exported directories")
    parser.add_argument("--data", type=Path, default=Path(".data"), help="folder of the corpus")
    parser.add_argument("--window", type=int, default=1024, help="tokens predicted per window")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    documents = read_jsonl(args.data / "held_out.jsonl")
    tokenizer = Tokenizer.from_file(str(args.data / "tokenizer.json"))
    whole, alone = xz_bits_per_byte(documents)
    result = {"xz -9, one stream": round(whole, 4), "xz -9, file by file": round(alone, 4)}
    for path in args.models:
        figure = bits_per_byte(load_any(path, device), tokenizer, documents, args.window)
        result[str(path)] = round(figure, 4)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
