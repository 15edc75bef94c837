"""Whom the ``model`` commands ask: the running server, or else the files and the daemon, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from server.cli.output import tell
from server.core.errors import InvalidRequest, ServerUnreachable, TimedOut
from server.core.model_spec import BackendName, ModelSpec, parse_model_spec
from server.core.ports import ModelState

if TYPE_CHECKING:
    from server.app_library import LibraryParts
    from server.backends.ollama.library import OllamaLibrary
    from server.client import LoadedModel, LocalLLM, ServerStatus
    from server.config_sources import Configuration
    from server.core.library import BackendHealth, Deleted, InstalledModel, ModelDetails
    from server.core.pulling import PullEvent
    from server.library import ModelLibrary


class ModelAccess(Protocol):
    """What the commands can ask for; specs are as people write them. All raise ``LlmspellError``."""

    @property
    def status(self) -> ServerStatus | None:
        """What the server says of itself; ``None`` without one."""
        ...

    @property
    def configuration(self) -> Configuration:
        """What is configured here, whoever is asked."""
        ...

    @property
    def url(self) -> str:
        """Where the server is, or would be."""
        ...

    def health(self) -> Sequence[BackendHealth]:
        """Say of each backend whether it is there."""
        ...

    def models(self, backend: BackendName | None = None) -> Sequence[InstalledModel]:
        """List the models on disk."""
        ...

    def details(self, spec: str) -> ModelDetails:
        """Find out all about a model."""
        ...

    def pull(self, spec: str, quantization: str | None) -> Generator[PullEvent]:
        """Download a model; closing the generator leaves the pull."""
        ...

    def delete(self, spec: str) -> Deleted:
        """Delete a model from the disk."""
        ...

    def load(self, spec: str) -> LoadedModel:
        """Wait until a model is in memory."""
        ...

    def loading(self, spec: str) -> LoadedModel | None:
        """Look how far the load of a model is; ``None`` if that is not known. Other threads may load meanwhile."""
        ...

    def unload(self, spec: str, *, force: bool) -> LoadedModel:
        """Wait until a model is out of memory."""
        ...


@contextmanager
def open_access(server: str | None, config: Path | None) -> Iterator[ModelAccess]:
    """Look for the server, and ask it if it is there.

    Args:
        server: the URL that was given; ``None`` means ``LLMSPELL_SERVER``, or where the configuration has one listen.
        config: the configuration file that was given.

    Raises:
        LlmspellError: the configuration cannot be used, or a server that was named does not answer.

    """
    from server.cli.server_lookup import find_server, server_address  # noqa: PLC0415 - --help needs nothing of this
    from server.config_sources import load_configuration  # noqa: PLC0415

    configuration = load_configuration(None, config).configuration
    address = server_address(server, configuration.server.host, configuration.server.port)
    found = find_server(address, lambda message: tell(f"llmspell: {message}"))
    if found is not None:
        with found.client as client:
            yield ServerAccess(configuration, client, found.status)
        return
    with closing(FileAccess(configuration, address.url)) as files:
        yield files


def open_library(configuration: Configuration) -> LibraryParts:
    """Return the models on disk, of all backends."""
    from server.app_library import create_library  # noqa: PLC0415 - --help does not need it
    from server.config_sources import cache_directory, home_directory, inherited_environment  # noqa: PLC0415
    from server.store.places import Surroundings  # noqa: PLC0415

    return create_library(
        configuration.store,
        configuration.llamacpp,
        configuration.ollama,
        configuration.models,
        configuration.routing.prefer,
        Surroundings(inherited_environment(), home_directory()),
        cache_directory(),
    )


class ServerAccess:
    """Asks the running server."""

    def __init__(self, configuration: Configuration, client: LocalLLM, status: ServerStatus) -> None:
        """Take the client, which somebody else closes."""
        self.configuration = configuration
        self.status = status
        self.url = client.url
        self.client = client

    def health(self) -> Sequence[BackendHealth]:
        """Return what the server's status says."""
        return self.status.backends

    def models(self, backend: BackendName | None = None) -> Sequence[InstalledModel]:
        """List the models on the server's disks."""
        return self.client.list(backend)

    def details(self, spec: str) -> ModelDetails:
        """Find out all about a model."""
        return self.client.show(spec)

    def pull(self, spec: str, quantization: str | None) -> Generator[PullEvent]:
        """Have the server download a model."""
        return self.client.pull(spec, quantization)

    def delete(self, spec: str) -> Deleted:
        """Delete a model from the server's disks."""
        return self.client.delete(spec)

    def load(self, spec: str) -> LoadedModel:
        """Wait until a model is in the server's memory, or the daemon's."""
        return self.client.load(spec)

    def loading(self, spec: str) -> LoadedModel | None:
        """Look how far the load of a model is, as far as the server's status tells which one it is."""
        from server.cli.model_loaded import loading_model  # noqa: PLC0415 - only here

        try:
            return loading_model(spec, self.client.status().models)
        except (ServerUnreachable, TimedOut):
            return None  # whoever waits for the load is told

    def unload(self, spec: str, *, force: bool) -> LoadedModel:
        """Wait until a model is out of memory."""
        return self.client.unload(spec, force=force)


