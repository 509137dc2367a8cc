"""What to time, named as llama-bench names it.

`pp512` is a prompt of 512 tokens, `tg64` 64 tokens decoded one after the other; `@d2048` puts 2048
tokens in the cache first, `xb8` runs 8 sequences at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Workload"]

_NAME = re.compile(r"(pp|tg)([1-9]\d*)(?:@d(\d+))?(?:xb([1-9]\d*))?")


@dataclass(frozen=True, slots=True)
class Workload:
    """One test: either a prompt or a number of decode steps."""

    prompt: int
    generate: int
    depth: int = 0
    sequences: int = 1

    @classmethod
    def parse(cls, name: str) -> Workload:
        """Return the workload that `name` stands for, as in ``tg64@d2048xb8``.

        Raises:
            ValueError: not such a name.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"test {name!r} is not of the form pp512, tg64, tg64@d2048 or tg64xb8")
        kind, count, depth, sequences = match.groups()
        prompt = int(count) if kind == "pp" else 0
        generate = int(count) if kind == "tg" else 0
        return cls(prompt, generate, int(depth or 0), int(sequences or 1))

    @property
    def name(self) -> str:
        """Return the canonical name."""
        kind = f"pp{self.prompt}" if self.prompt else f"tg{self.generate}"
        depth = f"@d{self.depth}" if self.depth else ""
        return kind + depth + (f"xb{self.sequences}" if self.sequences > 1 else "")

    @property
    def tokens(self) -> int:
        """Return how many tokens the timed part processes, over all sequences."""
        return (self.prompt + self.generate) * self.sequences

    @property
    def length(self) -> int:
        """Return the tokens of one sequence at the end."""
        return self.depth + self.prompt + self.generate
