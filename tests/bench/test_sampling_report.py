from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bench.sampling_report import main

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def bench(median: float, **extra_info: Any) -> dict[str, Any]:
    return {"stats": {"median": median}, "extra_info": extra_info}


def report(isa: str, faster: float) -> dict[str, Any]:
    flat = bench(200e-6 / faster, chain="top-p", row="flat", isa=isa, p99_us=250.4 / faster)
    zipf = bench(100e-6 / faster, chain="top-p", row="zipf", isa=isa, p99_us=120.0 / faster)
    return {"benchmarks": [flat, zipf, bench(1e-6, isa=isa, p99_us=7.0)]}


def test_a_row_per_chain_with_the_times_of_every_tier(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for isa, faster in (("avx512", 2.0), ("avx2", 1.0)):
        (tmp_path / f"{isa}.json").write_text(json.dumps(report(isa, faster)))
    main([str(tmp_path / "avx512.json"), str(tmp_path / "avx2.json")])
    assert capsys.readouterr().out.splitlines() == [
        "| chain | avx512 flat | avx512 zipf | avx2 flat | avx2 zipf |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| top-p | 100 / 125 | 50 / 60 | 200 / 250 | 100 / 120 |",
    ]
