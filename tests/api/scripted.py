"""A backend that plays a script, and counts what it holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from server.backends.llamacpp import LlamaCppBackend
from server.core.errors import LlmspellError
from server.core.events import ChoiceFinished, Event, Failed, Finished, FinishReason, Started, TextDelta, Timings, Usage
from server.core.model_spec import BackendName, ModelSpec, equivalent_names
from server.core.parameters import ParameterSupport
from server.core.ports import EventStream, ModelCard, ModelState
from server.core.request import ChatRequest

Script = Callable[[ChatRequest], AsyncIterator[Sequence[Event]]]
USAGE = Usage(prompt_tokens=7, completion_tokens=2, cached_tokens=3)


def finished(usage: Usage = USAGE) -> Finished:
    return Finished(usage, Timings())


async def say_hello(request: ChatRequest) -> AsyncIterator[Sequence[Event]]:
    """Answer "Hello" in two batches, for every choice."""
    choices = range(request.n)
    yield [Started()]
    yield [TextDelta(index, "Hel") for index in choices]
    yield [
        *(TextDelta(index, "lo") for index in choices),
        *(ChoiceFinished(index, FinishReason.STOP) for index in choices),
        finished(),
    ]


def play(*batches: Sequence[Event]) -> Script:
    async def script(_: ChatRequest) -> AsyncIterator[Sequence[Event]]:
        for batch in batches:
            yield batch

    return script


def fail(error: LlmspellError) -> Script:
    return play([Started(), Failed(error)])


def card(
    model: str = "demo",
    state: ModelState = ModelState.WARM,
    *,
    backend: BackendName = BackendName.LLAMACPP,
) -> ModelCard:
    return ModelCard(
        model=model,
        backend=backend,
        state=state,
        created=1_700_000_000,
        size_bytes=1234,
        context_length=2048,
    )


class ScriptedStream:
    def __init__(self, backend: ScriptedBackend, batches: AsyncIterator[Sequence[Event]]) -> None:
        self._backend = backend
        self._batches = batches
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[Event]:
        return await anext(self._batches)

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            await asyncio.sleep(0)  # a real stream posts to another thread here; an unshielded cancellation would show
            self._backend.release()


@dataclass
class ScriptedBackend:
    """Implements ``server.core.ports.Backend``; ``held`` counts requests that were accepted and not yet closed."""

    script: Script = say_hello
    cards: list[ModelCard] = field(default_factory=lambda: [card()])
    rejection: Exception | None = None
    admission: asyncio.Event | None = None
    requests: list[ChatRequest] = field(default_factory=list)
    held: int = 0
    name: BackendName = BackendName.LLAMACPP
    parameters: Mapping[str, ParameterSupport] = field(default_factory=lambda: LlamaCppBackend.parameters)
    preloaded_cards: list[ModelCard] = field(default_factory=list)
    refusals: dict[str, LlmspellError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.changed = asyncio.Condition()

    async def chat(self, request: ChatRequest) -> EventStream:
        self.requests.append(request)
        await self._hold(1)
        try:
            await self._admit()
        except BaseException:
            self.release()
            raise
        return ScriptedStream(self, self.script(request))

    async def _admit(self) -> None:
        if self.admission is not None:
            await self.admission.wait()
        if self.rejection is not None:
            raise self.rejection

    async def models(self) -> Sequence[ModelCard]:
        return self.cards

    def preloaded(self) -> Sequence[ModelCard]:
        return self.preloaded_cards

    async def model(self, model: str) -> ModelCard | None:
        return next((card for card in self.cards if card.model in equivalent_names(model)), None)

    async def has_model(self, spec: ModelSpec) -> bool:
        return await self.model(spec.model) is not None

    async def look_again(self) -> bool:
        return False

    def refusal(self, spec: ModelSpec) -> LlmspellError | None:
        return self.refusals.get(spec.model)

    async def _hold(self, count: int) -> None:
        self.held += count
        async with self.changed:
            self.changed.notify_all()

    def release(self) -> None:
        self.held -= 1
        self._notifier = asyncio.ensure_future(self._hold(0))

    async def until_held(self, count: int) -> None:
        """Wait until exactly ``count`` requests hold something."""
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(lambda: self.held == count)
