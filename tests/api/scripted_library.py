"""Models on disk that play a script, and a daemon's memory that notes what it is asked to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.core.errors import LlmspellError, ModelNotFound
from server.core.library import BackendHealth, Deleted, InstalledModel, ModelDetails, PredictedMemory
from server.core.model_spec import BackendName, ModelSpec, equivalent_names
from server.core.pulling import PullActivity, PullEvent, PullFinished, PullProgress

PullScript = Callable[[ModelSpec, str | None], AsyncGenerator[PullEvent]]


def progress(done: int, total: int = 1000) -> PullProgress:
    return PullProgress(PullActivity.DOWNLOADING, done, total, 250.4, (total - done) / 250.4)


def finished(model: str = "demo") -> PullFinished:
    return PullFinished(model, BackendName.LLAMACPP, (Path("/models/demo.gguf"),))


def play(*events: PullEvent | Exception | asyncio.Event) -> PullScript:
    """Tell these events; an exception is raised instead, and an ``asyncio.Event`` is waited for."""

    async def script(_: ModelSpec, __: str | None) -> AsyncGenerator[PullEvent]:
        for event in events:
            if isinstance(event, Exception):
                raise event
            if isinstance(event, asyncio.Event):
                await event.wait()
            else:
                yield event

    return script


def installed(model: str = "demo", backend: BackendName = BackendName.LLAMACPP, source: str = "own") -> InstalledModel:
    path = None if backend is BackendName.OLLAMA else Path(f"/models/{model}.gguf")
    return InstalledModel(model, backend, source, 1234, modified=1_700_000_000, path=path)


def _names_of(model: InstalledModel) -> set[str]:
    return {name.lower() for name in (model.model, *model.other_names)}


@dataclass
class ScriptedLibrary:
    """Implements ``server.core.library.Library``; ``held`` counts pulls that somebody listens to."""

    backend: BackendName = BackendName.LLAMACPP
    present: list[InstalledModel] = field(default_factory=lambda: [installed()])
    script: PullScript = field(default_factory=lambda: play(progress(400), finished()))
    failure: LlmspellError | None = None
    """What deletions end in."""
    reason: str | None = None
    """Why the backend is not up."""
    pulls: list[tuple[str, str | None]] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    """Models of which a part has been downloaded."""
    on_delete: Callable[[], object] = lambda: None
    held: int = 0

    def __post_init__(self) -> None:
        self.changed = asyncio.Condition()

    async def health(self) -> BackendHealth:
        return BackendHealth(self.backend, self.reason is None, "1.2.3", "http://127.0.0.1:11434", self.reason)

    async def models(self) -> Sequence[InstalledModel]:
        return [] if self.reason else self.present

    async def find(self, name: str) -> InstalledModel | None:
        names = {each.lower() for each in equivalent_names(name)}
        return next((each for each in self.present if names & _names_of(each)), None)

    async def details(self, name: str) -> ModelDetails:
        return ModelDetails(
            await self._require(name),
            architecture="llama",
            files=(Path("/models/demo.gguf"),),
            defaults={"temperature": 0.5, "stop": ["<|end|>"]},
            memory=(PredictedMemory(2048, 3000),),
            notes=("mirostat is ignored",),
        )

    def can_pull(self, spec: ModelSpec) -> bool:
        return self.backend is BackendName.LLAMACPP and spec.model != "nobody-has-it"

    async def pull(self, spec: ModelSpec, quantization: str | None = None) -> AsyncGenerator[PullEvent]:
        self.pulls.append((spec.model, quantization))
        await self._hold(1)
        try:
            async for event in self.script(spec, quantization):
                yield event
        finally:
            await self._hold(-1)

    async def delete(self, name: str) -> Deleted:
        if name in self.unfinished:
            self.unfinished.remove(name)
            return Deleted(name, self.backend, (), 500)
        model = await self._require(name)
        self.on_delete()
        if self.failure is not None:
            raise self.failure
        self.present.remove(model)
        self.deleted.append(model.model)
        return Deleted(model.model, self.backend, () if model.path is None else (model.path,), model.size_bytes)

    async def _require(self, name: str) -> InstalledModel:
        if (model := await self.find(name)) is None:
            raise ModelNotFound(f"There is no {name}.", param="model")
        return model

    async def _hold(self, count: int) -> None:
        self.held += count
        async with self.changed:
            self.changed.notify_all()

    async def until_held(self, count: int) -> None:
        """Wait until exactly ``count`` pulls are listened to."""
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(lambda: self.held == count)


@dataclass
class ScriptedDaemon:
    """Implements ``server.core.library.Loadable``."""

    calls: list[tuple[object, ...]] = field(default_factory=list)
    failure: LlmspellError | None = None

    async def load(self, name: str, keep_alive: str | float | None = None) -> None:
        self.calls.append(("load", name, keep_alive))
        if self.failure is not None:
            raise self.failure

    async def unload(self, name: str) -> None:
        self.calls.append(("unload", name))
        if self.failure is not None:
            raise self.failure