class FileAccess:
    """Asks files and daemon, in this process."""

    status: ServerStatus | None = None

    def __init__(self, configuration: Configuration, url: str) -> None:
        """Take the configuration, and where a server would be; nothing is opened yet."""
        self.url = url
        self.configuration = configuration
        self._opened: LibraryParts | None = None
        self._runner = asyncio.Runner()

    def health(self) -> Sequence[BackendHealth]:
        """Look whether the backends are there."""
        return self._runner.run(self._library.health())

    def models(self, backend: BackendName | None = None) -> Sequence[InstalledModel]:
        """List the models on this machine."""
        return self._runner.run(self._library.models(backend))

    def details(self, spec: str) -> ModelDetails:
        """Find out all about a model."""
        return self._runner.run(self._library.details(self._parsed(spec)))

    def pull(self, spec: str, quantization: str | None) -> Generator[PullEvent]:
        """Download a model in this process, or have the daemon do it."""
        events = self._library.pull(self._parsed(spec), quantization)
        try:
            while (event := self._runner.run(_next(events))) is not None:
                yield event
        finally:
            self._runner.run(_leave(events))

    def delete(self, spec: str) -> Deleted:
        """Delete a model from the disk."""
        return self._runner.run(self._library.delete(self._parsed(spec)))

    def load(self, spec: str) -> LoadedModel:
        """Have the daemon load a model; there is no memory of a server to load others into."""
        return self._runner.run(self._load(self._parsed(spec)))

    def loading(self, spec: str) -> LoadedModel | None:  # noqa: ARG002 - the daemon does not tell
        """Say nothing: the daemon does not tell how far it is."""
        return None

    def unload(self, spec: str, *, force: bool) -> LoadedModel:
        """Have the daemon unload a model."""
        return self._runner.run(self._unload(self._parsed(spec), force=force))

    def close(self) -> None:
        """Close what was opened."""
        try:
            if self._opened is not None:
                self._runner.run(self._opened.library.aclose())
        finally:
            self._runner.close()

    async def _load(self, spec: ModelSpec) -> LoadedModel:
        daemon = await self._daemon_of(spec)
        await daemon.load(spec.model, self.configuration.ollama.keep_alive or None)
        return await _loaded(daemon, spec, ModelState.WARM)

    async def _unload(self, spec: ModelSpec, *, force: bool) -> LoadedModel:
        daemon = await self._daemon_of(spec)
        if force:
            raise InvalidRequest(
                f"{spec} is one of the Ollama daemon's, which finishes the requests that use a model before it unloads "
                "it. Leave --force out."
            )
        await daemon.unload(spec.model)
        return await _loaded(daemon, spec, ModelState.COLD)

    async def _daemon_of(self, spec: ModelSpec) -> OllamaLibrary:
        """Return the daemon if it has the model."""
        daemon = self._parts.ollama
        if daemon is not None and spec.backend is not BackendName.LLAMACPP:
            is_named = spec.backend is BackendName.OLLAMA
            if is_named or await daemon.find(spec.model) is not None:
                return daemon
        if await self._library.find(spec) is None:
            await self._library.details(spec)  # says what there is to say of a model that nobody has
        raise ServerUnreachable(
            f"No server answers at {self.url}, and {spec} is loaded by a server. Start one with `llmspell serve`, and "
            "load it then; or let the first request do it."
        )

    @property
    def _parts(self) -> LibraryParts:
        if self._opened is None:
            self._opened = open_library(self.configuration)
        return self._opened

    @property
    def _library(self) -> ModelLibrary:
        return self._parts.library

    def _parsed(self, text: str) -> ModelSpec:
        """Return the spec that a text or an alias stands for, as the server reads it."""
        return parse_model_spec(self.configuration.aliases.get(text, text))


async def _loaded(daemon: OllamaLibrary, spec: ModelSpec, state: ModelState) -> LoadedModel:
    """Describe a model of the daemon, which may say for a moment that it still is as it was."""
    from server.client.results import LoadedModel  # noqa: PLC0415 - --help does not need it
    from server.core.library_json import model_id  # noqa: PLC0415

    found = await daemon.find(spec.model)
    name = spec.model if found is None else found.model
    size = 0 if found is None else found.size_bytes
    return LoadedModel(model_id(name, BackendName.OLLAMA), BackendName.OLLAMA, state, size)


async def _next(events: AsyncGenerator[PullEvent]) -> PullEvent | None:
    return await anext(events, None)


async def _leave(events: AsyncGenerator[PullEvent]) -> None:
    """Close a pull; one that a second Ctrl-C stopped in the midst of a step is ended when the library is closed."""
    if not getattr(events, "ag_running", False):  # typing knows only what all iterators have
        await events.aclose()
