"""The model shapes that the benchmarks run, and what both checkpoint writers share."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "PRESETS",
    "PeerHead",
    "Shape",
    "byte_alphabet",
    "checkpoint_path",
    "default_directory",
    "gguf_path",
    "progress_bar",
    "random_codes",
    "ternary_scale",
    "vocabulary",
]

# What the head of a GGUF, which is its embedding, is held in.
PeerHead: TypeAlias = Literal["q4_0", "q6_k"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a decoder; every one is a figure that decides its speed.

    A "bitnet" has ternary linears and norms before its output projections; a "gemma" has neither:
    its linears are floats, to be held in 4 bits.
    """

    architecture: Literal["bitnet", "gemma"] = "bitnet"

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    rope_theta: float
    rms_eps: float = 1e-5

    @property
    def bos(self) -> int:
        """Return the id of the first special token: the last 256 ids are special, as in Llama 3."""
        return self.vocab - 256

    @property
    def eos(self) -> int:
        """Return the id of the second special token."""
        return self.vocab - 255

    def linears(self) -> dict[str, tuple[int, int]]:
        """Return each linear of one layer: Hugging Face name -> (N, K)."""
        queries = self.heads * self.head_dim
        keys = self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (queries, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, queries),
            "mlp.gate_proj": (self.ffn, self.hidden),
            "mlp.up_proj": (self.ffn, self.hidden),
            "mlp.down_proj": (self.hidden, self.ffn),
        }

    def norms(self) -> dict[str, int]:
        """Return each RMSNorm of one layer: Hugging Face name -> size."""
        norms = {"input_layernorm": self.hidden, "post_attention_layernorm": self.hidden}
        if self.architecture == "bitnet":
            norms["self_attn.attn_sub_norm"] = self.heads * self.head_dim
            norms["mlp.ffn_sub_norm"] = self.ffn
        return norms


PRESETS: dict[str, Shape] = {
    "2b-4t": Shape(
        hidden=2560,
        layers=30,
        heads=20,
        kv_heads=5,
        head_dim=128,
        ffn=6912,
        vocab=128256,
        context=16384,  # 4096 in the real one; depth beyond it is worth timing
        rope_theta=500000.0,
    ),
    "gemma-2b": Shape(
        architecture="gemma",
        hidden=2048,
        layers=18,
        heads=8,
        kv_heads=1,
        head_dim=256,
        ffn=16384,
        vocab=256000,
        context=8192,
        rope_theta=10000.0,
        rms_eps=1e-6,
    ),
    "small": Shape(
        hidden=512,
        layers=4,
        heads=8,
        kv_heads=2,
        head_dim=64,
        ffn=1536,
        vocab=4096,
        context=4096,
        rope_theta=10000.0,
    ),
}

# All 81 bytes that hold four codes of two bits, each 0, 1 or 2 (code 3 is invalid in every format).
_FOUR_CODES = np.array(
    [
        a | b << 2 | c << 4 | d << 6
        for a in range(3)
        for b in range(3)
        for c in range(3)
        for d in range(3)
    ],
    dtype=np.uint8,
)


def random_codes(rng: np.random.Generator, count: int) -> NDArray[np.uint8]:
    """Return uint8 [count], each byte four independent uniform ternary codes."""
    return _FOUR_CODES[rng.integers(0, len(_FOUR_CODES), size=count, dtype=np.uint8)]


def ternary_scale(in_features: int) -> float:
    """Return the weight scale that keeps a random ternary linear's output near unit variance."""
    return float((in_features * 2 / 3) ** -0.5)


def byte_alphabet() -> list[str]:
    """Return the 256 characters that stand for bytes in byte-level BPE, in order of the byte."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(hidden)) for byte in range(256)]


def vocabulary(shape: Shape) -> list[str]:
    """Return V token strings: bytes, words that no merge reaches, then the 256 special tokens."""
    space = byte_alphabet()[0x20]
    words = [f"{space}w{index}" for index in range(256, shape.bos)]
    special = [f"<|special_{index}|>" for index in range(256)]
    special[:2] = ["<|begin_of_text|>", "<|end_of_text|>"]
    return [*byte_alphabet(), *words, *special]


def progress_bar() -> Progress:
    """Return a byte progress bar, drawn on a terminal and silent anywhere else."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    progress = Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn())
    progress.disable = not progress.console.is_terminal
    return progress


def default_directory() -> Path:
    """Return where large files go unless told otherwise: never into the repository."""
    return Path(tempfile.gettempdir()) / "ryzanstein-bench"


def checkpoint_path(directory: Path, preset: str) -> Path:
    """Return where the Hugging Face checkpoint of a preset lies."""
    return directory / preset


def gguf_path(directory: Path, preset: str, head: PeerHead) -> Path:
    """Return where the GGUF of a preset with such a head lies."""
    weights = "tq2_0" if PRESETS[preset].architecture == "bitnet" else "q4_0"
    return directory / f"{preset}-{weights}-head-{head}.gguf"
