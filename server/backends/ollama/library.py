"""The models of an Ollama daemon on its disk: listed, described, pulled and deleted by asking it."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from server.backends.ollama.breaker import CircuitBreaker
from server.backends.ollama.config import OllamaConfig
from server.backends.ollama.listed import installed_model, meant_by, model_details, tag_to_pull
from server.core.errors import BackendError, LlmspellError, ModelNotFound
from server.core.library import BackendHealth, Deleted, InstalledModel, ModelDetails
from server.core.model_spec import BackendName, ModelSpec, equivalent_names
from server.core.ports import ModelState
from server.core.pulling import PullEvent, PullFinished, PullNotice, PullProgress
from server.core.speed import SpeedMeter

# what speaks to the daemon is imported when there is one: httpx takes longer to import than a list takes to make
if TYPE_CHECKING:
    from server.backends.ollama.daemon import Daemon, DaemonModel
    from server.backends.ollama.pull_flight import PullFlight

_LOOK_SECONDS = 0.2
_KNOWN_DOWN_SECONDS = 0.05
"""How long a daemon that was down a moment ago gets to answer."""
_MANIFEST_SECONDS = 3.0
"""How long a pull may look for the model before it counts as begun: what is unknown can then still be refused."""
_PROGRAM = "ollama"

_log = logging.getLogger(__name__)


class OllamaLibrary:
    """``core.library.Library`` over an Ollama daemon; used on one event loop. It does not start the daemon."""

    backend = BackendName.OLLAMA

    def __init__(
        self,
        config: OllamaConfig,
        environ: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
        look_seconds: float = _LOOK_SECONDS,
    ) -> None:
        """Know the daemon; nothing is sent yet.

        Args:
            config: the operator's settings.
            environ: the environment; its ``PATH`` is where ``ollama`` is looked for.
            clock: seconds.
            look_seconds: how often those who wait for a pull are told how far it is.

        Raises:
            ConfigurationError: the URL cannot be that of a daemon.

        """
        from server.backends.ollama.host import daemon_url  # noqa: PLC0415 - see above

        self.url = daemon_url(config.url)
        self._config = config
        self._environ = environ
        self._clock = clock
        self._look_seconds = look_seconds
        self._client: Daemon | None = None
        self._breaker = CircuitBreaker()
        self._is_something_else = False
        self._probing: asyncio.Task[BackendHealth] | None = None
        self._flights: dict[str, PullFlight] = {}

    async def health(self) -> BackendHealth:
        """Ask the daemon for its version; who asks often is not kept waiting by one that is down."""
        return await self._health(_KNOWN_DOWN_SECONDS)

    async def models(self) -> Sequence[InstalledModel]:
        """List the daemon's models, with whether they are in memory; none while it is down."""
        if not (await self._health()).is_up:
            return []
        try:
            return await self._listed()
        except LlmspellError as error:
            _log.warning("the models of the Ollama daemon at %s are not listed: %s", self.url, error)
            return []

    async def find(self, name: str) -> InstalledModel | None:
        """Return the model that a name means to the daemon; ``None`` while it is down."""
        return meant_by(await self.models(), name)

    async def details(self, name: str) -> ModelDetails:
        """Ask the daemon what a model is.

        Raises:
            ModelNotFound: the daemon has no such model.
            LlmspellError: it does not answer.

        """
        model = await self._require(name)
        return model_details(model, await self._daemon().describe(model.model))

    def can_pull(self, spec: ModelSpec) -> bool:  # noqa: ARG002 - the protocol's signature
        """Say that the daemon may know any name: only its registry can tell."""
        return True

    async def pull(self, spec: ModelSpec, quantization: str | None = None) -> AsyncGenerator[PullEvent]:
        """Have the daemon download a model; it keeps what has come when the last listener goes.

        Raises:
            LlmspellError: while iterating; the daemon does not answer, or cannot download it.

        """
        from server.backends.ollama.pull_flight import PullFlight  # noqa: PLC0415 - see above

        name = tag_to_pull(spec, quantization)
        await self._answers()
        key = min(equivalent_names(name), key=len).lower()
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = PullFlight(self._daemon(), name, self._config.silence_timeout_seconds)
        flight.num_listeners += 1
        try:
            async with aclosing(self._watch(flight)) as events:
                async for event in events:
                    yield event
        finally:
            flight.num_listeners -= 1
            if not flight.num_listeners and self._flights.get(key) is flight:
                del self._flights[key]
                await flight.end()
        found = meant_by(await self.models(), name)
        yield PullFinished(found.model if found else name, self.backend)

    async def delete(self, name: str) -> Deleted:
        """Have the daemon take a model out of memory and off its disk.

        Raises:
            ModelNotFound: the daemon has no such model.
            LlmspellError: it does not answer, or cannot delete it.

        """
        model = await self._require(name)
        daemon = self._daemon()
        if model.state is ModelState.WARM:
            await daemon.unload(model.model)
        await daemon.delete(model.model)
        others = [each for each in await self.models() if each.digest == model.digest]
        return Deleted(model.model, self.backend, freed_bytes=0 if others else model.size_bytes)

    async def load(self, name: str, keep_alive: str | float | None = None) -> None:
        """Wait until the daemon has a model in memory.

        Args:
            name: the model.
            keep_alive: how long it stays there after its last use, as the daemon takes it; ``None`` for its default.

        Raises:
            ModelNotFound: the daemon has no such model.
            LlmspellError: it does not answer, or cannot load it.

        """
        await self._daemon().load((await self._require(name)).model, keep_alive)

    async def unload(self, name: str) -> None:
        """Have the daemon take a model out of memory, once nobody uses it.

        Raises:
            ModelNotFound: the daemon has no such model.
            LlmspellError: it does not answer.

        """
        await self._daemon().unload((await self._require(name)).model)

    async def aclose(self) -> None:
        """End the pulls, and close the connections."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        for flight in list(self._flights.values()):
            await flight.end()
        if self._client is not None:
            await self._client.close()

    def _daemon(self) -> Daemon:
        if self._client is None:
            from server.backends.ollama.daemon import Daemon  # noqa: PLC0415 - see above

            self._client = Daemon(
                self.url,
                connect_timeout=self._config.connect_timeout_seconds,
                answer_timeout=self._config.detection_timeout_seconds,
            )
        return self._client

    async def _health(self, patience: float | None = None) -> BackendHealth:
        """Ask the daemon, unless it was down a moment ago.

        Args:
            patience: how long one that was down when it was last asked gets to answer; ``None`` for as long as any.

        """
        reason = self._breaker.reason
        if self._probing is None:
            if reason is not None and not self._breaker.may_probe(self._clock()):
                return self._down(reason)
            self._probing = asyncio.create_task(self._probe())
            self._probing.add_done_callback(self._forget_probe)
        probing = self._probing
        await asyncio.wait([probing], timeout=None if reason is None else patience)
        return probing.result() if probing.done() else self._down(reason or "it takes too long")

    async def _probe(self) -> BackendHealth:
        if self._client is None and (reason := await self._refusal()) is not None:
            self._is_something_else = False
            self._breaker.fail(reason, self._clock())
            return self._down(reason)
        daemon = self._daemon()
        try:
            version = await daemon.version()
        except LlmspellError as error:
            reason = daemon.reason_of(error)
            self._is_something_else = daemon.is_something_else(error)
            self._breaker.fail(reason, self._clock())
            return self._down(reason)
        self._breaker.succeed()
        return BackendHealth(self.backend, is_up=True, version=version, url=self.url)

    async def _refusal(self) -> str | None:
        """Say why nothing can be there, if nothing listens: that needs no HTTP."""
        parts = urlsplit(self.url)
        limit = min(self._config.connect_timeout_seconds, self._config.detection_timeout_seconds)
        try:
            async with asyncio.timeout(limit):
                _, writer = await asyncio.open_connection(parts.hostname, parts.port)
        except ConnectionRefusedError:
            return "the connection is refused"
        except TimeoutError:
            return "it takes too long"
        except OSError as error:
            return error.strerror or str(error)
        writer.close()
        return None

    def _forget_probe(self, probe: asyncio.Task[BackendHealth]) -> None:
        self._probing = None
        if not probe.cancelled():
            probe.exception()

    def _down(self, reason: str) -> BackendHealth:
        return BackendHealth(self.backend, is_up=False, url=self.url, reason=reason)

    async def _answers(self) -> None:
        """See that the daemon is there.

        Raises:
            BackendError: it is not; says how to start it.

        """
        health = await self._health()
        if not health.is_up:
            raise self._outage(health.reason or "it is down")

    def _outage(self, reason: str) -> BackendError:
        from server.backends.ollama.daemon_errors import RETRY_SECONDS, unreachable  # noqa: PLC0415 - see above

        if self._is_something_else:
            return BackendError(reason, retry_after=RETRY_SECONDS)
        if shutil.which(_PROGRAM, path=self._environ.get("PATH")) is not None:
            return unreachable(self.url, reason)
        return BackendError(
            f"The Ollama daemon at {self.url} does not answer ({reason}), and there is no program `ollama` here. "
            "`llmspell model install-ollama` tells how to get it; [ollama] url names a daemon elsewhere.",
            retry_after=RETRY_SECONDS,
        )

    async def _listed(self) -> Sequence[InstalledModel]:
        daemon = self._daemon()
        models, running = await asyncio.gather(daemon.models(), daemon.running())
        return [installed_model(model, running) for model in models if self._is_allowed(model)]

    async def _require(self, name: str) -> InstalledModel:
        from server.backends.ollama.daemon_errors import elsewhere  # noqa: PLC0415 - see above

        await self._answers()
        daemon = self._daemon()
        models, running = await asyncio.gather(daemon.models(), daemon.running())
        names = [each.lower() for each in equivalent_names(name)]
        by_name = {model.name.lower(): model for model in models}
        model = next((by_name[each] for each in names if each in by_name), None)
        if model is None:
            raise ModelNotFound(
                f"Ollama does not have the model {name!r}. Download it with `llmspell model pull local/{name}@ollama`.",
                param="model",
            )
        if not self._is_allowed(model):
            raise elsewhere(model.name, model.remote_host)
        return installed_model(model, running)

    def _is_allowed(self, model: DaemonModel) -> bool:
        return model.remote_host is None or self._config.allow_cloud_models

    async def _watch(self, flight: PullFlight) -> AsyncGenerator[PullProgress | PullNotice]:
        meter = SpeedMeter(self._clock)
        num_notices = 0
        last: PullProgress | None = None
        began = self._clock()
        while True:
            is_over = await flight.wait(self._look_seconds)
            if not is_over and not flight.lines.has_begun and self._clock() - began < _MANIFEST_SECONDS:
                continue
            if is_over:
                flight.raise_failure()
            for message in flight.lines.notices[num_notices:]:
                num_notices += 1
                yield PullNotice(message)
            if (progress := flight.lines.progress(meter)) != last:
                last = progress
                yield progress
            if is_over:
                return
