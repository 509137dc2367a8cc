"""Write a GGUF of the same shape as `bench.synthetic` for llama.cpp.

A "bitnet" has a body in TQ2_0, a "gemma" one in Q4_0; the head, which is the embedding, is in Q6_K,
as llama-quantize makes it for either, or in Q4_0, for a comparison with a head of 4 bits.

The blocks are random but valid, so llama.cpp does the work it would do for a trained model. Values
differ from those of the Hugging Face checkpoint, speed does not.

Examples:
  python -m bench.gguf_writer --preset 2b-4t
  python -m bench.gguf_writer --preset gemma-2b --head q4_0
  python -m bench.gguf_writer --preset small --out /tmp/small.gguf
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType, TokenType
from gguf.constants import GGML_QUANT_SIZES

from bench.shapes import (
    PRESETS,
    PeerHead,
    Shape,
    default_directory,
    gguf_path,
    progress_bar,
    random_codes,
    ternary_scale,
    vocabulary,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["write_gguf"]

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
}


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    make: Callable[[np.random.Generator, tuple[int, ...]], NDArray[Any]]

    @property
    def nbytes(self) -> int:
        block, size = GGML_QUANT_SIZES[self.kind]
        return int(np.prod(self.shape)) // block * size


def _half_bytes(value: float, blocks: int) -> NDArray[np.uint8]:
    return np.full((blocks, 1), value, dtype="<f2").view(np.uint8)


def _tq2_0(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return TQ2_0 blocks: 64 bytes of four codes each, then the float16 scale."""
    blocks = int(np.prod(shape)) // 256
    codes = random_codes(rng, blocks * 64).reshape(blocks, 64)
    return np.hstack([codes, _half_bytes(ternary_scale(shape[-1]), blocks)])


def _q4_0(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return Q4_0 blocks: the float16 scale, then 16 bytes of two codes each."""
    blocks = int(np.prod(shape)) // 32
    codes = rng.integers(0, 256, size=(blocks, 16), dtype=np.uint8)
    # The root mean square of uniform codes -8..7 is 4.6.
    return np.hstack([_half_bytes(shape[-1] ** -0.5 / 4.6, blocks), codes])


def _q6_k(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return Q6_K blocks: 192 bytes of random 6-bit codes, 16 int8 scales, then a float16 scale.

    The scales put the values near the spread of a trained embedding (0.02), outside the float16
    subnormals, which could be slow to convert.
    """
    blocks = int(np.prod(shape)) // 256
    codes = rng.integers(0, 256, size=(blocks, 192), dtype=np.uint8)
    scales = rng.integers(8, 16, size=(blocks, 16), dtype=np.uint8)
    return np.hstack([codes, scales, _half_bytes(1e-4, blocks)])


def _near_one(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return rng.normal(1.0, 0.05, size=shape).astype(np.float32)


_MAKERS = {
    GGMLQuantizationType.TQ2_0: _tq2_0,
    GGMLQuantizationType.Q4_0: _q4_0,
    GGMLQuantizationType.Q6_K: _q6_k,
}


def _tensors(shape: Shape, head: PeerHead) -> list[_Tensor]:
    full = GGMLQuantizationType.F32
    ternary = shape.architecture == "bitnet"
    kind = GGMLQuantizationType.TQ2_0 if ternary else GGMLQuantizationType.Q4_0
    head_kind = GGMLQuantizationType[head.upper()]
    embedding = (shape.vocab, shape.hidden)
    tensors = [_Tensor("token_embd.weight", embedding, head_kind, _MAKERS[head_kind])]
    for layer in range(shape.layers):
        for name, size in shape.linears().items():
            tensors.append(_Tensor(f"blk.{layer}.{_NAMES[name]}.weight", size, kind, _MAKERS[kind]))
        for name, width in shape.norms().items():
            tensors.append(_Tensor(f"blk.{layer}.{_NAMES[name]}.weight", (width,), full, _near_one))
    tensors.append(_Tensor("output_norm.weight", (shape.hidden,), full, _near_one))
    return tensors


def _add_hyperparameters(writer: GGUFWriter, shape: Shape) -> None:
    writer.add_name("ryzanstein-bench")
    writer.add_vocab_size(shape.vocab)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_rope_scaling_type(RopeScalingType.NONE)


def _add_tokenizer(writer: GGUFWriter, shape: Shape) -> None:
    tokens = vocabulary(shape)
    control = shape.vocab - shape.bos
    kinds = [TokenType.NORMAL] * shape.bos + [TokenType.CONTROL] * control
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    # llama.cpp refuses an empty list; this merge makes a word that its vocabulary lacks.
    writer.add_token_merges([f"{tokens[0]} {tokens[1]}"])
    writer.add_bos_token_id(shape.bos)
    writer.add_eos_token_id(shape.eos)


def write_gguf(path: Path, shape: Shape, *, seed: int, head: PeerHead = "q6_k") -> None:
    """Write the file, one tensor in memory at a time; the same arguments give the same bytes.

    Args:
        path: the file; its directory is created if missing.
        shape: what to write; every K must be a multiple of 256.
        seed: of every random value.
        head: what the embedding, which is the head too, is held in.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = _tensors(shape, head)
    writer = GGUFWriter(path, shape.architecture)
    _add_hyperparameters(writer, shape)
    _add_tokenizer(writer, shape)
    for tensor in tensors:
        plain = np.dtype(np.float32)
        writer.add_tensor_info(tensor.name, tensor.shape, plain, tensor.nbytes, tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(seed)
    with progress_bar() as bar:
        task = bar.add_task("tensors", total=sum(tensor.nbytes for tensor in tensors))
        for tensor in tensors:
            writer.write_tensor_data(tensor.make(rng, tensor.shape))
            bar.advance(task, tensor.nbytes)
    writer.close()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gguf_writer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="small", help="the shape")
    parser.add_argument(
        "--out", type=Path, help="file to write (default: under the system's temp folder)"
    )
    parser.add_argument(
        "--head", choices=get_args(PeerHead), default="q6_k", help="the head (default: q6_k)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default: 0)")
    return parser.parse_args()


def main() -> None:
    args = _arguments()
    out: Path = args.out or gguf_path(default_directory(), args.preset, args.head)
    write_gguf(out, PRESETS[args.preset], seed=args.seed, head=args.head)
    print(out)


if __name__ == "__main__":
    main()
