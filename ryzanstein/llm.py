"""The front door: load a model, generate, stream, chat, score."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, get_args, overload

import numpy as np

from ryzanstein import _core
from ryzanstein.chat_template import ChatTemplate
from ryzanstein.config import (
    Speculative,
    check_attention,
    check_integer,
    check_kv_dtype,
    check_lm_head,
    check_policies,
    check_real,
    check_weights,
    plan_engine,
)
from ryzanstein.cpu import check_threads, default_threads, read_host
from ryzanstein.engine.async_engine import AsyncEngine
from ryzanstein.engine.beam_request import BeamRequest
from ryzanstein.engine.beam_search import BeamSearch
from ryzanstein.engine.engine import Engine
from ryzanstein.engine.request import Request
from ryzanstein.engine.sequence import Sequence
from ryzanstein.engine.shared import SharedEngine
from ryzanstein.errors import (
    ContextLengthError,
    CorruptFileError,
    OutOfMemoryError,
    ValidationError,
)
from ryzanstein.loaders.hub import resolve_model
from ryzanstein.loaders.model_files import open_files
from ryzanstein.loaders.weight_cache import default_weight_cache
from ryzanstein.models import load_model, read_config
from ryzanstein.sampling import SamplingParams
from ryzanstein.sampling.presets import read_defaults
from ryzanstein.sampling.words import find_words
from ryzanstein.speculative.draft_model import DraftModelProposer
from ryzanstein.speculative.drafter import PROPOSERS
from ryzanstein.structured import ConstraintCompiler
from ryzanstein.tokenizer import Tokenizer

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Iterable, Mapping
    from collections.abc import Sequence as ABCSequence
    from types import TracebackType

    from ryzanstein._core import F32Array, I32Array
    from ryzanstein.config import EngineConfig, Eviction, HeadKind, KVDtype, Scheduling, WeightKind
    from ryzanstein.engine.beam_search import EarlyStopping
    from ryzanstein.engine.result import Completion, Piece
    from ryzanstein.models import LoadedModel, SkipZeros
    from ryzanstein.speculative.drafter import MakeProposer

__all__ = ["LLM", "generate"]

_MOST_PRIORITY = 1 << 20

Prompt: TypeAlias = "str | list[int] | I32Array"


class LLM:
    """A loaded model.

    Several threads may use one LLM: their sequences share the steps. A process forked from one that
    has an LLM must make its own.

    Args:
        model: a directory in the Hugging Face layout, a GGUF file, a hub id ("org/name", where it
            holds GGUF files "org/name:Q4_0", either with "@revision" behind), or None for the
            embedded model.
        threads: threads to compute with; None takes RYZANSTEIN_THREADS, else one per physical core
            that the process may use.
        context_length: tokens of prompt and generation together; None takes what the model was
            trained for, or what fits in memory if that is less.
        kv_dtype: how keys and values are stored: "f16", "f32", or "int8", which takes half the
            memory of "f16" and changes logits by about a percent.
        lm_head: how logits are computed. "exact" reads few of the head's weights where sampling
            looks at few of its logits, for the same tokens as "dense", which always reads all;
            "int7" and "int5" round the weights to so many bits, an error of 2 and 5 % of the
            logits' spread, and "int8" and "int4" to so many in groups of 32, of 1 and 9 %.
        weights: how the linears are held. "auto": as ternary codes if the checkpoint is ternary,
            else as they are stored; "bf16": float32 rounded to bfloat16; "int8" and "int4": floats
            rounded to so many bits in groups of 32 columns; "ternary": ternarised, which is for
            masters of a BitNet model and for weights that are ternary already.
        prefix_cache: keep pages of keys and values while there is room, so that prompts which begin
            as an earlier one (or its answer) did are computed from there on; it changes no bit.
        eviction: which cached page gives way to a new one: "lru" (used longest ago), "lfu" (least
            often), "fifo" (stored longest ago), "cost" (cheapest to compute again) or "arc"
            (balances recency and frequency).
        scheduling: which waiting request runs next: "fcfs" (the first), "priority" (the highest)
            or "prefix" (the one with most of its prompt in the cache). Waiting counts in them all.
        attention_window: keys that a token sees at most, the last ones, its own among them; None
            leaves every layer what it was trained with. Time per token is bounded by it; memory is
            not, pages outside stay.
        attention_sinks: keys that it sees besides, the first of the sequence, to which models give
            the attention they have no use for: with 4 or more, text far beyond the window stays
            fluent.
        isa: instruction-set tier; None takes RYZANSTEIN_ISA, else the best this machine has.
        weight_cache: keep the packed weights of large models in RYZANSTEIN_CACHE (by default
            ~/.cache/ryzanstein), up to RYZANSTEIN_CACHE_LIMIT gigabytes (16), and map them next
            time instead of packing again.
        skip_zeros: zeros of feed-forwards that decoding one token passes over, with the same bits:
            "none", those of "down" or "all"; None takes what is usually faster.
        speculative: guess the next tokens and check several in one step, where that is expected to
            gain time; it changes no token. "ngram" and "suffix" guess from what the text repeats
            ("auto" is the better, "suffix"), and a smaller LLM of the same vocabulary by itself.

    Raises:
        ModelLoadError: the model is missing, damaged or unsupported.
        OutOfMemoryError: the weights or the context do not fit in memory.
        ValidationError: an argument outside its range.

    Example:
        >>> with LLM() as llm:
        ...     completion = llm.generate("def fibonacci(n):", SamplingParams(max_tokens=32))
        >>> completion.usage.completion_tokens <= 32
        True
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        threads: int | None = None,
        context_length: int | None = None,
        kv_dtype: KVDtype = "f16",
        lm_head: HeadKind = "exact",
        weights: WeightKind = "auto",
        prefix_cache: bool = True,
        eviction: Eviction = "arc",
        scheduling: Scheduling = "fcfs",
        attention_window: int | None = None,
        attention_sinks: int = 0,
        isa: str | None = None,
        weight_cache: bool = True,
        skip_zeros: SkipZeros | None = None,
        speculative: Speculative | LLM | None = None,
    ) -> None:
        self.threads = default_threads() if threads is None else check_threads(threads)
        _core.resolve_isa(isa)
        check_kv_dtype(kv_dtype)
        check_lm_head(lm_head)
        check_weights(weights)
        check_policies(prefix_cache, eviction, scheduling)
        span = check_attention(attention_window, attention_sinks)
        files = open_files(resolve_model(model))
        self.path = files.path
        # Everything that can be wrong cheaply comes before the weights.
        self.config = dataclasses.replace(read_config(files), **span)
        if context_length is not None:
            check_integer("context_length", context_length, 1, self.config.max_context)
        self.tokenizer = Tokenizer.from_files(files)
        if self.tokenizer.vocab_size > self.config.vocab_size:
            raise CorruptFileError(
                f"{self.path}: the tokenizer has {self.tokenizer.vocab_size} tokens, but the "
                f"model only {self.config.vocab_size}; the files belong to different models"
            )
        make_proposer = self._proposers(speculative)
        specials = self.tokenizer.special_tokens
        self._chat_template = ChatTemplate.from_files(files, specials)
        self.defaults = read_defaults(files)
        loaded = load_model(
            files,
            threads=self.threads,
            isa=isa,
            lm_head=lm_head,
            weights=weights,
            skip_zeros=skip_zeros,
            **span,
            weight_cache=default_weight_cache() if weight_cache else None,
            progress=sys.stderr.isatty(),
        )
        self.isa = loaded.decoder.isa
        plan = self._plan(loaded, context_length, kv_dtype)
        plan = dataclasses.replace(
            plan, prefix_cache=prefix_cache, eviction=eviction, scheduling=scheduling
        )
        identity = {"model": str(files.open_weights().identity()), "weights": weights}
        self._engine = self._start(loaded, plan, identity, make_proposer)

    def _start(
        self,
        loaded: LoadedModel,
        plan: EngineConfig,
        identity: Mapping[str, str],
        make_proposer: MakeProposer | None,
    ) -> SharedEngine:
        config = self.config
        shape = (config.num_layers, config.num_kv_heads, config.head_dim)
        cache = _core.PagedCache(*shape, plan.num_blocks, plan.kv_dtype)
        identity = {**identity, "configuration": str(config), "tier": self.isa}
        return SharedEngine(Engine(loaded.decoder, cache, plan, identity, make_proposer))

    def _proposers(self, speculative: object) -> MakeProposer | None:
        """Return what makes the sources of guesses that `speculative` names."""
        if speculative is None:
            return None
        if isinstance(speculative, LLM):
            return speculative._as_draft_of(self)
        make = PROPOSERS.get(speculative) if isinstance(speculative, str) else None
        if make is None:
            raise ValidationError(
                f"speculative must be one of {get_args(Speculative)}, an LLM or None, "
                f"got {speculative!r}"
            )
        return lambda _: make()

    def _as_draft_of(self, target: LLM) -> MakeProposer:
        if (
            self.tokenizer.vocabulary != target.tokenizer.vocabulary
            or self.config.vocab_size > target.config.vocab_size
        ):
            raise ValidationError(
                f"{self.path} cannot guess for {target.path}: their vocabularies differ; "
                "a draft model must have the same tokens with the same ids"
            )
        config = self.config
        shape = (config.num_layers, config.num_kv_heads, config.head_dim)

        def make(num_tokens: int) -> DraftModelProposer:
            # The model may be trained for less than the target: behind that it guesses no more.
            longest = min(num_tokens, config.max_position_embeddings)
            num_blocks = -(-longest // _core.PAGE_TOKENS)
            cache = _core.PagedCache(*shape, num_blocks, "f16")
            rope_set = self._engine.rope_set(longest)
            return DraftModelProposer(self._engine.decoder, config.vocab_size, cache, rope_set)

        return make

    def _plan(
        self, loaded: LoadedModel, context_length: int | None, kv_dtype: KVDtype
    ) -> EngineConfig:
        config = self.config
        shape = (config.num_layers, config.num_kv_heads, config.head_dim)
        plan = plan_engine(
            context_length=context_length,
            trained_length=config.max_position_embeddings,
            block_tokens=_core.PAGE_TOKENS,
            block_bytes=_core.kv_block_bytes(*shape, kv_dtype),
            kv_dtype=kv_dtype,
            free_bytes=max(0, read_host().free_bytes - loaded.mapped_bytes),
        )
        return dataclasses.replace(
            plan, rope_limits=config.rope_limits, vocab_size=config.vocab_size
        )

    @property
    def context_length(self) -> int:
        """Return the most tokens one sequence may have, prompt and generation together."""
        return self._engine.context_length

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the weights, the cache and the threads. Closing twice is fine."""
        self._engine.close()

    @overload
    def generate(
        self,
        prompts: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
    ) -> Completion: ...
    @overload
    def generate(
        self,
        prompts: list[str] | list[list[int]] | list[I32Array],
        params: SamplingParams | ABCSequence[SamplingParams] | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
    ) -> list[Completion]: ...
    def generate(
        self,
        prompts: Prompt | list[str] | list[list[int]] | list[I32Array],
        params: SamplingParams | ABCSequence[SamplingParams] | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
    ) -> Completion | list[Completion]:
        """Generate a completion for one prompt, or completions for a list of them, batched.

        Args:
            prompts: a text, token ids, or a list of either.
            params: for all prompts, or a list with one for each; None takes the model's own
                defaults (`defaults.params`).
            priority: higher goes first where `scheduling` is "priority".
            cache_salt: only requests of the same salt share cached pages, so that the time a prompt
                takes tells nobody else whether it was seen before.

        Raises:
            ValidationError: an empty prompt, token ids outside the vocabulary, or a schema, regex
                or grammar that is wrong, too large or leaves no text.
            ContextLengthError: a prompt, with the tokens asked for, exceeds the context.
            DistributionError: the model yields NaN.

        Example:
            >>> llm.generate("Hello", SamplingParams(max_tokens=8, temperature=0)).finish_reason
            'length'
        """
        if not _is_batch(prompts):
            return self._generate([prompts], [params], priority, cache_salt)[0]
        batch = list(prompts)
        if not isinstance(params, list | tuple):
            params = [self._one_params(params)] * len(batch)
        if len(params) != len(batch):
            raise ValidationError(f"{len(batch)} prompts need as many params, got {len(params)}")
        return self._generate(batch, params, priority, cache_salt)

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
    ) -> Generator[Piece, None, None]:
        """Yield pieces of text as they are generated; the last one carries the whole completion.

        With `n` in the params the pieces of all choices come as they are made, told apart by
        `index`. Closing the generator ends the generation and frees its memory.

        Raises:
            As `generate`, before the first piece.
            ValidationError: `best_of`, which can tell the best only at the end.

        Example:
            >>> for piece in llm.stream("Hello"):
            ...     print(piece.text, end="", flush=True)
        """
        return self._stream(self._make_streamed(prompt, params, priority, cache_salt))

    def beam_search(
        self,
        prompt: Prompt,
        *,
        beam_width: int = 4,
        max_tokens: int | None = None,
        length_penalty: float = 1.0,
        early_stopping: EarlyStopping = False,
        stop_token_ids: Iterable[int] = (),
        ignore_eos: bool = False,
        priority: int = 0,
        cache_salt: str = "",
    ) -> Completion:
        """Return likely texts as choices, the best first, found by following several beginnings.

        The texts are those of transformers' `generate(num_beams=beam_width)`. A text's score is
        `cumulative_logprob / len(token_ids) ** length_penalty`.

        Args:
            prompt: a text or token ids.
            beam_width: beginnings to follow, and texts to return.
            max_tokens: tokens of a text at most; None as in SamplingParams.
            length_penalty: above 0, longer texts score higher; 0 compares their log-probabilities.
            early_stopping: when to stop, once beam_width texts are found. True: at once. False: as
                soon as the best beam, ending now, would not score higher than all of them. "never":
                not before no longer text could.
            stop_token_ids: tokens that end a text, besides the model's own end tokens.
            ignore_eos: go on past the model's own end tokens.
            priority: as in `generate`.
            cache_salt: as in `generate`.

        Raises:
            As `generate`.

        Example:
            >>> [choice.text for choice in llm.beam_search("Hello", beam_width=2).choices]
            [' world', ', world']
        """
        check_integer("beam_width", beam_width, 1)
        check_real("length_penalty", length_penalty, -math.inf)
        if not isinstance(early_stopping, bool) and early_stopping != "never":
            raise ValidationError(
                f"early_stopping must be True, False or 'never', got {early_stopping!r}"
            )
        params = SamplingParams(
            max_tokens=max_tokens, stop_token_ids=stop_token_ids, ignore_eos=ignore_eos, logprobs=0
        )
        sequence = self._make_sequence(self._encode(prompt), params, priority, cache_salt)
        search = BeamSearch(
            beam_width,
            sequence.capacity - sequence.num_prompt_tokens,
            length_penalty,
            early_stopping,
            sequence.stop_ids,
        )
        request = BeamRequest(sequence, search, self.tokenizer)
        with closing(self._engine.run([request])) as pieces:
            (completion,) = [piece.completion for _, piece in pieces]
        assert completion is not None
        return completion

    def save_prefixes(
        self,
        path: str | os.PathLike[str],
        prompts: Prompt | list[str] | list[list[int]] | list[I32Array] | None = None,
    ) -> int:
        """Write pages of the prefix cache to a file; return how many.

        So a long prompt survives a restart. The file holds the prompts' tokens.

        Args:
            path: the file.
            prompts: a text, token ids, or a list of either: those pages that one of them begins
                with, under every `cache_salt`. None: all pages.

        Raises:
            ModelLoadError: it cannot be written.
            ValidationError: the prefix cache is off, or a prompt is empty or has token ids outside
                the vocabulary.

        Example:
            >>> out = llm.generate(prompt)
            >>> llm.save_prefixes("conversation.kv", [*out.prompt_token_ids, *out.token_ids])
            12
        """
        texts = None
        if prompts is not None:
            batch: list[Any] = list(prompts) if _is_batch(prompts) else [prompts]
            texts = [self._encode(one) for one in batch]
        return self._engine.save_prefixes(Path(path), texts)

    def load_prefixes(self, path: str | os.PathLike[str]) -> int:
        """Enter the pages of a file into the prefix cache; return how many were new and had room.

        Raises:
            ModelLoadError: there is no such file.
            CorruptFileError: it is damaged.
            ValidationError: another model, configuration, kind of weights, KV format or tier
                computed it, which is said; or the prefix cache is off.
        """
        return self._engine.load_prefixes(Path(path))

    def serve(self) -> AsyncEngine:
        """Return an engine whose streams asyncio code iterates over, any number at once.

        Raises:
            ValidationError: this LLM is closed.

        Example:
            >>> async with llm.serve() as engine:
            ...     async for piece in engine.stream("Hello", SamplingParams(max_tokens=8)):
            ...         print(piece.text, end="")
        """

        def make_request(
            prompt: Prompt,
            params: SamplingParams | None = None,
            *,
            priority: int = 0,
            cache_salt: str = "",
        ) -> Request:
            return self._make_streamed(prompt, params, priority, cache_salt)

        return AsyncEngine(self._engine, make_request)

    def chat(
        self, messages: ABCSequence[Mapping[str, Any]], params: SamplingParams | None = None
    ) -> Completion:
        """Generate the assistant's next message.

        Args:
            messages: mappings with "role" and "content".
            params: as for `generate`.

        Raises:
            ValidationError: the model has no chat template, or it rejects the messages.
            As `generate` for the rest.

        Example:
            >>> llm.chat([{"role": "user", "content": "hi"}]).text
            'Hello!'
        """
        return self.generate(self.chat_prompt(messages), params)

    def chat_prompt(self, messages: ABCSequence[Mapping[str, Any]]) -> list[int]:
        """Return the token ids of a conversation, ready for `generate` or `stream`.

        Raises:
            ValidationError: the model has no chat template, or it rejects the messages.
        """
        text = self.require_chat_template().render(messages)
        # The template has written the special tokens itself.
        return self.tokenizer.encode(text, add_special_tokens=False)

    def require_chat_template(self) -> ChatTemplate:
        """Return the model's chat template.

        Raises:
            ValidationError: it has none.
        """
        if self._chat_template is None:
            raise ValidationError(
                f"{self.path} has no chat template, so it cannot chat; "
                "use generate, or a model tuned for conversation"
            )
        return self._chat_template

    def logits(self, token_ids: Prompt) -> F32Array:
        """Return the logits after each token, float32 [T, V].

        Raises:
            ValidationError: no tokens, or ids outside the vocabulary.
            ContextLengthError: more tokens than the context holds.
            OutOfMemoryError: the result does not fit in memory.
        """
        ids = self._encode(token_ids)
        try:
            result = np.empty((len(ids), self.config.vocab_size), np.float32)
        except MemoryError as error:
            raise OutOfMemoryError(
                f"logits of {len(ids)} tokens need {len(ids) * self.config.vocab_size * 4 >> 20} "
                "MiB; pass fewer tokens, or use score"
            ) from error

        def take(start: int, logits: F32Array) -> None:
            result[start : start + len(logits)] = logits

        self._engine.logits(ids, take)
        return result

    def score(self, text: Prompt) -> F32Array:
        """Return the log-probability of each token after the first, float32 [T - 1].

        Never holds more than a few rows of logits.

        Raises:
            ValidationError: fewer than two tokens, or ids outside the vocabulary.
            ContextLengthError: more tokens than the context holds.

        Example:
            >>> perplexity = np.exp(-llm.score("def main():").mean())
        """
        ids = self._encode(text)
        if len(ids) < 2:
            raise ValidationError("score needs at least two tokens: the first has no probability")
        result = np.empty(len(ids) - 1, np.float32)

        def take(start: int, logits: F32Array) -> None:
            end = start + len(logits)
            result[start:end] = _core.score_rows(logits, ids[start + 1 : end + 1])

        self._engine.logits(ids[:-1], take)
        return result

    def _generate(
        self, prompts: list[Any], params: ABCSequence[object], priority: int, cache_salt: str
    ) -> list[Completion]:
        requests = [
            self._make_request(prompt, one, priority, cache_salt)
            for prompt, one in zip(prompts, params, strict=True)
        ]
        with closing(self._engine.run(requests)) as pieces:
            results = {index: piece.completion for index, piece in pieces if piece.completion}
        return [results[index] for index in range(len(requests))]

    def _stream(self, request: Request) -> Generator[Piece, None, None]:
        with closing(self._engine.run([request])) as pieces:
            for _, piece in pieces:
                yield piece

    def _make_streamed(
        self, prompt: Prompt, params: object, priority: int, cache_salt: str
    ) -> Request:
        if self._one_params(params).best_of is not None:
            raise ValidationError(
                "best_of cannot be streamed: which texts are the best is known at their end; "
                "use generate, or n without best_of"
            )
        return self._make_request(prompt, params, priority, cache_salt)

    def _make_request(
        self, prompt: Prompt, params: object, priority: int, cache_salt: str
    ) -> Request:
        ids = self._encode(prompt)
        params = self._one_params(params)
        sequence = self._make_sequence(ids, params, priority, cache_salt)
        return Request(sequence, params, self.tokenizer, self._echo(prompt, ids, params))

    def _make_sequence(
        self, ids: I32Array, params: SamplingParams, priority: int, cache_salt: str
    ) -> Sequence:
        self._check_params(params)
        check_integer("priority", priority, -_MOST_PRIORITY, _MOST_PRIORITY)
        max_tokens = self._max_tokens(ids, params.max_tokens, params.context_shift)
        output = params.structured_output
        return Sequence.create(
            ids,
            params,
            max_tokens=max_tokens,
            context_length=self.context_length,
            eos_token_ids=self.tokenizer.eos_token_ids,
            words=find_words(params, self.tokenizer),
            constraint=None if output is None else self._constraints.compile(output),
            priority=priority,
            cache_salt=cache_salt,
        )

    def _max_tokens(self, ids: I32Array, wanted: int | None, num_kept: int | None = None) -> int:
        """Return how many tokens may follow a prompt, of those asked for."""
        room = self.context_length - len(ids)
        if room < 1:
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens, but the context of {self.context_length} must "
                "also hold what is generated; shorten the prompt or raise context_length"
            )
        if num_kept is not None:
            # Half of the context at least is there to be dropped.
            check_integer("context_shift", num_kept, 0, self.context_length // 2)
            return wanted or self.defaults.max_tokens
        if wanted is not None and wanted > room:
            raise ContextLengthError(
                f"{len(ids)} prompt tokens and max_tokens={wanted} exceed the context "
                f"of {self.context_length}; ask for at most {room}, or raise context_length"
            )
        return wanted or min(self.defaults.max_tokens, room)

    def _echo(self, prompt: Prompt, ids: I32Array, params: SamplingParams) -> str:
        if not params.echo:
            return ""
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(ids.tolist())

    @functools.cached_property
    def _constraints(self) -> ConstraintCompiler:
        return ConstraintCompiler(self.tokenizer, self.config.vocab_size)

    def _encode(self, prompt: Prompt) -> I32Array:
        vocab_size = self.config.vocab_size
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) and prompt else prompt
        if isinstance(ids, np.ndarray):
            ids = ids.tolist()
        if not isinstance(ids, str | list | tuple):
            raise ValidationError(
                f"a prompt must be a text or a list of token ids, got {type(prompt).__name__}"
            )
        if not ids:
            raise ValidationError(
                "the prompt is empty; give some text, or a list with the model's bos token"
            )
        checked = [check_integer("a prompt's token id", i, 0, vocab_size - 1) for i in ids]
        return np.array(checked, np.int32)

    def _one_params(self, params: object) -> SamplingParams:
        if params is None:
            return self.defaults.params
        if not isinstance(params, SamplingParams):
            raise ValidationError(f"params must be SamplingParams, got {type(params).__name__}")
        return params

    def _check_params(self, params: SamplingParams) -> None:
        vocab_size = self.config.vocab_size
        for field in ("logprobs", "prompt_logprobs"):
            if getattr(params, field) is not None:
                check_integer(field, getattr(params, field), 0, vocab_size)
        for token_id in params.stop_token_ids:
            check_integer("stop_token_ids", token_id, 0, vocab_size - 1)
        for token_id, _ in params.biases:
            check_integer("logit_bias", token_id, 0, vocab_size - 1)


def _is_batch(prompts: object) -> bool:
    return isinstance(prompts, list | tuple) and any(
        isinstance(item, str | list | tuple | np.ndarray) for item in prompts
    )


@functools.cache
def _embedded() -> LLM:
    return LLM()


def generate(prompt: Prompt, params: SamplingParams | None = None) -> Completion:
    """Generate with the embedded model, which is loaded once per process.

    Raises:
        As `LLM.generate`.

    Example:
        >>> from ryzanstein import generate
        >>> print(generate("def fibonacci(n):").text)
    """
    return _embedded().generate(prompt, params)
