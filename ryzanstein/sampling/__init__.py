"""How the next token is chosen."""

from ryzanstein.sampling.params import SamplingParams

__all__ = ["SamplingParams"]
