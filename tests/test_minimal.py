"""What every wheel must do wherever it is installed: needs nothing but the package and pytest."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import ryzanstein
from ryzanstein import LLM, SamplingParams, _core

TIERS = ["scalar", "avx2", "avx512"]
MAIN = "import sys; from ryzanstein.cli import main; sys.exit(main(sys.argv[1:]))"


def run(*arguments: str, isa: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the interpreter, with this package, and RYZANSTEIN_ISA set to `isa` or not set."""
    environment = {name: value for name, value in os.environ.items() if name != "RYZANSTEIN_ISA"}
    environment["PYTHONPATH"] = str(Path(ryzanstein.__file__).parents[1])
    if isa is not None:
        environment["RYZANSTEIN_ISA"] = isa
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )


def test_every_public_name_is_there() -> None:
    for name in ryzanstein.__all__:
        assert getattr(ryzanstein, name) is not None


def test_the_build_has_every_tier() -> None:
    info = _core.build_info()
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    assert info["compiled_isas"] == (TIERS if is_x86 else ["scalar"])
    assert info["version"] == ryzanstein.__version__
    assert info["commit"]
    assert info["compiler"]
    assert set(_core.available_isas()) <= set(TIERS)
    assert _core.available_isas()[0] == "scalar"


def test_doctor() -> None:
    done = run("-c", MAIN, "doctor", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["version"] == ryzanstein.__version__
    assert report["available_isas"] == _core.available_isas()
    assert report["isa"] == report["available_isas"][-1]
    assert report["usable_cores"] >= 1


@pytest.mark.parametrize("isa", _core.available_isas())
def test_the_embedded_model_generates(isa: str) -> None:
    params = SamplingParams(max_tokens=8, temperature=0.8, seed=1, ignore_eos=True)
    outcomes = []
    for threads in (1, 2):
        with LLM(isa=isa, threads=threads) as llm:
            assert llm.isa == isa
            outcomes += [llm.generate("def fibonacci(n):", params) for _ in range(2)]
    assert len(outcomes[0].token_ids) == 8
    assert outcomes[0].text
    assert len({(tuple(out.token_ids), out.text) for out in outcomes}) == 1


@pytest.mark.parametrize("isa", _core.available_isas())
def test_a_tier_can_be_forced(isa: str) -> None:
    done = run("-c", MAIN, "doctor", "--json", isa=isa)
    assert json.loads(done.stdout)["isa"] == isa
    done = run("-c", "from ryzanstein import LLM; print(LLM().isa)", isa=isa)
    assert (done.returncode, done.stdout.strip()) == (0, isa)


def test_an_unknown_tier_is_an_error_at_import() -> None:
    done = run("-c", "import ryzanstein", isa="sse9")
    assert done.returncode == 1
    tiers = ", ".join(_core.available_isas())
    assert done.stderr.splitlines()[-1] == (
        "ryzanstein.errors.ValidationError: [isa] RYZANSTEIN_ISA='sse9' is not a tier this CPU and "
        f"build can run; use one of: {tiers}"
    )
