"""A generation (one request) and its sequences (one per choice): what the engine's thread knows about them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from server.core.events import ChoiceFinished, Event, Finished, FinishReason, TextDelta, Timings, TokenLogprob, Usage
from server.core.request import SamplingParameters
from server.engine.detokenizer import Detokenizer
from server.engine.runner import Logits, Tokens, Vocabulary
from server.engine.sampling import Sampler, log_normalizer, top_ids


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

    """

    prompt: Tokens
    sampling: SamplingParameters
    max_tokens: int
    stop: tuple[str, ...] = ()
    n: int = 1
    top_logprobs: int | None = None


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
        return Finished(
            Usage(len(self.request.prompt), self.num_completion_tokens, self.cached_tokens),
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
    rest of ``tokens`` is what the scheduler has to catch up with.
    """

    def __init__(self, generation: Generation, index: int, vocabulary: Vocabulary) -> None:
        request = generation.request
        self.generation = generation
        self.index = index
        self.tokens: list[int] = request.prompt.tolist()
        self.num_prompt = len(self.tokens)
        self.num_computed = 0
        self.sequence_id = -1
        self.finish_reason: FinishReason | None = None
        self._vocabulary = vocabulary
        self._sampler = Sampler(request.sampling, index=index, end_tokens=vocabulary.end_tokens)
        self._sampler.observe_prompt(self.tokens)
        self._detokenizer = Detokenizer(request.stop)

    @property
    def num_missing(self) -> int:
        """Known tokens that are not computed."""
        return len(self.tokens) - self.num_computed

    @property
    def is_decoding(self) -> bool:
        """Whether the prompt is computed and one sampled token is missing."""
        return self.num_computed >= self.num_prompt

    @property
    def num_reserved(self) -> int:
        """Cells this sequence may come to need; reserved at admission, so it can always finish."""
        return self.num_prompt + self.generation.request.max_tokens

    def computed_tokens(self) -> Tokens:
        """Return the tokens whose cells are filled."""
        return np.array(self.tokens[: self.num_computed], dtype=np.int32)

    def advance(self, logits: Logits) -> list[Event]:
        """Sample the next token from the last computed one's logits and return what that adds to the stream."""
        token = self._sampler.sample(logits)
        if self._vocabulary.is_end(token):
            return self._finish(FinishReason.STOP)
        self.tokens.append(token)
        self.generation.num_completion_tokens += 1
        text = self._detokenizer.push(self._vocabulary.piece(token), self._logprob(token, logits))
        if self._detokenizer.stopped:
            return self._delta(text) + self._finish(FinishReason.STOP)
        if len(self.tokens) - self.num_prompt >= self.generation.request.max_tokens:
            return self._delta(text) + self._finish(FinishReason.LENGTH)
        return self._delta(text)

    def _delta(self, text: str) -> list[Event]:
        return [TextDelta(self.index, text, self._detokenizer.take_logprobs())] if text else []

    def _finish(self, reason: FinishReason) -> list[Event]:
        text = self._detokenizer.flush()
        logprobs = self._detokenizer.take_remaining_logprobs()
        self.finish_reason = FinishReason.STOP if self._detokenizer.stopped else reason
        last: list[Event] = [TextDelta(self.index, text, logprobs)] if text or logprobs else []
        return [*last, ChoiceFinished(self.index, self.finish_reason)]

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
