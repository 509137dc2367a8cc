"""The engine's limits, and the checks that every user-supplied value goes through."""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Literal, TypeAlias, TypedDict, get_args

from ryzanstein.errors import OutOfMemoryError, ValidationError

__all__ = [
    "AttentionSpan",
    "EngineConfig",
    "Eviction",
    "HeadKind",
    "KVDtype",
    "Scheduling",
    "WeightKind",
    "cache_directory",
    "check_attention",
    "check_integer",
    "check_kv_dtype",
    "check_lm_head",
    "check_policies",
    "check_real",
    "check_weights",
    "plan_engine",
]

KVDtype: TypeAlias = Literal["f16", "f32", "int8"]
HeadKind: TypeAlias = Literal["exact", "int8", "int7", "int5", "int4", "dense"]
WeightKind: TypeAlias = Literal["auto", "bf16", "int8", "int4", "ternary"]
Eviction: TypeAlias = Literal["lru", "lfu", "fifo", "cost", "arc"]
Scheduling: TypeAlias = Literal["fcfs", "priority", "prefix"]
Speculative: TypeAlias = Literal["ngram", "suffix", "auto"]

_MOST_KEYS = (1 << 31) - 1
_MAX_SEQUENCES = 16
# A step cannot be interrupted, and every decoding sequence waits for it. Prefill speed is flat from
# 64 tokens on: the weights are reused enough by then.
_TOKEN_BUDGET = 128
# Pages are committed as they are written, so the pool may be as large as what is free now, less
# room for the workspace, the tokenizer and the page tables.
_POOL_SHARE_OF_FREE_MEMORY = 0.8


class AttentionSpan(TypedDict):
    """The last and the first keys that a token sees at most; a window of 0 is no limit."""

    attention_window: int
    attention_sinks: int


def cache_directory() -> Path | None:
    """Return RYZANSTEIN_CACHE, else ryzanstein in the user's cache directory, None without a home.

    Nothing is created.
    """
    if chosen := os.environ.get("RYZANSTEIN_CACHE"):
        return Path(chosen)
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "ryzanstein"
    try:
        return Path.home() / ".cache" / "ryzanstein"
    except RuntimeError:  # a user without an entry in the password database
        return None


def check_integer(name: str, value: object, minimum: int, maximum: int | None = None) -> int:
    """Return `value` if it is an integer in [minimum, maximum].

    Raises:
        ValidationError: names the field, the value and the range.
    """
    in_range = f"an integer >= {minimum}" if maximum is None else f"in {minimum}..{maximum}"
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValidationError(f"{name} must be {in_range}, got {value!r}")
    number = int(value)
    if number < minimum or (maximum is not None and number > maximum):
        raise ValidationError(f"{name} must be {in_range}, got {number}")
    return number


def check_real(
    name: str,
    value: object,
    minimum: float,
    maximum: float = math.inf,
    *,
    open_minimum: bool = False,
) -> float:
    """Return `value` as a float if it is a finite number in the range.

    Raises:
        ValidationError: names the field, the value and the range.
    """
    upper = f", {maximum:g}]" if math.isfinite(maximum) else ", inf)"
    in_range = f"a number in {'(' if open_minimum else '['}{minimum:g}{upper}"
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    inside = minimum < number if open_minimum else minimum <= number
    if not (inside and number <= maximum and math.isfinite(number)):
        raise ValidationError(f"{name} must be {in_range}, got {value!r}")
    return number


def check_attention(window: object, sinks: object) -> AttentionSpan:
    """Return which keys a token may see at most, as the models take it.

    Raises:
        ValidationError: numbers out of range, or sinks without a window.
    """
    if window is None:
        if check_integer("attention_sinks", sinks, 0):
            raise ValidationError(
                f"attention_sinks={sinks} needs an attention_window: without, every key is seen"
            )
        return {"attention_window": 0, "attention_sinks": 0}
    return {
        "attention_window": check_integer("attention_window", window, 1, _MOST_KEYS),
        "attention_sinks": check_integer("attention_sinks", sinks, 0, _MOST_KEYS),
    }


def check_kv_dtype(value: object) -> None:
    """Raise unless `value` names a KV format.

    Raises:
        ValidationError: it does not.
    """
    if value not in get_args(KVDtype):
        raise ValidationError(f"kv_dtype must be one of {get_args(KVDtype)}, got {value!r}")


def check_lm_head(value: object) -> None:
    """Raise unless `value` names a kind of LM head.

    Raises:
        ValidationError: it does not.
    """
    if value not in get_args(HeadKind):
        raise ValidationError(f"lm_head must be one of {get_args(HeadKind)}, got {value!r}")


