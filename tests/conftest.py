from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from ryzanstein import LLM, _core

# A busy machine is no bug in what is tested.
settings.register_profile("untimed", deadline=None)
# For an hour or a night: --hypothesis-profile=thorough.
settings.register_profile("thorough", deadline=None, max_examples=10_000)
settings.load_profile("untimed")

# What a shell starts in the background ignores Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# For the modules of bench/, which are not installed. At the end: the installed ryzanstein, with its
# native module, comes before the source tree's.
sys.path.append(str(Path(__file__).resolve().parents[1]))

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
    with LLM(threads=1) as llm:
        yield llm
