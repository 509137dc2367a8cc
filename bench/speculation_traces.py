"""Traces for speculative decoding: prompts, and the answers that a capable model would write."""

from __future__ import annotations

import argparse
import heapq
import inspect
import json
import shlex
import textwrap
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from ryzanstein.tokenizer import Tokenizer

__all__ = ["TRACES", "Exchange"]

# (prompt, answer) as token ids.
Exchange = tuple[list[int], list[int]]


def _exchange(tokenizer: Tokenizer, prompt: str, answer: str) -> Exchange:
    return tokenizer.encode(prompt), tokenizer.encode(answer, add_special_tokens=False)


def code_edit(tokenizer: Tokenizer) -> list[Exchange]:
    """Return functions of the standard library, to be repeated with a name changed."""
    edits = [
        (heapq._siftup, "childpos", "child"),  # type: ignore[attr-defined]
        (textwrap.dedent, "margin", "common"),
        (textwrap.indent, "predicate", "wanted"),
        (shlex.join, "split_command", "words"),
        (shlex.quote, "s", "word"),
    ]
    exchanges = []
    for function, old, new in edits:
        source = inspect.getsource(function)
        words = [new if word == old else word for word in _words(source)]
        prompt = f"{source}\n# The same with {old} renamed to {new}:\n"
        exchanges.append(_exchange(tokenizer, prompt, "".join(words)))
    return exchanges


def quotes(tokenizer: Tokenizer) -> list[Exchange]:
    """Return documentation, to be summarised with every other sentence quoted."""
    exchanges = []
    documents = (heapq.__about__, textwrap.TextWrapper.__doc__, json.__doc__, argparse.__doc__)
    for document in documents:
        text = " ".join((document or "").split())[:1500]
        sentences = text.split(". ")
        answer = "".join(
            f'{opening} "{sentence}." '
            for opening, sentence in zip(
                ("The text begins:", "Then it explains:", "It also says:", "It adds:") * 4,
                sentences[::2],
                strict=False,
            )
        )
        prompt = f"{text}\n\nSummary, with quotes:\n"
        exchanges.append(_exchange(tokenizer, prompt, answer))
    return exchanges


def structured(tokenizer: Tokenizer) -> list[Exchange]:
    """Return tables, to be written as JSON."""
    rng = np.random.default_rng(0)
    names = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath")
    exchanges = []
    for _ in range(4):
        rows = [
            {
                "name": str(rng.choice(names)),
                "identifier": int(rng.integers(100, 999)),
                "status": str(rng.choice(["open", "closed"])),
                "quantity": int(rng.integers(1, 99)),
            }
            for _ in range(10)
        ]
        table = "\n".join(",".join(str(value) for value in row.values()) for row in rows)
        prompt = f"name,identifier,status,quantity\n{table}\n\nAs JSON:\n"
        exchanges.append(_exchange(tokenizer, prompt, json.dumps(rows, indent=2)))
    return exchanges


def unpredictable(tokenizer: Tokenizer) -> list[Exchange]:
    """Return random tokens behind random tokens."""
    rng = np.random.default_rng(0)
    return [
        (
            rng.integers(3, tokenizer.vocab_size, 200).tolist(),
            rng.integers(3, tokenizer.vocab_size, 250).tolist(),
        )
        for _ in range(4)
    ]


def _words(source: str) -> list[str]:
    """Cut into identifiers and what is between them."""
    words = [""]
    for character in source:
        inside = words[-1][-1:].isidentifier() or words[-1][-1:].isdigit()
        if words[-1] and inside != (character.isidentifier() or character.isdigit()):
            words.append("")
        words[-1] += character
    return words


TRACES: dict[str, Callable[[Tokenizer], list[Exchange]]] = {
    "code-edit": code_edit,
    "summarise-with-quotes": quotes,
    "structured": structured,
    "unpredictable": unpredictable,
}
