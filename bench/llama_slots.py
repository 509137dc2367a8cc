"""What llama-server computes next, without the library that computes it.

This mirrors `update_slots` of llama.cpp's tools/server/server-context.cpp at the release that
llama-cpp-python 0.3.36 wraps, with continuous batching and without what these traces lack (draft
models, adapters, images, checkpoints of recurrent states):

* each request has a slot; a batch takes one token of every slot that generates,
* then, slot by slot, tokens of prompts until it has `n_batch` of them,
* every slot whose prompt is complete, or that generates, gets its token once the batch is through.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Entry", "Slots"]


class Entry(NamedTuple):
    """A token of a batch; `wants_logits` if the slot's next token is drawn behind it."""

    token: int
    position: int
    slot: int
    wants_logits: bool


@dataclass(slots=True)
class _Slot:
    prompt: list[int]
    to_come: int
    computed: int = 0
    sampled: list[int] = field(default_factory=list)


class Slots:
    """The slots of a server.

    Args:
        n_batch: tokens of a batch.
    """

    def __init__(self, n_batch: int) -> None:
        self._n_batch = n_batch
        self._slots: dict[int, _Slot] = {}

    def start(self, slot: int, prompt: list[int], generate: int) -> None:
        """Give a free slot a request."""
        self._slots[slot] = _Slot(prompt, generate)
        self._slots = dict(sorted(self._slots.items()))

    def next_batch(self) -> list[Entry]:
        """Return the tokens to compute next; none if no slot has a request."""
        batch = []
        for number, slot in self._slots.items():
            if slot.sampled:
                batch.append(Entry(slot.sampled[-1], slot.computed, number, True))
                slot.computed += 1
        for number, slot in self._slots.items():
            end = min(len(slot.prompt), slot.computed + self._n_batch - len(batch))
            for position in range(slot.computed, end):
                last = position == len(slot.prompt) - 1
                batch.append(Entry(slot.prompt[position], position, number, last))
            slot.computed = max(slot.computed, end)
        return batch

    def accept(self, drawn: Mapping[int, int]) -> None:
        """Append a token to each of these slots; a slot that has all it wants is free again."""
        for number, token in drawn.items():
            slot = self._slots[number]
            slot.sampled.append(token)
            slot.to_come -= 1
            if slot.to_come == 0:
                del self._slots[number]
