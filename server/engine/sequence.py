"""A generation (one request) and its sequences (one per choice): what the engine's thread knows about them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass, field

import numpy as np

from server.chat.answer_format import AnswerParser
from server.core.events import ChoiceFinished, Event, Finished, FinishReason, Timings, TokenLogprob, Usage
from server.core.request import SamplingParameters
from server.engine.answer import Answer, ParsedAnswer, PlainAnswer, ThinkingLimit, joined
from server.engine.constraint import Constraint
from server.engine.drafting import Drafter, verify
from server.engine.guidance import Guidance
from server.engine.prefix_cache import Wait
from server.engine.runner import DeviceSampling, Logits, Tokens, Vocabulary
from server.engine.sampling import Sampler, log_normalizer, top_ids

NOT_DRAWN = -1
"""In the place of a token: no device has sampled one."""

_MOST_TOKENS_BEHIND = 16  # of a sequence that is not treated as if it had a prompt


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A tokenized request.

    Attributes:
        prompt: token ids, at least one.
        sampling: how tokens are chosen.
        max_tokens: most tokens of each completion, at least one; prompt and completion fit the sequence length.
        stop: strings that end a completion.
        n: number of completions.
        top_logprobs: alternatives to report for each token, ``None`` for no log probabilities.
        key: who asks, as far as known; keys get equal shares of a busy engine.
        new_parser: makes what takes one completion apart; ``None`` if all of it is text for the user.
        new_constraint: makes what one completion has to be; ``None`` if it may be anything.
        markers: control tokens whose text the parser sees.
        thinking: how long the model may think, in the eyes of the parser.

    """

    prompt: Tokens
    sampling: SamplingParameters
    max_tokens: int
    stop: tuple[str, ...] = ()
    n: int = 1
    top_logprobs: int | None = None
    key: str | None = None
    new_parser: Callable[[], AnswerParser] | None = None
    new_constraint: Callable[[], Constraint] | None = None
    markers: Mapping[int, bytes] = field(default_factory=dict)
    thinking: ThinkingLimit | None = None


@dataclass(slots=True)
class Generation:
    """A submitted request. ``events`` collects what happened to it since the last delivery."""

    generation_id: int
    request: GenerationRequest
    submitted_at: float
    sequences: list[Sequence] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    admitted_at: float | None = None
    computed_at: float | None = None
    first_token_at: float | None = None
    cached_tokens: int = 0
    num_completion_tokens: int = 0
    is_over: bool = False

    def finished(self, now: float) -> Finished:
        """Sum up a generation all of whose choices are complete."""
        admitted = now if self.admitted_at is None else self.admitted_at
        computed = now if self.computed_at is None else self.computed_at
        first_token = computed if self.first_token_at is None else self.first_token_at
        num_reasoning_tokens = sum(sequence.num_reasoning_tokens for sequence in self.sequences)
        return Finished(
            Usage(len(self.request.prompt), self.num_completion_tokens, self.cached_tokens, num_reasoning_tokens),
            Timings(
                queued=admitted - self.submitted_at,
                prompt=computed - admitted,
                first_token=first_token - self.submitted_at,
                decode=now - first_token,
            ),
        )


