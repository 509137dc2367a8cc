"""Output that follows a JSON schema, a regular expression, a grammar or a list of choices.

llguidance compiles the constraint against the tokenizer's vocabulary and says before each token
which ones may follow.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from ryzanstein.errors import DistributionError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llguidance import LLMatcher, LLTokenizer

    from ryzanstein._core import F32Array
    from ryzanstein.tokenizer import Tokenizer

__all__ = ["Constraint", "ConstraintCompiler", "StructuredOutput"]

# Compiled in under a second; what is larger is a mistake or an attack.
_MAX_SOURCE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """What a text must look like.

    Args:
        kind: "json_schema", "regex", "grammar" (in Lark's notation) or "choice" (a JSON list).
        source: the text of it.
    """

    kind: Literal["json_schema", "regex", "grammar", "choice"]
    source: str


class ConstraintCompiler:
    """Compiles constraints for one tokenizer.

    Args:
        tokenizer: whose tokens are constrained.
        vocab_size: logits of the model, which may be more than the tokenizer has tokens.

    Example:
        >>> compiler = ConstraintCompiler(llm.tokenizer, llm.config.vocab_size)
        >>> constraint = compiler.compile(StructuredOutput("regex", "[0-9]{4}"))
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size

    def compile(self, output: StructuredOutput) -> Constraint:
        """Return the constraint, before its first token.

        Raises:
            ValidationError: it does not parse, cannot be met or is too large; says why.
        """
        # Imported here because most runs need no grammar.
        from llguidance import LLMatcher

        size = len(output.source.encode())
        if size > _MAX_SOURCE_BYTES:
            raise ValidationError(
                f"{output.kind} has {size} bytes, more than the {_MAX_SOURCE_BYTES} allowed"
            )
        matcher = LLMatcher(self._vocabulary, _grammar(LLMatcher, output), log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().strip()
            raise ValidationError(f"{output.kind} cannot be used: {reason}")
        return Constraint(matcher, self._vocab_size)

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        eos = list(self._tokenizer.eos_token_ids)
        if not eos:
            raise ValidationError(
                "structured output needs a model with an end token, so that a text can end; "
                "set eos_token_id in its generation_config.json"
            )
        return LLTokenizer(self._tokenizer.to_json(), n_vocab=self._vocab_size, eos_token=eos)


class Constraint:
    """Where one text is in its grammar."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def apply(self, logits: F32Array) -> None:
        """Set the logits float32 [V] of tokens that may not come next to -infinity, in place.

        Raises:
            DistributionError: the grammar became too complex to follow.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._require_sound()
        allowed = np.unpackbits(bits, count=self._vocab_size, bitorder="little")
        logits[allowed == 0] = -np.inf

    def advance(self, token_ids: Iterable[int]) -> None:
        """Take tokens that came.

        Raises:
            DistributionError: the grammar does not allow them.
        """
        if not self._matcher.is_stopped():
            self._matcher.consume_tokens(list(token_ids))
            self._require_sound()

    def forced(self) -> list[int]:
        """Return the tokens that must come next, whatever the model says; often none."""
        return [] if self._matcher.is_stopped() else self._matcher.compute_ff_tokens()

    def fork(self) -> Constraint:
        """Return a constraint at the same place that goes its own way."""
        return Constraint(self._matcher.deep_copy(), self._vocab_size)

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            raise DistributionError(
                f"the text cannot go on as asked: {self._matcher.get_error().strip()}"
            )


def _grammar(matcher: type[LLMatcher], output: StructuredOutput) -> str:
    if output.kind == "json_schema":
        return matcher.grammar_from_json_schema(output.source)
    if output.kind == "regex":
        return matcher.grammar_from_regex(output.source)
    if output.kind == "grammar":
        return matcher.grammar_from_lark(output.source)
    choices = [json.dumps(choice) for choice in json.loads(output.source)]
    return matcher.grammar_from_lark(f"start: {' | '.join(choices)}")
