"""A model in memory: who uses it, and where its engine's events go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from typing import Self

from server.core.background import in_thread
from server.core.events import Event
from server.core.request import ChatRequest
from server.engine.engine import Delivery
from server.engine.sequence import GenerationRequest
from server.pool.loader import LoadedModel

Listener = Callable[[Sequence[Event]], None]

_NUM_TOKENIZERS = 4


class EventDispatch:
    """Carries events from an engine's thread to listeners on the event loop: one loop callback per step."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.listeners: dict[int, Listener] = {}
        self._loop = loop

    def deliver(self, deliveries: list[Delivery]) -> None:
        """Hand over what a step brought; called from the engine's thread."""
        # At shutdown the loop may be closed while a last step ends: nobody is left to listen.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._dispatch, deliveries)

    def _dispatch(self, deliveries: list[Delivery]) -> None:
        for generation_id, events in deliveries:
            listener = self.listeners.get(generation_id)
            if listener is not None:
                listener(events)


@dataclass(frozen=True, slots=True)
class Waited:
    """What a lease took to get, in seconds: in the queue for memory, and for the load itself."""

    queued: float = 0.0
    load: float = 0.0


class Resident:
    """A loaded model with its leases. Used on the event loop only.

    Native memory is freed when the model is retired and the last lease is released. A worker thread that tokenizes
    holds a lease of its own: whoever asked for the tokens can go away, the thread cannot be stopped.
    """

    def __init__(self, model: LoadedModel, dispatch: EventDispatch, on_unused: Callable[[], None]) -> None:
        """Own ``model``; ``on_unused`` is called whenever its last lease is released."""
        self.model = model
        self.dispatch = dispatch
        self._on_unused = on_unused
        self._num_leases = 0
        self._unused = asyncio.Event()
        self._unused.set()
        # Threads of the model's own: a queue of long prompts keeps neither other models nor loads waiting.
        self._tokenizers = ThreadPoolExecutor(_NUM_TOKENIZERS, thread_name_prefix="tokenizer")

    @property
    def is_alive(self) -> bool:
        """Whether the engine serves requests."""
        return self.model.engine.is_alive

    @property
    def num_leases(self) -> int:
        """Requests that use the model right now."""
        return self._num_leases

    def lease(self, waited: Waited | None = None) -> Lease:
        """Use the model until the lease is released."""
        self._num_leases += 1
        self._unused.clear()
        return Lease(self, waited or Waited())

    def give_back(self) -> None:
        """Count one user less; called by leases."""
        self._num_leases -= 1
        if self._num_leases == 0:
            self._unused.set()
            self._on_unused()

    async def prepare(self, request: ChatRequest) -> GenerationRequest:
        """``LoadedModel.prepare`` in a worker thread; when cancelled, work that has not begun is dropped."""
        loop = asyncio.get_running_loop()
        lease = self.lease()

        def release() -> None:
            with suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(lease.release)

        work = self._tokenizers.submit(copy_context().run, self.model.prepare, request)
        work.add_done_callback(lambda _: release())
        return await asyncio.wrap_future(work)

    async def retire(self) -> None:
        """Fail what still runs, wait for the last lease, and free the memory."""
        await in_thread(self.model.stop)
        await self._unused.wait()
        self._tokenizers.shutdown(wait=False)
        # An engine that computes a very long step keeps its memory, and is accounted for, until it has stopped.
        while not await in_thread(self.model.close):
            pass


class Lease:
    """The right to use a loaded model: while it is held, the model stays in memory."""

    def __init__(self, resident: Resident, waited: Waited) -> None:
        self.model = resident.model
        self.waited = waited
        self._resident = resident
        self._is_released = False

    async def prepare(self, request: ChatRequest) -> GenerationRequest:
        """Render and tokenize a request, and prepare what its answer has to be, off the event loop.

        Raises:
            LlmspellError: the request is refused.

        """
        return await self._resident.prepare(request)

    def submit(self, request: GenerationRequest, listener: Listener) -> int:
        """Start a generation and return its id; ``listener`` hears its events on the event loop until ``abort``.

        Raises:
            LlmspellError: the engine refuses the request.

        """
        generation_id = self.model.engine.submit(request)
        # Events arrive by a callback of the loop that this runs on, so none can have come before this registration.
        self._resident.dispatch.listeners[generation_id] = listener
        return generation_id

    def abort(self, generation_id: int) -> None:
        """Stop a generation in whatever state it is, finished ones included; its listener hears nothing more."""
        if self._resident.dispatch.listeners.pop(generation_id, None) is not None:
            self.model.engine.abort(generation_id)

    def release(self) -> None:
        """Give the model back; may be called again."""
        if not self._is_released:
            self._is_released = True
            self._resident.give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
