"""What a caller may ask of one generation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import InitVar, dataclass

from ryzanstein.config import check_integer, check_real
from ryzanstein.errors import ValidationError

__all__ = ["SamplingParams"]

_MAX_SEED = 2**64 - 1


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValidationError(f"{name} must be True or False, got {value!r}")


def _stop_strings(value: object) -> tuple[str, ...]:
    items = (value,) if isinstance(value, str) else value
    if not isinstance(items, Iterable):
        raise ValidationError(f"stop must be a string or a list of strings, got {value!r}")
    strings: list[str] = []
    for item in items:
        if not isinstance(item, str) or not item:
            raise ValidationError(f"stop must hold non-empty strings, got {item!r}")
        strings.append(item)
    return tuple(strings)


def _token_ids(value: object) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValidationError(f"stop_token_ids must be a list of token ids, got {value!r}")
    return tuple(check_integer("stop_token_ids", item, 0) for item in value)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to sample and when to stop. Names follow vLLM.

    Args:
        max_tokens: tokens to generate at most. None takes the model's default (max_new_tokens of
            its generation_config.json, else 256), or the end of the context if that comes first; an
            explicit number that cannot fit in the context is an error.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: keep the k most likely tokens; 0 (or -1) keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches it, in (0, 1].
        min_p: drop tokens less likely than min_p times the most likely, in [0, 1].
        repetition_penalty: divides positive and multiplies negative logits of every token seen so
            far, prompt included; 1 is off.
        stop: strings that end the text; matched across token borders, left out of the text.
        stop_token_ids: tokens that end the text, besides the model's own end tokens.
        ignore_eos: go on past the model's own end tokens.
        seed: the same seed, prompt and parameters give the same tokens, whatever else runs.
            None draws a fresh one (reported as `Completion.seed`).
        logprobs: report the log-probability of each token and of this many most likely ones
            (before temperature and penalties). None reports nothing.
        max_new_tokens: another name for max_tokens.

    Raises:
        ValidationError: a value outside its range; names the field, the value and the range.

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
    stop: str | Iterable[str] = ()
    stop_token_ids: Iterable[int] = ()
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None
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
        if self.logprobs is not None:
            normalise("logprobs", check_integer("logprobs", self.logprobs, 0))
        if self.seed is not None:
            normalise("seed", check_integer("seed", self.seed, 0, _MAX_SEED))
        normalise("temperature", check_real("temperature", self.temperature, 0.0))
        normalise("top_k", max(0, check_integer("top_k", self.top_k, -1)))
        normalise("top_p", check_real("top_p", self.top_p, 0.0, 1.0, open_minimum=True))
        normalise("min_p", check_real("min_p", self.min_p, 0.0, 1.0))
        normalise(
            "repetition_penalty",
            check_real("repetition_penalty", self.repetition_penalty, 0.0, open_minimum=True),
        )
        normalise("stop", _stop_strings(self.stop))
        normalise("stop_token_ids", _token_ids(self.stop_token_ids))
        _check_bool("ignore_eos", self.ignore_eos)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Return `stop` as a tuple."""
        assert isinstance(self.stop, tuple)
        return self.stop
