from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from ryzanstein import LLM, ContextLengthError, SamplingParams, ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ryzanstein import Completion
    from ryzanstein.engine.async_engine import AsyncEngine

PARAMS = SamplingParams(max_tokens=12, temperature=0.9, seed=3, ignore_eos=True)
LONG_PROMPT = SamplingParams(max_tokens=250, temperature=0, ignore_eos=True)
ENDLESS = SamplingParams(max_tokens=900, temperature=0, ignore_eos=True)


@pytest.fixture
def llm(embedded: LLM) -> Iterator[LLM]:
    free = embedded._engine.num_free_blocks
    before = threading.active_count()
    yield embedded
    assert embedded._engine.num_free_blocks == free
    assert threading.active_count() == before


async def collect(engine: AsyncEngine, prompt: str, params: SamplingParams) -> Completion:
    pieces = [piece async for piece in engine.stream(prompt, params)]
    completion = pieces[-1].completion
    assert completion is not None
    assert "".join(piece.text for piece in pieces) == completion.text
    return completion


def test_streams_side_by_side_are_what_generate_returns(llm: LLM) -> None:
    prompts = [f"def f{i}(x):" for i in range(5)]
    expected = [llm.generate(prompt, PARAMS).text for prompt in prompts]

    async def main() -> list[str]:
        async with llm.serve() as engine:
            done = await asyncio.gather(*(collect(engine, p, PARAMS) for p in prompts))
        return [completion.text for completion in done]

    assert asyncio.run(main()) == expected


def test_threads_and_streams_share_the_steps(llm: LLM) -> None:
    expected = llm.generate("import os", PARAMS).text
    texts: list[str] = []

    async def main() -> None:
        async with llm.serve() as engine:
            endless = engine.stream("class A:", ENDLESS)
            await anext(endless)
            threads = [
                asyncio.to_thread(lambda: texts.append(llm.generate("import os", PARAMS).text))
                for _ in range(3)
            ]
            await asyncio.gather(*threads)
            await endless.aclose()

    asyncio.run(main())
    assert texts == [expected] * 3


def test_cancelling_a_task_ends_its_generation_alone(llm: LLM) -> None:
    expected = llm.generate("import os", PARAMS).text

    async def main() -> str:
        async with llm.serve() as engine:
            doomed = asyncio.create_task(collect(engine, "x = 1\n" * 150, LONG_PROMPT))
            other = asyncio.create_task(collect(engine, "import os", PARAMS))
            await asyncio.sleep(0.02)  # in the middle of a prompt, or soon after
            doomed.cancel()
            with pytest.raises(asyncio.CancelledError):
                await doomed
            return (await other).text

    assert asyncio.run(main()) == expected


def test_closing_ends_what_runs_with_a_reason(llm: LLM) -> None:
    async def main() -> str | None:
        engine = llm.serve()
        running = asyncio.create_task(collect(engine, "class A:", ENDLESS))
        await asyncio.sleep(0.05)
        await engine.close()
        await engine.close()
        with pytest.raises(ValidationError, match="this engine is closed"):
            await collect(engine, "more", PARAMS)
        return (await running).finish_reason

    assert asyncio.run(main()) == "cancelled"


def test_errors_reach_their_own_stream(llm: LLM) -> None:
    async def main() -> None:
        async with llm.serve() as engine:
            other = asyncio.create_task(collect(engine, "import os", PARAMS))
            with pytest.raises(ContextLengthError):
                await collect(engine, "a", SamplingParams(max_tokens=10**6))
            assert (await other).finish_reason == "length"

    asyncio.run(main())


def test_a_closed_model_ends_its_streams() -> None:
    async def main() -> None:
        llm = LLM(threads=1, context_length=512)
        async with llm.serve() as engine:
            stream = engine.stream("class A:", SamplingParams(max_tokens=400, ignore_eos=True))
            await anext(stream)
            llm.close()
            with pytest.raises(ValidationError, match="this LLM is closed"):
                async for _ in stream:
                    pass

    asyncio.run(main())
