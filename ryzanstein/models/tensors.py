"""Which tensors a checkpoint must hold, and the check that it holds exactly those.

Everything a header can tell is checked before any weight is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ryzanstein.errors import CorruptFileError, ModelLoadError, UnsupportedFormatError
from ryzanstein.loaders.gguf_types import TYPES
from ryzanstein.quant import first_non_finite

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Set

    from numpy.typing import NDArray

    from ryzanstein.loaders.model_files import WeightSource
    from ryzanstein.models.config import ModelConfig
    from ryzanstein.models.family import Family

__all__ = [
    "FLOATS",
    "check_tensors",
    "count_parameters",
    "fused_shape",
    "linear_shapes",
    "matrix_shapes",
    "require_finite",
    "slabs",
]

FLOATS = ("F32", "F16", "BF16")
_READABLE = tuple(TYPES)  # whatever a view shows as floats
_SLAB_WEIGHTS = 1 << 20  # worked on at a time: 4 MB of float32


@dataclass(frozen=True, slots=True)
class _Expected:
    name: str
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]  # any of them


def linear_shapes(config: ModelConfig, family: Family) -> dict[str, tuple[int, int]]:
    """Return (out-features, in-features) of each linear of a layer, by its name in the layer."""
    wide, narrow = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key, value = family.attn_in
    gate, up = family.mlp_in
    return {
        query: (wide, hidden),
        key: (narrow, hidden),
        value: (narrow, hidden),
        family.o_proj: (hidden, wide),
        gate: (inner, hidden),
        up: (inner, hidden),
        family.down_proj: (hidden, inner),
    }


def fused_shape(shapes: Mapping[str, tuple[int, int]], names: tuple[str, ...]) -> tuple[int, int]:
    """Return the shape of one matrix with the rows of all these linears."""
    return sum(shapes[name][0] for name in names), shapes[names[0]][1]


def matrix_shapes(config: ModelConfig, family: Family) -> set[tuple[int, int]]:
    """Return the shapes of the ternary matrices that a layer's linears are packed into."""
    if config.quantization is None:
        return set()
    shapes = linear_shapes(config, family)
    if config.has_input_norms:  # each linear has an input of its own
        return set(shapes.values())
    fused = (family.attn_in, (family.o_proj,), family.mlp_in, (family.down_proj,))
    return {fused_shape(shapes, names) for names in fused}


def count_parameters(config: ModelConfig, family: Family) -> int:
    """Count every weight once, a tied head with the embedding, scales not at all."""
    total = 0
    for expected in _expected_tensors(config, family):
        if not expected.name.endswith(".weight_scale"):
            codes = 4 if expected.dtypes == ("U8",) else 1
            total += codes * math.prod(expected.shapes[0])
    return total


def check_tensors(checkpoint: WeightSource, config: ModelConfig, family: Family) -> None:
    """Demand every tensor of the architecture, in dtype and shape, and no other.

    Raises:
        ModelLoadError: a tensor is missing.
        CorruptFileError: a tensor has another dtype or shape than the configuration implies.
        UnsupportedFormatError: a tensor that the architecture does not read, or sizes that the
            packed form cannot hold.
    """
    known = set()
    types = {name: checkpoint.info(name).dtype for name in checkpoint}
    coded = {name for name, kind in types.items() if kind in TYPES and kind not in FLOATS}
    _check_packable(checkpoint, config, family, coded)
    for expected in _expected_tensors(config, family, coded):
        _check_tensor(checkpoint, expected)
        known.add(expected.name)
    if config.tie_word_embeddings:
        known.add(family.lm_head)
    unread = [
        name for name in checkpoint if name not in known and not name.endswith(family.ignored)
    ]
    if unread:
        raise UnsupportedFormatError(
            f"{checkpoint.where(unread[0])} (and {len(unread) - 1} more) is not part of "
            f"{config.architecture} with this config.json; without it the model would compute "
            "something else. Check architectures, num_hidden_layers and quantization_config"
        )


