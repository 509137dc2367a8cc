"""One request as the engine sees it: token ids, how far they are computed, when to stop."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from ryzanstein import _core
from ryzanstein.engine.interrupts import Interruptible
from ryzanstein.engine.prefix_cache import NO_MATCH
from ryzanstein.engine.result import TokenLogprob
from ryzanstein.errors import RyzansteinError, ValidationError
from ryzanstein.sampling.sampler import make_sampler
from ryzanstein.sampling.screening import EVERY_LOGIT, Screening, screening
from ryzanstein.sampling.words import NO_WORDS, Words

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Sequence as ABCSequence

    from ryzanstein._core import F32Array, I32Array
    from ryzanstein.engine.beam_request import BeamRequest
    from ryzanstein.engine.beam_search import Candidates
    from ryzanstein.engine.block_manager import BlockTable
    from ryzanstein.engine.prefix_cache import PageChain, PrefixMatch
    from ryzanstein.engine.result import FinishReason
    from ryzanstein.sampling import SamplingParams
    from ryzanstein.sampling.params import LogitsProcessor
    from ryzanstein.speculative.drafter import Drafter
    from ryzanstein.structured import Constraint

__all__ = ["Sequence"]


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens of one request, the prompt first.

    `num_computed` counts the tokens whose keys and values are in the cache for good; a step that
    fails half-way is undone by truncating the block table to it.

    Args:
        buffer: int32 [prompt + max_tokens], filled up to num_tokens.
        num_prompt_tokens: tokens given by the caller.
        sampler: draws the next token.
        stop_ids: tokens that end the sequence.
        num_logprobs: top log-probabilities to keep per token; None keeps nothing.
        seed: what the sampler was seeded with.
        screening: which logits the sampler can come to see.
        logits_processor: changes them first.
        constraint: then says which tokens may come next, and which must.
        ended: set when the sequence was ended from outside.
        error: set when no token could be drawn.
        priority: higher runs earlier under the priority scheduling.
        cache_salt: only sequences of the same salt share pages.
        chain: the full pages, for the prefix cache.
        arrival: when the scheduler was given the sequence, the least first.
        prefix: what the prefix cache had when the sequence first ran.
        drafter: guesses at what comes next; None guesses nothing.
        num_prompt_logprobs: top log-probabilities to keep per token of the prompt; None keeps
            nothing.
        prompt_logprobs: those kept so far; the first token follows nothing.
        branches: further samples of the prompt, which the engine lets begin behind it.
        beams: the beam search that this sequence is a beam of; it draws nothing then.
        candidates: what the search has to know of the next token, as soon as it is computed.
        rope_set: which of the model's frequencies rotate it, from its first token to its last.
        num_kept: tokens at the beginning that context shifts leave; None: the sequence ends where
            the context does.
        context_length: tokens that the model may see at once; None: all.
        context: int32 [capacity], what the model sees, filled up to num_context: the buffer, until
            the first shift.
        num_dropped: tokens behind the kept ones that it no longer sees.
    """

    buffer: I32Array
    num_prompt_tokens: int
    sampler: _core.Sampler
    stop_ids: frozenset[int]
    num_logprobs: int | None
    seed: int
    screening: Screening = EVERY_LOGIT
    logits_processor: LogitsProcessor | None = None
    constraint: Constraint | None = None
    num_tokens: int = field(init=False)
    num_computed: int = 0
    table: BlockTable | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    ended: FinishReason | None = None
    error: RyzansteinError | None = None
    admitted_at: float | None = None
    priority: int = 0
    cache_salt: str = ""
    chain: PageChain | None = None
    arrival: tuple[int, int] = (0, 0)
    prefix: PrefixMatch = NO_MATCH
    drafter: Drafter | None = None
    num_prompt_logprobs: int | None = None
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=lambda: [None])
    branches: list[Sequence] = field(default_factory=list)
    beams: BeamRequest | None = None
    candidates: Candidates | None = None
    rope_set: int = 0
    num_kept: int | None = None
    context_length: int | None = None
    context: I32Array = field(init=False)
    num_dropped: int = 0

    def __post_init__(self) -> None:
        self.num_tokens = self.num_prompt_tokens
        self.context = self.buffer[: self.context_length]

    @classmethod
    def create(
        cls,
        prompt_ids: I32Array,
        params: SamplingParams,
        *,
        max_tokens: int,
        context_length: int | None = None,
        eos_token_ids: Iterable[int] = (),
        words: Words = NO_WORDS,
        constraint: Constraint | None = None,
        priority: int = 0,
        cache_salt: str = "",
    ) -> Sequence:
        """Return a waiting sequence, with as many branches as `params` asks for further samples.

        Args:
            prompt_ids: int32 [n].
            params: how to sample and stop; its stop strings are the caller's business.
            max_tokens: tokens to generate at most.
            context_length: of the engine, where `params` asks for context shifts.
            eos_token_ids: the model's own end tokens.
            words: those of `params` in the model's tokens.
            constraint: the structured output of `params`, compiled; this sequence's own.
            priority: as of the class.
            cache_salt: as of the class.
        """
        buffer = np.empty(len(prompt_ids) + max_tokens, np.int32)
        buffer[: len(prompt_ids)] = prompt_ids
        seed = secrets.randbits(64) if params.seed is None else params.seed
        own = () if params.ignore_eos else eos_token_ids
        stop_ids = frozenset((*own, *params.stop_token_ids))
        sequence = cls(
            buffer=buffer,
            num_prompt_tokens=len(prompt_ids),
            sampler=make_sampler(
                params,
                seed=seed,
                prompt_length=len(prompt_ids),
                stop_ids=stop_ids,
                words=words,
            ),
            stop_ids=stop_ids,
            num_logprobs=params.computed_logprobs,
            seed=seed,
            screening=screening(params, stop_ids=stop_ids, words=words),
            logits_processor=params.logits_processor,
            constraint=constraint,
            priority=priority,
            cache_salt=cache_salt,
            num_prompt_logprobs=params.prompt_logprobs,
            num_kept=params.context_shift,
            context_length=None if params.context_shift is None else context_length,
        )
        for i in range(1, params.num_samples):
            sequence.branches.append(sequence.fork((seed + i) % 2**64))
        return sequence

    def fork(self, seed: int) -> Sequence:
        """Return a sequence of the same tokens that goes on by itself, drawing with another seed.

        It has no pages yet; the log-probabilities of the prompt stay with this one.
        """
        copy = replace(
            self,
            buffer=self.buffer.copy(),
            sampler=self.sampler.fork(seed),
            seed=seed,
            constraint=None if self.constraint is None else self.constraint.fork(),
            num_computed=0,
            table=None,
            logprobs=list(self.logprobs),
            chain=None,
            drafter=None,
            num_prompt_logprobs=None,
            branches=[],
            candidates=None,
        )
        copy.num_tokens = self.num_tokens
        if self.num_dropped:
            copy.context = self.context.copy()
        return copy

    @property
    def finish_reason(self) -> FinishReason | None:
        """Return why the sequence is over, or None while it is not."""
        if self.ended is not None:
            return self.ended
        last = self.num_tokens - 1
        if last >= self.num_prompt_tokens and int(self.buffer[last]) in self.stop_ids:
            return "stop"
        return "length" if self.num_tokens == len(self.buffer) else None

    @property
    def is_finished(self) -> bool:
        """Return whether no further token will come."""
        return self.error is not None or self.finish_reason is not None

    @property
    def is_held(self) -> bool:
        """Return whether nothing is left to compute until a beam search goes on."""
        return self.candidates is not None

    @property
    def num_pending(self) -> int:
        """Return the tokens whose keys and values are still to be computed."""
        return self.num_context - self.num_computed

    @property
    def num_context(self) -> int:
        """Return the tokens that the model sees."""
        return self.num_tokens - self.num_dropped

    @property
    def capacity(self) -> int:
        """Return the tokens that the model may come to see at once."""
        return len(self.context)

    @property
    def room(self) -> int:
        """Return how many tokens may come before the end or the next context shift."""
        return min(len(self.buffer) - self.num_tokens, self.capacity - self.num_context)

    @property
    def generated(self) -> I32Array:
        """Return the tokens generated so far, int32 [n]."""
        return self.buffer[self.num_prompt_tokens : self.num_tokens]

    @property
    def is_scoring(self) -> bool:
        """Return whether log-probabilities of the prompt are still to be taken."""
        return (
            self.num_prompt_logprobs is not None
            and len(self.prompt_logprobs) < self.num_prompt_tokens
        )

    def num_logit_rows(self, n: int) -> int:
        """Return how many of the next `n` tokens want logits, which are the last ones.

        That is the last of all, and those that come before a token of the prompt to be scored. A
        prompt that is computed again, as after a preemption, has none before it gets further.
        """
        end = self.num_computed + n
        if self.is_scoring:
            return max(0, end - max(self.num_computed, len(self.prompt_logprobs) - 1))
        return int(end == self.num_context)

    def known(self, draft: ABCSequence[int]) -> I32Array | None:
        """Return the tokens whose logits will be looked at besides the highest, int32 [n].

        Those of a draft count as seen at all of its rows: that only adds to what is looked at.
        """
        known = np.array(self.screening.known, np.int32)
        if self.screening.seen:
            drafted = np.array(draft, np.int32)
            return np.concatenate((self.buffer[: self.num_tokens], drafted, known))
        return known if len(known) else None

    def mark_admitted(self, prefix: PrefixMatch) -> None:
        """Note when the scheduler first gave this sequence pages, and which it found."""
        if self.admitted_at is None:
            self.prefix = prefix
            self.admitted_at = time.perf_counter()

    def append(self, tokens: ABCSequence[int]) -> None:
        """Append tokens that are chosen already."""
        self.buffer[self.num_tokens : self.num_tokens + len(tokens)] = tokens
        self.context[self.num_context : self.num_context + len(tokens)] = tokens
        self.num_tokens += len(tokens)

    def extend(self, logits: F32Array) -> None:
        """Append the next token, drawn from float32 [V] logits, and those that must follow it.

        Before the first token, all that must come are appended in its place.

        Raises:
            DistributionError: no token can be drawn.
            ValidationError: the logits processor failed.
        """
        if not self._append_forced():
            self._append_drawn(logits)
            self._append_forced()

    def _append_drawn(self, logits: F32Array) -> None:
        allowed = self._processed(logits)
        if self.constraint is not None:
            allowed = self.constraint.apply(allowed)
        token = self.sampler.sample(allowed, self.buffer[: self.num_tokens], self.num_tokens)
        if self.num_logprobs is not None:
            own, top = _core.log_probs(logits, token, self.num_logprobs)
            self.logprobs.append(TokenLogprob(token, own, tuple(top)))
        self.append([token])

    def _append_forced(self) -> bool:
        """Append the tokens that the constraint leaves no choice about, up to where the text ends.

        They are pending, as a prompt is: the next step computes them together.
        """
        if self.constraint is None or self.is_finished:
            return False
        self.constraint.follow(self.generated)
        forced = self.constraint.forced()[: self.room]
        ends = (i for i, token in enumerate(forced, 1) if token in self.stop_ids)
        forced = forced[: next(ends, len(forced))]
        if self.num_logprobs is not None:
            self.logprobs += (TokenLogprob(token, 0.0, ()) for token in forced)
        self.append(forced)
        return bool(forced)

    def score_prompt(self, logits: F32Array) -> F32Array:
        """Take the prompt's next log-probabilities from float32 [R, V]; return the rows behind."""
        row = 0
        while self.is_scoring and row < len(logits):
            assert self.num_prompt_logprobs is not None
            token = int(self.buffer[len(self.prompt_logprobs)])
            own, top = _core.log_probs(logits[row], token, self.num_prompt_logprobs)
            self.prompt_logprobs.append(TokenLogprob(token, own, tuple(top)))
            row += 1
        return logits[row:]

    def shift(self) -> None:
        """Drop half of the tokens behind the kept ones from what the model sees.

        Its pages are those of another text from here on: it may hold none.
        """
        assert self.num_kept is not None
        assert self.num_computed == 0
        kept, end = self.num_kept, self.num_context
        dropped = (end - kept + 1) // 2
        context = self.context.copy()
        context[kept : end - dropped] = self.context[kept + dropped : end]
        self.num_dropped += dropped
        self.context = context
        self.chain = None

    def accept(self, logits: F32Array, draft: ABCSequence[int]) -> int:
        """Extend from rows of float32 [R, V] while the draft comes; return how much of it came.

        Row i is right if the first i tokens of the draft are. Every token is drawn from the row and
        with the state of the sampler that it would be drawn from without a draft.

        Raises:
            As `extend`; the tokens that came before stay.
        """
        if self.beams is not None:
            if len(logits):
                self.candidates = self.beams.candidates(logits[-1])
            return 0
        accepted = 0
        while accepted < len(logits) and self.room and not self.is_finished:
            start = self.num_tokens
            self.extend(logits[accepted])
            for token in self.buffer[start : self.num_tokens].tolist():
                if accepted == len(draft) or token != draft[accepted]:
                    return accepted
                accepted += 1
        return accepted

    def _processed(self, logits: F32Array) -> F32Array:
        if self.logits_processor is None:
            return logits
        tokens = self.buffer[: self.num_tokens].view()
        tokens.flags.writeable = False
        changed = logits.copy()
        try:
            with Interruptible():
                returned = self.logits_processor(tokens, changed)
        except Exception as error:
            raise ValidationError(f"logits_processor failed: {error!r}") from error
        if returned is None:
            return changed
        if not isinstance(returned, np.ndarray) or returned.shape != logits.shape:
            raise ValidationError(
                f"logits_processor must return None or an array of shape {logits.shape}, got "
                f"{getattr(returned, 'shape', returned)!r}"
            )
        return np.ascontiguousarray(returned, np.float32)

    def end_after(self, num_generated: int, reason: FinishReason) -> None:
        """End here, dropping tokens behind the first `num_generated` generated ones."""
        self.num_tokens = self.num_prompt_tokens + num_generated
        del self.logprobs[num_generated:]
        self.ended = reason
