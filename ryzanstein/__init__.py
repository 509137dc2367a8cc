"""Ryzanstein: run ternary (BitNet b1.58) language models on a plain CPU.

Example:
    >>> from ryzanstein import LLM, SamplingParams, generate
    >>> print(generate("def fibonacci(n):").text)
    >>> llm = LLM("microsoft/bitnet-b1.58-2B-4T")
    >>> llm.generate("Hello", SamplingParams(max_tokens=64, temperature=0.8, seed=1)).text
"""

import sys
from pathlib import Path

from ryzanstein import _core
from ryzanstein.engine.result import Choice, Completion, Piece, Timings, TokenLogprob, Usage
from ryzanstein.errors import (
    ContextLengthError,
    CorruptFileError,
    DistributionError,
    ModelLoadError,
    OutOfMemoryError,
    QuantizationError,
    RyzansteinError,
    UnsupportedFormatError,
    ValidationError,
)
from ryzanstein.llm import LLM, generate
from ryzanstein.sampling import SamplingParams

__all__ = [
    "LLM",
    "Choice",
    "Completion",
    "ContextLengthError",
    "CorruptFileError",
    "DistributionError",
    "ModelLoadError",
    "OutOfMemoryError",
    "Piece",
    "QuantizationError",
    "RyzansteinError",
    "SamplingParams",
    "Timings",
    "TokenLogprob",
    "UnsupportedFormatError",
    "Usage",
    "ValidationError",
    "__version__",
    "generate",
]

__version__ = str(_core.build_info()["version"])

# A wrong RYZANSTEIN_ISA is reported here, not at the first model.
try:
    _core.resolve_isa()
except ValidationError as _error:
    # The command promises one line instead of a traceback, and none of its code has run yet.
    if Path(sys.argv[0]).name == "ryzanstein":
        sys.stderr.write(f"ryzanstein: {_error}\n")
        raise SystemExit(2) from None
    raise
