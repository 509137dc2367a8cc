"""BitNet b1.58 in torch, for training, and its float twin: one module, one switch.

With ``ternary=False`` every linear is an ordinary one and nothing else changes, so the two differ
by quantisation alone. Parameter names are those of transformers' ``BitNetForCausalLM``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATION_MAX = 127.0
SMALLEST_SCALE = 1e-5
SMALLEST_QUERY_BLOCK = 128


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes of the model; the defaults are those of the embedded one."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    max_positions: int = 1024
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5
    ternary: bool = True

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.hidden_size // self.heads


def ternarise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Absmean over the whole tensor: values in {-1, 0, 1}, and the scale to multiply them by."""
    scale = weight.float().abs().mean().clamp(min=SMALLEST_SCALE)
    values = torch.round(weight.float() * (1.0 / scale)).clamp(-1, 1)
    return values, scale


def fake_quantise_weight(weight: Tensor) -> Tensor:
    """The ternary weight times its scale; the gradient passes straight through."""
    values, scale = ternarise(weight)
    return weight + (values * scale - weight).detach()


def fake_quantise_activation(x: Tensor) -> Tensor:
    """Per-token absmax int8, scaled back; the gradient passes straight through."""
    x = x.float()
    peak = x.detach().abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST_SCALE)
    scale = ACTIVATION_MAX / peak
    values = torch.round(x.detach() * scale).clamp(-128, 127)
    return x + (values / scale - x.detach())


class BitLinear(nn.Linear):
    """A linear without bias whose weight is ternary in the forward pass when asked to be.

    It expects activations that are quantised already: several linears share one input.
    """

    def __init__(self, in_features: int, out_features: int, *, ternary: bool) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.ternary = ternary

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module."""
        weight = fake_quantise_weight(self.weight) if self.ternary else self.weight
        return functional.linear(x.to(compute_dtype()), weight.to(compute_dtype()))


_DTYPE = [torch.float32]


def compute_dtype() -> torch.dtype:
    """The type matrix products run in; everything between them stays in float32."""
    return _DTYPE[0]


def set_compute_dtype(dtype: torch.dtype) -> None:
    """bfloat16 for speed while training, float32 (the default) to measure and to compare."""
    _DTYPE[0] = dtype


class RMSNorm(nn.Module):
    """x over its root mean square, times a gain; float32 throughout."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module."""
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def rope_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin, float32[max_positions, head_dim], halves repeated (rotate-half pairing)."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    angles = torch.outer(
        torch.arange(config.max_positions, dtype=torch.float64), config.rope_theta**-half
    )
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate-half RoPE of x: [batch, positions, heads, head_dim]."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x.float() * cos[:, None, :] + turned * sin[:, None, :]


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of [batch, heads, positions, head_dim], one block of queries at a time.

    Plain products and a softmax: on CPU, compiled, this takes half the time of torch's own fused
    operator at these sizes. A block sees no later keys, which saves part of the masked work; two
    blocks are enough, and every further one lengthens the compiler's own work.
    """
    scale, out = q.shape[-1] ** -0.5, []
    block = max(SMALLEST_QUERY_BLOCK, q.shape[2] // 2)
    for begin in range(0, q.shape[2], block):
        end = min(begin + block, q.shape[2])
        scores = (q[:, :, begin:end] @ k[:, :, :end].transpose(2, 3)).float() * scale
        rows = torch.arange(begin, end, device=q.device)[:, None]
        hidden = torch.arange(end, device=q.device)[None, :] > rows
        weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
        out.append(weights.to(v.dtype) @ v[:, :, :end])
    return torch.cat(out, dim=2)


class Attention(nn.Module):
    """Grouped-query attention with a norm before the output projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, kv = config.hidden_size, config.kv_heads * config.head_dim
        self.config = config
        self.q_proj = BitLinear(hidden, hidden, ternary=config.ternary)
        self.k_proj = BitLinear(hidden, kv, ternary=config.ternary)
        self.v_proj = BitLinear(hidden, kv, ternary=config.ternary)
        self.o_proj = BitLinear(hidden, hidden, ternary=config.ternary)
        self.attn_sub_norm = RMSNorm(hidden, config.rms_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Apply the module."""
        batch, length, _ = x.shape
        dim = self.config.head_dim
        x = fake_quantise_activation(x) if self.config.ternary else x
        q = rotate(self.q_proj(x).view(batch, length, -1, dim), cos, sin)
        k = rotate(self.k_proj(x).view(batch, length, -1, dim), cos, sin)
        v = self.v_proj(x).view(batch, length, -1, dim)
        repeat = self.config.heads // self.config.kv_heads
        k, v = k.repeat_interleave(repeat, dim=2), v.repeat_interleave(repeat, dim=2)
        q, k, v = (t.to(compute_dtype()).transpose(1, 2) for t in (q, k, v))
        mixed = causal_attention(q, k, v)
        out = self.attn_sub_norm(mixed.transpose(1, 2).reshape(batch, length, -1))
        out = fake_quantise_activation(out) if self.config.ternary else out
        return self.o_proj(out)


class MLP(nn.Module):
    """Squared ReLU gate with a norm before the down projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.config = config
        self.gate_proj = BitLinear(hidden, inner, ternary=config.ternary)
        self.up_proj = BitLinear(hidden, inner, ternary=config.ternary)
        self.down_proj = BitLinear(inner, hidden, ternary=config.ternary)
        self.ffn_sub_norm = RMSNorm(inner, config.rms_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module."""
        x = fake_quantise_activation(x) if self.config.ternary else x
        gate = functional.relu(self.gate_proj(x).float()).square()
        out = self.ffn_sub_norm(gate * self.up_proj(x).float())
        out = fake_quantise_activation(out) if self.config.ternary else out
        return self.down_proj(out)


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and added to the stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Apply the module."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class BitNet(nn.Module):
    """The decoder: token ids int64[batch, positions] to logits float32[batch, positions, V]."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_eps)
        cos, sin = rope_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal by fan-in; what the layers add to the stream starts small beside the embedding."""
        nn.init.normal_(self.embed_tokens.weight, std=self.config.hidden_size**-0.5)
        for name, module in self.named_modules():
            if isinstance(module, BitLinear):
                adds_to_stream = name.endswith(("o_proj", "down_proj"))
                gain = 0.25 * (2 * self.config.layers) ** -0.5 if adds_to_stream else 1.0
                nn.init.normal_(module.weight, std=gain * module.in_features**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """Apply the module."""
        x = self.embed_tokens(ids).float()
        length = ids.shape[1]
        for layer in self.layers:
            x = layer(x, self.cos[:length], self.sin[:length])
        x = self.norm(x).to(compute_dtype())
        return functional.linear(x, self.embed_tokens.weight.to(compute_dtype()))

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token."""
        logits = self(ids).float()
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
