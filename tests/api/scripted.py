"""A backend that plays a script, and counts what it holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from server.api.schemas import ChatCompletionBody
from server.api.unsupported import MESSAGE_PARAMETERS, TOOL_PARAMETERS
from server.backends.llamacpp import LlamaCppBackend
from server.core.errors import LlmspellError, ModelNotFound
from server.core.events import ChoiceFinished, Event, Failed, Finished, FinishReason, Started, TextDelta, Timings, Usage
from server.core.model_spec import BackendName, ModelSpec, equivalent_names
from server.core.parameters import ParameterSupport, listed, mapped
from server.core.ports import (
    DeviceMemory,
    EventStream,
    LoadProgress,
    ModelCard,
    ModelState,
    PreloadedModel,
    ResidencyStatus,
)
from server.core.request import ChatRequest

Script = Callable[[ChatRequest], AsyncIterator[Sequence[Event]]]
HAS_EVERYTHING: Mapping[str, ParameterSupport] = {
    name: mapped() for name in (*ChatCompletionBody.model_fields, *TOOL_PARAMETERS, *MESSAGE_PARAMETERS)
}
"""The parameters of a backend that lacks none."""
HAS_LITTLE: Mapping[str, ParameterSupport] = {"max_tokens": mapped(), "messages[].name": listed("no names")}
"""The parameters of a backend that lacks most."""
USAGE = Usage(prompt_tokens=7, completion_tokens=2, cached_tokens=3)
TIMINGS = Timings(queued=0.25, load=1.5, prompt=0.0625, first_token=1.8125, decode=0.0123456)


def finished(usage: Usage = USAGE) -> Finished:
    return Finished(usage, TIMINGS)


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
    preloads: list[PreloadedModel] = field(default_factory=list)
    reports: list[LoadProgress | None] = field(default_factory=list)
    """How far the load is, each time that somebody asks; with the last report, requests are admitted."""
    progress_asked: list[str] = field(default_factory=list)
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

    def preloaded(self) -> Sequence[PreloadedModel]:
        return self.preloads

    def progress(self, model: str) -> LoadProgress | None:
        self.progress_asked.append(model)
        if not self.reports:
            return None
        report = self.reports.pop(0)
        if not self.reports and self.admission is not None:
            self.admission.set()
        return report

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


@dataclass
class ScriptedResidency:
    """Implements ``server.core.ports.Residency``; notes what it is asked to do."""

    models: dict[str, ResidencyStatus] = field(
        default_factory=lambda: {"demo": ResidencyStatus("demo", ModelState.WARM)}
    )
    memory: list[DeviceMemory] = field(default_factory=list)
    calls: list[tuple[object, ...]] = field(default_factory=list)
    gate: asyncio.Event | None = None
    """What loads and unloads wait for."""
    failure: LlmspellError | None = None
    after_unload: Callable[[], object] = lambda: None
    """What happens before whoever unloads a model hears of it."""

    def __post_init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.waiting = asyncio.Event()

    def devices(self) -> Sequence[DeviceMemory]:
        return self.memory

    def statuses(self) -> Sequence[ResidencyStatus]:
        return list(self.models.values())

    def status(self, model: str) -> ResidencyStatus | None:
        return next((self.models[name] for name in equivalent_names(model) if name in self.models), None)

    async def load(self, model: str) -> None:
        self.calls.append(("load", model))
        await self._wait()
        self._become(model, state=ModelState.WARM)

    async def unload(self, model: str, *, force: bool) -> None:
        self.calls.append(("unload", model, force))
        await self._wait()
        self._become(model, state=ModelState.COLD)
        self.after_unload()

    def pin(self, model: str, *, pinned: bool) -> None:
        self.calls.append(("pin", model, pinned))
        self._become(model, is_pinned=pinned)

    async def _wait(self) -> None:
        self.waiting.set()
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if self.failure is not None:
            raise self.failure

    def _become(self, model: str, **changes: Any) -> None:  # noqa: ANN401 - fields of a status
        if model not in self.models:
            raise ModelNotFound("gone")
        self.models[model] = replace(self.models[model], **changes)
