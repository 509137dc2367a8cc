"""What speculative decoding saves: traces with and without it, in turns.

A small model does not follow instructions, so a logits processor has it say each trace's answer;
both runs pay for that. It has to see every logit, where "exact" heads screen them otherwise: of
large models, "int8" reads about as much per step as an exact head does without a processor. Steps,
guesses and draws are those of any generation. The traces are in the embedded model's tokens, which
stand for those of any shape.

    python -m bench.speculation
    python -m bench.speculation --model ~/2b-4t --lm-head int8 --tokens 120 --turns 3
    python -m bench.speculation --traces code-edit structured --source ngram
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import TYPE_CHECKING, Any, get_args

from bench.speculation_traces import TRACES
from ryzanstein import LLM, SamplingParams
from ryzanstein.config import HeadKind
from ryzanstein.loaders.hub import resolve_model
from ryzanstein.loaders.model_files import open_files
from ryzanstein.tokenizer import Tokenizer

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
    heads = get_args(HeadKind)
    parser.add_argument(
        "--lm-head", choices=heads, default="exact", help="of both (default: exact)"
    )
    names = list(TRACES)
    parser.add_argument("--traces", nargs="+", choices=names, default=names, help="to run")
    parser.add_argument("--source", default="auto", help="of guesses: ngram, suffix or auto")
    parser.add_argument("--tokens", type=int, default=400, help="of each answer, at most")
    parser.add_argument("--turns", type=int, default=7, help="timed pairs per trace")
    parser.add_argument("--threads", type=int, help="to compute with")
    args = parser.parse_args()
    print("| trace | decoding | of the turns | with the prompt | checked per token | right |")
    print("| --- | --- | --- | --- | --- | --- |")
    options: dict[str, Any] = {
        "threads": args.threads,
        "lm_head": args.lm_head,
        "prefix_cache": False,
    }
    with (
        LLM(args.model, **options) as plain,
        LLM(args.model, **options, speculative=args.source) as guessing,
    ):
        tokenizer = Tokenizer.from_files(open_files(resolve_model(None)))
        for name in args.traces:
            made = TRACES[name](tokenizer)
            exchanges = [(prompt, said[: args.tokens]) for prompt, said in made]
            _show(name, exchanges, plain, guessing, args.turns)


if __name__ == "__main__":
    main()