def slabs(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield the ranges of rows [begin, end) in which a tensor is worked on."""
    columns = math.prod(shape[1:])
    rows = max(1, _SLAB_WEIGHTS // max(1, columns))
    for begin in range(0, shape[0], rows):
        yield begin, min(begin + rows, shape[0])


def require_finite(checkpoint: WeightSource, name: str, values: NDArray[Any]) -> None:
    """Demand that the values of a tensor are numbers.

    Raises:
        CorruptFileError: a NaN or infinity in them.
    """
    index = first_non_finite(values)
    if index is not None:
        place = [int(i) for i in np.unravel_index(index, values.shape)]
        raise CorruptFileError(
            f"{checkpoint.where(name)} holds a NaN or infinity at {place}; download the file again"
        )


def _expected_tensors(
    config: ModelConfig, family: Family, coded: Set[str] = frozenset()
) -> Iterator[_Expected]:
    """Yield what a checkpoint must hold; `coded` are tensors of codes with scales of their own."""
    hidden = config.hidden_size
    vocabulary = (config.vocab_size, hidden)
    yield _Expected(family.embedding, _READABLE, (vocabulary,))
    yield _Expected(family.final_norm, FLOATS, ((hidden,),))
    if not config.tie_word_embeddings:
        yield _Expected(family.lm_head, _READABLE, (vocabulary,))
    norms = {
        family.input_norm: hidden,
        family.q_norm: config.head_dim,
        family.k_norm: config.head_dim,
        family.attn_sub_norm: config.num_heads * config.head_dim,
        family.attn_output_norm: hidden,
        family.ffn_norm: hidden,
        family.ffn_sub_norm: config.intermediate_size,
        family.ffn_output_norm: hidden,
    }
    shapes = linear_shapes(config, family)
    for index in range(config.num_layers):
        layer = family.layer.format(index=index)
        for norm, size in norms.items():
            if norm is not None:
                yield _Expected(layer + norm, FLOATS, ((size,),))
        for linear, shape in shapes.items():
            yield from _expected_linear(config, family, layer + linear, shape, coded)
            if linear in config.biased:
                yield _Expected(f"{layer}{linear}.bias", FLOATS, (shape[:1],))


def _expected_linear(
    config: ModelConfig, family: Family, name: str, shape: tuple[int, int], coded: Set[str]
) -> Iterator[_Expected]:
    rows, columns = shape
    weight = f"{name}.weight"
    if config.quantization is None or weight in coded:
        yield _Expected(weight, _READABLE, (shape,))
    elif not _is_packed(config):
        yield _Expected(weight, FLOATS, (shape,))
    else:
        yield _Expected(weight, ("U8",), ((rows // 4, columns),))
        yield _Expected(f"{name}.weight_scale", FLOATS, ((1,), ()))
    if config.has_input_norms:
        yield _Expected(name + family.linear_norm, FLOATS, ((columns,),))


def _is_packed(config: ModelConfig) -> bool:
    return config.quantization is not None and config.quantization.mode == "offline"


def _check_packable(
    checkpoint: WeightSource, config: ModelConfig, family: Family, coded: Set[str]
) -> None:
    if not _is_packed(config):
        return
    first = family.layer.format(index=0)
    for name, (rows, _) in linear_shapes(config, family).items():
        if rows % 4 and f"{first}{name}.weight" not in coded:
            raise UnsupportedFormatError(
                f"{checkpoint.path}: {name} has {rows} rows; the packed form holds four "
                "rows in a byte and needs a multiple of 4"
            )


def _check_tensor(checkpoint: WeightSource, expected: _Expected) -> None:
    if expected.name not in checkpoint:
        raise ModelLoadError(
            f"{checkpoint.path}: tensor {expected.name!r} is missing; config.json does not "
            "belong to these weights, or the download is incomplete"
        )
    info = checkpoint.info(expected.name)
    if info.dtype not in expected.dtypes:
        hint = ""
        if expected.dtypes == ("U8",):
            hint = "; for full-precision masters set quantization_mode to online"
        elif info.dtype == "U8":
            hint = "; for packed weights set quantization_mode to offline"
        raise CorruptFileError(
            f"{checkpoint.where(expected.name)} has dtype {info.dtype}, expected "
            f"{' or '.join(expected.dtypes)}{hint}"
        )
    if info.shape not in expected.shapes:
        shapes = " or ".join(str(list(shape)) for shape in expected.shapes)
        raise CorruptFileError(
            f"{checkpoint.where(expected.name)} has shape {list(info.shape)}, expected {shapes} "
            "from config.json; the two do not belong together"
        )
