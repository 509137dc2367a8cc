"""Models: the files of a model in, a decoder and its configuration out."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ryzanstein._core import (
    Decoder,
    DecoderConfig,
    packing_fingerprint,
    resolve_isa,
)
from ryzanstein.errors import (
    ModelLoadError,
    RyzansteinError,
    UnsupportedFormatError,
    ValidationError,
)
from ryzanstein.loaders.multimodal import TEXT_MODELS
from ryzanstein.loaders.safetensors import TensorInfo
from ryzanstein.models.bitnet import BITNET, BITNET_1BITLLM
from ryzanstein.models.config import (
    ModelConfig,
    parse_config,
    require_architecture,
    with_weights,
)
from ryzanstein.models.feed_forward import SkipZeros, resolve_skip_zeros
from ryzanstein.models.fields import Fields
from ryzanstein.models.gemma import GEMMA, GEMMA2, GEMMA3
from ryzanstein.models.grouped import grouped_shapes
from ryzanstein.models.llama import LLAMA, MISTRAL
from ryzanstein.models.packing import Packing, resolve_head
from ryzanstein.models.qwen import QWEN2, QWEN3
from ryzanstein.models.rope import frequency_sets
from ryzanstein.models.tensors import check_tensors, count_parameters, matrix_shapes
from ryzanstein.models.weights import WeightReader
from ryzanstein.progress import byte_progress
from ryzanstein.quant import to_bfloat16, to_float32
from ryzanstein.tuning import choose_kernels, known_kernels

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from numpy.typing import NDArray

    from ryzanstein.config import HeadKind, WeightKind
    from ryzanstein.loaders.model_files import ModelFiles, WeightSource
    from ryzanstein.loaders.weight_cache import PackedWeights, WeightCache
    from ryzanstein.models.family import Family

__all__ = [
    "LoadedModel",
    "ModelConfig",
    "SkipZeros",
    "TensorInfo",
    "choose_packing",
    "inspect_tensors",
    "known_packing",
    "load_model",
    "num_parameters",
    "packing_identity",
    "read_architecture",
    "read_config",
]

_LOGGER = logging.getLogger(__name__)

# What the codes of the head are called among packed weights.
_CODED_HEAD = "coded_head"

_FAMILIES = {
    family.architecture: family
    for family in (BITNET, BITNET_1BITLLM, GEMMA, GEMMA2, GEMMA3, LLAMA, MISTRAL, QWEN2, QWEN3)
}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A decoder ready to step, and the configuration it was built from.

    `mapped_bytes` of its weights are a file's pages: the system counts them as memory that is free,
    but a model that lost them would read them from disk for every token.
    """

    decoder: Decoder
    config: ModelConfig
    mapped_bytes: int = 0


def read_config(files: ModelFiles) -> ModelConfig:
    """Return the checked configuration of a model.

    Raises:
        ModelLoadError: config.json or one of its fields is missing.
        CorruptFileError: a field has the wrong type or contradicts another.
        UnsupportedFormatError: an architecture or quantisation this engine does not compute.
    """
    return read_architecture(files)[0]


def read_architecture(files: ModelFiles) -> tuple[ModelConfig, Family]:
    """Return the checked configuration of a model, and what its family calls its tensors.

    Raises:
        As `read_config`.
    """
    where = files.where("config.json")
    values = files.read_json("config.json")
    if values is None:
        raise ModelLoadError(
            f"{where} does not exist; point at a directory in the Hugging Face layout "
            "(config.json and *.safetensors)"
        )
    fields = Fields(values, where)
    architecture = require_architecture(fields)
    family = _FAMILIES.get(architecture)
    if family is None:
        raise UnsupportedFormatError(
            f"{fields.name('architectures')} is {architecture!r}; supported are "
            f"{', '.join(sorted([*_FAMILIES, *TEXT_MODELS]))}"
        )
    return parse_config(fields, family), family


def inspect_tensors(files: ModelFiles) -> list[TensorInfo]:
    """Return name, dtype, shape and size of every tensor of a model, by name.

    Raises:
        ModelLoadError: a file is missing.
        CorruptFileError: a header or the index is damaged.
    """
    checkpoint = files.open_weights()
    return [checkpoint.info(name) for name in sorted(checkpoint)]


