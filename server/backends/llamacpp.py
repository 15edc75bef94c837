"""The in-process backend: a chat request becomes a generation on a model of the pool."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Self

from server.core.duration import duration_seconds
from server.core.errors import LlmspellError
from server.core.events import Event, Failed, Finished, Started, Timings
from server.core.model_spec import BackendName, ModelSpec
from server.core.parameters import ParameterSupport, mapped
from server.core.ports import EventStream, LoadProgress, ModelCard, PreloadedModel
from server.core.request import ChatRequest
from server.engine.sequence import GenerationRequest
from server.pool.pool import Pool
from server.pool.resident import Lease

_PARAMETERS: Mapping[str, ParameterSupport] = {
    "max_tokens": mapped(),
    "max_completion_tokens": mapped(),
    "temperature": mapped(),
    "top_p": mapped(),
    "top_k": mapped(),
    "min_p": mapped(),
    "seed": mapped(),
    "stop": mapped(),
    "n": mapped("sequences that share the prompt"),
    "logprobs": mapped(),
    "top_logprobs": mapped(),
    "logit_bias": mapped(),
    "frequency_penalty": mapped(),
    "presence_penalty": mapped(),
    "repeat_penalty": mapped(),
    "ignore_eos": mapped(),
    "tools": mapped("given to the chat template; where it has no words for them, described in a system message"),
    "tool_choice": mapped("required and named: the answer is held to calls with valid arguments"),
    "parallel_tool_calls": mapped("false: the answer ends after the first call"),
    "tools[].function.strict": mapped(
        "arguments are held to the schema in any case; strict refuses a schema that cannot be enforced"
    ),
    "response_format": mapped("the content is held to it, token by token"),
    "grammar": mapped("the content is held to it, token by token"),
    "guided_regex": mapped("the content is held to it, token by token"),
    "guided_choice": mapped("the content is held to it, token by token"),
    "reasoning_effort": mapped("given to the chat template, in the words that it knows"),
    "chat_template_kwargs": mapped("variables of the chat template"),
    "thinking_budget": mapped("thinking is ended after as many tokens"),
    "messages[].name": mapped("given to the chat template"),
    "messages[].tool_calls": mapped("given to the chat template"),
    "messages[].tool_call_id": mapped("given to the chat template"),
    "messages[].reasoning_content": mapped("given to the chat template"),
    "keep_alive": mapped("how long the model stays in memory after its last use, until a request says otherwise"),
}


class LlamaCppBackend:
    """``core.ports.Backend`` over the pool."""

    name = BackendName.LLAMACPP
    parameters = _PARAMETERS

    def __init__(self, pool: Pool, clock: Callable[[], float] = time.monotonic) -> None:
        """Serve the models of ``pool``; ``clock`` gives monotonic seconds."""
        self._pool = pool
        self._clock = clock

    async def chat(self, request: ChatRequest) -> EventStream:
        """Admit a request: lease the model, prepare prompt and answer, and queue it on the engine.

        Raises:
            LlmspellError: the request is refused.

        """
        model, arrived = request.spec.model, self._clock()
        keep_alive = None if request.keep_alive is None else duration_seconds(request.keep_alive)
        lease = await self._pool.lease(model, keep_alive)
        try:
            began = self._clock()
            generation = await lease.prepare(request)
            return GenerationStream(lease, generation, self._clock() - began, self._first_token_noter(model, arrived))
        except BaseException:
            lease.release()
            raise

    def _first_token_noter(self, model: str, arrived: float) -> Callable[[], None]:
        return lambda: self._pool.note_first_token(model, self._clock() - arrived)

    async def models(self) -> Sequence[ModelCard]:
        """List the models of the pool."""
        return await self._pool.cards()

    def preloaded(self) -> Sequence[PreloadedModel]:
        """List the models that the configuration wants in memory from the start."""
        return self._pool.preloaded()

    def progress(self, model: str) -> LoadProgress | None:
        """Return how far the load of a model is."""
        return self._pool.progress(model)

    async def model(self, model: str) -> ModelCard | None:
        """Describe one model of the pool."""
        return await self._pool.card(model)

    async def has_model(self, spec: ModelSpec) -> bool:
        """Whether the pool has the model, in memory or not."""
        return await self._pool.has_model(spec.model)

    async def look_again(self) -> bool:
        """Say that there is nothing to look for: the pool is never down."""
        return False

    def refusal(self, spec: ModelSpec) -> LlmspellError | None:
        """Return what is wrong with a model that is on this machine, and cannot be used."""
        return self._pool.problem(spec.model)


class GenerationStream:
    """The events of one generation; holds the lease until it ends or is closed."""

    def __init__(
        self, lease: Lease, request: GenerationRequest, preparation: float, on_first_token: Callable[[], None]
    ) -> None:
        """Submit the request.

        Args:
            lease: released when the stream is over.
            request: what to generate.
            preparation: seconds that the prompt took to render and tokenize.
            on_first_token: called when the first output is there.

        Raises:
            LlmspellError: the engine refuses the request.

        """
        self._lease = lease
        self._preparation = preparation
        self._on_first_token = on_first_token
        self._has_output = False
        self._ready: list[Event] = []
        self._waiter: asyncio.Future[None] | None = None
        self._is_over = False
        self._generation_id = lease.submit(request, self._on_events)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[Event]:
        while not self._ready:
            if self._is_over:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        events, self._ready = self._ready, []
        return events

    async def aclose(self) -> None:
        """Abort the generation if it still runs and release the model."""
        self._end()
        self._ready = []

    def _on_events(self, events: Sequence[Event]) -> None:
        self._ready += events
        if not self._has_output and not isinstance(events[-1], Started | Failed):
            self._has_output = True
            self._on_first_token()
        if isinstance(events[-1], Finished | Failed):
            if isinstance(last := events[-1], Finished):
                self._ready[-1] = replace(last, timings=self._whole(last.timings))
            self._end()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _whole(self, timings: Timings) -> Timings:
        """Add what happened before the engine had the request."""
        waited = self._lease.waited
        return Timings(
            queued=waited.queued + timings.queued,
            load=waited.load,
            prompt=self._preparation + timings.prompt,
            first_token=waited.queued + waited.load + self._preparation + timings.first_token,
            decode=timings.decode,
        )

    def _end(self) -> None:
        self._is_over = True
        self._lease.abort(self._generation_id)
        self._lease.release()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
