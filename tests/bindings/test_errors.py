"""Each C++ exception arrives as the Python class of the same name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import native
import numpy as np
import pytest

from ryzanstein import (
    DistributionError,
    OutOfMemoryError,
    QuantizationError,
    RyzansteinError,
    ValidationError,
    _core,
)

if TYPE_CHECKING:
    from collections.abc import Callable

NAN = np.full(5, np.nan, np.float32)


def bad_code() -> None:
    _core.TernaryMatrix(4, 4).pack_hf(0, np.full((1, 4), 255, np.uint8), 1.0)


@pytest.mark.parametrize(
    ("provoke", "kind", "builtin"),
    [
        (lambda: _core.TernaryMatrix(0, 4), ValidationError, ValueError),
        (bad_code, QuantizationError, ValueError),
        (lambda: native.cache(blocks=2**26 - 1, head_dim=1 << 16), OutOfMemoryError, MemoryError),
        (lambda: _core.Sampler().sample(NAN, np.empty(0, np.int32), 0), DistributionError,
         ValueError),
    ],
)  # fmt: skip
def test_each_kind(
    provoke: Callable[[], Any], kind: type[RyzansteinError], builtin: type[Exception]
) -> None:
    with pytest.raises(kind, match=r"^\[\w+\] ") as caught:
        provoke()
    assert type(caught.value) is kind
    assert isinstance(caught.value, RyzansteinError)
    assert isinstance(caught.value, builtin)


def unfilled() -> _core.Linear:
    matrix = _core.TernaryMatrix(native.HIDDEN, native.INNER)
    matrix.pack_codes(0, np.zeros((5, native.INNER), np.int8), np.ones(5, np.float32))
    return _core.Linear(matrix)


def dense(rows: int, columns: int, **options: Any) -> _core.Linear:
    return _core.Linear(_core.DenseMatrix(np.ones((rows, columns), np.float32)), **options)


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": 0}, "every size in the configuration must be"),
    ({"num_heads": 1 << 61}, "every size in the configuration must be"),
    ({"vocab_size": 1 << 40}, "every size in the configuration must be"),
    ({"num_kv_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
    ({"head_dim": 7}, "head_dim must be even"),
    ({"inv_freq": np.ones((1, 1, 3))}, "inv_freq has 3 elements, expected 4"),
    ({"inv_freq": np.ones((1, 0, 4))}, "inv_freq needs at least one row"),
    ({"inv_freq": np.ones((0, 1, 4))}, "inv_freq needs at least one row"),
    ({"rope_attention_factors": np.ones(2)}, "rope_attention_factors has 2 elements, expected 1"),
    ({"attention_softcap": -1.0}, "attention_softcap must be finite and not negative"),
    ({"final_softcap": float("nan")}, "final_softcap must be finite and not negative"),
    ({"embedding_scale": float("inf")}, "embedding_scale and attention_scale must be finite"),
    ({"attention_scale": float("nan")}, "embedding_scale and attention_scale must be finite"),
    ({"hidden_size": 64}, "layer 0 input_norm has 32 elements, expected 64"),
    ({"vocab_size": 51}, r"embedding is \[50, 32\], expected \[51, 32\]"),
]
LAYERS: list[tuple[dict[str, Any], str]] = [
    ({"input_norm": np.ones(31, np.float32)}, "layer 0 input_norm has 31 elements"),
    ({"attn_sub_norm": np.ones(31, np.float32)}, "layer 0 attn_sub_norm has 31 elements"),
    ({"ffn_sub_norm": np.ones(31, np.float32)}, "layer 0 ffn_sub_norm has 31 elements"),
    *(
        ({name: np.ones(31, np.float32)}, f"layer 0 {name} has 31 elements")
        for name in ("ffn_norm", "q_norm", "k_norm", "attn_output_norm", "ffn_output_norm")
    ),
    ({"rope": 1}, "layer 0 takes rope 1 of 1"),
    ({"down_proj": dense(32, 47)}, "layer 0 mlp_in gives 96 features, expected 94"),
    ({"down_proj": dense(31, 48)}, "layer 0 down_proj gives 31 features, expected 32"),
    (
        {"down_proj": dense(32, 48, bias=np.ones(31, np.float32))},
        "layer 0 down_proj bias has 31 elements, expected 32",
    ),
    (
        {"down_proj": dense(32, 48, kernel="two_bit/scalar")},
        "layer 0 down_proj is dense, so that there is no kernel 'two_bit/scalar'",
    ),
    (
        {
            "down_proj": dense(32, 40),
            "mlp_in": [native.linear(80, 32)],
            "ffn_sub_norm": np.ones(40, np.float32),
        },
        "layer 0 leaves channels out",
    ),
    ({"attn_in": []}, "layer 0 attn_in gives 0 features, expected 64"),
    ({"attn_in": [native.linear(64, 31)]}, "layer 0 attn_in takes 31 features, expected 32"),
    ({"mlp_in": [native.linear(48, 32)]}, "layer 0 mlp_in gives 48 features, expected 96"),
    ({"down_proj": unfilled()}, "layer 0 down_proj has 5 of 32 rows filled"),
    (
        {"down_proj": _core.Linear(_core.GroupedMatrix(32, 48, 4))},
        "layer 0 down_proj has 0 of 32 rows filled",
    ),
]


@pytest.mark.parametrize(("changes", "message"), CONFIGS)
def test_wrong_configurations(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=rf"^\[decoder\] .*{message}"):
        native.decoder(config=native.config(**changes))


@pytest.mark.parametrize(("changes", "message"), LAYERS)
def test_wrong_layers(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=rf"^\[decoder\] {message}"):
        native.decoder(layers=[native.layer(**changes)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": []}, "needs at least one layer"),
        ({"final_norm": np.ones(33, np.float32)}, "final_norm has 33 elements, expected 32"),
        ({"lm_head": np.ones((50, 31), np.float32)}, r"lm_head is \[50, 31\]"),
        ({"threads": 0}, r"threads must be in 1\.\.1024, got 0"),
        ({"threads": 1025}, r"threads must be in 1\.\.1024, got 1025"),
        ({"isa": "sse9"}, "isa='sse9' is not a tier this CPU and build can run; use one of: sca"),
    ],
)
def test_wrong_decoders(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        native.decoder(**changes)


def test_unknown_activation() -> None:
    with pytest.raises(ValidationError, match="'gelu' is not one of: silu, relu2, gelu_tanh"):
        native.config(activation="gelu")


@pytest.mark.parametrize("name", ["num_layers", "num_kv_heads", "head_dim", "num_blocks"])
@pytest.mark.parametrize("value", [0, 1 << 58, (1 << 64) - 1])
def test_caches_of_impossible_sizes(name: str, value: int) -> None:
    with pytest.raises(ValidationError, match=r"\[paged_cache\] .* must be"):
        native.cache(**{name: value})


def test_caches_of_other_types() -> None:
    with pytest.raises(ValidationError, match="dtype 'f64' is not one of: f16, f32, int8"):
        native.cache(dtype="f64")


def test_blocks_and_layers_outside_a_cache() -> None:
    cache = native.cache()
    for source, target in ((8, 0), (0, 8)):
        with pytest.raises(ValidationError, match="block 8 is outside a cache of 8 blocks"):
            cache.copy_block(source, target)
    with pytest.raises(ValidationError, match="block 8 is outside a cache of 8 blocks"):
        cache.read(0, 8)
    with pytest.raises(ValidationError, match="layer is out of range"):
        cache.read(1, 0)


@pytest.mark.parametrize(
    "provoke",
    [
        lambda none: _core.Linear(none),
        lambda none: native.layer(o_proj=none),
        lambda none: native.layer(attn_in=[none]),
        lambda none: native.decoder(layers=[none]),
        lambda none: native.decoder(config=none),
        lambda none: native.decoder(embedding=none),
        lambda none: native.batch().run(native.decoder(), none),
        lambda none: native.cache(num_blocks=-1),
    ],
)
def test_nothing_is_not_an_object(provoke: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="incompatible"):
        provoke(None)
