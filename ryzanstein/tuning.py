"""Which kernel runs for a matrix: measured on this host, once, and remembered in a file."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

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

_TERNARY_VARIABLE = "RYZANSTEIN_TERNARY_KERNEL"
_GROUPED_VARIABLE = "RYZANSTEIN_GROUPED_KERNEL"
_FILE = "kernels.json"
# Below this, 128 MB, a model may live in caches and is smaller than the buffers to measure in.
_LEAST_BITS = 1 << 30
_TERNARY_BITS = 2
_FEWEST_BITS = 1
# Kernels within this of the fastest are equal: medians repeat no better.
_TIE = 1.03

# Out-features and in-features of a ternary matrix, and of a grouped one the bits of its codes.
Shape: TypeAlias = tuple[int, int] | tuple[int, int, int]
AnyShape = TypeVar("AnyShape", tuple[int, int], tuple[int, int, int])


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
    shapes: Iterable[AnyShape], *, layers: int, isa: str | None, threads: int
) -> dict[AnyShape, str]:
    """Return the kernel to use for each shape of matrices, ternary or grouped.

    RYZANSTEIN_TERNARY_KERNEL and RYZANSTEIN_GROUPED_KERNEL decide where they are set. Otherwise
    models too small to matter and the scalar tier take the tier's first kernel, and the others are
    measured unless this host has been before. Never changes a result.

    Args:
        shapes: those of the matrices of a layer.
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
    for shape in _missing(known, shapes, isa):
        seconds = _time(shape, isa, threads)
        known[shape] = {name: Timing(*pair) for name, pair in seconds.items()}
    _write(host, known)
    return {shape: _choice(known, shape, isa) for shape in shapes}


def known_kernels(
    shapes: Iterable[AnyShape], *, layers: int, isa: str | None, threads: int
) -> dict[AnyShape, str] | None:
    """Return what `choose_kernels` would, or None where it would have to measure first.

    Raises:
        ValidationError: as `choose_kernels`.
    """
    isa = _core.resolve_isa(isa)
    choice = {shape: _guess(shape, isa) for shape in shapes}
    is_decided = any(os.environ.get(_variable(shape)) for shape in choice)
    bits = layers * sum(_matrix_bits(shape) for shape in choice)
    if is_decided or isa == "scalar" or bits < _LEAST_BITS:
        return choice
    known = _read(_fingerprint(isa, threads))
    if _missing(known, choice, isa):
        return None
    return {shape: _choice(known, shape, isa) for shape in choice}


def _missing(known: dict[Shape, Timings], shapes: Iterable[Shape], isa: str) -> list[Shape]:
    """Return the shapes of which a kernel of the tier has not been measured."""
    return [
        shape
        for shape in shapes
        if len(names := _names(shape, isa)) > 1 and set(known.get(shape, ())) != set(names)
    ]


def _choice(known: dict[Shape, Timings], shape: Shape, isa: str) -> str:
    """Return the kernel of a shape: the fastest, where there is more than one."""
    names = _names(shape, isa)
    return names[0] if len(names) == 1 else _fastest(known[shape])


def _names(shape: Shape, isa: str) -> list[str]:
    """Return the kernels of a tier for a shape, the best guess first."""
    if len(shape) == 2:
        return _core.ternary_kernels(isa)
    return _core.grouped_kernels(isa, bits=shape[2])


def _time(shape: Shape, isa: str, threads: int) -> dict[str, tuple[float, float]]:
    if len(shape) == 2:
        return _core.time_ternary_kernels(*shape, isa=isa, threads=threads)
    return _core.time_grouped_kernels(*shape, isa=isa, threads=threads)


def _matrix_bits(shape: Shape) -> int:
    return math.prod(shape) * (_TERNARY_BITS if len(shape) == 2 else 1)


def _variable(shape: Shape) -> str:
    return _TERNARY_VARIABLE if len(shape) == 2 else _GROUPED_VARIABLE


def format_of(kernel: str) -> TernaryFormat:
    """Return the format a kernel reads."""
    return "two_bit" if kernel.startswith("two_bit/") else "five_trit"


def remembered_kernels(*, isa: str, threads: int) -> dict[str, Measured]:
    """Return what was measured on this host, by shape: "NxK", or "NxKxbits" of grouped weights."""
    known = _read(_fingerprint(isa, threads))
    return {
        _key(shape): Measured(_fastest(timings), timings)
        for shape, timings in sorted(known.items())
    }


def _guess(shape: Shape, isa: str) -> str:
    """Return the kernel of a shape where nothing is measured: the override's, or the first.

    An override names a kernel in full or by what comes before its slash. Wide codes have no lookup
    kernel, and take the first whatever the override.
    """
    names = _names(shape, isa)
    override = os.environ.get(_variable(shape), "")
    for name in names:
        if override in ("", name, name.split("/")[0]):
            return name
    known = names if len(shape) == 2 else _core.grouped_kernels(isa, bits=_FEWEST_BITS)
    methods = dict.fromkeys(name.split("/")[0] for name in known)
    if len(known) > len(names) and override in (*methods, *known):
        return names[0]
    raise ValidationError(
        f"{_variable(shape)} must be {', '.join(methods)} or one of {', '.join(known)}, "
        f"got {override!r}"
    )


def _fastest(timings: Timings) -> str:
    """Return the kernel that these timings speak for: decode decides, among equals prefill."""
    best = min(timing.one_token for timing in timings.values())
    equal = {name: timing for name, timing in timings.items() if timing.one_token <= best * _TIE}
    least = min(timing.many_tokens for timing in equal.values())
    return next(name for name, timing in equal.items() if timing.many_tokens <= least * _TIE)


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


def _key(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _parse_key(key: str) -> Shape:
    rows, columns, *bits = map(int, key.split("x"))
    if not bits:
        return rows, columns
    (width,) = bits
    return rows, columns, width


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
            found[_parse_key(shape)] = {
                name: Timing(float(timing["one_token"]), float(timing["many_tokens"]))
                for name, timing in timings.items()
            }
        if all(found.values()):
            return found
    return {}


def _write(host: str, known: dict[Shape, Timings]) -> None:
    """Replace the file in one move; where that cannot be done, the next load measures again."""
    entry = {
        _key(shape): {name: asdict(timing) for name, timing in timings.items()}
        for shape, timings in known.items()
    }
    with suppress(OSError):
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(_read_all() | {host: entry}, file, indent=1)
        Path(file.name).replace(path)