def load_model(
    files: ModelFiles,
    *,
    threads: int,
    isa: str | None,
    skip_zeros: SkipZeros | None = None,
    lm_head: HeadKind = "exact",
    weights: WeightKind = "auto",
    attention_window: int = 0,
    attention_sinks: int = 0,
    weight_cache: WeightCache | None = None,
    progress: bool = False,
) -> LoadedModel:
    """Load a model.

    Args:
        files: those of the model.
        threads: threads to pack with and to step with.
        isa: instruction-set tier, or None for the best this machine has.
        lm_head: how logits are computed; an exact head that gains nothing by codes is dense.
        weights: how linears are held. "auto": ternary if the checkpoint is, else as stored; "bf16":
            float32 rounded to bfloat16; "int8" and "int4": floats rounded to so many bits in groups
            of 32 columns; "ternary": ternarised, like the masters of a BitNet model.
        skip_zeros: which zeros of feed-forwards a step of one token passes over, or None for what
            is usually faster. "down" and "all" each cost memory of a fifth of a byte per weight.
        attention_window: keys that a token of any layer sees at most, the last ones; 0 for no limit
            but the layer's own.
        attention_sinks: keys that it sees besides, the first ones, where that limits it.
        weight_cache: where packed weights are looked for, and kept once they are made.
        progress: show a progress bar on standard error, if it is a terminal.

    Raises:
        ModelLoadError: something is missing.
        CorruptFileError: a file is damaged or contradicts another.
        UnsupportedFormatError: an architecture or quantisation this engine does not compute.
        QuantizationError: weights that cannot be represented.
        ValidationError: an unknown choice, or a tier or kernel this machine does not have.
    """
    if threads < 1:
        raise ValidationError(f"threads is {threads}; it must be at least 1")
    resolve_isa(isa)  # a wrong tier is refused before the work
    config, family = read_architecture(files)
    config, weights = with_weights(config, weights)
    config = dataclasses.replace(
        config, attention_window=attention_window, attention_sinks=attention_sinks
    )
    checkpoint = files.open_weights()
    check_tensors(checkpoint, config, family)
    packing = choose_packing(checkpoint, config, isa, threads, skip_zeros, lm_head, weights)
    shapes = grouped_shapes(checkpoint, config, family, weights)
    kernels = choose_kernels(shapes, layers=config.num_layers, isa=isa, threads=threads)
    build = _Build(checkpoint, config, family, packing, kernels, threads, isa)
    if weight_cache is None:
        return build.run(None, progress=progress)[0]
    return build.run_cached(weight_cache, progress=progress)


def choose_packing(
    checkpoint: WeightSource,
    config: ModelConfig,
    isa: str | None,
    threads: int,
    skip_zeros: SkipZeros | None = None,
    lm_head: HeadKind = "exact",
    weights: WeightKind = "auto",
) -> Packing:
    """Return how a model is packed for a tier and a number of threads of this machine.

    Measures the kernels of its shapes where that has not been done yet.

    Raises:
        ValidationError: a tier this machine does not have, or an unknown kernel in the environment.
    """
    family = _FAMILIES[config.architecture]
    shapes = matrix_shapes(config, family)
    return Packing(
        choose_kernels(shapes, layers=config.num_layers, isa=isa, threads=threads),
        resolve_skip_zeros(skip_zeros, config, isa),
        resolve_head(lm_head, config, checkpoint, family),
        weights,
    )


def known_packing(
    checkpoint: WeightSource, config: ModelConfig, *, isa: str | None, threads: int
) -> Packing | None:
    """Return what `choose_packing` would, or None where it would have to measure kernels first.

    Raises:
        ValidationError: as `choose_packing`.
    """
    family = _FAMILIES[config.architecture]
    shapes = matrix_shapes(config, family)
    kernels = known_kernels(shapes, layers=config.num_layers, isa=isa, threads=threads)
    if kernels is None:
        return None
    head = resolve_head("exact", config, checkpoint, family)
    return Packing(kernels, resolve_skip_zeros(None, config, isa), head)


