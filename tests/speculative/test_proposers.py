from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryzanstein.errors import ValidationError
from ryzanstein.speculative.ngram import NgramProposer
from ryzanstein.speculative.suffix import SuffixProposer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ryzanstein.speculative.proposer import Proposer

TEXTS = st.lists(st.integers(0, 3), max_size=60)


def fed(proposer: Proposer, text: Sequence[int], chunk: int) -> Proposer:
    for start in range(0, len(text), chunk):
        proposer.extend(text[start : start + chunk])
    return proposer


def expected_ngram(text: list[int], lengths: Sequence[int], count: int) -> list[int]:
    """Return what follows the latest earlier occurrence of the longest end, by looking."""
    for length in lengths:
        end = text[len(text) - length :]
        for start in range(len(text) - length - 1, -1, -1):
            if len(end) == length and text[start : start + length] == end:
                return text[start + length : start + length + count]
    return []


@given(TEXTS, st.integers(1, 8), st.integers(1, 5))
def test_ngram_against_a_scan(text: list[int], count: int, chunk: int) -> None:
    draft = fed(NgramProposer(2, 4), text, chunk).propose(count)
    assert list(draft.token_ids) == expected_ngram(text, (4, 3, 2), count)
    assert len(draft.probabilities) == len(draft.token_ids)


def repeated_end(text: list[int]) -> int:
    """Return the length of the longest end of the text that occurs in it elsewhere."""
    for length in range(len(text) - 1, 0, -1):
        end = text[len(text) - length :]
        if any(text[i : i + length] == end for i in range(len(text) - length)):
            return length
    return 0


def followers(text: list[int], end: list[int]) -> Counter[int]:
    n = len(end)
    return Counter(text[i + n] for i in range(len(text) - n) if text[i : i + n] == end)


@given(TEXTS, st.integers(1, 5))
def test_suffix_against_a_scan(text: list[int], chunk: int) -> None:
    draft = fed(SuffixProposer(min_length=2), text, chunk).propose(6)
    matched = repeated_end(text)
    if matched < 2:
        assert list(draft.token_ids) == []
        return
    assert draft.evidence == matched
    context = text[len(text) - matched :]
    for token, probability in zip(draft.token_ids, draft.probabilities, strict=True):
        counts = followers(text, context)
        while not counts:  # the context is where the text ends
            context = context[1:]
            counts = followers(text, context)
        assert counts[token] == max(counts.values())
        assert probability == pytest.approx(counts[token] / counts.total())
        context.append(token)


def test_suffix_prefers_what_is_frequent_to_what_is_recent() -> None:
    proposer = SuffixProposer(min_length=2)
    proposer.extend([1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2])
    draft = proposer.propose(1)
    assert list(draft.token_ids) == [3]
    assert draft.probabilities[0] == pytest.approx(2 / 3)


def test_suffix_of_a_text_that_never_ends_costs_no_more_per_token() -> None:
    proposer = SuffixProposer()
    proposer.extend([7] * 20_000)
    assert list(proposer.propose(4).token_ids) == [7] * 4


@pytest.mark.parametrize("proposer", [NgramProposer(), SuffixProposer()])
def test_nothing_known_gives_no_draft(proposer: Proposer) -> None:
    assert list(proposer.propose(4).token_ids) == []
    proposer.extend([1, 2, 3])
    assert list(proposer.propose(4).token_ids) == []


def test_lengths_are_checked() -> None:
    with pytest.raises(ValidationError, match="min_length"):
        NgramProposer(0, 2)
    with pytest.raises(ValidationError, match="max_length"):
        NgramProposer(3, 2)
    with pytest.raises(ValidationError, match="min_length"):
        SuffixProposer(0)
