"""What a model is, told from its headers and its small files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ryzanstein.chat_template import ChatTemplate, find_template
from ryzanstein.cpu import default_threads, read_host
from ryzanstein.loaders.fingerprint import known_hash
from ryzanstein.loaders.weight_cache import default_weight_cache
from ryzanstein.models import (
    ModelConfig,
    TensorInfo,
    known_packing,
    num_parameters,
    packing_identity,
    read_architecture,
)
from ryzanstein.models.memory import estimate_memory
from ryzanstein.models.tensors import check_tensors
from ryzanstein.sampling.presets import read_defaults
from ryzanstein.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from ryzanstein.loaders.model_files import ModelFiles, WeightSource
    from ryzanstein.models.memory import MemoryEstimate
    from ryzanstein.models.packing import Packing
    from ryzanstein.sampling.presets import Defaults

__all__ = ["ModelInfo", "TokenizerInfo", "describe_model", "weight_files"]


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    """How a model reads text.

    Args:
        kind: the algorithm.
        vocab_size: tokens that it has; the model may have room for more.
        bos_token_id: what a text begins with, None for nothing.
        eos_token_ids: tokens that end a generation.
    """

    kind: str
    vocab_size: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What `ryzanstein info` shows.

    Args:
        path: where the model is.
        config: its architecture.
        parameters: weights, a tied head counted once.
        tensors: what its files hold, by name.
        tokenizer: how it reads text.
        chat_template: jinja2 text, None where it has none.
        notes: what was corrected of what its files say.
        defaults: sampling parameters of its own.
        memory: what it will take.
        free_bytes: memory that may still be used.
        packed_weights: file of packed weights that loading will map, None where there is none.
        hashes: by weight file, the blake3 hash, None where none was made.
    """

    path: Path
    config: ModelConfig
    parameters: int
    tensors: list[TensorInfo]
    tokenizer: TokenizerInfo
    chat_template: str | None
    notes: list[str]
    defaults: Defaults
    memory: MemoryEstimate
    free_bytes: int
    packed_weights: Path | None
    hashes: dict[Path, str | None]

    @property
    def types(self) -> dict[str, list[TensorInfo]]:
        """Return the tensors by their type, the type with most bytes first."""
        groups: dict[str, list[TensorInfo]] = {}
        for tensor in self.tensors:
            groups.setdefault(tensor.dtype, []).append(tensor)
        sizes = {kind: sum(tensor.nbytes for tensor in group) for kind, group in groups.items()}
        return {kind: groups[kind] for kind in sorted(groups, key=lambda kind: -sizes[kind])}


def describe_model(files: ModelFiles) -> ModelInfo:
    """Return what a model is. No weights are read, and nothing is measured.

    Raises:
        ModelLoadError: the model is missing, damaged or unsupported.
    """
    config, family = read_architecture(files)
    weights = files.open_weights()
    check_tensors(weights, config, family)
    tokenizer = Tokenizer.from_files(files)
    template = find_template(files)
    ChatTemplate.from_files(files, tokenizer.special_tokens)  # refuses one that does not parse
    packing = known_packing(weights, config, isa=None, threads=default_threads())
    return ModelInfo(
        path=files.path,
        config=config,
        parameters=num_parameters(config),
        tensors=[weights.info(name) for name in sorted(weights)],
        tokenizer=TokenizerInfo(
            kind=_tokenizer_kind(files),
            vocab_size=tokenizer.vocab_size,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_ids=tokenizer.eos_token_ids,
        ),
        chat_template=template,
        notes=files.notes(),
        defaults=read_defaults(files),
        memory=estimate_memory(
            weights, config, family, None if packing is None else packing.kernels
        ),
        free_bytes=read_host().free_bytes,
        packed_weights=_packed_weights(weights, config, packing),
        hashes={path: known_hash(path) for path in weight_files(weights)},
    )


def weight_files(weights: WeightSource) -> list[Path]:
    """Return the files that a model's tensors are in."""
    directory = weights.path if weights.path.is_dir() else weights.path.parent
    return [directory / name for name in weights.identity()]


def _packed_weights(
    weights: WeightSource, config: ModelConfig, packing: Packing | None
) -> Path | None:
    """Return the file of packed weights that loading will map, None where there is none."""
    cache = default_weight_cache()
    if cache is None or packing is None:
        return None
    path = cache.path(packing_identity(weights, config, packing))
    return path if path.exists() else None


def _tokenizer_kind(files: ModelFiles) -> str:
    text = files.read_text("tokenizer.json")
    content = json.loads(text) if text is not None else {}
    model = content.get("model") or {}
    kind = str(model.get("type"))
    if kind != "BPE":
        return kind
    return "SentencePiece BPE" if model.get("byte_fallback") else "byte-level BPE"
