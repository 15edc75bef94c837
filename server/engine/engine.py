"""The loop that serves one model: a thread that owns the runner and computes all running sequences together.

``step`` is the whole story: drain the inbox, admit, schedule, decode, sample, apply, deliver. Everyone else talks to
the thread through ``submit``, ``abort`` and ``close``, which only post to its inbox, and hears from it through one
``deliver`` call per step.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from queue import Empty, SimpleQueue

import numpy as np

from server.core.errors import BackendError, ContextLengthExceeded, Draining, InvalidRequest, LlmspellError
from server.core.events import Event, Failed, Started
from server.engine.admission import Admission
from server.engine.prefix_cache import PrefixCache
from server.engine.runner import Chunk, Logits, Runner, RunnerShape, Tokens, Vocabulary
from server.engine.scheduler import Gap, PromptBudget, schedule
from server.engine.sequence import Generation, GenerationRequest, Sequence

_log = logging.getLogger(__name__)

Delivery = tuple[int, list[Event]]
_MOST_FAILED_STEPS = 5
_UNLOADED = Draining("The model is being unloaded; send the request again.", retry_after=1.0)
_STOPPED = BackendError("The model stopped while it served this request; send it again.")
_NO_TOKENS: Tokens = np.empty(0, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """A snapshot for people and metrics; nothing branches on it."""

    num_running: int
    num_waiting: int
    num_reserved_cells: int


@dataclass(frozen=True, slots=True)
class _Abort:
    generation_id: int


@dataclass(frozen=True, slots=True)
class _Rest:
    pass


@dataclass(frozen=True, slots=True)
class _Close:
    pass


class Engine:
    """Continuous batching for one runner.

    Args:
        runner: the model; from now on only the engine's thread touches it.
        vocabulary: the model's token table.
        deliver: called from the engine's thread with (generation id, events) pairs, once per step.
        queue_size: sequences that may wait beyond those that can run.
        inter_token_target: seconds that a step may take while streams decode.
        on_end: called from the engine's thread when it ends, closed or failed.
        clock: monotonic seconds.

    """

    def __init__(
        self,
        runner: Runner,
        vocabulary: Vocabulary,
        deliver: Callable[[list[Delivery]], None],
        *,
        queue_size: int,
        inter_token_target: float,
        on_end: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._shape = runner.shape
        self._vocabulary = vocabulary
        self._deliver = deliver
        self._on_end = on_end
        self._clock = clock
        self._prefixes = PrefixCache(self._shape.num_sequences)
        self._budget = PromptBudget(inter_token_target, self._shape.batch_size)
        self._inbox: SimpleQueue[Generation | _Abort | _Rest | _Close] = SimpleQueue()
        self._generations: dict[int, Generation] = {}
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}
        self._num_reserved = 0
        self._num_failed_steps = 0
        self._is_closing = False
        self._ids = count(1)
        self._warmed_up: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._admission = Admission(self._shape.num_sequences + queue_size)

    def start(self) -> None:
        """Start the thread and wait until the model has been warmed up on it.

        The warm-up belongs on this thread: OpenMP keeps a team of workers for every thread that ever computed, and with
        more workers than cores they sleep at each barrier instead of spinning (a fifth of decode speed, measured).

        Raises:
            Exception: what the warm-up failed with; the thread has ended.

        """
        self._thread.start()
        self._warmed_up.result()

    @property
    def is_alive(self) -> bool:
        """Whether submitted requests will be served."""
        return self._admission.is_open

    @property
    def status(self) -> EngineStatus:
        """How busy the engine is."""
        return EngineStatus(len(self._running), len(self._waiting), self._num_reserved)

    def submit(self, request: GenerationRequest) -> int:
        """Queue a request and return its generation id; events follow through ``deliver``.

        Raises:
            InvalidRequest: more choices than the model computes at once, or no prompt.
            ContextLengthExceeded: more tokens than the model can hold: such a request would wait for ever.
            QueueFull: too many requests wait already.
            BackendError: the engine is closed or has failed.

        """
        _check(request, self._shape)
        generation = Generation(next(self._ids), request, self._clock())
        # Built here, so that what is wrong with a request is its sender's problem and not the engine's.
        generation.sequences = [Sequence(generation, index, self._vocabulary) for index in range(request.n)]
        with self._admission.entering(request.n):
            self._inbox.put(generation)
        return generation.generation_id

    def abort(self, generation_id: int) -> None:
        """Drop a generation in whatever state it is: nothing more is computed or said after the current step."""
        self._inbox.put(_Abort(generation_id))

    def rest(self) -> None:
        """Have an idle runner rest again: there is somebody now who could use what it holds."""
        self._inbox.put(_Rest())

    def close(self, timeout: float | None = None) -> bool:
        """Fail what still runs and end the thread; returns whether it ended within ``timeout`` seconds."""
        self._admission.close(_UNLOADED)
        self._inbox.put(_Close())
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def step(self, *, wait: bool) -> None:
        """Do one round of work; with ``wait``, block until there is something to do."""
        self._drain_inbox(wait=wait)
        if self._is_closing:
            return  # what still runs is failed, not computed any further
        self._admit()
        chunks = self._schedule()
        if chunks:
            self._compute(chunks)
        self._flush()

    def _run(self) -> None:
        try:
            self._runner.warm_up()
        except Exception as error:
            self._warmed_up.set_exception(error)
            self._is_closing = True
        else:
            self._warmed_up.set_result(None)
        try:
            while not self._is_closing:
                self.step(wait=not (self._running or self._waiting))
        except Exception:
            # Whatever escapes a step has left the bookkeeping in doubt: nobody may wait for this engine any longer.
            _log.exception("The engine failed; its requests are answered with an error.")
        finally:
            self._bury(_UNLOADED if self._is_closing else _STOPPED)
            self._on_end()

    def _bury(self, error: LlmspellError) -> None:
        """Tell everyone that this is the end, without touching queue and cells, whose accounts may be wrong by now."""
        self._admission.close(error)
        with suppress(Empty):
            while True:
                command = self._inbox.get_nowait()
                if isinstance(command, Generation):
                    self._generations[command.generation_id] = command
        generations = [*self._generations.values()]
        for generation in generations:
            if not generation.is_over:
                generation.is_over = True
                generation.events.append(Failed(error))
        for left in (self._generations, self._running, self._waiting):
            left.clear()
        self._num_reserved = 0
        deliveries = [(generation.generation_id, generation.events) for generation in generations if generation.events]
        if deliveries:
            self._deliver(deliveries)

    def _drain_inbox(self, *, wait: bool) -> None:
        if wait and self._inbox.empty():
            self._runner.rest()
        try:
            while True:
                self._accept(self._inbox.get(block=wait))
                wait = False
        except Empty:
            return

    def _accept(self, command: Generation | _Abort | _Rest | _Close) -> None:
        match command:
            case Generation():
                self._generations[command.generation_id] = command
                self._waiting.extend(command.sequences)
            case _Abort():
                generation = self._generations.pop(command.generation_id, None)
                if generation is not None:
                    self._retire(generation)
            case _Rest():
                pass  # the loop is awake, and lets the runner rest before it waits again
            case _Close():
                self._is_closing = True

    def _admit(self) -> None:
        """Move sequences from the queue into cells, in order, as far as both sequences and cells are free."""
        blocked: list[Sequence] = []
        while self._waiting:
            sequence = self._waiting.popleft()
            if _awaits_sibling(sequence):
                blocked.append(sequence)
            elif not self._try_admit(sequence):
                blocked.append(sequence)
                break
        self._waiting.extendleft(reversed(blocked))

    def _try_admit(self, sequence: Sequence) -> bool:
        if self._num_reserved + sequence.num_reserved > self._shape.num_cells:
            return False
        prompt = sequence.generation.request.prompt
        claim = self._prefixes.claim(prompt)
        if claim is None:
            return False
        sequence.sequence_id = claim.sequence_id
        self._running[claim.sequence_id] = sequence
        self._num_reserved += sequence.num_reserved
        if claim.length and self._runner.share_prefix(claim.source, claim.sequence_id, claim.length):
            sequence.num_computed = claim.length
        else:
            self._runner.clear(claim.sequence_id)
            self._prefixes.update(claim.sequence_id, _NO_TOKENS)
        self._make_room()
        self._note_admission(sequence)
        return True

    def _make_room(self) -> None:
        """Evict idle prefixes until everything that runs can grow to its reservation."""
        while self._num_reserved + self._prefixes.num_idle_tokens > self._shape.num_cells:
            sequence_id = self._prefixes.evict()
            if sequence_id is None:
                return
            self._runner.clear(sequence_id)

    def _note_admission(self, sequence: Sequence) -> None:
        generation = sequence.generation
        if generation.admitted_at is None:
            generation.admitted_at = self._clock()
            generation.cached_tokens = sequence.num_computed
            generation.events.append(Started())

    def _schedule(self) -> list[Chunk]:
        gaps = [Gap(s.sequence_id, s.num_missing, s.is_decoding) for s in self._running.values()]
        plan = schedule(gaps, batch_size=self._shape.batch_size, prompt_budget=self._budget.tokens)
        return [self._chunk(self._running[sequence_id], num_tokens) for sequence_id, num_tokens in plan]

    def _chunk(self, sequence: Sequence, num_tokens: int) -> Chunk:
        start, end = sequence.num_computed, sequence.num_computed + num_tokens
        return Chunk(sequence.sequence_id, start, sequence.tokens[start:end], wants_logits=end == len(sequence.tokens))

    def _compute(self, chunks: list[Chunk]) -> None:
        started = self._clock()
        try:
            rows = self._runner.decode(chunks)
        except Exception as error:
            _log.exception("A step failed; the requests in it are answered with an error.")
            self._fail_chunks(chunks, error)
            self._num_failed_steps += 1
            if self._num_failed_steps == _MOST_FAILED_STEPS:
                # Not a matter of one request any more (a lost device, say): die, so that the model is loaded anew.
                raise
            return
        self._num_failed_steps = 0
        self._observe(chunks, self._clock() - started)
        self._apply(chunks, rows)

    def _observe(self, chunks: list[Chunk], seconds: float) -> None:
        num_decodes = sum(1 for chunk in chunks if self._running[chunk.sequence_id].is_decoding)
        num_prompt_tokens = sum(len(chunk.tokens) for chunk in chunks) - num_decodes
        self._budget.observe(num_decodes=num_decodes, num_prompt_tokens=num_prompt_tokens, seconds=seconds)

    def _apply(self, chunks: list[Chunk], rows: Logits) -> None:
        computed = [self._running[chunk.sequence_id] for chunk in chunks]
        # All cells are filled now. Noting that first keeps the accounts right when a failure below releases siblings.
        for sequence, chunk in zip(computed, chunks, strict=True):
            is_prompt = not sequence.is_decoding
            sequence.num_computed += len(chunk.tokens)
            if is_prompt:
                self._prefixes.update(chunk.sequence_id, sequence.generation.request.prompt[: sequence.num_computed])
        known = [sequence for sequence, chunk in zip(computed, chunks, strict=True) if chunk.wants_logits]
        for sequence, logits in zip(known, rows, strict=True):
            if not sequence.generation.is_over:  # a sibling's failure takes the whole generation along
                self._advance(sequence, logits)

    def _advance(self, sequence: Sequence, logits: Logits) -> None:
        generation = sequence.generation
        now = self._clock()
        if generation.computed_at is None:
            generation.computed_at = now
        try:
            generation.events += sequence.advance(logits)
        except Exception as error:
            _log.exception("Sampling failed; the request is answered with an error.")
            self._fail([generation], _as_backend_error(error))
            return
        if generation.num_completion_tokens and generation.first_token_at is None:
            generation.first_token_at = now
        if sequence.finish_reason is not None:
            self._release(sequence)
            if all(sibling.finish_reason is not None for sibling in generation.sequences):
                generation.events.append(generation.finished(now))
                self._retire(generation)

    def _fail_chunks(self, chunks: list[Chunk], error: Exception) -> None:
        """Fail the generations of a broken batch and drop their cells, whose contents nobody knows."""
        sequences = [self._running[chunk.sequence_id] for chunk in chunks]
        for sequence in sequences:
            sequence.num_computed = 0
            self._runner.clear(sequence.sequence_id)
        unique = {sequence.generation.generation_id: sequence.generation for sequence in sequences}
        self._fail([*unique.values()], _as_backend_error(error))

    def _fail(self, generations: list[Generation], error: LlmspellError) -> None:
        for generation in generations:
            if not generation.is_over:
                generation.events.append(Failed(error))
                self._retire(generation)

    def _retire(self, generation: Generation) -> None:
        """The one way out, finished, failed or aborted: its sequences leave the queue and the cells."""
        if generation.is_over:
            return
        generation.is_over = True
        self._waiting = deque(sequence for sequence in self._waiting if sequence.generation is not generation)
        for sequence in generation.sequences:
            if self._running.get(sequence.sequence_id) is sequence:
                self._release(sequence)
        self._admission.leave(generation.request.n, self._clock() - generation.submitted_at)

    def _release(self, sequence: Sequence) -> None:
        del self._running[sequence.sequence_id]
        self._num_reserved -= sequence.num_reserved
        self._prefixes.release(sequence.sequence_id, sequence.computed_tokens())

    def _flush(self) -> None:
        """Deliver what happened in this step, in one call for all generations; then forget it."""
        eventful = [generation for generation in self._generations.values() if generation.events]
        if eventful:
            self._deliver([(generation.generation_id, generation.events) for generation in eventful])
        for generation in eventful:
            generation.events = []
            if generation.is_over:
                del self._generations[generation.generation_id]


def _check(request: GenerationRequest, shape: RunnerShape) -> None:
    if request.n > shape.num_sequences:
        raise InvalidRequest(f"n may be at most {shape.num_sequences} for this model.", param="n")
    if len(request.prompt) == 0:
        raise InvalidRequest("The prompt is empty.", param="messages")
    num_tokens, limit = len(request.prompt) + request.max_tokens, min(shape.sequence_len, shape.num_cells)
    if num_tokens > limit:
        raise ContextLengthExceeded(
            f"This model holds {limit} tokens; the prompt has {len(request.prompt)}, "
            f"and {request.max_tokens} are asked for. Shorten the prompt or lower max_tokens."
        )


def _awaits_sibling(sequence: Sequence) -> bool:
    """Whether an earlier choice of the same request still computes the prompt that this one will share."""
    first = sequence.generation.sequences[0]
    return sequence is not first and not first.is_decoding


def _as_backend_error(error: Exception) -> LlmspellError:
    if isinstance(error, LlmspellError):
        return error
    return BackendError(f"The model failed while it computed this request ({error}); send it again.")
