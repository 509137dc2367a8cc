"""Arrays are taken as they are or refused; nothing is converted or copied behind one's back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import native
import numpy as np
import pytest

from ryzanstein import ValidationError, _core
from ryzanstein._core import ops as kernels

if TYPE_CHECKING:
    from collections.abc import Callable

Call = tuple["Callable[..., Any]", dict[str, Any]]


def f32(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def i32(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.int32)


def matrix() -> _core.TernaryMatrix:
    filled = _core.TernaryMatrix(4, 8)
    filled.pack_codes(0, np.zeros((4, 8), np.int8), f32(4))
    return filled


def packing(name: str, **arguments: Any) -> Call:
    return getattr(_core.TernaryMatrix, name), {"self": matrix(), "row_begin": 0, **arguments}


def calls() -> dict[str, Call]:
    """Return every function that takes arrays, with arguments it accepts."""
    scalar = {"isa": "scalar"}
    cache = native.cache()
    return {
        "pack_hf": packing("pack_hf", packed=np.zeros((1, 8), np.uint8), scale=1.0),
        "pack_codes": packing("pack_codes", codes=np.zeros((4, 8), np.int8), row_scales=f32(4)),
        "pack_master": packing("pack_master", weights=f32(4, 8)),
        "DenseMatrix": (_core.DenseMatrix, {"array": f32(4, 8)}),
        "Linear": (_core.Linear, {"matrix": matrix(), "norm": f32(8), "bias": f32(4)}),
        "LayerWeights": (
            native.layer,
            {
                "input_norm": f32(native.HIDDEN),
                "ffn_norm": f32(native.HIDDEN),
                "q_norm": f32(native.HEAD_DIM),
                "k_norm": f32(native.HEAD_DIM),
                "attn_sub_norm": f32(native.HIDDEN),
                "attn_output_norm": f32(native.HIDDEN),
                "ffn_output_norm": f32(native.HIDDEN),
                "ffn_sub_norm": f32(native.INNER),
            },
        ),
        "DecoderConfig": (native.config, {"inv_freq": np.ones((1, 1, native.HEAD_DIM // 2))}),
        "Decoder": (
            native.decoder,
            {
                "embedding": native.embedding(),
                "final_norm": f32(native.HIDDEN),
                "lm_head": native.embedding(3),
            },
        ),
        "step": (
            native.decoder().step,
            {
                **vars(native.batch()),
                "cache": cache,
                "hidden_states": np.zeros((2, 8, native.HIDDEN), np.float32),
            },
        ),
        "sample": (
            _core.Sampler(temperature=0.0).sample,
            {"logits": f32(9), "history": i32(3), "position": 3},
        ),
        "log_probs": (_core.log_probs, {"logits": f32(9), "token": 1, "top": 2}),
        "score_rows": (_core.score_rows, {"logits": f32(2, 9), "targets": i32(2)}),
        "rms_norm": (
            kernels.rms_norm,
            scalar | {"x": f32(4), "gain": f32(4), "eps": 1e-5, "out": f32(4), "residual": f32(4)},
        ),
        "quantize": (kernels.quantize, scalar | {"x": f32(4), "q": np.zeros(16, np.int8)}),
        "ternary_linear": (
            kernels.ternary_linear,
            scalar
            | {
                "matrix": matrix(),
                "q": np.zeros((2, 80), np.int8),
                "act_scale": f32(2),
                "act_sum": i32(2),
                "out": f32(2, 4),
                "residual": f32(2, 4),
            },
        ),
        "rope": (kernels.rope, scalar | {"x": f32(2, 4), "cos": f32(2), "sin": f32(2)}),
        "gate": (
            kernels.gate,
            scalar | {"activation": "silu", "gate": f32(4), "up": f32(4), "out": f32(4)},
        ),
        "kv_write": (
            kernels.kv_write,
            scalar | {"cache": cache, "block": 0, "offset": 0, "key": f32(16), "value": f32(16)},
        ),
        "attention": (
            kernels.attention,
            scalar
            | {
                "cache": cache,
                "kv_head": 0,
                "block_table": i32(2),
                "position": 0,
                "key_begin": 0,
                "key_end": 1,
                "q": f32(1, 2, 8),
                "scale": 1.0,
                "max": f32(2),
                "sum": f32(2),
                "out": f32(2, 16),
            },
        ),
        "attention_merge": (
            kernels.attention_merge,
            scalar
            | {
                "head_dim": 8,
                "part_max": f32(2),
                "part_sum": f32(2),
                "part_out": f32(2, 16),
                "max": f32(2),
                "sum": f32(2),
                "out": f32(2, 16),
            },
        ),
        "attention_finish": (
            kernels.attention_finish,
            scalar | {"sum": f32(2), "rows": f32(2, 16), "out": f32(2, 8)},
        ),
        "embed": (kernels.embed, scalar | {"weights": f32(3, 4), "row": 2, "out": f32(4)}),
        "dense_linear": (
            kernels.dense_linear,
            scalar
            | {"weights": f32(3, 4), "x": f32(2, 4), "out": f32(2, 3), "residual": f32(2, 3)},
        ),
        "softcap": (kernels.softcap, scalar | {"x": f32(4), "softcap": 2.0}),
        "add_bias": (kernels.add_bias, scalar | {"bias": f32(4), "out": f32(2, 4)}),
    }


# Names only: the arrays themselves are made afresh for each test.
PAIRS = [
    (name, argument)
    for name, (_, arguments) in calls().items()
    for argument, value in arguments.items()
    if isinstance(value, np.ndarray)
]


def other_dtype(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32 if array.dtype == np.float64 else np.float64)


def narrower(array: np.ndarray) -> np.ndarray:
    """One that numpy would convert without loss, which is no reason to do so."""
    smaller = {"float64": np.float32, "float32": np.int16, "int32": np.int16, "int8": np.bool_}
    return array.astype(smaller.get(array.dtype.name, np.bool_))


def strided(array: np.ndarray) -> np.ndarray:
    return np.repeat(array, 2, axis=-1)[..., ::2]


def swapped(array: np.ndarray) -> np.ndarray:
    """The other byte order; of single bytes, another kind instead."""
    if array.dtype.itemsize == 1:
        return array.astype(f"S{array.dtype.itemsize}")
    return array.astype(array.dtype.newbyteorder())


def as_list(array: np.ndarray) -> Any:
    return array.tolist()


@pytest.mark.parametrize("name", calls())
def test_the_arguments_are_otherwise_right(name: str) -> None:
    function, arguments = calls()[name]
    function(**arguments)


@pytest.mark.parametrize("spoil", [other_dtype, narrower, strided, swapped, as_list])
@pytest.mark.parametrize(("name", "argument"), PAIRS)
def test_other_arrays_are_refused(
    name: str, argument: str, spoil: Callable[[np.ndarray], Any]
) -> None:
    function, arguments = calls()[name]
    arguments[argument] = spoil(arguments[argument])
    with pytest.raises((TypeError, ValidationError), match=r"incompatible|\[array\]"):
        function(**arguments)


@pytest.mark.parametrize(
    ("name", "argument"),
    [pair for pair in PAIRS if pair[1] in ("out", "max", "sum", "q", "x", "hidden_states")],
)
def test_read_only_outputs_are_refused(name: str, argument: str) -> None:
    function, arguments = calls()[name]
    reads = {"rms_norm": "x", "quantize": "x", "dense_linear": "x", "ternary_linear": "q"}
    reads |= {"attention": "q", "attention_finish": "sum"}
    arguments[argument].flags.writeable = False
    if reads.get(name) == argument:
        function(**arguments)
        return
    with pytest.raises(ValueError, match="not writeable"):
        function(**arguments)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("Decoder", "embedding"),
        ("Decoder", "lm_head"),
        ("DenseMatrix", "array"),
        ("embed", "weights"),
    ],
)
def test_dense_weights_must_be_aligned(name: str, argument: str) -> None:
    function, arguments = calls()[name]
    array = arguments[argument]
    raw = np.empty(array.nbytes + 1, np.uint8)
    arguments[argument] = np.frombuffer(raw, array.dtype, array.size, 1).reshape(array.shape)
    with pytest.raises(ValidationError, match=f"{argument} is not aligned"):
        function(**arguments)


# Longer ones of these mean something else, or are as good.
ANY_LENGTH = [
    ("quantize", "x"),
    ("ternary_linear", "q"),
    ("attention", "block_table"),
    ("attention_finish", "out"),
    ("softcap", "x"),
]


@pytest.mark.parametrize(
    ("name", "argument"),
    [pair for pair in PAIRS if hasattr(kernels, pair[0]) and pair not in ANY_LENGTH],
)
def test_ops_check_every_size(name: str, argument: str) -> None:
    """Tests and benchmarks call ops by hand: a slip there must not write anywhere."""
    function, arguments = calls()[name]
    array = arguments[argument]
    arguments[argument] = np.zeros((*array.shape[:-1], array.shape[-1] + 3), array.dtype)
    with pytest.raises(ValidationError):
        function(**arguments)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("embed", {"row": 3}),
        ("add_bias", {"begin": 5}),
        ("gate", {"activation": "gelu"}),
        ("kv_write", {"block": 8}),
        ("kv_write", {"offset": _core.PAGE_TOKENS}),
        ("attention", {"kv_head": 2}),
        ("attention", {"block_table": np.array([8, 0], np.int32)}),
        ("attention", {"block_table": np.array([-1, 0], np.int32)}),
        ("attention", {"key_begin": 1}),
        ("attention", {"key_end": 0}),
        ("attention", {"key_end": 2 * _core.PAGE_TOKENS + 1}),
        ("rms_norm", {"isa": "sse9"}),
    ],
)
def test_ops_check_every_index(name: str, changes: dict[str, Any]) -> None:
    function, arguments = calls()[name]
    with pytest.raises(ValidationError):
        function(**arguments | changes)