def check_weights(value: object) -> None:
    """Raise unless `value` names a way to hold weights.

    Raises:
        ValidationError: it does not.
    """
    if value not in get_args(WeightKind):
        raise ValidationError(f"weights must be one of {get_args(WeightKind)}, got {value!r}")


def check_policies(prefix_cache: object, eviction: object, scheduling: object) -> None:
    """Raise unless the values say how an engine caches and schedules.

    Raises:
        ValidationError: one of them does not.
    """
    if not isinstance(prefix_cache, bool):
        raise ValidationError(f"prefix_cache must be True or False, got {prefix_cache!r}")
    if eviction not in get_args(Eviction):
        raise ValidationError(f"eviction must be one of {get_args(Eviction)}, got {eviction!r}")
    if scheduling not in get_args(Scheduling):
        raise ValidationError(
            f"scheduling must be one of {get_args(Scheduling)}, got {scheduling!r}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What the scheduler may use.

    Args:
        context_length: tokens one sequence may hold, prompt included.
        num_blocks: pages in the pool, shared by all sequences.
        kv_dtype: how keys and values are stored.
        max_sequences: sequences that run at the same time; the rest wait.
        token_budget: tokens in one step; longer prompts are prefilled over several steps.
        prefix_cache: whether sequences that begin alike share pages, also after their end.
        eviction: which cached page gives way to a new one.
        scheduling: which waiting sequence runs next: the first come, the highest priority (waiting
            counts too), or the one with most of its prompt in the cache (likewise).
        rope_limits: lengths beyond which the model rotates a sequence by other frequencies,
            ascending.
        vocab_size: of the model; guesses outside it are not checked.
    """

    context_length: int
    num_blocks: int
    kv_dtype: KVDtype = "f16"
    max_sequences: int = _MAX_SEQUENCES
    token_budget: int = _TOKEN_BUDGET
    prefix_cache: bool = True
    eviction: Eviction = "arc"
    scheduling: Scheduling = "fcfs"
    rope_limits: tuple[int, ...] = ()
    vocab_size: int = 1 << 31  # any token id

    def rope_set(self, capacity: int) -> int:
        """Return which frequencies rotate a sequence that may grow to so many tokens."""
        return bisect_left(self.rope_limits, capacity)

    def __post_init__(self) -> None:
        for name in ("context_length", "num_blocks", "max_sequences", "token_budget"):
            check_integer(name, getattr(self, name), 1)
        check_kv_dtype(self.kv_dtype)
        check_policies(self.prefix_cache, self.eviction, self.scheduling)
        if self.token_budget < self.max_sequences:
            raise ValidationError(
                f"token_budget ({self.token_budget}) must be at least max_sequences "
                f"({self.max_sequences}), or decoding sequences would starve"
            )


def plan_engine(
    *,
    context_length: int | None,
    trained_length: int,
    block_tokens: int,
    block_bytes: int,
    kv_dtype: KVDtype,
    free_bytes: int,
) -> EngineConfig:
    """Size the context and the page pool for a model on this machine.

    Args:
        context_length: tokens per sequence; None means the trained length, or what fits.
        trained_length: positions the model was trained for.
        block_tokens: tokens per page.
        block_bytes: keys and values of so many tokens, over all layers.
        kv_dtype: how keys and values are stored.
        free_bytes: memory that may still be used.

    Raises:
        OutOfMemoryError: a sequence of that length does not fit.
    """
    affordable_blocks = int(free_bytes * _POOL_SHARE_OF_FREE_MEMORY) // block_bytes
    wanted = trained_length if context_length is None else context_length
    blocks_per_sequence = -(-wanted // block_tokens)
    if affordable_blocks < blocks_per_sequence:
        if context_length is not None or affordable_blocks == 0:
            raise OutOfMemoryError(
                f"a context of {wanted} tokens needs {blocks_per_sequence * block_bytes >> 20} MiB "
                f"of {kv_dtype} KV cache, but only {free_bytes >> 20} MiB of memory is free; "
                f"lower context_length (at most {affordable_blocks * block_tokens} fits)"
            )
        wanted = affordable_blocks * block_tokens
        blocks_per_sequence = affordable_blocks
    return EngineConfig(
        context_length=wanted,
        num_blocks=min(affordable_blocks, blocks_per_sequence * _MAX_SEQUENCES),
        kv_dtype=kv_dtype,
    )
