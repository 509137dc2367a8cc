"""Train the byte-level BPE tokenizer on the training side of the corpus, and encode with it.

One special token, ``<|endoftext|>``, opens every file and so also ends the one before it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from training.corpus import Document, read_jsonl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
VOCAB_SIZE = 4096

# Line breaks take the indentation after them along: in Python the two mean one thing, and a deeply
# indented block costs one token instead of several. A word takes one sign before it (".append").
SPLIT_PATTERN = (
    r"\n+[ ]*|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|[^\S\n]+(?=\n|$)|\s"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """Train a byte-level BPE of ``vocab_size`` entries; every byte has an entry of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A $B",
        special_tokens=[(END_OF_TEXT, END_OF_TEXT_ID)],
    )
    return tokenizer


def encode_documents(tokenizer: Tokenizer, documents: list[Document]) -> NDArray[np.uint16]:
    """All documents in one stream, each opened by the document token: uint16[tokens]."""
    encodings = tokenizer.encode_batch([d.text for d in documents])
    parts = [np.asarray(e.ids, dtype=np.uint16) for e in encodings]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint16)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="train the tokenizer and encode the corpus")
    parser.add_argument("--data", type=Path, default=Path(".data"), help="folder of corpus.py")
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE, help="entries in all")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    train = read_jsonl(args.data / "train.jsonl")
    held_out = read_jsonl(args.data / "held_out.jsonl")
    tokenizer = train_tokenizer((d.text for d in train), args.vocab_size)
    tokenizer.save(str(args.data / "tokenizer.json"))
    summary = {}
    for name, side in (("train", train), ("held_out", held_out)):
        ids = encode_documents(tokenizer, side)
        np.save(args.data / f"{name}.npy", ids)
        text_bytes = sum(len(d.text.encode()) for d in side)
        summary[name] = {"tokens": len(ids), "bytes_per_token": round(text_bytes / len(ids), 3)}
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
