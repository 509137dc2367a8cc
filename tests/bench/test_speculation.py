from __future__ import annotations

import pytest

from bench.speculation import answer
from bench.speculation_traces import TRACES
from ryzanstein import LLM
from ryzanstein.speculative.suffix import SuffixProposer


@pytest.mark.parametrize("name", TRACES)
def test_answers_are_said_with_and_without_guesses(name: str) -> None:
    with LLM(threads=1) as plain, LLM(threads=1, speculative="auto") as guessing:
        prompt, said = TRACES[name](plain.tokenizer)[0]
        exchange = prompt, said[:40]
        for llm in (plain, guessing):
            assert list(answer(llm, exchange).token_ids) == exchange[1]
        longest = max(len(p) + len(s) for p, s in TRACES[name](plain.tokenizer))
        assert longest <= plain.context_length


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("code-edit", 0.6, 1.0),
        ("summarise-with-quotes", 0.5, 1.0),
        ("structured", 0.5, 1.0),
        ("unpredictable", 0.0, 0.1),
    ],
)
def test_traces_repeat_themselves_as_their_names_say(name: str, least: float, most: float) -> None:
    """The share of tokens that the suffix automaton has right, one guess at a time."""
    right = total = 0
    with LLM(threads=1) as llm:
        exchanges = TRACES[name](llm.tokenizer)
    for prompt, said in exchanges:
        proposer = SuffixProposer()
        proposer.extend(prompt)
        for token in said:
            right += list(proposer.propose(1).token_ids) == [token]
            proposer.extend([token])
        total += len(said)
    assert least <= right / total <= most
