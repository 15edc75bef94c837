"""A generation (one request) and its sequences (one per choice): what the engine's thread knows about them."""

from __future__ import annotations

import random
from collections.abc import Sequence as Several
from dataclasses import dataclass, field

import numpy as np

from server.core.events import ChoiceFinished, Event, Finished, FinishReason, TextDelta, Timings, TokenLogprob, Usage
from server.core.request import SamplingParameters
from server.engine.detokenizer import Detokenizer
from server.engine.drafting import Drafter, verify
from server.engine.prefix_cache import Wait
from server.engine.runner import DeviceSampling, Logits, Tokens, Vocabulary
from server.engine.sampling import Sampler, log_normalizer, top_ids

NOT_DRAWN = -1
"""In the place of a token: no device has sampled one."""


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

    """

    prompt: Tokens
    sampling: SamplingParameters
    max_tokens: int
    stop: tuple[str, ...] = ()
    n: int = 1
    top_logprobs: int | None = None
    key: str | None = None


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
    rest of ``tokens`` is what the scheduler has to catch up with. ``KVCells`` writes these two and the waits.
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
        self._has_ended_turn = False
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
        """Whether all that is missing is the token that was sampled last."""
        return len(self.tokens) > self.num_prompt and self.num_missing == 1

    @property
    def num_confirmed(self) -> int:
        """Tokens that may stay in the cells: all known ones but the last, where a draft may have guessed another one.

        When the model has ended its turn, it has done so after the last one.
        """
        return len(self.tokens) - (not self._has_ended_turn)

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
        if request.top_logprobs is not None or sampling.uses_penalties:
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
        if drawn != NOT_DRAWN:
            return self._append(drawn, rows[0])
        events: list[Event] = []
        for token, logits in zip(verify(self._sampler.sample, rows, draft), rows, strict=False):
            events += self._append(token, logits)
            if self.finish_reason is not None:
                break
        return events

    def _append(self, token: int, logits: Logits) -> list[Event]:
        if self._vocabulary.is_end(token):
            self._has_ended_turn = True
            return self._finish(FinishReason.STOP)
        self.tokens.append(token)
        self.generation.num_completion_tokens += 1
        text = self._detokenizer.push(self._vocabulary.piece(token), self._logprob(token, logits))
        if self._detokenizer.stopped:
            return self._delta(text) + self._finish(FinishReason.STOP)
        if self.num_left <= 0:
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
