"""What speculative decoding saves: traces with and without it, in turns.

A small model does not follow instructions, so a logits processor has it say each trace's answer;
both runs pay for that. Steps, guesses and draws are those of any generation.

    python -m bench.speculation
    python -m bench.speculation --model 2b-4t --source ngram --tokens 120
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import TYPE_CHECKING

from bench.speculation_traces import TRACES
from ryzanstein import LLM, SamplingParams

if TYPE_CHECKING:
    from bench.speculation_traces import Exchange
    from ryzanstein import Completion
    from ryzanstein._core import F32Array, I32Array

__all__ = ["answer"]

_SURE = 100.0  # added to the logit of the token that comes next


def answer(llm: LLM, exchange: Exchange) -> Completion:
    """Return a completion that says the exchange's answer."""
    prompt, said = exchange

    def say(tokens: I32Array, logits: F32Array) -> None:
        logits[said[len(tokens) - len(prompt)]] += _SURE

    params = SamplingParams(
        max_tokens=len(said), temperature=0, ignore_eos=True, logits_processor=say
    )
    completion = llm.generate(prompt, params)
    assert list(completion.token_ids) == said
    return completion


def _show(name: str, exchanges: list[Exchange], plain: LLM, guessing: LLM, turns: int) -> None:
    decoding: list[float] = []
    whole: list[float] = []
    checked = right = 0
    for turn in range(turns + 1):
        seconds = {plain: [0.0, 0.0], guessing: [0.0, 0.0]}
        for i, exchange in enumerate(exchanges):
            order = (plain, guessing) if (turn + i) % 2 else (guessing, plain)
            for llm in order:
                timings = answer(llm, exchange).timings
                seconds[llm][0] += timings.total_s - timings.time_to_first_token_s
                seconds[llm][1] += timings.total_s
                checked += timings.drafted_tokens
                right += timings.accepted_tokens
        if turn == 0:  # T(n) is learnt, pages are touched
            checked = right = 0
            continue
        decoding.append(seconds[plain][0] / seconds[guessing][0])
        whole.append(seconds[plain][1] / seconds[guessing][1])
    tokens = turns * sum(len(said) for _, said in exchanges)
    print(
        f"| {name} | {median(decoding):.2f}x | {min(decoding):.2f}-{max(decoding):.2f} | "
        f"{median(whole):.2f}x | {checked / tokens:.2f} | {right / max(1, checked):.0%} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.speculation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", help="directory or GGUF file (default: the embedded model)")
    parser.add_argument("--source", default="auto", help="of guesses: ngram, suffix or auto")
    parser.add_argument("--tokens", type=int, default=400, help="of each answer, at most")
    parser.add_argument("--turns", type=int, default=7, help="timed pairs per trace")
    parser.add_argument("--threads", type=int, help="to compute with")
    args = parser.parse_args()
    print("| trace | decoding | of the turns | with the prompt | checked per token | right |")
    print("| --- | --- | --- | --- | --- | --- |")
    options = {"threads": args.threads, "prefix_cache": False}
    with (
        LLM(args.model, **options) as plain,
        LLM(args.model, **options, speculative=args.source) as guessing,
    ):
        for name, make in TRACES.items():
            exchanges = [(prompt, said[: args.tokens]) for prompt, said in make(plain.tokenizer)]
            _show(name, exchanges, plain, guessing, args.turns)


if __name__ == "__main__":
    main()
