"""Write a Hugging Face checkpoint of random weights: packed ternary for BitNet, bfloat16 for Gemma.

Speed depends on shapes and not on values, so such a checkpoint benches the real thing without a
download. Tensors are made and written one at a time: memory stays near 100 MB.

Examples:
  python -m bench.synthetic --preset 2b-4t
  python -m bench.synthetic --preset gemma-2b
  python -m bench.synthetic --preset small --out /tmp/small --shard-mb 1
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from bench.shapes import (
    PRESETS,
    Shape,
    checkpoint_path,
    default_directory,
    progress_bar,
    random_codes,
    ternary_scale,
    vocabulary,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from rich.progress import Progress, TaskID

__all__ = ["write_checkpoint"]

_CHUNK = 1 << 24  # values made at a time: the bound on this program's memory
_ITEM_BYTES = {"U8": 1, "BF16": 2}


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[np.random.Generator, int], NDArray[Any]]

    @property
    def items(self) -> int:
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        return self.items * _ITEM_BYTES[self.dtype]

    def chunks(self, rng: np.random.Generator) -> Iterator[NDArray[Any]]:
        for begin in range(0, self.items, _CHUNK):
            yield self.make(rng, min(_CHUNK, self.items - begin))


def _bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return bfloat16 bit patterns, truncated: the rounding does not matter for random values."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _normal(mean: float, std: float) -> Callable[[np.random.Generator, int], NDArray[np.uint16]]:
    def make(rng: np.random.Generator, count: int) -> NDArray[np.uint16]:
        return _bf16(
            np.float32(mean) + rng.standard_normal(count, dtype=np.float32) * np.float32(std)
        )

    return make


def _linear(shape: Shape, name: str, rows: int, columns: int) -> list[_Tensor]:
    if shape.architecture == "gemma":
        return [_Tensor(name, "BF16", (rows, columns), _normal(0.0, columns**-0.5))]
    scale = _normal(ternary_scale(columns), 0.0)
    codes = _Tensor(name, "U8", (rows // 4, columns), random_codes)
    return [codes, _Tensor(f"{name}_scale", "BF16", (1,), scale)]


def _tensors(shape: Shape) -> list[_Tensor]:
    # Gemma's gains are stored less one.
    gain = _normal(0.0 if shape.architecture == "gemma" else 1.0, 0.05)
    size = (shape.vocab, shape.hidden)
    tensors = [_Tensor("model.embed_tokens.weight", "BF16", size, _normal(0.0, 0.02))]
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        for name, (rows, columns) in shape.linears().items():
            tensors += _linear(shape, f"{prefix}{name}.weight", rows, columns)
        for name, width in shape.norms().items():
            tensors.append(_Tensor(f"{prefix}{name}.weight", "BF16", (width,), gain))
    tensors.append(_Tensor("model.norm.weight", "BF16", (shape.hidden,), gain))
    return tensors


def _shards(tensors: Sequence[_Tensor], limit: int) -> list[list[_Tensor]]:
    """Split in order so that no shard of more than one tensor exceeds `limit` bytes."""
    shards: list[list[_Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.nbytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    return shards


def _header(tensors: Sequence[_Tensor]) -> bytes:
    ends = np.cumsum([0, *(tensor.nbytes for tensor in tensors)]).tolist()
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for tensor, offsets in zip(tensors, pairwise(ends), strict=True):
        table[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": list(offsets),
        }
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_shard(
    path: Path, tensors: Sequence[_Tensor], rng: np.random.Generator, bar: Progress, task: TaskID
) -> None:
    with path.open("wb") as file:
        file.write(_header(tensors))
        for tensor in tensors:
            for chunk in tensor.chunks(rng):
                file.write(chunk.data)
                bar.advance(task, chunk.nbytes)


def _write_weights(directory: Path, shape: Shape, seed: int, shard_bytes: int) -> None:
    tensors = _tensors(shape)
    shards = _shards(tensors, shard_bytes)
    total = sum(tensor.nbytes for tensor in tensors)
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    rng = np.random.default_rng(seed)
    with progress_bar() as bar:
        task = bar.add_task("weights", total=total)
        for name, shard in zip(names, shards, strict=True):
            _write_shard(directory / name, shard, rng, bar, task)
    if len(shards) > 1:
        where = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        _write_json(directory / "model.safetensors.index.json", index)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bitnet": {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "hidden_act": "relu2",
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
        },
    },
    "gemma": {
        "architectures": ["GemmaForCausalLM"],
        "model_type": "gemma",
        "hidden_act": "gelu_pytorch_tanh",
    },
}


def _config(shape: Shape) -> dict[str, Any]:
    return _ARCHITECTURES[shape.architecture] | {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.ffn,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.rms_eps,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "bos_token_id": shape.bos,
        "eos_token_id": shape.eos,
        "torch_dtype": "bfloat16",
    }


def _tokenizer(shape: Shape) -> Tokenizer:
    tokens = vocabulary(shape)
    ids = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in tokens[shape.bos :]])
    return tokenizer


def _write_tokenizer(directory: Path, shape: Shape) -> None:
    _tokenizer(shape).save(str(directory / "tokenizer.json"))
    tokens = vocabulary(shape)
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokens[shape.bos],
            "eos_token": tokens[shape.eos],
            "model_max_length": shape.context,
        },
    )
    ids = {"bos_token_id": shape.bos, "eos_token_id": shape.eos}
    _write_json(directory / "generation_config.json", ids)


def write_checkpoint(directory: Path, shape: Shape, *, seed: int, shard_bytes: int) -> None:
    """Write config, tokenizer and weights; the same arguments give the same bytes.

    Args:
        directory: created if missing; files of the same names are replaced.
        shape: what to write.
        seed: of every random value.
        shard_bytes: above this the weights are split over several files with an index.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(directory, shape)
    _write_weights(directory, shape, seed, shard_bytes)
    # Last, so that an interrupted run leaves no directory that looks whole.
    _write_json(directory / "config.json", _config(shape))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.synthetic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="small", help="the shape")
    parser.add_argument(
        "--out", type=Path, help="directory to write (default: under the system's temp folder)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default: 0)")
    parser.add_argument(
        "--shard-mb", type=int, default=5000, help="split above this size (default: 5000)"
    )
    return parser.parse_args()


def main() -> None:
    args = _arguments()
    out: Path = args.out or checkpoint_path(default_directory(), args.preset)
    shard_bytes = args.shard_mb * 1_000_000
    write_checkpoint(out, PRESETS[args.preset], seed=args.seed, shard_bytes=shard_bytes)
    print(out)


if __name__ == "__main__":
    main()
