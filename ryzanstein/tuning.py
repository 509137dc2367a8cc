"""Which ternary kernel runs for a shape: measured on this host, once, and remembered in a file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ryzanstein import _core
from ryzanstein.config import cache_directory
from ryzanstein.cpu import cache_sizes, read_host
from ryzanstein.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ryzanstein._core import TernaryFormat

__all__ = [
    "Measured",
    "Timing",
    "choose_kernels",
    "format_of",
    "known_kernels",
    "remembered_kernels",
]

_KERNEL_VARIABLE = "RYZANSTEIN_TERNARY_KERNEL"
_FILE = "kernels.json"
# Below this, 128 MB, a model may live in caches and is smaller than the buffers to measure in.
_LEAST_WEIGHTS = 1 << 29
# Kernels within this of the fastest at one token are equal there: medians repeat no better.
_TIE = 1.03

Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds for one product with a matrix: with one token, and with many."""

    one_token: float
    many_tokens: float


Timings = dict[str, Timing]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a shape's kernels took, by name, and which of them is used."""

    chosen: str
    timings: Timings


def choose_kernels(
    shapes: Iterable[Shape], *, layers: int, isa: str | None, threads: int
) -> dict[Shape, str]:
    """Return the ternary kernel to use for each matrix shape (out-features, in-features).

    RYZANSTEIN_TERNARY_KERNEL decides where it is set. Otherwise models too small to matter and the
    scalar tier take the tier's first kernel, and the others are measured unless this host has been
    before. Never changes a result.

    Args:
        shapes: those of the ternary matrices of a layer.
        layers: how many layers the model has.
        isa: instruction-set tier, or None for the best this machine has.
        threads: threads that will compute.

    Raises:
        ValidationError: a tier this machine does not have, threads outside 1..1024, or an override
            that names no kernel of the tier.
        OutOfMemoryError: no room to measure in.
    """
    isa = _core.resolve_isa(isa)
    shapes = set(shapes)
    chosen = known_kernels(shapes, layers=layers, isa=isa, threads=threads)
    if chosen is not None:
        return chosen
    host = _fingerprint(isa, threads)
    known = _read(host)
    for rows, columns in _missing(known, shapes, isa):
        seconds = _core.time_ternary_kernels(rows, columns, isa=isa, threads=threads)
        known[rows, columns] = {name: Timing(*pair) for name, pair in seconds.items()}
    _write(host, known)
    return {shape: _fastest(known[shape]) for shape in shapes}


def known_kernels(
    shapes: Iterable[Shape], *, layers: int, isa: str | None, threads: int
) -> dict[Shape, str] | None:
    """Return what `choose_kernels` would, or None where it would have to measure first.

    Raises:
        ValidationError: as `choose_kernels`.
    """
    isa = _core.resolve_isa(isa)
    names = _core.ternary_kernels(isa)
    override = os.environ.get(_KERNEL_VARIABLE, "")
    guess = _match(override, names) if override else names[0]
    choice = dict.fromkeys(shapes, guess)
    weights = layers * sum(rows * columns for rows, columns in choice)
    if override or isa == "scalar" or weights < _LEAST_WEIGHTS:
        return choice
    known = _read(_fingerprint(isa, threads))
    if _missing(known, choice, isa):
        return None
    return {shape: _fastest(known[shape]) for shape in choice}


def _missing(known: dict[Shape, Timings], shapes: Iterable[Shape], isa: str) -> list[Shape]:
    """Return the shapes of which a kernel of the tier has not been measured."""
    names = set(_core.ternary_kernels(isa))
    return [shape for shape in shapes if set(known.get(shape, ())) != names]


def format_of(kernel: str) -> TernaryFormat:
    """Return the format a kernel reads."""
    return "two_bit" if kernel.startswith("two_bit/") else "five_trit"


def remembered_kernels(*, isa: str, threads: int) -> dict[str, Measured]:
    """Return what was measured on this host, by shape ("out-features x in-features")."""
    known = _read(_fingerprint(isa, threads))
    return {
        f"{rows}x{columns}": Measured(_fastest(timings), timings)
        for (rows, columns), timings in sorted(known.items())
    }


def _match(override: str, names: list[str]) -> str:
    """Return the first kernel that an override names, in full or by its format."""
    for name in names:
        if override in (name, format_of(name)):
            return name
    raise ValidationError(
        f"{_KERNEL_VARIABLE} must be two_bit, five_trit or one of {', '.join(names)}, "
        f"got {override!r}"
    )


def _fastest(timings: Timings) -> str:
    """Return the kernel of a shape: decode decides, prefill among equals."""
    best = min(timing.one_token for timing in timings.values())
    equal = [name for name, timing in timings.items() if timing.one_token <= best * _TIE]
    return min(equal, key=lambda name: timings[name].many_tokens)


def _fingerprint(isa: str, threads: int) -> str:
    """Return a name for all that the timings depend on."""
    build = _core.build_info()
    parts = [
        read_host().model,
        sorted(name for name, on in _core.cpu_features().items() if on),
        cache_sizes(),
        isa,
        threads,
        str(build["version"]),
        str(build["commit"]),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _path() -> Path:
    directory = cache_directory()
    if directory is None:
        raise OSError(errno.ENOENT, "no cache directory")
    return directory / _FILE


def _read_all() -> dict[str, object]:
    try:
        content = json.loads(_path().read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _read(host: str) -> dict[Shape, Timings]:
    """Return a host's timings; whatever in the file is not as `_write` leaves it is not there."""
    with suppress(AttributeError, KeyError, TypeError, ValueError):
        found: dict[Shape, Timings] = {}
        entry = _read_all().get(host, {})
        for shape, timings in entry.items():  # type: ignore[attr-defined]
            rows, columns = shape.split("x")
            found[int(rows), int(columns)] = {
                name: Timing(float(timing["one_token"]), float(timing["many_tokens"]))
                for name, timing in timings.items()
            }
        if all(found.values()):
            return found
    return {}


def _write(host: str, known: dict[Shape, Timings]) -> None:
    """Replace the file in one move; where that cannot be done, the next load measures again."""
    entry = {
        f"{rows}x{columns}": {name: asdict(timing) for name, timing in timings.items()}
        for (rows, columns), timings in known.items()
    }
    with suppress(OSError):
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(_read_all() | {host: entry}, file, indent=1)
        Path(file.name).replace(path)
