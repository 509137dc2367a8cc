"""Output that follows a JSON schema, a regular expression, a grammar or a list of choices.

llguidance compiles the constraint against the tokenizer's vocabulary and says before each token
which ones may follow.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING

import numpy as np

from ryzanstein.errors import DistributionError, ValidationError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from ryzanstein._core import F32Array, I32Array
    from ryzanstein.sampling.structured_output import StructuredOutput
    from ryzanstein.tokenizer import Tokenizer

__all__ = ["Constraint", "ConstraintCompiler"]

# Compiled in under a second; what is larger is a mistake or an attack.
_MAX_SOURCE_BYTES = 1 << 20
# Compiled and kept: a service asks for the same few again and again.
_NUM_KEPT = 32


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
        self._compiled = functools.lru_cache(_NUM_KEPT)(self._compile)

    def compile(self, output: StructuredOutput) -> Constraint:
        """Return the constraint, before its first token.

        Raises:
            ValidationError: it does not parse, cannot be met or is too large; says why.
        """
        return self._compiled(output).fork()

    def _compile(self, output: StructuredOutput) -> Constraint:
        # Imported here because most runs need no grammar.
        from llguidance import LLMatcher

        size = len(output.source.encode(errors="surrogatepass"))
        if size > _MAX_SOURCE_BYTES:
            raise ValidationError(
                f"{output.kind} has {size} bytes, more than the {_MAX_SOURCE_BYTES} allowed"
            )
        try:
            grammar = _grammar(LLMatcher, output)
        except ValueError as error:
            raise ValidationError(f"{output.kind} cannot be used: {error}") from error
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0)
        if matcher.is_error():
            raise ValidationError(f"{output.kind} cannot be used: {_reason(matcher)}")
        matcher.compute_bitmask()
        if matcher.is_error():
            raise ValidationError(f"{output.kind} cannot be used: no text follows it")
        return Constraint(matcher, self._vocab_size, self._tokenizer.eos_token_ids[0])

    @functools.cached_property
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
    """Where one text is in its grammar.

    Args:
        matcher: knows the grammar and the place.
        vocab_size: V.
        eos_token_id: ends the text.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int, eos_token_id: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._eos_token_id = eos_token_id
        self._num_taken = 0

    def follow(self, generated: I32Array) -> None:
        """Take the tokens generated so far, int32 [n]; those taken before cost nothing.

        Raises:
            DistributionError: the grammar does not allow them.
        """
        if self._num_taken == len(generated):
            return
        self._matcher.consume_tokens(generated[self._num_taken :].tolist())
        self._num_taken = len(generated)
        self._require_sound()

    def apply(self, logits: F32Array) -> F32Array:
        """Return float32 [V] logits with -infinity for the tokens that may not come next.

        Raises:
            DistributionError: the grammar became too complex to follow.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._require_sound()
        allowed = np.unpackbits(bits, count=self._vocab_size, bitorder="little")
        return np.where(allowed, logits, np.float32(-np.inf))

    def forced(self) -> list[int]:
        """Return the tokens that must come next, whatever the model says; often none.

        Where nothing can follow any more, the end token must.
        """
        if self._matcher.is_stopped():
            return [self._eos_token_id]
        return self._matcher.compute_ff_tokens()

    def fork(self) -> Constraint:
        """Return a constraint at the same place that goes its own way."""
        copy = Constraint(self._matcher.deep_copy(), self._vocab_size, self._eos_token_id)
        copy._num_taken = self._num_taken
        return copy

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            raise DistributionError(f"the text cannot go on as asked: {_reason(self._matcher)}")


def _reason(matcher: LLMatcher) -> str:
    # What follows a line that opens with a tag is the parser's state.
    return matcher.get_error().partition("\n<")[0].strip()


def _grammar(matcher: type[LLMatcher], output: StructuredOutput) -> str:
    if output.kind == "json_schema":
        # Blanks only where Python's json.dumps puts them: more of the text is forced, and no model
        # can go on with blanks for ever. A schema's own "x-guidance" overrides it.
        return matcher.grammar_from_json_schema(
            output.source,
            defaults={
                "whitespace_flexible": False,
                "item_separator": ", ",
                "key_separator": ": ",
            },
        )
    if output.kind == "regex":
        return matcher.grammar_from_regex(output.source)
    if output.kind == "grammar":
        return matcher.grammar_from_lark(output.source)
    choices = [json.dumps(choice) for choice in json.loads(output.source)]
    return matcher.grammar_from_lark(f"start: {' | '.join(choices)}")
