"""`config.json` of a checkpoint as one checked, immutable object."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ryzanstein.errors import CorruptFileError, ModelLoadError, UnsupportedFormatError
from ryzanstein.models.rope import RopeConfig, read_ropes, rope_limits

if TYPE_CHECKING:
    from ryzanstein.config import WeightKind
    from ryzanstein.models.family import Family
    from ryzanstein.models.fields import Fields

__all__ = [
    "ModelConfig",
    "QuantizationConfig",
    "parse_config",
    "require_architecture",
    "with_weights",
]

# No real model comes near these; they keep a damaged size from reaching an allocator.
_MAX_DIMENSION = 1 << 24
_MAX_COUNT = (1 << 31) - 1
_MAX_LAYERS = 1 << 16
_EPS = (1e-30, 1.0)
_SOFTCAP = (1e-3, 1e6)
_QUERY_SCALAR = (1e-6, 1e12)
# Parts that transformers never quantises, so that naming them changes nothing.
_NEVER_QUANTISED = {"lm_head", "embed_tokens", "model.embed_tokens"}

Activation = Literal["silu", "relu2", "gelu_tanh"]
# "gelu" is what the first releases of Gemma say and mean the approximation by.
_ACTIVATIONS: dict[str, dict[str, Activation]] = {
    "hidden_act": {"silu": "silu", "relu2": "relu2"},
    "gemma": {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu_tanh"},
}
_SLIDING, _FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """How ternary linears are stored and scaled (transformers' `BitNetQuantConfig`)."""

    linear_class: str  # "autobitlinear" or "bitlinear"
    mode: str  # "offline": packed ternary, "online": full-precision masters
    input_norm: bool  # an RMSNorm inside each linear, on its input
    input_norm_eps: float


_MASTERS = QuantizationConfig("autobitlinear", "online", input_norm=False, input_norm_eps=1e-6)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a decoder needs to know of its architecture."""

    architecture: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    activation: Activation
    ropes: tuple[RopeConfig, ...]  # of layers that see everything, and of those that do not
    tie_word_embeddings: bool
    attn_sub_norm: bool
    ffn_sub_norm: bool
    quantization: QuantizationConfig | None  # None: the linears are floats
    sliding_windows: tuple[int, ...]  # keys a token of each layer sees, 0 for all
    biased: tuple[str, ...] = ()  # linears with a bias, by their names in a layer
    query_scalar: float | None = None  # scores are divided by its square root; None: head_dim
    attention_softcap: float = 0.0
    final_softcap: float = 0.0
    # Asked for when loading, not of the model: 0 for none.
    attention_window: int = 0
    attention_sinks: int = 0

    def attention_span(self, layer: int) -> tuple[int, int]:
        """Return how many of the last keys, 0 for all, and of the first a token of a layer sees."""
        own, asked = self.sliding_windows[layer], self.attention_window
        if not asked or 0 < own <= asked:
            return own, 0
        return asked, self.attention_sinks

    @property
    def has_input_norms(self) -> bool:
        """Return whether each linear has a norm of its own on its input."""
        return self.quantization is not None and self.quantization.input_norm

    @property
    def max_context(self) -> int:
        """Return the positions the model can be asked for, of which the default may use fewer."""
        return max(self.max_position_embeddings, *(rope.max_context for rope in self.ropes))

    @property
    def rope_limits(self) -> tuple[int, ...]:
        """Return the lengths of sequences beyond which they are rotated by other frequencies."""
        return rope_limits(self.ropes)

    @property
    def attention_scale(self) -> float:
        """Return what scores are multiplied by."""
        return 1.0 / math.sqrt(self.query_scalar or self.head_dim)


def parse_config(fields: Fields, family: Family) -> ModelConfig:
    """Return the checked configuration of a model of one family.

    Raises:
        ModelLoadError: a field is missing.
        CorruptFileError: a field has the wrong type or contradicts another.
        UnsupportedFormatError: the model asks for something this engine does not compute.
    """
    fields = fields.with_defaults(family.defaults)
    hidden = fields.integer("hidden_size", _MAX_DIMENSION)
    heads = fields.integer("num_attention_heads", _MAX_DIMENSION)
    head_dim = _head_dim(fields, hidden, heads)
    if family.attn_sub_norm is not None and heads * head_dim != hidden:
        raise CorruptFileError(
            f"{fields.name('head_dim')} is {head_dim}, but {heads} heads of it do not make up "
            f"hidden_size {hidden}, as the norm after attention needs"
        )
    context = fields.integer("max_position_embeddings", _MAX_COUNT)
    _require_causal(fields)
    layers = fields.integer("num_hidden_layers", _MAX_LAYERS)
    tied = fields.boolean("tie_word_embeddings", default=False)
    config = ModelConfig(
        architecture=family.architecture,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=_kv_heads(fields, heads),
        head_dim=head_dim,
        intermediate_size=fields.integer("intermediate_size", _MAX_DIMENSION),
        vocab_size=fields.integer("vocab_size", _MAX_COUNT),
        max_position_embeddings=context,
        rms_norm_eps=fields.number("rms_norm_eps", *_EPS),
        activation=_activation(fields, family),
        ropes=read_ropes(fields, family, context, head_dim),
        tie_word_embeddings=tied,
        attn_sub_norm=family.attn_sub_norm is not None,
        ffn_sub_norm=family.ffn_sub_norm is not None,
        quantization=_quantization(fields, family, tied),
        sliding_windows=_sliding_windows(fields, family, layers),
        biased=_biased(fields, family),
    )
    if family.scales_queries:
        scalar = fields.number("query_pre_attn_scalar", *_QUERY_SCALAR)
        config = replace(config, query_scalar=scalar)
    if family.softcaps:
        config = replace(
            config,
            attention_softcap=_softcap(fields, "attn_logit_softcapping"),
            final_softcap=_softcap(fields, "final_logit_softcapping"),
        )
    return config


def with_weights(config: ModelConfig, weights: WeightKind) -> tuple[ModelConfig, WeightKind]:
    """Return the configuration of a model whose weights are held so, and "auto" for as stored.

    Raises:
        UnsupportedFormatError: the checkpoint cannot be.
    """
    if config.quantization is None:
        held = replace(config, quantization=_MASTERS) if weights == "ternary" else config
        return held, weights
    if weights not in ("auto", "ternary"):
        raise UnsupportedFormatError(
            f"the model is ternary, which {weights} weights would only take more memory to hold; "
            'load it with weights="auto"'
        )
    return config, "auto"


def _require_causal(fields: Fields) -> None:
    if fields.boolean("use_bidirectional_attention", default=False):
        raise UnsupportedFormatError(
            f"{fields.name('use_bidirectional_attention')} is true: the model embeds texts, and "
            "does not continue them"
        )


def _head_dim(fields: Fields, hidden: int, heads: int) -> int:
    if fields.has("head_dim"):
        head_dim = fields.integer("head_dim", _MAX_DIMENSION)
    elif hidden % heads:
        raise CorruptFileError(
            f"{fields.name('hidden_size')} is {hidden}, not a multiple of num_attention_heads "
            f"{heads}; correct one, or add head_dim"
        )
    else:
        head_dim = hidden // heads
    if head_dim % 2:
        raise CorruptFileError(
            f"{fields.name('head_dim')} is {head_dim}; rotary embedding needs an even one"
        )
    return head_dim


def _kv_heads(fields: Fields, heads: int) -> int:
    # An explicit null is transformers' way of saying "as many as query heads".
    if "num_key_value_heads" in fields.values and not fields.has("num_key_value_heads"):
        return heads
    kv_heads = fields.integer("num_key_value_heads", _MAX_DIMENSION)
    if heads % kv_heads:
        raise CorruptFileError(
            f"{fields.name('num_key_value_heads')} is {kv_heads}, which does not divide "
            f"num_attention_heads {heads}"
        )
    return kv_heads


def _activation(fields: Fields, family: Family) -> Activation:
    name = fields.text(family.activation)
    known = _ACTIVATIONS["gemma" if family.scales_embedding else "hidden_act"]
    if name in known:
        return known[name]
    raise UnsupportedFormatError(
        f"{fields.name(family.activation)} is {name!r}; supported are {' and '.join(known)}"
    )


def _biased(fields: Fields, family: Family) -> tuple[str, ...]:
    """Return the linears that have a bias, in the order of a layer."""
    attention = (*family.attn_in, family.o_proj)
    feed_forward = (*family.mlp_in, family.down_proj)
    biased = set(family.biased)
    if fields.boolean("attention_bias", default=False):
        biased.update(attention)
    if fields.boolean("mlp_bias", default=False):
        biased.update(feed_forward)
    return tuple(name for name in (*attention, *feed_forward) if name in biased)


def _softcap(fields: Fields, key: str) -> float:
    return fields.number(key, *_SOFTCAP) if fields.has(key) else 0.0


def _sliding_windows(fields: Fields, family: Family, layers: int) -> tuple[int, ...]:
    """Return for each layer how many keys a token sees, 0 for all."""
    off = family.windows == "none" or not fields.has("sliding_window")
    if family.windows == "late":
        off = off or not fields.boolean("use_sliding_window", default=False)
    if off:
        return (0,) * layers
    window = fields.integer("sliding_window", _MAX_COUNT)
    kinds = None if family.windows == "all" else fields.strings("layer_types")
    if kinds is None:
        return tuple(window * is_sliding for is_sliding in _window_rule(fields, family, layers))
    if len(kinds) != layers or not {_SLIDING, _FULL}.issuperset(kinds):
        raise CorruptFileError(
            f"{fields.name('layer_types')} must name {_SLIDING} or {_FULL} for each of {layers} "
            f"layers, found {len(kinds)} names: {', '.join(sorted(set(kinds))[:4])}"
        )
    return tuple(window if kind == _SLIDING else 0 for kind in kinds)


def _window_rule(fields: Fields, family: Family, layers: int) -> list[bool]:
    if family.windows == "all":
        return [True] * layers
    if family.windows == "late":
        first = fields.integer("max_window_layers", _MAX_LAYERS)
        return [index >= first for index in range(layers)]
    pattern = fields.integer("sliding_window_pattern", _MAX_LAYERS)
    return [(index + 1) % pattern != 0 for index in range(layers)]


def _quantization(fields: Fields, family: Family, tied: bool) -> QuantizationConfig | None:
    section = fields.section("quantization_config")
    if section is None:
        return _MASTERS if family.is_ternary else None
    _one_of(section, "quant_method", section.text("quant_method"), ("bitnet",))
    linear_class = section.text("linear_class", "bitlinear")
    mode = section.text("quantization_mode", "offline")
    _one_of(section, "linear_class", linear_class, ("autobitlinear", "bitlinear"))
    _one_of(section, "quantization_mode", mode, ("offline", "online"))
    _check_unconverted(section, tied)
    return QuantizationConfig(
        linear_class=linear_class,
        # BitLinear has no masters: transformers ignores the mode for it.
        mode="offline" if linear_class == "bitlinear" else mode,
        input_norm=section.boolean("use_rms_norm", default=False),
        input_norm_eps=(
            section.number("rms_norm_eps", *_EPS) if section.has("rms_norm_eps") else 1e-6
        ),
    )


def _one_of(section: Fields, key: str, value: str, supported: tuple[str, ...]) -> None:
    if value not in supported:
        raise UnsupportedFormatError(
            f"{section.name(key)} is {value!r}; supported: {', '.join(supported)}"
        )


def _check_unconverted(section: Fields, tied: bool) -> None:
    names = section.strings("modules_to_not_convert")
    if names is None:
        return
    dense = sorted(set(names) - _NEVER_QUANTISED)
    if dense:
        raise UnsupportedFormatError(
            f"{section.name('modules_to_not_convert')} keeps {', '.join(dense[:4])} dense; "
            "only the output head may stay unquantised"
        )
    # transformers skips the head by default only: an explicit list without it quantises it.
    if "lm_head" not in names and not tied:
        raise UnsupportedFormatError(
            f"{section.name('modules_to_not_convert')} leaves lm_head out, which means a "
            "quantised output head; only a full-precision head is supported"
        )


def require_architecture(fields: Fields) -> str:
    """Return the one architecture a config.json names."""
    names = fields.strings("architectures")
    if not names:
        raise ModelLoadError(
            f"{fields.name('architectures')} is missing; it must name the model's class, "
            'such as ["BitNetForCausalLM"]'
        )
    if len(names) > 1:
        raise UnsupportedFormatError(
            f"{fields.name('architectures')} names several classes: {', '.join(names[:4])}"
        )
    return names[0]
