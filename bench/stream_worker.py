"""A worker that replays traces on this engine's streams; `bench.concurrency` starts it.

Everything a caller pays for is timed: requests are made, queued and answered with text through
`LLM.serve`, each stream awaited by a task of its own.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

from bench.concurrency_traces import Request, Timeline, make_prompts
from bench.worker import answer_lines
from ryzanstein import LLM, SamplingParams, _core


class _Server:
    def __init__(self, directory: Path, threads: int, isa: str | None) -> None:
        self._llm = LLM(directory, threads=threads, isa=isa)

    def describe(self) -> str:
        return f"ryzanstein {_core.build_info()['commit']} ({self._llm.isa})"

    def replay(self, job: dict[str, Any]) -> dict[str, Any]:
        trace = tuple(Request(**fields) for fields in job["trace"])
        prompts = make_prompts(trace, self._llm.config.vocab_size, job["seed"])
        return asyncio.run(self._replay(trace, prompts)).to_json()

    async def _replay(self, trace: tuple[Request, ...], prompts: list[list[int]]) -> Timeline:
        async with self._llm.serve() as engine, asyncio.TaskGroup() as tasks:
            timeline = Timeline(trace)

            async def follow(index: int) -> None:
                params = SamplingParams(
                    max_tokens=trace[index].generate, temperature=0, ignore_eos=True
                )
                async for piece in engine.stream(prompts[index], params):
                    timeline.add(index, len(piece.token_ids))
                    start_due()

            def start_due() -> None:
                for index in timeline.arrive():
                    tasks.create_task(follow(index))

            start_due()
        return timeline


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.stream_worker", description=__doc__)
    parser.add_argument("directory", type=Path, help="the checkpoint")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", help="instruction-set tier (default: the best)")
    server = _Server(**vars(parser.parse_args()))
    answer_lines(server.describe(), server.replay)


if __name__ == "__main__":
    main()
