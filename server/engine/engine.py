"""The loop that serves one model: a thread that owns the runner and computes all running sequences together.

``step`` is the whole story: drain the inbox, admit, schedule, decode, sample, apply, deliver. Everyone else talks to
the thread through ``submit``, ``abort`` and ``close``, which only post to its inbox, and hears from it through one
``deliver`` call per step.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Several
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from queue import Empty, SimpleQueue

from server.core.errors import BackendError, ContextLengthExceeded, Draining, InvalidRequest, LlmspellError, NoFreeCells
from server.core.events import Event, Failed, Started
from server.engine.admission import Admission
from server.engine.drafting import Drafter
from server.engine.kv_cells import KVCells, Saving
from server.engine.runner import Chunk, Logits, Runner, RunnerShape, Tokens, Vocabulary
from server.engine.scheduler import Demand, Shares, charged, plan_step
from server.engine.sequence import NOT_DRAWN, Generation, GenerationRequest, Sequence
from server.engine.speculation import Speculation
from server.engine.step_costs import StepCosts
from server.engine.waiting_line import WaitingLine

_log = logging.getLogger(__name__)

Delivery = tuple[int, list[Event]]
_MOST_FAILED_STEPS = 5
_UNLOADED = Draining("The model is being unloaded; send the request again.", retry_after=1.0)
_STOPPED = BackendError("The model stopped while it served this request; send it again.")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine treats its requests.

    Attributes:
        queue_size: sequences that may wait beyond those that can run.
        inter_token_target: seconds that a step may take while streams decode.
        isolates_keys: whether prompts of one key share no prefix with those of another.
        public_prefixes: tokens that prompts of all keys may share nevertheless.
        least_wait: tokens of another request's prompt, being computed, that are worth waiting for.
        new_drafter: makes what guesses ahead for a sequence; ``None`` for no speculation.
        device_sampling: whether the device draws the tokens of requests that allow it.
        saving: which prompts of finished requests are kept in main memory when others need their cells.

    """

    queue_size: int = 64
    inter_token_target: float = 0.5
    isolates_keys: bool = False
    public_prefixes: Several[Tokens] = ()
    least_wait: int = 32
    new_drafter: Callable[[], Drafter] | None = None
    device_sampling: bool = False
    saving: Saving = field(default_factory=Saving)


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """A snapshot for people and metrics; nothing branches on it."""

    num_running: int
    num_waiting: int
    num_reserved_cells: int
    num_saved: int = 0
    num_saved_bytes: int = 0


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
        options: how requests are treated.
        on_end: called from the engine's thread when it ends, closed or failed.
        clock: monotonic seconds.

    """

    def __init__(
        self,
        runner: Runner,
        vocabulary: Vocabulary,
        deliver: Callable[[list[Delivery]], None],
        options: EngineOptions,
        *,
        on_end: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._shape = runner.shape
        self._vocabulary = vocabulary
        self._deliver = deliver
        self._on_end = on_end
        self._clock = clock
        self._cells = KVCells(
            runner,
            options.public_prefixes,
            options.least_wait,
            isolates_keys=options.isolates_keys,
            saving=options.saving,
        )
        self._costs = StepCosts()
        self._shares = Shares()
        self._target = options.inter_token_target
        self._uses_device = options.device_sampling
        can_cut = self._shape.memory.can_cut
        self._speculation = Speculation(options.new_drafter if can_cut else None, self._shape.num_rows)
        self._inbox: SimpleQueue[Generation | _Abort | _Rest | _Close] = SimpleQueue()
        self._generations: dict[int, Generation] = {}
        self._waiting = WaitingLine()
        self._running: dict[int, Sequence] = {}
        self._num_failed_steps = 0
        self._is_closing = False
        self._ids = count(1)
        self._warmed_up: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._admission = Admission(self._shape.num_sequences + options.queue_size)

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
        cells = self._cells
        return EngineStatus(
            len(self._running), len(self._waiting), cells.num_reserved, cells.num_saved, cells.num_saved_bytes
        )

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
        self._cells.clear_away()
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
            self._cells.close()
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
        self._waiting.admit(self._running.values(), self._place)

    def _place(self, sequence: Sequence) -> bool:
        if not self._cells.place(sequence):
            return False
        self._running[sequence.sequence_id] = sequence
        if self._uses_device:
            sampling = sequence.device_sampling()
            can_draw = self._runner.sample_on_device(sequence.sequence_id, sampling)
            sequence.is_drawn = can_draw and sampling is not None
        generation = sequence.generation
        if generation.admitted_at is None:
            generation.admitted_at = self._clock()
            generation.cached_tokens = sequence.num_computed
            generation.events.append(Started())
        return True

    def _schedule(self) -> list[Chunk]:
        drafts = self._speculation.propose(self._running.values(), self._costs, self._target)
        demands = [_demand(sequence, drafts) for sequence in self._running.values()]
        grants = plan_step(demands, self._costs, self._shares, batch_size=self._shape.batch_size, target=self._target)
        self._shares = charged(self._shares, demands, grants)
        return [_chunk(self._running[grant.sequence_id], grant.num_tokens, drafts) for grant in grants]

    def _compute(self, chunks: list[Chunk]) -> None:
        started = self._clock()
        try:
            rows = self._decode(chunks)
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

    def _decode(self, chunks: list[Chunk]) -> Logits:
        """Compute; where cells are missing against all accounts, those of finished sequences are given up first."""
        while True:
            try:
                return self._runner.decode(chunks)
            except NoFreeCells:
                if not self._cells.evict():
                    raise
                _log.warning("The KV cache had no room for a batch of accepted requests; a cached prompt was given up.")

    def _observe(self, chunks: list[Chunk], seconds: float) -> None:
        decodes = [chunk for chunk in chunks if self._running[chunk.sequence_id].is_decoding]
        prompts = [chunk for chunk in chunks if not self._running[chunk.sequence_id].is_decoding]
        self._costs.observe(
            num_decoded=sum(len(chunk.tokens) for chunk in decodes),
            prompts=[(len(chunk.tokens), chunk.start) for chunk in prompts],
            seconds=seconds,
        )

    def _apply(self, chunks: list[Chunk], rows: Logits) -> None:
        computed = [self._running[chunk.sequence_id] for chunk in chunks]
        # All cells are filled now. Noting that first keeps the accounts right when a failure below releases siblings.
        for sequence, chunk in zip(computed, chunks, strict=True):
            self._cells.fill(sequence, len(chunk.tokens))
        drawn = self._runner.drawn() if self._uses_device else None
        begin = 0
        for sequence, chunk in zip(computed, chunks, strict=True):
            end = begin + chunk.num_rows
            if chunk.num_rows and not sequence.generation.is_over:  # a sibling's failure takes all of it along
                draft = chunk.tokens[len(chunk.tokens) - chunk.num_rows + 1 :]
                self._advance(sequence, rows[begin:end], draft, NOT_DRAWN if drawn is None else int(drawn[begin]))
            begin = end

    def _advance(self, sequence: Sequence, rows: Logits, draft: Several[int], drawn: int) -> None:
        generation = sequence.generation
        now = self._clock()
        if generation.computed_at is None:
            generation.computed_at = now
        try:
            generation.events += sequence.advance(rows, draft, drawn)
            self._cells.cut(sequence, min(sequence.num_computed, sequence.num_confirmed))
        except Exception as error:
            if isinstance(error, LlmspellError):
                _log.warning("A request is answered with an error: %s", error.message)
            else:
                _log.exception("Sampling failed; the request is answered with an error.")
            self._cells.cut(sequence, min(sequence.num_computed, sequence.num_confirmed))
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
            self._cells.forget(sequence)
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
        self._waiting.remove(generation)
        for sequence in generation.sequences:
            if self._running.get(sequence.sequence_id) is sequence:
                self._release(sequence)
        self._admission.leave(generation.request.n, self._clock() - generation.submitted_at)

    def _release(self, sequence: Sequence) -> None:
        if sequence.is_drawn:
            self._runner.sample_on_device(sequence.sequence_id, None)
        del self._running[sequence.sequence_id]
        self._cells.release(sequence)

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


def _demand(sequence: Sequence, drafts: Mapping[int, Several[int]]) -> Demand:
    return Demand(
        sequence.sequence_id,
        sequence.num_missing,
        sequence.is_decoding,
        num_computed=sequence.num_computed,
        key=sequence.generation.request.key,
        arrived_at=sequence.generation.submitted_at,
        num_drafted=len(drafts.get(sequence.sequence_id, ())),
    )


def _chunk(sequence: Sequence, num_tokens: int, drafts: Mapping[int, Several[int]]) -> Chunk:
    """Cut what a step computes of a sequence: known tokens, and behind the last one guessed ones, if it decodes."""
    start, end = sequence.num_computed, sequence.num_computed + num_tokens
    tokens = sequence.tokens[start:end]
    num_drafted = num_tokens - len(tokens)
    if num_drafted:
        tokens += drafts[sequence.sequence_id][:num_drafted]
    num_rows = 1 + num_drafted if end >= len(sequence.tokens) else 0
    return Chunk(sequence.sequence_id, start, tokens, num_rows)


def _as_backend_error(error: Exception) -> LlmspellError:
    if isinstance(error, LlmspellError):
        return error
    return BackendError(f"The model failed while it computed this request ({error}); send it again.")
