"""Tiny random models straight from the native classes, and helpers to run them."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

import ryzanstein
from ryzanstein import _core
from ryzanstein.config import EngineConfig
from ryzanstein.engine.batch import Chunk, run_step
from ryzanstein.engine.block_manager import BlockManager
from ryzanstein.engine.engine import Engine
from ryzanstein.engine.sequence import Sequence
from ryzanstein.engine.step_times import StepTimes
from ryzanstein.loaders.hub import EMBEDDED_MODEL
from ryzanstein.sampling import SamplingParams
from ryzanstein.speculative.draft_length import DraftLength
from ryzanstein.speculative.drafter import Drafter
from ryzanstein.speculative.proposer import Draft
from ryzanstein.structured import ConstraintCompiler
from ryzanstein.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Sequence as ABCSequence

    from ryzanstein._core import F32Array, I32Array
    from ryzanstein.config import HeadKind, KVDtype
    from ryzanstein.engine.block_manager import BlockTable
    from ryzanstein.speculative.proposer import Proposer

__all__ = [
    "CHAT_TEMPLATE",
    "END_TOKEN",
    "Guesses",
    "SteadyTimes",
    "TinyModel",
    "Workbench",
    "byte_level",
    "copy_embedded",
    "draft_with",
    "finish",
    "letter_constraints",
    "make_sequence",
    "python_environment",
    "random_tokens",
    "run_python",
    "tiny_decoder",
    "tiny_engine",
]

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_HIDDEN, _HEADS, _KV_HEADS, _HEAD_DIM, _INNER, _VOCAB, _LAYERS = 96, 6, 2, 16, 192, 73, 2
END_TOKEN = _VOCAB - 1


@dataclass(frozen=True, slots=True)
class TinyModel:
    """A decoder and the sizes that a cache for it needs."""

    decoder: _core.Decoder
    vocab_size: int = _VOCAB
    layers: int = _LAYERS
    kv_heads: int = _KV_HEADS
    head_dim: int = _HEAD_DIM

    def cache(self, num_blocks: int, dtype: KVDtype = "f16") -> _core.PagedCache:
        return _core.PagedCache(self.layers, self.kv_heads, self.head_dim, num_blocks, dtype)


def tiny_decoder(
    seed: int,
    *,
    threads: int = 1,
    isa: str | None = None,
    nan_token: int | None = None,
    head_kind: HeadKind = "exact",
) -> TinyModel:
    """Return a random two-layer model with three sets of frequencies, the same for the same seed.

    A sequence that holds `nan_token` has NaN logits. Steps are shared by all threads, heads
    screened and zeros skipped, however small the model.
    """
    rng = np.random.default_rng(seed)

    def gain(size: int) -> F32Array:
        return rng.uniform(0.5, 1.5, size).astype(np.float32)

    def ternary(out_features: int, in_features: int) -> _core.TernaryMatrix:
        matrix = _core.TernaryMatrix(out_features, in_features)
        codes = rng.integers(-1, 2, (out_features, in_features)).astype(np.int8)
        scales = np.full(out_features, 1.2 / np.sqrt(in_features), np.float32)
        matrix.pack_codes(0, codes, scales)
        return matrix

    def linear(out_features: int, in_features: int) -> _core.Linear:
        return _core.Linear(ternary(out_features, in_features))

    def layer() -> _core.LayerWeights:
        mlp_in, down_proj = ternary(2 * _INNER, _HIDDEN), ternary(_HIDDEN, _INNER)
        return _core.LayerWeights(
            input_norm=gain(_HIDDEN),
            attn_in=[linear((_HEADS + 2 * _KV_HEADS) * _HEAD_DIM, _HIDDEN)],
            o_proj=linear(_HIDDEN, _HEADS * _HEAD_DIM),
            ffn_norm=gain(_HIDDEN),
            mlp_in=[_core.Linear(mlp_in)],
            down_proj=_core.Linear(down_proj),
            attn_sub_norm=gain(_HEADS * _HEAD_DIM),
            ffn_sub_norm=gain(_INNER),
            up_rows=_core.TernaryRows.of_rows(mlp_in, _INNER, 2 * _INNER),
            down_columns=_core.TernaryRows.of_columns(down_proj),
        )

    layers = [layer() for _ in range(_LAYERS)]
    embedding = rng.standard_normal((_VOCAB, _HIDDEN)).astype(np.float32)
    head = (rng.standard_normal((_VOCAB, _HIDDEN)) / 6).astype(np.float32)
    if nan_token is not None:
        embedding[nan_token] = np.nan
    half = np.arange(0, _HEAD_DIM, 2) / _HEAD_DIM
    config = _core.DecoderConfig(
        hidden_size=_HIDDEN,
        num_heads=_HEADS,
        num_kv_heads=_KV_HEADS,
        head_dim=_HEAD_DIM,
        intermediate_size=_INNER,
        vocab_size=_VOCAB,
        rms_norm_eps=1e-5,
        activation="relu2",
        inv_freq=np.stack([[base**-half] for base in (1e4, 3e4, 1e5)]),
    )
    decoder = _core.Decoder(
        config,
        layers,
        embedding,
        gain(_HIDDEN),
        head,
        head_kind=head_kind,
        threads=threads,
        isa=isa,
        small_step=0,
    )
    return TinyModel(decoder)


def random_tokens(seed: int, count: int, vocab_size: int = _VOCAB) -> I32Array:
    """Return int32 [count] token ids."""
    return np.random.default_rng(seed).integers(0, vocab_size, count).astype(np.int32)


def _byte_characters() -> list[str]:
    """The character that byte-level tokenizers write for each byte (GPT-2's table)."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = itertools.count(256)
    return [chr(byte if byte in shown else next(spare)) for byte in range(256)]


def byte_level() -> tokenizers.Tokenizer:
    """Token n is byte n; 256 is special."""
    vocab = {character: byte for byte, character in enumerate(_byte_characters())}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<s>", special=True)])
    return backend


def letter_constraints() -> ConstraintCompiler:
    """Compile for tiny decoders: token n is the character n + 48, and `END_TOKEN` ends a text."""
    vocab = {chr(48 + n): n for n in range(END_TOKEN)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<end>", special=True)])
    return ConstraintCompiler(Tokenizer(backend, eos_token_ids=[END_TOKEN]), _VOCAB)


class Workbench:
    """A decoder with a page pool, run a step at a time by hand."""

    def __init__(self, model: TinyModel, num_blocks: int = 64, dtype: KVDtype = "f16") -> None:
        self.blocks = BlockManager(num_blocks, _core.PAGE_TOKENS)
        self._model = model
        self._cache = model.cache(num_blocks, dtype)

    def step(self, parts: Iterable[tuple[BlockTable, I32Array]]) -> list[F32Array]:
        """Append tokens to each table in one step; return the logits of each, float32 [n, V]."""
        chunks = []
        for table, tokens in parts:
            start = table.num_tokens
            reserved = self.blocks.append(table, len(tokens))
            ids = list(table.block_ids)
            chunks.append(
                Chunk(tokens, start, reserved.slots, ids, len(tokens), copies=reserved.copies)
            )
        logits = run_step(self._model.decoder, self._cache, chunks)
        ends = np.cumsum([len(chunk.token_ids) for chunk in chunks])
        return np.split(logits, ends[:-1])

    def whole(self, tokens: I32Array) -> F32Array:
        """Return the logits of a sequence computed alone, in one step."""
        table = self.blocks.allocate()
        (logits,) = self.step([(table, tokens)])
        self.blocks.free(table)
        return logits


def tiny_engine(
    model: TinyModel,
    *,
    num_blocks: int = 64,
    token_budget: int = 64,
    max_sequences: int = 8,
    context_length: int = 512,
    kv_dtype: KVDtype = "f16",
    **policies: Any,
) -> Engine:
    config = EngineConfig(
        context_length=context_length,
        num_blocks=num_blocks,
        kv_dtype=kv_dtype,
        max_sequences=max_sequences,
        token_budget=token_budget,
        vocab_size=model.vocab_size,
        **policies,
    )
    return Engine(model.decoder, model.cache(num_blocks, kv_dtype), config)


def make_sequence(prompt: I32Array, max_tokens: int, **options: Any) -> Sequence:
    return Sequence.create(prompt, SamplingParams(**options), max_tokens=max_tokens)


class SteadyTimes(StepTimes):
    """The clock decides how prompts are cut; here nothing but the schedule does."""

    def record(self, num_tokens: int, seconds: float) -> None:
        super().record(num_tokens, 1.0 + 0.01 * num_tokens)


class Guesses:
    """Guesses from the known course of a sequence, of which a share is right.

    Args:
        course: int32 [n], prompt and generated tokens.
        right: how likely a guess is the course's token.
    """

    guess_seconds = 0.0

    def __init__(self, course: I32Array, right: float) -> None:
        self._course = course.tolist()
        self._right = right
        self._num_known = 0
        self.num_proposed = 0
        self._rng = np.random.default_rng(1)

    def extend(self, token_ids: ABCSequence[int]) -> None:
        self._num_known += len(token_ids)

    def propose(self, max_tokens: int) -> Draft:
        self.num_proposed += 1
        ahead = self._course[self._num_known :][:max_tokens]
        other = self._rng.random(len(ahead)) >= self._right
        guesses = [(t + 1) % _VOCAB if o else t for t, o in zip(ahead, other, strict=True)]
        return Draft(guesses, [1.0] * len(guesses), 1)


def draft_with(sequence: Sequence, proposer: Proposer) -> None:
    """Let a sequence check guesses as if they cost next to nothing."""
    sequence.drafter = Drafter(proposer, DraftLength(lambda n: 1.0 + 1e-6 * n), _VOCAB)


def finish(engine: Engine, sequences: ABCSequence[Sequence]) -> list[list[int]]:
    """Run sequences to their end together and return what each generated."""
    for sequence in sequences:
        engine.add(sequence)
    while engine.scheduler.has_work:
        engine.step()
        engine.blocks.check()
    assert engine.blocks.num_free == engine.blocks.num_blocks
    assert all(sequence.is_finished for sequence in sequences)
    return [sequence.generated.tolist() for sequence in sequences]


def copy_embedded(directory: Path, **files: dict[str, Any]) -> Path:
    """Copy the embedded model and merge values into its JSON files, named without .json."""
    shutil.copytree(EMBEDDED_MODEL, directory)
    for name, values in files.items():
        path = directory / f"{name}.json"
        stored = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(stored | values))
    return directory


def python_environment(**variables: str) -> dict[str, str]:
    """Return an environment in which a child finds the package that this process imported."""
    package = str(Path(ryzanstein.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": package, **variables}


def run_python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the interpreter to its end; -P keeps a source tree in the working directory out."""
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=python_environment(**variables),
        check=False,
    )
