"""The models on disk of all backends together: which one a spec means, and the pulls that go on."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from itertools import chain

from server.core.errors import InvalidRequest, ModelNotFound, PullFailed
from server.core.library import ActivePull, BackendHealth, Deleted, InstalledModel, Library, ModelDetails
from server.core.library_json import model_id
from server.core.model_spec import BackendName, ModelSpec, equivalent_names, is_hugging_face
from server.core.pulling import PullEvent, PullFinished, PullProgress

_MAX_SUGGESTIONS = 3
_MAX_COMPARED = 1000
_PARTING_SECONDS = 5.0
"""How long listeners may take to learn that a pull has ended, when everything is closed."""


@dataclass(eq=False)
class _Pull:
    """A pull that somebody listens to; ``ended`` is set with the reason when it is to end for all of them."""

    spec: ModelSpec
    quantization: str | None
    backend: BackendName
    num_listeners: int = 0
    progress: PullProgress | None = None
    reason: str = ""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, reason: str) -> None:
        """Have all listeners fail."""
        self.reason = reason
        self.ended.set()


class ModelLibrary:
    """What all backends have on disk, under one grammar of specs; used on one event loop.

    A spec that names its backend goes there. What becomes of one that does not, each method says.
    """

    def __init__(
        self,
        libraries: Sequence[Library],
        prefer: BackendName = BackendName.OLLAMA,
        closers: Sequence[Callable[[], Awaitable[None]]] = (),
    ) -> None:
        """Take the backends' libraries.

        Args:
            libraries: one for each backend that is switched on.
            prefer: the backend that is meant where several have what a spec means.
            closers: what ``aclose`` calls in the end, for what the libraries hold open.

        """
        self._libraries = {
            library.backend: library for library in sorted(libraries, key=lambda each: each.backend is not prefer)
        }
        self._closers = tuple(closers)
        self._pulls: dict[tuple[BackendName, str, str | None], _Pull] = {}
        self._watchers: list[Callable[[BackendName], Awaitable[None]]] = []

    def watch(self, watcher: Callable[[BackendName], Awaitable[None]]) -> None:
        """Have ``watcher`` take notice of each model that is pulled or deleted here, before whoever asked for that."""
        self._watchers.append(watcher)

    async def health(self) -> Sequence[BackendHealth]:
        """Say of each backend whether it is there."""
        return await asyncio.gather(*(library.health() for library in self._libraries.values()))

    async def models(self, backend: BackendName | None = None) -> Sequence[InstalledModel]:
        """List the models of one backend or of all; none of a backend that is down or switched off.

        A model in Ollama's store is listed for both backends, because both can run it.
        """
        libraries = [each for name, each in self._libraries.items() if backend in (None, name)]
        return list(chain.from_iterable(await asyncio.gather(*(library.models() for library in libraries))))

    async def find(self, spec: ModelSpec) -> InstalledModel | None:
        """Return the model that a spec means: of a free one, that of the preferred backend which has it."""
        if spec.backend is not None and spec.backend not in self._libraries:
            return None
        return next(iter(await self._candidates(spec)), None)

    async def details(self, spec: ModelSpec) -> ModelDetails:
        """Find out all about a model; a free spec means that of the preferred backend which has it.

        Raises:
            ModelNotFound: there is no such model.
            LlmspellError: it cannot be found out.

        """
        if spec.backend is not None:
            return await self._library(spec, spec.backend).details(spec.model)
        found = await self.find(spec)
        if found is None:
            raise await self._not_found(spec)
        return await self._libraries[found.backend].details(spec.model)

    async def pull(self, spec: ModelSpec, quantization: str | None = None) -> AsyncGenerator[PullEvent]:
        """Download what is missing of a model; the last event is ``PullFinished``.

        A free spec goes to llama.cpp if it names a repository of Hugging Face, or if a quantization is said besides
        and llama.cpp's library knows the name; else to the preferred backend that can pull it: Ollama can while its
        daemon is up, llama.cpp if the name is a recommended model's.

        Who asks for what is being pulled already joins in. It ends when the last one has closed the generator; what
        has come by then is kept, and the next pull continues it.

        Raises:
            LlmspellError: while iterating; it cannot be downloaded or stored, or somebody cancelled it.

        """
        library = await self._library_to_pull(spec, quantization)
        key = (library.backend, spec.model.lower(), quantization and quantization.lower())
        pull = self._pulls.get(key)
        if pull is None or pull.ended.is_set():
            pull = self._pulls[key] = _Pull(spec, quantization, library.backend)
        pull.num_listeners += 1
        try:
            async with aclosing(_until_ended(pull, library.pull(spec, quantization))) as events:
                async for event in events:
                    if isinstance(event, PullProgress):
                        pull.progress = event
                    elif isinstance(event, PullFinished):
                        await self._tell(event.backend)
                    yield event
        finally:
            pull.num_listeners -= 1
            if not pull.num_listeners:
                pull.left.set()
                if self._pulls.get(key) is pull:
                    del self._pulls[key]

    async def fetching_backend(self, spec: ModelSpec) -> BackendName | None:
        """Return the backend that would have a model once it is pulled; ``None`` for names that nobody vouches for.

        These are the recommended models, and repositories of Hugging Face: whatever else is asked for, by mistake or
        not, is not looked for on the network.
        """
        llamacpp = self._libraries.get(BackendName.LLAMACPP)
        if llamacpp is None or not llamacpp.can_pull(replace(spec, backend=None)):
            return None
        if spec.backend is not None and spec.backend not in self._libraries:
            return None
        return (await self._library_to_pull(spec, None)).backend

    def cancel(self, spec: ModelSpec, quantization: str | None = None) -> int:
        """End pulls for everybody who waits for them; what has come is kept.

        Args:
            spec: as it was asked for; without a backend, on any of them.
            quantization: as it was asked for; ``None`` means whichever.

        Returns:
            How many pulls were ended.

        """
        chosen = [pull for pull in self._going() if _is_meant(pull, spec, quantization)]
        for pull in chosen:
            pull.end(f"The pull of {pull.spec} was cancelled; what has come is kept for the next one.")
        return len(chosen)

    def active(self) -> Sequence[ActivePull]:
        """List the pulls that go on, with their latest progress."""
        return [ActivePull(pull.spec, pull.quantization, pull.backend, pull.progress) for pull in self._going()]

    async def to_delete(self, spec: ModelSpec) -> InstalledModel:
        """Return the model that ``delete`` would delete.

        Raises:
            ModelNotFound: there is no such model.
            InvalidRequest: a free spec means models of several backends.
            LlmspellError: the backend that the spec names cannot be asked.

        """
        if spec.backend is not None:
            library = self._library(spec, spec.backend)
            found = await library.find(spec.model)
            # who has none knows best why: there is no such model, or the daemon is down
            return (await library.details(spec.model)).installed if found is None else found
        candidates = await self._candidates(spec)
        if not candidates:
            raise await self._not_found(spec)
        # a model of the daemon, and its files that llama.cpp can read: one model
        of_ollama = [each for each in candidates if each.backend is BackendName.OLLAMA]
        if of_ollama and all(each.source == "ollama" for each in candidates if each not in of_ollama):
            candidates = of_ollama
        if len(candidates) > 1:
            specs = " and ".join(model_id(each.model, each.backend) for each in candidates)
            raise InvalidRequest(f"{spec} means several models: {specs}. Say which one to delete.", param="model")
        return candidates[0]

    async def delete(self, spec: ModelSpec) -> Deleted:
        """Delete a model from the disk, or what has come of one; a free spec must mean one model only.

        Raises:
            ModelNotFound: there is no such model.
            LlmspellError: it is not clear which one is meant, it is in use, or it cannot be deleted.

        """
        if spec.backend is not None:
            deleted = await self._library(spec, spec.backend).delete(spec.model)
        else:
            deleted = await self._delete_free(spec)
        await self._tell(deleted.backend)
        return deleted

    def end_pulls(self) -> Sequence[asyncio.Event]:
        """Have all pulls fail, because the server is shutting down; returns what is set when their listeners know."""
        pulls = self._going()
        for pull in pulls:
            pull.end(f"The pull of {pull.spec} was broken off: the server is shutting down. Pull again to go on.")
        return [pull.left for pull in pulls]

    async def aclose(self) -> None:
        """End the pulls, and close what the libraries hold open."""
        if pulls := self.end_pulls():
            leaving = [asyncio.ensure_future(left.wait()) for left in pulls]
            _, late = await asyncio.wait(leaving, timeout=_PARTING_SECONDS)
            for task in late:
                task.cancel()
        for close in self._closers:
            await close()

    async def _delete_free(self, spec: ModelSpec) -> Deleted:
        try:
            found = await self.to_delete(spec)
        except ModelNotFound:
            files = self._libraries.get(BackendName.LLAMACPP)
            if files is not None:
                with suppress(ModelNotFound):
                    return await files.delete(spec.model)  # what an unfinished download has left
            raise
        return await self._libraries[found.backend].delete(spec.model)

    async def _tell(self, backend: BackendName) -> None:
        for watcher in self._watchers:
            await watcher(backend)

    def _going(self) -> Sequence[_Pull]:
        return [pull for pull in self._pulls.values() if not pull.ended.is_set()]

    def _library(self, spec: ModelSpec, backend: BackendName) -> Library:
        library = self._libraries.get(backend)
        if library is None:
            raise InvalidRequest(
                f"{spec} names the backend {backend.value}, which is switched off in the configuration.", param="model"
            )
        return library

    async def _candidates(self, spec: ModelSpec) -> list[InstalledModel]:
        """Return what a spec may mean, that of the preferred backend first."""
        libraries = [each for name, each in self._libraries.items() if spec.backend in (None, name)]
        found = await asyncio.gather(*(library.find(spec.model) for library in libraries))
        return [each for each in found if each is not None]

    async def _library_to_pull(self, spec: ModelSpec, quantization: str | None) -> Library:
        if spec.backend is not None:
            return self._library(spec, spec.backend)
        llamacpp = self._libraries.get(BackendName.LLAMACPP)
        can_pull = llamacpp is not None and llamacpp.can_pull(spec)
        if llamacpp is not None and (is_hugging_face(spec.name) or (quantization is not None and can_pull)):
            return llamacpp
        down: BackendHealth | None = None
        for library in self._libraries.values():
            if library is llamacpp:
                if can_pull:
                    return library
                continue
            health = await library.health()
            if health.is_up:
                return library
            down = health
        raise _nobody_can_pull(spec, down)

    async def _not_found(self, spec: ModelSpec) -> ModelNotFound:
        names = list(dict.fromkeys(each.model for each in await self.models(spec.backend) if each.model))
        closest = difflib.get_close_matches(spec.model, names[:_MAX_COMPARED], n=_MAX_SUGGESTIONS, cutoff=0.5)
        alike = f" Did you mean {' or '.join(closest)}?" if closest else ""
        down = [each for each in await self.health() if not each.is_up and spec.backend in (None, each.name)]
        doubts = "".join(f" {each.name.value} cannot be asked: {each.reason}." for each in down)
        return ModelNotFound(
            f"There is no model {spec} on this machine.{alike}{doubts} `llmspell model list` shows what there is; "
            f"`llmspell model pull {spec}` downloads it.",
            param="model",
        )


def _nobody_can_pull(spec: ModelSpec, down: BackendHealth | None) -> ModelNotFound:
    reason = "Ollama is switched off" if down is None else f"the Ollama daemon cannot be asked ({down.reason})"
    return ModelNotFound(
        f"No recommended model is called {spec.model}, and {reason}. Pull it from Ollama with `ollama serve` running: "
        f"`llmspell model pull ollama/{spec.model}`; or from Hugging Face, by the name of a repository with GGUF "
        "files: `llmspell model pull hf.co/owner/repository`. `llmspell model available` lists the recommended ones.",
        param="model",
    )


def _is_meant(pull: _Pull, spec: ModelSpec, quantization: str | None) -> bool:
    if spec.backend not in (None, pull.backend):
        return False
    if quantization is not None and quantization.lower() != (pull.quantization or "").lower():
        return False
    meant = {name.lower() for name in equivalent_names(spec.model)}
    return pull.spec.model.lower() in meant


async def _until_ended(pull: _Pull, events: AsyncGenerator[PullEvent]) -> AsyncGenerator[PullEvent]:
    """Pass events on until the last one, or until the pull is ended from outside."""
    ended = asyncio.create_task(pull.ended.wait())
    try:
        async with aclosing(events):
            while True:
                event = await _next(events, ended)
                if event is None:
                    raise PullFailed(pull.reason)
                yield event
                if isinstance(event, PullFinished):
                    return
    finally:
        ended.cancel()


async def _next(events: AsyncGenerator[PullEvent], ended: asyncio.Task[bool]) -> PullEvent | None:
    """Wait for the next event; ``None`` if the end comes first."""
    step = asyncio.create_task(_step(events))
    try:
        await asyncio.wait((step, ended), return_when=asyncio.FIRST_COMPLETED)
        if step.done():
            return step.result()
        return None
    finally:
        if not step.done():
            step.cancel()
            await asyncio.gather(step, return_exceptions=True)


async def _step(events: AsyncGenerator[PullEvent]) -> PullEvent:
    # an exception of its own: a task cannot end in StopAsyncIteration
    async for event in events:
        return event
    raise PullFailed("The download ended without saying how; pull again.")
