"""The sampling strategies by name, and the orders they can run in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ryzanstein.sampling.params import SamplingParams

__all__ = ["DEFAULT_ORDER", "EDITS", "ORDERS", "STRATEGIES", "Strategy"]


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to change what may be drawn.

    Args:
        name: what `order` and `ryzanstein samplers` call it.
        off: fields of SamplingParams that switch it on, each with the value at which it does
            nothing; their defaults.
        summary: what it does, in a line.
        source: where it comes from.
        parameters: further fields that matter where it is on.
    """

    name: str
    off: dict[str, object]
    summary: str
    source: str
    parameters: tuple[str, ...] = ()

    def active_fields(self, params: SamplingParams) -> list[str]:
        """Return the fields that switch it on."""
        return [name for name, off in self.off.items() if getattr(params, name) != off]


_LLAMA_CPP = "llama.cpp, src/llama-sampler.cpp"
_HF = "transformers, generation/logits_process.py"

STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy(
            "logits_processor",
            {"logits_processor": None},
            "a Python function of the tokens so far and the logits, before all else",
            "vLLM",
        ),
        Strategy(
            "structured_output",
            {"json_schema": None, "regex": None, "choice": None, "grammar": None},
            "bans tokens with which the text could not become what it must be",
            "llguidance",
        ),
        Strategy(
            "logit_bias", {"logit_bias": ()}, "adds a number to a token's logit", "the OpenAI API"
        ),
        Strategy(
            "bad_words",
            {"bad_words": ()},
            "bans the token that would complete a word, among generated tokens",
            "vLLM",
        ),
        Strategy("min_tokens", {"min_tokens": 0}, "bans end tokens before so many tokens", "vLLM"),
        Strategy(
            "penalties",
            {"repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0},
            "lowers the logits of tokens that came before: by a factor, per occurrence, or once",
            "CTRL, arXiv:1909.05858; the OpenAI API; vLLM",
            ("penalty_last_n",),
        ),
        Strategy(
            "dry",
            {"dry_multiplier": 0.0},
            "lowers the token that would lengthen a repeated passage, exponentially in its length",
            "text-generation-webui#5677",
            (
                "dry_base",
                "dry_allowed_length",
                "dry_penalty_last_n",
                "dry_sequence_breakers",
            ),
        ),
        Strategy(
            "temperature",
            {"temperature": 1.0, "dynatemp_range": 0.0},
            "divides logits: below 1 surer, above 1 more varied; with a range, by the entropy",
            _LLAMA_CPP,
            ("dynatemp_exponent",),
        ),
        Strategy(
            "top_n_sigma",
            {"top_n_sigma": 0.0},
            "keeps logits within so many standard deviations of the highest",
            "arXiv:2411.07641",
        ),
        Strategy("top_k", {"top_k": 0}, "keeps the k most likely tokens", _HF),
        Strategy(
            "top_p",
            {"top_p": 1.0},
            "keeps the fewest most likely tokens that reach a probability",
            "arXiv:1904.09751",
            ("min_keep",),
        ),
        Strategy(
            "min_p",
            {"min_p": 0.0},
            "keeps tokens with a share of the most likely one's probability",
            "arXiv:2407.01082",
            ("min_keep",),
        ),
        Strategy(
            "typical_p",
            {"typical_p": 1.0},
            "keeps the tokens whose surprise is nearest to the entropy, up to a probability",
            "arXiv:2202.00666",
            ("min_keep",),
        ),
        Strategy(
            "xtc",
            {"xtc_probability": 0.0},
            "with a probability, drops all likely tokens but the least likely of them",
            "text-generation-webui#6335",
            ("xtc_threshold", "min_keep"),
        ),
        Strategy(
            "mirostat",
            {"mirostat": 0},
            "keeps the surprise of the text near a target; 2 is version 2.0",
            "arXiv:2007.14966",
            ("mirostat_tau", "mirostat_eta"),
        ),
        Strategy(
            "greedy", {}, "temperature 0: takes the highest logit, past every filter", _LLAMA_CPP
        ),
    )
}

# They change single logits, which filters then see: they come first in every order.
EDITS = ("penalties", "dry")

# Each reference's own order, with what it lacks put in: behind transformers' processors and its
# temperature what came later elsewhere.
ORDERS = {
    "hf": (
        *EDITS,
        "temperature",
        "top_n_sigma",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "xtc",
    ),
    "llama.cpp": (
        *EDITS,
        "top_n_sigma",
        "top_k",
        "typical_p",
        "top_p",
        "min_p",
        "xtc",
        "temperature",
    ),
}
DEFAULT_ORDER = "hf"
