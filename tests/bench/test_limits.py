from __future__ import annotations

from ryzanstein.bench.roofline import Limits


def test_the_mean_of_two_measurements() -> None:
    assert Limits(40.0, 1.0).mean(Limits(60.0, 3.0)) == Limits(50.0, 2.0)
    assert Limits(40.0, None).mean(Limits(60.0, None)) == Limits(50.0, None)
