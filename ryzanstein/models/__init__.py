"""Models: a checkpoint directory in, a decoder and its configuration out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ryzanstein._core import Decoder, DecoderConfig, preferred_ternary_format
from ryzanstein.errors import UnsupportedFormatError, ValidationError
from ryzanstein.loaders.checkpoint import Checkpoint, require_directory
from ryzanstein.loaders.json_file import read_json_object
from ryzanstein.loaders.safetensors import TensorInfo
from ryzanstein.models.bitnet import BITNET
from ryzanstein.models.config import ModelConfig, parse_config, require_architecture
from ryzanstein.models.feed_forward import SkipZeros, resolve_skip_zeros
from ryzanstein.models.fields import Fields
from ryzanstein.models.llama import LLAMA
from ryzanstein.models.rope import inverse_frequencies
from ryzanstein.models.tensors import check_tensors
from ryzanstein.models.weights import WeightReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ryzanstein.models.family import Family

__all__ = [
    "LoadedModel",
    "ModelConfig",
    "SkipZeros",
    "TensorInfo",
    "inspect_tensors",
    "load_model",
    "read_config",
]

# From 32 MB of bf16 on, reading half the bytes of a head is worth the screen's own memory.
_SCREENED_HEAD_ELEMENTS = 1 << 24

_FAMILIES = {family.architecture: family for family in (BITNET, LLAMA)}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A decoder ready to step, and the configuration it was built from."""

    decoder: Decoder
    config: ModelConfig


def read_config(directory: Path) -> ModelConfig:
    """Return the checked configuration of a checkpoint directory.

    Raises:
        ModelLoadError: config.json or one of its fields is missing.
        CorruptFileError: a field has the wrong type or contradicts another.
        UnsupportedFormatError: an architecture or quantisation this engine does not compute.
    """
    return _read_config(directory)[0]


def inspect_tensors(directory: Path) -> list[TensorInfo]:
    """Return name, dtype, shape and size of every tensor of a checkpoint directory, by name.

    Raises:
        ModelLoadError: the directory or a file is missing.
        CorruptFileError: a header or the index is damaged.
    """
    checkpoint = Checkpoint(directory)
    return [checkpoint.info(name) for name in sorted(checkpoint)]


def load_model(
    directory: Path,
    *,
    threads: int,
    isa: str | None,
    skip_zeros: SkipZeros | None = None,
    progress: bool = False,
) -> LoadedModel:
    """Load a checkpoint directory.

    Args:
        directory: a directory in the Hugging Face layout.
        threads: threads to pack with and to step with.
        isa: instruction-set tier, or None for the best this machine has.
        skip_zeros: which zeros of feed-forwards a step of one token passes over, or None for what
            is usually faster. "down" and "all" each cost memory of a fifth of a byte per weight.
        progress: show a progress bar on standard error, if it is a terminal.

    Raises:
        ModelLoadError: something is missing.
        CorruptFileError: a file is damaged or contradicts another.
        UnsupportedFormatError: an architecture or quantisation this engine does not compute.
        QuantizationError: weights that cannot be represented.
        ValidationError: threads below one, an unknown `skip_zeros` or a tier that is not there.
    """
    if threads < 1:
        raise ValidationError(f"threads is {threads}; it must be at least 1")
    ternary_format = preferred_ternary_format(isa)  # a wrong tier is refused before the work
    config, family = _read_config(directory)
    skipped = resolve_skip_zeros(skip_zeros, config, isa)
    checkpoint = Checkpoint(directory)
    check_tensors(checkpoint, config, family)
    total = sum(checkpoint.info(name).nbytes for name in checkpoint)
    with _progress(f"Loading {directory.name}", total, shown=progress) as advance:
        reader = WeightReader(
            checkpoint,
            config,
            family,
            ternary_format,
            skip_zeros=skipped,
            advance=advance,
        )
        embedding, lm_head = reader.embedding(), reader.lm_head()
        with ThreadPoolExecutor(threads) as pool:
            layers = list(pool.map(reader.layer, range(config.num_layers)))
        final_norm = reader.final_norm()
    screened_head = config.vocab_size * config.hidden_size >= _SCREENED_HEAD_ELEMENTS
    decoder = Decoder(
        _decoder_config(config),
        layers,
        embedding,
        final_norm,
        lm_head,
        screened_head=screened_head,
        threads=threads,
        isa=isa,
    )
    if screened_head:
        reader.release_dense()  # read whole for the checks and the screen, from now on by rows
    return LoadedModel(decoder, config)


def _read_config(directory: Path) -> tuple[ModelConfig, Family]:
    require_directory(directory)
    path = directory / "config.json"
    fields = Fields(read_json_object(path), str(path))
    architecture = require_architecture(fields)
    family = _FAMILIES.get(architecture)
    if family is None:
        raise UnsupportedFormatError(
            f"{fields.name('architectures')} is {architecture!r}; supported are "
            f"{', '.join(sorted(_FAMILIES))}"
        )
    return parse_config(fields, family), family


def _decoder_config(config: ModelConfig) -> DecoderConfig:
    return DecoderConfig(
        hidden_size=config.hidden_size,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        rms_norm_eps=config.rms_norm_eps,
        activation=config.activation,
        inv_freq=inverse_frequencies(config.rope, config.head_dim),
    )


@contextmanager
def _progress(title: str, total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Yield a function that moves a progress bar by so many bytes."""
    if not shown:
        yield lambda _: None
        return
    # Imported here because it costs 50 ms that a quiet load need not pay.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(title, total=total)
        yield lambda nbytes: bar.advance(task, nbytes)
