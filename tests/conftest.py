from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ryzanstein import LLM, _core

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=_core.available_isas())
def isa(request: pytest.FixtureRequest) -> str:
    """Every tier this machine can run."""
    name = request.param
    assert isinstance(name, str)
    return name


@pytest.fixture(scope="session")
def embedded() -> Iterator[LLM]:
    """The embedded model, loaded once. Tests leave no sequence behind."""
    with LLM(threads=2) as llm:
        yield llm