def packing_identity(checkpoint: WeightSource, config: ModelConfig, packing: Packing) -> str:
    """Return what the packed weights of a checkpoint depend on, as text."""
    parts = {
        "checkpoint": checkpoint.identity(),
        # Weights are the same whatever tokens see.
        "config": dataclasses.asdict(
            dataclasses.replace(config, attention_window=0, attention_sinks=0)
        ),
        "packing": packing.identity(),
        "layouts": packing_fingerprint(),
    }
    return json.dumps(parts, sort_keys=True)


@dataclass(frozen=True, slots=True)
class _Build:
    """A checked checkpoint, and how its weights are to be packed."""

    checkpoint: WeightSource
    config: ModelConfig
    family: Family
    packing: Packing
    grouped_kernels: Mapping[tuple[int, int, int], str]
    threads: int
    isa: str | None

    def run_cached(self, cache: WeightCache, *, progress: bool) -> LoadedModel:
        """Return the model, made of what the cache holds, or else kept there for the next load."""
        identity = packing_identity(self.checkpoint, self.config, self.packing)
        packed = cache.find(identity)
        if packed is not None:
            try:
                return self.run(packed, progress=progress)[0]
            except RyzansteinError as error:  # the checkpoint's own faults will come up again
                _LOGGER.debug("packed weights are made again: %s", error)
        model, objects = self.run(None, progress=progress)
        if objects:
            cache.store(identity, objects)
        return model

    def run(
        self, packed: PackedWeights | None, *, progress: bool
    ) -> tuple[LoadedModel, dict[str, dict[str, NDArray[Any]]]]:
        """Return the model, made of packed weights if there are any, else with those it packed."""
        config, checkpoint = self.config, self.checkpoint
        total = sum(checkpoint.info(name).nbytes for name in checkpoint)
        title = f"Loading {checkpoint.path.name}"
        with byte_progress(title, total, shown=progress and packed is None) as advance:
            reader = WeightReader(
                checkpoint,
                config,
                self.family,
                self.packing,
                self.grouped_kernels,
                packed,
                advance,
            )
            embedding, lm_head = reader.embedding(), reader.lm_head()
            with ThreadPoolExecutor(self.threads) as pool:
                layers = list(pool.map(reader.layer, range(config.num_layers)))
            final_norm = reader.final_norm()
        head_kind = self.packing.head
        is_coded = head_kind != "dense"
        decoder = Decoder(
            _decoder_config(config, self.family, checkpoint.info(self.family.embedding).dtype),
            layers,
            embedding,
            final_norm,
            lm_head,
            head_kind=head_kind,
            coded_head=packed.arrays(_CODED_HEAD) if packed is not None and is_coded else None,
            threads=self.threads,
            isa=self.isa,
        )
        objects = reader.objects
        if is_coded:
            reader.release_dense()  # read whole for checks and codes, from now on by rows
            objects[_CODED_HEAD] = decoder.coded_head_arrays()
        mapped_bytes = reader.mapped_bytes() + (0 if packed is None else packed.nbytes)
        return LoadedModel(decoder, config, mapped_bytes), objects


def num_parameters(config: ModelConfig) -> int:
    """Count every weight once, a tied head with the embedding."""
    return count_parameters(config, _FAMILIES[config.architecture])


def _decoder_config(config: ModelConfig, family: Family, dtype: str) -> DecoderConfig:
    return DecoderConfig(
        hidden_size=config.hidden_size,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        rms_norm_eps=config.rms_norm_eps,
        activation=config.activation,
        inv_freq=frequency_sets(config.ropes, config.head_dim),
        rope_attention_factors=np.array([rope.attention_factor for rope in config.ropes]),
        embedding_scale=_embedding_scale(config, dtype) if family.scales_embedding else 1.0,
        attention_scale=config.attention_scale,
        attention_softcap=config.attention_softcap,
        final_softcap=config.final_softcap,
    )


def _embedding_scale(config: ModelConfig, dtype: str) -> float:
    """Return the root of the hidden size as transformers rounds it: to the embedding's type.

    The quantised types of GGUF do not say what the embedding was before: it is left as float32.
    """
    scale = np.array([math.sqrt(config.hidden_size)], np.float32)
    if dtype == "BF16":
        scale = to_float32(to_bfloat16(scale))
    elif dtype == "F16":
        scale = to_float32(scale.astype(np.float16))
    return float(scale[0])
