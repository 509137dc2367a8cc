"""From the words of SamplingParams to tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ryzanstein.sampling.params import SamplingParams

__all__ = ["NO_WORDS", "Vocabulary", "Words", "find_words"]


class Vocabulary(Protocol):
    """What of a tokenizer is needed."""

    @property
    def token_texts(self) -> Sequence[str]:
        """Return the text of each token by itself."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return token ids."""
        ...


@dataclass(frozen=True, slots=True)
class Words:
    """Words of SamplingParams in one model's tokens.

    Args:
        bad: the ways to write each of `bad_words`.
        breakers: tokens with one of `dry_sequence_breakers` in their text, ascending.
    """

    bad: tuple[tuple[int, ...], ...] = ()
    breakers: tuple[int, ...] = ()


NO_WORDS = Words()


def find_words(params: SamplingParams, vocabulary: Vocabulary) -> Words:
    """Return the words that `params` names.

    As vLLM does, a bad word counts as it stands and after a space, the latter where only the first
    token differs.
    """
    bad: list[tuple[int, ...]] = []
    for word in params.bad_words:
        plain = vocabulary.encode(word.lstrip() or word, add_special_tokens=False)
        spaced = vocabulary.encode(" " + word.lstrip(), add_special_tokens=False)
        bad.append(tuple(plain))
        if len(spaced) == len(plain) and spaced[0] != plain[0]:
            bad.append(tuple(spaced))
    breakers: tuple[int, ...] = ()
    if params.dry_multiplier > 0.0:
        breakers = tuple(
            token
            for token, text in enumerate(vocabulary.token_texts)
            if any(breaker in text for breaker in params.dry_sequence_breakers)
        )
    return Words(tuple(bad), breakers)
