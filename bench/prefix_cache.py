"""Show what the prefix cache serves and saves, and how far its policies are from the best one.

Each trace is replayed on the engine's own block manager, without a model, under each eviction
policy and under Belady's, which knows the future: it gives up the page that is needed last. The
share of prompt tokens served from the cache is given at several sizes of the pool, from the longest
request up to everything there is. --ttft also runs the traces on the embedded model, one request
after the other, without the cache and with it; nothing else should run meanwhile.

Examples:
  python -m bench.prefix_cache
  python -m bench.prefix_cache --ttft --plot prefix-cache.svg
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, get_args

import numpy as np

from bench.prefix_traces import TRACES, Turn
from ryzanstein import LLM, SamplingParams
from ryzanstein._core import PAGE_TOKENS
from ryzanstein.bench.plot import check_plot
from ryzanstein.config import Eviction
from ryzanstein.engine.block_manager import BlockManager
from ryzanstein.engine.eviction import make_policy
from ryzanstein.engine.prefix_cache import PageChain, PrefixCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from ryzanstein.engine.eviction import EvictionPolicy
    from ryzanstein.engine.prefix_cache import CachedPage

__all__ = ["Request", "Timings", "replay", "requests", "sizes"]

_SIZES = 6
_BELADY = "Belady"
_POLICIES = (*get_args(Eviction), _BELADY)


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, and the tokens that were generated for it."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def chain(self) -> PageChain:
        """Return the pages of prompt and answer."""
        return PageChain(np.array(self.prompt + self.answer, np.int32), PAGE_TOKENS, b"")

    @property
    def num_computed(self) -> int:
        """Return the tokens whose keys and values are computed: all but the last."""
        return len(self.prompt) + len(self.answer) - 1


class Belady:
    """Gives up the page that a prompt asks for last, or never again."""

    def __init__(self, trace: Sequence[Request]) -> None:
        self.now = 0
        self._uses: dict[bytes, list[int]] = defaultdict(list)
        self._offered: set[CachedPage] = set()
        for index, request in enumerate(trace):
            chain = request.chain
            for page in range((len(request.prompt) - 1) // PAGE_TOKENS):
                self._uses[chain.key(page)].append(index)

    def used(self, page: CachedPage) -> None:
        """Nothing: what matters is to come."""

    def offer(self, page: CachedPage) -> None:
        """Note that a page may be evicted."""
        self._offered.add(page)

    def withdraw(self, page: CachedPage) -> None:
        """Note that it may not."""
        self._offered.remove(page)

    def evict(self) -> CachedPage:
        """Return the page that is needed last, of equals the one that most comes before."""
        never = 1 << 30

        def next_use(page: CachedPage) -> tuple[int, int]:
            later = (use for use in self._uses[page.key] if use > self.now)
            return next(later, never), page.depth

        victim = max(self._offered, key=next_use)
        self._offered.remove(victim)
        return victim


def requests(
    turns: Iterable[Turn], answer: Callable[[list[int], int], Sequence[int]]
) -> list[Request]:
    """Play the turns and return what was asked, `answer(prompt, n)` being n tokens."""
    histories: dict[int, list[int]] = {}
    played = []
    for turn in turns:
        if turn.session not in histories:
            begins_as = turn.begins_as
            histories[turn.session] = [] if begins_as is None else list(histories[begins_as])
        history = histories[turn.session]
        history += turn.new
        prompt = tuple(history)
        history += answer(history, turn.answer)
        played.append(Request(prompt, tuple(history[len(prompt) :])))
    return played


def sizes(trace: Sequence[Request]) -> list[int]:
    """Return pool sizes in pages: the least that holds each request, up to all distinct pages."""
    largest = max(-(-(request.num_computed) // PAGE_TOKENS) for request in trace)
    distinct = set()
    for request in trace:
        chain = request.chain
        distinct |= {chain.key(page) for page in range(request.num_computed // PAGE_TOKENS)}
    everything = len(distinct) + largest
    return [round(float(size)) for size in np.geomspace(largest, everything, _SIZES)]


def replay(trace: Sequence[Request], num_pages: int, policy_name: str) -> float:
    """Return the share of prompt tokens that a pool of so many pages serves from the cache."""
    belady = Belady(trace)
    policy: EvictionPolicy = belady
    if policy_name != _BELADY:
        policy = make_policy(policy_name, num_pages)  # type: ignore[arg-type]
    manager = BlockManager(num_pages, PAGE_TOKENS, PrefixCache(policy, num_pages))
    served = 0
    for index, request in enumerate(trace):
        belady.now = index
        chain, table = request.chain, manager.allocate()
        match = manager.match(chain, len(request.prompt))
        manager.attach(table, match)
        served += table.num_tokens
        manager.append(table, request.num_computed - table.num_tokens)
        manager.share(table, chain, request.num_computed)
        manager.free(table)
    return served / sum(len(request.prompt) for request in trace)


def _random_answer(prompt: list[int], count: int) -> list[int]:
    answer: list[int] = np.random.default_rng(len(prompt)).integers(1, 512, count).tolist()
    return answer


def _show_policies(name: str, trace: Sequence[Request]) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {policy: [] for policy in _POLICIES}
    print(f"\n{name}: {len(trace)} requests, {sum(len(r.prompt) for r in trace)} prompt tokens")
    print(f"| pages | {' | '.join(_POLICIES)} |\n| --- |{' --- |' * len(_POLICIES)}")
    for num_pages in sizes(trace):
        for policy, curve in curves.items():
            curve.append((num_pages, replay(trace, num_pages, policy)))
        cells = " | ".join(f"{curve[-1][1]:.1%}" for curve in curves.values())
        print(f"| {num_pages} | {cells} |", flush=True)
    return curves


class Timings:
    """Times to the first token of engines that each answer every prompt.

    Which of them goes first changes with every prompt: what a run leaves in the caches, and what
    the machine does meanwhile, falls on all alike.
    """

    def __init__(self, *engines: LLM) -> None:
        self.seconds: list[list[float]] = [[] for _ in engines]
        self.cached_tokens = 0
        self._order = list(zip(engines, self.seconds, strict=True))

    def answer(self, history: list[int], count: int) -> tuple[int, ...]:
        """Return the tokens that every engine generates; a hit in a cache changes none."""
        params = SamplingParams(max_tokens=count, temperature=0, ignore_eos=True)
        answers = set()
        for llm, seconds in self._order:
            completion = llm.generate(list(history), params)
            seconds.append(completion.timings.time_to_first_token_s)
            answers.add(completion.token_ids)
            self.cached_tokens += completion.usage.cached_tokens
        self._order.reverse()
        (same,) = answers
        return same


def _show_latency(name: str, turns: list[Turn]) -> None:
    """Print times to the first token without the cache and with it."""
    with LLM(prefix_cache=False) as plain, LLM() as caching:
        timings = Timings(plain, caching)
        trace = requests(turns, timings.answer)
    before, after = timings.seconds
    share = timings.cached_tokens / sum(len(request.prompt) for request in trace)
    print(
        f"| {name} | {share:.1%} | {median(before) * 1e3:.1f} ms | {median(after) * 1e3:.1f} ms | "
        f"{median(after) / median(before) - 1:+.0%} | {sum(after) / sum(before) - 1:+.0%} |",
        flush=True,
    )


def _plot(curves: dict[str, dict[str, list[tuple[int, float]]]], path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(curves), 3.9), layout="constrained")
    axes_of_all = figure.subplots(1, len(curves), squeeze=False)[0].tolist()
    for axes, (name, of_policy) in zip(axes_of_all, curves.items(), strict=True):
        for policy, curve in of_policy.items():
            style = "k--" if policy == _BELADY else "o-"
            axes.plot(*zip(*curve, strict=True), style, markersize=3, label=policy)
        axes.set_title(name, loc="left", fontsize=9)
        axes.set_xscale("log", base=2)
        axes.set_xlabel(f"pages of {PAGE_TOKENS} tokens")
        axes.set_ylabel("prompt tokens from the cache")
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    axes_of_all[0].legend(fontsize=7, frameon=False)
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.prefix_cache",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ttft", action="store_true", help="time the embedded model too")
    parser.add_argument("--plot", type=check_plot, help="where to draw the shares (svg, png, pdf)")
    args = parser.parse_args()
    curves = {
        name: _show_policies(name, requests(make(), _random_answer))
        for name, make in TRACES.items()
    }
    if args.plot:
        _plot(curves, args.plot)
    if args.ttft:
        print("\nembedded model, time to first token without and with the cache")
        print("| trace | from cache | median without | median with | change | of the sum |")
        print("| --- | --- | --- | --- | --- | --- |")
        for name, make in TRACES.items():
            _show_latency(name, make())


if __name__ == "__main__":
    main()
