from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from checkpoints import store

from ryzanstein import quant
from ryzanstein.errors import QuantizationError
from ryzanstein.quant import first_non_finite, output_scale, to_float32

if TYPE_CHECKING:
    from numpy.typing import NDArray


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_to_float32(dtype: str) -> None:
    values = np.array([0.0, 1.0, -2.5, 65504.0 if dtype == "F16" else 3.0e38, 2.0**-14])
    stored = store(values, dtype)
    result = to_float32(stored.array)
    assert result.dtype == np.float32
    assert np.array_equal(result, stored.values())


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, 3, 4, 11])
def test_first_non_finite(
    index: int, bad: float, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quant, "_CHUNK", 4)
    values = np.linspace(-60000, 60000, 12)
    assert first_non_finite(store(values, dtype).array.reshape(3, 4)) is None
    values[index:] = bad
    assert first_non_finite(store(values, dtype).array.reshape(3, 4)) == index


@pytest.mark.parametrize("shape", [(1,), ()])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_output_scale(dtype: str, shape: tuple[int, ...]) -> None:
    scale = store(np.full(shape, 0.25), dtype).array
    assert output_scale("autobitlinear", scale) == 0.25
    assert output_scale("bitlinear", scale) == 4.0


@pytest.mark.parametrize("linear_class", ["autobitlinear", "bitlinear"])
@pytest.mark.parametrize("scale", [0.0, -0.0, -1.0, np.inf, np.nan])
def test_impossible_scale(linear_class: str, scale: float) -> None:
    with pytest.raises(QuantizationError, match=r"weight_scale is -?(0\.0|1\.0|inf|nan);"):
        output_scale(linear_class, np.array([scale], np.float32))


def test_scale_too_small_to_invert() -> None:
    tiny: NDArray[np.float32] = np.array([1e-40], np.float32)
    assert output_scale("autobitlinear", tiny) == tiny[0]
    with pytest.raises(QuantizationError, match="that float32 can invert"):
        output_scale("bitlinear", tiny)