class Sequence:
    """One choice of a generation: known tokens, computed tokens, and the text made of them.

    ``sequence_id`` names the KV cells of a running sequence. ``num_computed`` counts the tokens that are in them; the
    rest of ``tokens`` is what the scheduler has to catch up with. ``KVCells`` writes these two and the waits.
    ``num_confirmed`` counts the tokens that may stay in the cells after the last step: those that were known before it,
    and those that were guessed right.
    """

    def __init__(self, generation: Generation, index: int, vocabulary: Vocabulary) -> None:
        request = generation.request
        self.generation = generation
        self.index = index
        self.tokens: list[int] = request.prompt.tolist()
        self.num_prompt = len(self.tokens)
        self.num_computed = 0
        self.sequence_id = -1
        self.wait: Wait | None = None
        self.num_waits = 0
        self.num_present = 0
        self.is_drawn = False
        self.drafter: Drafter | None = None
        self.finish_reason: FinishReason | None = None
        self.num_confirmed = self.num_prompt
        self._vocabulary = vocabulary
        self._sampler = Sampler(request.sampling, index=index, end_tokens=vocabulary.end_tokens)
        self._sampler.observe_prompt(self.tokens)
        self._answer = _answer(request, index, vocabulary)
        self._guidance = _guidance(request, self._sampler, self._answer)

    @property
    def num_missing(self) -> int:
        """Known tokens that are not computed."""
        return len(self.tokens) - self.num_computed

    @property
    def is_decoding(self) -> bool:
        """Whether the prompt is computed, and little is missing of what follows: the last token, and what was forced.

        A sequence that has more to catch up with is like one with a prompt, and shares a step's time with those.
        """
        return len(self.tokens) > self.num_prompt and self.num_missing <= _MOST_TOKENS_BEHIND

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens of the completion that were spent on thinking."""
        return self._answer.num_reasoning_tokens

    @property
    def num_reserved(self) -> int:
        """Cells this sequence may come to need; reserved at admission, so it can always finish."""
        return self.num_prompt + self.generation.request.max_tokens

    @property
    def num_left(self) -> int:
        """Tokens that the completion may still have."""
        return self.num_reserved - len(self.tokens)

    def computed_tokens(self) -> Tokens:
        """Return the tokens whose cells are filled."""
        return np.array(self.tokens[: self.num_computed], dtype=np.int32)

    def device_sampling(self) -> DeviceSampling | None:
        """Return how a device would draw this sequence's tokens; ``None`` where it takes more than logits."""
        request, sampling = self.generation.request, self.generation.request.sampling
        if request.top_logprobs is not None or sampling.uses_penalties or request.new_constraint is not None:
            return None
        bias = dict(sampling.logit_bias)
        if sampling.ignore_eos:
            bias |= dict.fromkeys(self._vocabulary.end_tokens, float("-inf"))
        seed = random.getrandbits(31) if sampling.seed is None else sampling.seed
        return DeviceSampling(
            seed + self.index, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, bias
        )

    def advance(self, rows: Logits, draft: Several[int] = (), drawn: int = NOT_DRAWN) -> list[Event]:
        """Sample from the rows of the last tokens and return what that adds to the stream.

        Args:
            rows: logits after the last known token and after each drafted one.
            draft: tokens that were computed after the last known one, on the chance that they come next.
            drawn: the token that a device has sampled already, from the only row.

        """
        self.num_confirmed = len(self.tokens)
        if self._guidance is not None and self._guidance.is_complete:
            return self._finish(FinishReason.STOP)  # before the first token: the completion has to be empty
        events: list[Event] = []
        guesses = (*draft, None)
        for token, logits, guess in zip(verify(self._chooser(drawn), rows, draft), rows, guesses, strict=False):
            events += self._append(token, self._logprob(token, logits))
            if self.finish_reason is not None:
                break
            self.num_confirmed += token == guess
        else:
            events += self._fast_forward()
        return joined(events) if len(events) > 1 else events

    def _chooser(self, drawn: int) -> Callable[[Logits], int]:
        guidance = self._guidance
        if drawn == NOT_DRAWN:
            return self._sampler.sample if guidance is None else guidance.next
        if guidance is None:
            return lambda _: drawn
        forced = guidance.take_forced()
        return lambda _: drawn if forced is None else forced

    def _fast_forward(self) -> list[Event]:
        """Append what has to follow without computing it first; log probabilities take one row for each token."""
        if self._guidance is None or self.generation.request.top_logprobs is not None:
            return []
        events: list[Event] = []
        while self.finish_reason is None and (token := self._guidance.take_forced()) is not None:
            events += self._append(token, None)
        return events

    def _append(self, token: int, logprob: TokenLogprob | None) -> list[Event]:
        if self._vocabulary.is_end(token):
            return self._finish(FinishReason.STOP, token)
        if self._guidance is not None:
            self._guidance.accept(token)
        self.tokens.append(token)
        self.generation.num_completion_tokens += 1
        events = self._answer.push(token, logprob)
        if self._answer.has_stopped or (self._guidance is not None and self._guidance.is_complete):
            return events + self._finish(FinishReason.STOP)
        if self.num_left <= 0:
            return events + self._finish(FinishReason.LENGTH)
        return events

    def _finish(self, reason: FinishReason, end_token: int | None = None) -> list[Event]:
        last = self._answer.finish(end_token)
        if self._answer.has_stopped:
            reason = FinishReason.STOP
        elif reason is FinishReason.STOP and self._answer.num_calls:
            reason = FinishReason.TOOL_CALLS
        self.finish_reason = reason
        return [*last, ChoiceFinished(self.index, reason)]

    def _logprob(self, token: int, logits: Logits) -> TokenLogprob | None:
        num_top = self.generation.request.top_logprobs
        if num_top is None:
            return None
        normalizer = log_normalizer(logits)
        top = tuple(self._entry(int(other), float(logits[other]) - normalizer) for other in top_ids(logits, num_top))
        return self._entry(token, float(logits[token]) - normalizer, top)

    def _entry(self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        piece = self._vocabulary.piece(token)
        return TokenLogprob(piece.decode("utf-8", "replace"), piece, logprob, top)


def _answer(request: GenerationRequest, index: int, vocabulary: Vocabulary) -> Answer:
    if request.new_parser is None:
        return PlainAnswer(index, vocabulary, request.stop)
    return ParsedAnswer(index, vocabulary, request.stop, request.new_parser(), request.markers, request.thinking)


def _guidance(request: GenerationRequest, sampler: Sampler, answer: Answer) -> Guidance | None:
    if request.new_constraint is None and (request.thinking is None or request.new_parser is None):
        return None
    return Guidance(sampler, None if request.new_constraint is None else request.new_constraint(), answer.overdue)
