"""`config.json` of a checkpoint as one checked, immutable object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ryzanstein.errors import CorruptFileError, ModelLoadError, UnsupportedFormatError
from ryzanstein.models.rope import RopeConfig, read_rope

if TYPE_CHECKING:
    from ryzanstein.models.family import Family
    from ryzanstein.models.fields import Fields

__all__ = ["ModelConfig", "QuantizationConfig", "parse_config", "require_architecture"]

# No real model comes near these; they keep a damaged size from reaching an allocator.
_MAX_DIMENSION = 1 << 24
_MAX_COUNT = (1 << 31) - 1
_MAX_LAYERS = 1 << 16
_EPS = (1e-30, 1.0)
# Parts that transformers never quantises, so that naming them changes nothing.
_NEVER_QUANTISED = {"lm_head", "embed_tokens", "model.embed_tokens"}

Activation = Literal["silu", "relu2"]


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """How the linears are stored and scaled (transformers' `BitNetQuantConfig`)."""

    linear_class: str  # "autobitlinear" or "bitlinear"
    mode: str  # "offline": packed ternary, "online": full-precision masters
    input_norm: bool  # an RMSNorm inside each linear, on its input
    input_norm_eps: float


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
    rope: RopeConfig
    tie_word_embeddings: bool
    attn_sub_norm: bool
    ffn_sub_norm: bool
    quantization: QuantizationConfig

    @property
    def num_parameters(self) -> int:
        """Count every weight once, a tied head with the embedding."""
        wide, narrow = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        hidden, inner = self.hidden_size, self.intermediate_size
        layer = 2 * wide * hidden + 2 * narrow * hidden + 3 * hidden * inner + 2 * hidden
        layer += wide * self.attn_sub_norm + inner * self.ffn_sub_norm
        if self.quantization.input_norm:
            layer += 5 * hidden + wide + inner
        heads = 1 if self.tie_word_embeddings else 2
        return heads * self.vocab_size * hidden + self.num_layers * layer + hidden


def parse_config(fields: Fields, family: Family) -> ModelConfig:
    """Return the checked configuration of a model of one family.

    Raises:
        ModelLoadError: a field is missing.
        CorruptFileError: a field has the wrong type or contradicts another.
        UnsupportedFormatError: the model asks for something this engine does not compute.
    """
    hidden = fields.integer("hidden_size", _MAX_DIMENSION)
    heads = fields.integer("num_attention_heads", _MAX_DIMENSION)
    head_dim = _head_dim(fields, hidden, heads)
    if family.attn_sub_norm is not None and heads * head_dim != hidden:
        raise CorruptFileError(
            f"{fields.name('head_dim')} is {head_dim}, but {heads} heads of it do not make up "
            f"hidden_size {hidden}, as the norm after attention needs"
        )
    context = fields.integer("max_position_embeddings", _MAX_COUNT)
    tied = fields.boolean("tie_word_embeddings", default=False)
    for bias in ("attention_bias", "mlp_bias"):
        if fields.boolean(bias, default=False):
            raise UnsupportedFormatError(
                f"{fields.name(bias)} is true; linears with a bias are not supported"
            )
    return ModelConfig(
        architecture=family.architecture,
        hidden_size=hidden,
        num_layers=fields.integer("num_hidden_layers", _MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=_kv_heads(fields, heads),
        head_dim=head_dim,
        intermediate_size=fields.integer("intermediate_size", _MAX_DIMENSION),
        vocab_size=fields.integer("vocab_size", _MAX_COUNT),
        max_position_embeddings=context,
        rms_norm_eps=fields.number("rms_norm_eps", *_EPS),
        activation=_activation(fields),
        rope=read_rope(fields, context),
        tie_word_embeddings=tied,
        attn_sub_norm=family.attn_sub_norm is not None,
        ffn_sub_norm=family.ffn_sub_norm is not None,
        quantization=_quantization(fields, tied),
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


def _activation(fields: Fields) -> Activation:
    name = fields.text("hidden_act")
    if name == "silu":
        return "silu"
    if name == "relu2":
        return "relu2"
    raise UnsupportedFormatError(
        f"{fields.name('hidden_act')} is {name!r}; supported are silu and relu2"
    )


def _quantization(fields: Fields, tied: bool) -> QuantizationConfig:
    section = fields.section("quantization_config")
    if section is None:
        raise UnsupportedFormatError(
            f"{fields.name('quantization_config')} is missing: the model is not quantised. Only "
            "ternary (BitNet b1.58) models run here; for full-precision masters of one, add "
            '{"quant_method": "bitnet", "linear_class": "autobitlinear", '
            '"quantization_mode": "online"}'
        )
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
