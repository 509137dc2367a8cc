"""What a caller may ask of one generation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import InitVar, dataclass, fields
from numbers import Real
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ryzanstein.config import check_integer, check_real
from ryzanstein.errors import ValidationError
from ryzanstein.sampling.strategies import DEFAULT_ORDER, EDITS, ORDERS, STRATEGIES
from ryzanstein.sampling.structured_output import StructuredOutput, normal_choice, normal_schema

__all__ = ["LogitsProcessor", "SamplingParams", "describe_strategies"]

# (token ids so far int32 [n], logits float32 [V] to change in place) -> None, or logits to take.
LogitsProcessor: TypeAlias = Callable[
    [NDArray[np.int32], NDArray[np.float32]], NDArray[np.float32] | None
]

_MAX_SEED = 2**64 - 1
_MOST_SAMPLES = 1024
# What each number may be: (minimum, maximum, whether the minimum is left out).
_REALS = {
    "temperature": (0.0, math.inf, False),
    "dynatemp_range": (0.0, math.inf, False),
    "dynatemp_exponent": (0.0, math.inf, False),
    "top_n_sigma": (0.0, math.inf, False),
    "typical_p": (0.0, 1.0, True),
    "top_p": (0.0, 1.0, True),
    "min_p": (0.0, 1.0, False),
    "xtc_probability": (0.0, 1.0, False),
    "xtc_threshold": (0.0, 1.0, True),
    "mirostat_tau": (0.0, math.inf, False),
    "mirostat_eta": (0.0, math.inf, False),
    "repetition_penalty": (0.0, math.inf, True),
    "frequency_penalty": (-math.inf, math.inf, False),
    "presence_penalty": (-math.inf, math.inf, False),
    "dry_multiplier": (0.0, math.inf, False),
    "dry_base": (1.0, math.inf, False),
}
_MINIMA = {
    "min_tokens": 0,
    "min_keep": 1,
    "penalty_last_n": -1,
    "dry_allowed_length": 1,
    "dry_penalty_last_n": -1,
}
# Mirostat cuts by itself; greedy decoding takes the first of what filters leave, which XTC and a
# moving temperature would not.
_AGAINST_MIROSTAT = ("top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc")
_AGAINST_GREEDY = ("dynatemp_range", "xtc_probability", "mirostat")


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValidationError(f"{name} must be True or False, got {value!r}")


def _strings(name: str, value: object) -> tuple[str, ...]:
    items = (value,) if isinstance(value, str) else value
    if not isinstance(items, Iterable):
        raise ValidationError(f"{name} must be a string or a list of strings, got {value!r}")
    strings: list[str] = []
    for item in items:
        if not isinstance(item, str) or not item:
            raise ValidationError(f"{name} must hold non-empty strings, got {item!r}")
        strings.append(item)
    return tuple(strings)


def _token_ids(value: object) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValidationError(f"stop_token_ids must be a list of token ids, got {value!r}")
    return tuple(check_integer("stop_token_ids", item, 0) for item in value)


def _logit_bias(value: object) -> tuple[tuple[int, float], ...]:
    pairs = value.items() if isinstance(value, Mapping) else value
    if not isinstance(pairs, Iterable):
        raise ValidationError(f"logit_bias must map token ids to numbers, got {value!r}")
    biases: dict[int, float] = {}
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValidationError(f"logit_bias must map token ids to numbers, got {pair!r}")
        token, bias = pair
        # -inf bans a token.
        is_number = isinstance(bias, Real) and not isinstance(bias, bool)
        if not is_number or not float(bias) < math.inf:
            raise ValidationError(f"logit_bias must hold finite numbers or -inf, got {bias!r}")
        biases[check_integer("logit_bias", token, 0)] = float(bias)
    return tuple(sorted(biases.items()))


def _order(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        if value not in ORDERS:
            raise ValidationError(
                f"order must be one of {', '.join(ORDERS)} or a list of names, got {value!r}"
            )
        return ORDERS[value]
    names = _strings("order", value)
    for name in names:
        if name not in ORDERS[DEFAULT_ORDER]:
            raise ValidationError(
                f"order must hold names among {', '.join(ORDERS[DEFAULT_ORDER])}, got {name!r}"
            )
        if names.count(name) > 1:
            raise ValidationError(f"order must hold each name once, got {name!r} twice")
    edits = tuple(name for name in names if name in EDITS)
    if names[: len(edits)] != tuple(name for name in EDITS if name in names):
        raise ValidationError(
            f"order must begin with {' and '.join(EDITS)}, which change single logits, got "
            f"{', '.join(names)}"
        )
    return names


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to sample and when to stop. Names follow vLLM, and llama.cpp for what that lacks.

    docs/sampling.md has each formula.

    Args:
        max_tokens: tokens to generate at most. None takes the model's default (max_new_tokens of
            its generation_config.json, else 256), or the end of the context if that comes first; an
            explicit number that cannot fit in the context is an error, but for context_shift.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: keep the k most likely tokens; 0 (or -1) keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches it, in (0, 1].
        min_p: drop tokens less likely than min_p times the most likely, in [0, 1].
        repetition_penalty: divides positive and multiplies negative logits of every token seen so
            far, prompt included; 1 is off.
        frequency_penalty: taken off a token's logit for each time it was generated.
        presence_penalty: taken off the logit of every token generated so far.
        penalty_last_n: let these three look at so many tokens, prompt included, as llama.cpp does;
            -1 looks at all, as repetition_penalty, or all that were generated, as the others.
        logit_bias: token ids with what to add to their logits; -inf bans one.
        bad_words: texts that are not generated, each alone or after a space.
        min_tokens: generate so many before a stop string or an end token may end the text.
        logits_processor: called with the tokens so far, int32 [n], and a copy of their logits,
            float32 [V], before everything else; changes them in place or returns others.
        json_schema: the text is a JSON value that this schema, a dict or a text, allows. It, regex,
            choice and grammar exclude one another; docs/structured-output.md has an example each.
        regex: the whole text matches this regular expression.
        choice: the text is one of these.
        grammar: the text follows this grammar, in Lark's notation.
        order: in which the strategies below run, as one of "hf" and "llama.cpp", or their names.
        typical_p: keep the tokens whose surprise is nearest to the entropy, up to this
            probability; 1 is off.
        top_n_sigma: keep logits within so many standard deviations of the highest; 0 is off.
        min_keep: tokens that top_p, min_p, typical_p and XTC leave at least.
        xtc_probability: how often to drop all tokens that have at least xtc_threshold, but the
            least likely of them; 0 is off.
        xtc_threshold: see there; above 0.5 nothing can happen.
        dynatemp_range: let the temperature vary by so much to both sides, with the entropy; 0 is
            off.
        dynatemp_exponent: of the entropy's share of its maximum.
        dry_multiplier: taken off the logit of a token that would lengthen a repeated passage of
            dry_allowed_length tokens, times dry_base for each token more; 0 is off.
        dry_base: see there.
        dry_allowed_length: see there.
        dry_penalty_last_n: tokens to search for repeats; -1 is all.
        dry_sequence_breakers: texts that repeats do not reach across.
        mirostat: 2 keeps the surprise of the text near mirostat_tau, in place of every other
            filter; 0 is off.
        mirostat_tau: in bits.
        mirostat_eta: how fast it is approached.
        stop: strings that end the text; matched across token borders, left out of the text.
        stop_token_ids: tokens that end the text, besides the model's own end tokens.
        ignore_eos: go on past the model's own end tokens.
        context_shift: where the context is full, let the model forget the older half of it, but
            for so many tokens at its beginning, and go on. None ends the text there.
        seed: the same seed, prompt and parameters give the same tokens, whatever else runs.
            None draws a fresh one (reported as `Completion.seed`).
        logprobs: report the log-probability of each token and of this many most likely ones
            (before temperature and penalties). None reports nothing. Tokens that a schema, regex,
            choice or grammar forces have 0: nothing else could come, and the model was not asked.
        prompt_logprobs: report the same of each token of the prompt but the first, which follows
            nothing. The prompt is then computed whole, whatever the prefix cache holds.
        n: texts to return, each drawn by itself. The prompt is computed once. Text i is what
            seed + i gives alone.
        best_of: draw so many texts and return the n likeliest, by the sum of their tokens'
            log-probabilities, the best first.
        echo: put the prompt in front of the text.
        max_new_tokens: another name for max_tokens.

    Raises:
        ValidationError: a value outside its range, or fields that contradict one another; names
            the field, the value and the range.

    Example:
        >>> SamplingParams(max_tokens=64, temperature=0.8, min_p=0.05, seed=1).top_p
        1.0
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = -1
    logit_bias: Mapping[int, float] | Iterable[tuple[int, float]] = ()
    bad_words: str | Iterable[str] = ()
    min_tokens: int = 0
    logits_processor: LogitsProcessor | None = None
    json_schema: Mapping[str, object] | str | None = None
    regex: str | None = None
    choice: Iterable[str] | None = None
    grammar: str | None = None
    order: str | Iterable[str] = DEFAULT_ORDER
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    min_keep: int = 1
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: str | Iterable[str] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    stop: str | Iterable[str] = ()
    stop_token_ids: Iterable[int] = ()
    ignore_eos: bool = False
    context_shift: int | None = None
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    best_of: int | None = None
    echo: bool = False
    max_new_tokens: InitVar[int | None] = None

    def __post_init__(self, max_new_tokens: int | None) -> None:
        def normalise(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        if max_new_tokens is not None:
            if self.max_tokens is not None:
                raise ValidationError(
                    f"max_tokens ({self.max_tokens!r}) and max_new_tokens ({max_new_tokens!r}) "
                    "mean the same; give one of them"
                )
            normalise("max_tokens", check_integer("max_new_tokens", max_new_tokens, 1))
        elif self.max_tokens is not None:
            normalise("max_tokens", check_integer("max_tokens", self.max_tokens, 1))
        if self.context_shift is not None:
            normalise("context_shift", check_integer("context_shift", self.context_shift, 0))
        for field in ("logprobs", "prompt_logprobs"):
            if getattr(self, field) is not None:
                normalise(field, check_integer(field, getattr(self, field), 0))
        normalise("n", check_integer("n", self.n, 1, _MOST_SAMPLES))
        if self.best_of is not None:
            normalise("best_of", check_integer("best_of", self.best_of, self.n, _MOST_SAMPLES))
        if self.seed is not None:
            normalise("seed", check_integer("seed", self.seed, 0, _MAX_SEED))
        for field, (minimum, maximum, is_open) in _REALS.items():
            value = getattr(self, field)
            normalise(field, check_real(field, value, minimum, maximum, open_minimum=is_open))
        for field, least in _MINIMA.items():
            normalise(field, check_integer(field, getattr(self, field), least))
        normalise("top_k", max(0, check_integer("top_k", self.top_k, -1)))
        if self.mirostat not in (0, 2):
            raise ValidationError(f"mirostat must be 0 or 2, got {self.mirostat!r}")
        for field in ("stop", "bad_words", "dry_sequence_breakers"):
            normalise(field, _strings(field, getattr(self, field)))
        normalise("stop_token_ids", _token_ids(self.stop_token_ids))
        normalise("logit_bias", _logit_bias(self.logit_bias))
        normalise("order", _order(self.order))
        _check_bool("ignore_eos", self.ignore_eos)
        _check_bool("echo", self.echo)
        if self.logits_processor is not None and not callable(self.logits_processor):
            raise ValidationError(
                f"logits_processor must be callable, got {self.logits_processor!r}"
            )
        if self.json_schema is not None:
            normalise("json_schema", normal_schema(self.json_schema))
        if self.choice is not None:
            normalise("choice", normal_choice(self.choice))
        for field in ("regex", "grammar"):
            text = getattr(self, field)
            if text is not None and not isinstance(text, str):
                raise ValidationError(f"{field} must be a string, got {text!r}")
        self._check_agreement()
        self._check_structure()

    def _check_agreement(self) -> None:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValidationError(
                f"min_tokens ({self.min_tokens}) exceeds max_tokens ({self.max_tokens})"
            )
        for name in ORDERS[DEFAULT_ORDER]:
            for field in STRATEGIES[name].active_fields(self):
                if name not in self.order:
                    raise ValidationError(
                        f"{field} is {getattr(self, field)!r}, but order leaves {name!r} out"
                    )
                if self.mirostat and (name in _AGAINST_MIROSTAT or field == "dynatemp_range"):
                    raise ValidationError(
                        f"{field} is {getattr(self, field)!r}, but mirostat cuts in its place; "
                        "give one of them"
                    )
        if self.num_samples > 1 and self.temperature == 0.0:
            field = "n" if self.best_of is None else "best_of"
            raise ValidationError(
                f"{field} is {self.num_samples}, but temperature 0 draws one text only; "
                "raise the temperature, or ask for one text"
            )
        for field in _AGAINST_GREEDY if self.temperature == 0.0 else ():
            if getattr(self, field):
                raise ValidationError(
                    f"{field} is {getattr(self, field)!r}, but temperature 0 draws nothing"
                )

    def _check_structure(self) -> None:
        kinds = STRATEGIES["structured_output"].active_fields(self)
        if len(kinds) > 1:
            raise ValidationError(f"{' and '.join(kinds)} exclude one another; give one of them")
        for field in ("ignore_eos", "min_tokens") if kinds else ():
            if getattr(self, field):
                raise ValidationError(
                    f"{field} is {getattr(self, field)!r}, but the text ends where {kinds[0]} does"
                )

    @property
    def structured_output(self) -> StructuredOutput | None:
        """Return what the text must look like, if anything."""
        if isinstance(self.json_schema, str):
            return StructuredOutput("json_schema", self.json_schema)
        if self.regex is not None:
            return StructuredOutput("regex", self.regex)
        if self.choice is not None:
            return StructuredOutput("choice", json.dumps(self.choice))
        return None if self.grammar is None else StructuredOutput("grammar", self.grammar)

    @property
    def num_samples(self) -> int:
        """Return how many texts are drawn."""
        return self.n if self.best_of is None else self.best_of

    @property
    def computed_logprobs(self) -> int | None:
        """Return `logprobs`, or 0 where ranking needs those of the tokens themselves."""
        return 0 if self.logprobs is None and self.best_of is not None else self.logprobs

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Return `stop` as a tuple."""
        assert isinstance(self.stop, tuple)
        return self.stop

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """Return `logit_bias` as pairs, by ascending token id."""
        assert isinstance(self.logit_bias, tuple)
        return self.logit_bias


def describe_strategies() -> dict[str, dict[str, object]]:
    """Return, for a listing, every strategy by name and the named orders.

    Example:
        >>> describe_strategies()["strategies"]["top_k"]["parameters"]
        {'top_k': 0}
    """
    defaults = {field.name: field.default for field in fields(SamplingParams)}
    strategies: dict[str, object] = {
        name: {
            "does": strategy.summary,
            "parameters": {
                field: defaults[field] for field in (*strategy.off, *strategy.parameters)
            },
            "source": strategy.source,
        }
        for name, strategy in STRATEGIES.items()
    }
    return {"strategies": strategies, "orders": dict(ORDERS)}
