"""The exception tree: every error the package raises on purpose, one class per kind of remedy."""

from __future__ import annotations

__all__ = [
    "ContextLengthError",
    "CorruptFileError",
    "DistributionError",
    "ModelLoadError",
    "OutOfMemoryError",
    "QuantizationError",
    "RyzansteinError",
    "UnsupportedFormatError",
    "ValidationError",
]


class RyzansteinError(Exception):
    """Base of all errors raised by ryzanstein."""


class ModelLoadError(RyzansteinError, OSError):
    """A model could not be loaded: missing directory, file or field."""


class UnsupportedFormatError(ModelLoadError, ValueError):
    """The files are sound, but their architecture or quantisation is not supported."""


class CorruptFileError(ModelLoadError, ValueError):
    """A file is truncated, damaged or contradicts the model's configuration."""


class QuantizationError(RyzansteinError, ValueError):
    """Weights that cannot be represented: a non-ternary code, a NaN, an infinite scale."""


class ContextLengthError(RyzansteinError, ValueError):
    """A prompt, or a prompt plus its requested tokens, exceeds the context."""


class OutOfMemoryError(RyzansteinError, MemoryError):
    """Memory for weights, KV pages or workspace cannot be had."""


class ValidationError(RyzansteinError, ValueError):
    """An argument is outside its documented range."""


class DistributionError(RyzansteinError, ValueError):
    """No token can be drawn: the logits are NaN or every candidate was removed."""
