"""Which models the daemon has: asked for once for all who want to know, and remembered for seconds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import httpx

from server.backends.ollama.breaker import CircuitBreaker
from server.backends.ollama.daemon import Daemon, DaemonModel, ModelDetails
from server.backends.ollama.daemon_errors import RETRY_SECONDS, unreachable
from server.core.errors import BackendError, LlmspellError
from server.core.model_spec import BackendName, equivalent_names
from server.core.ports import ModelCard, ModelState

_MISS_SECONDS = 0.5
"""Age from which a list is asked for again when it lacks what someone looks for: it may have been pulled just now."""
_STATES_SECONDS = 0.5
_MAX_DETAIL_REQUESTS = 8
_DETAILS_PATIENCE_SECONDS = 1.0
_CAPABILITIES = {"completion": "chat"}
"""The daemon's words for capabilities, where this API has others."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _List:
    """A list of models, by their names in lower case, and when it was asked for."""

    models: Mapping[str, DaemonModel]
    asked_at: float


_NOTHING = _List({}, float("-inf"))


class Catalogue:
    """The daemon's models.

    Lists are refreshed in the background while they are used; only who looks for a model that is not on the list, or
    asks first, waits for the daemon. While the daemon is down only who needs it waits, for one question a second.
    """

    def __init__(self, daemon: Daemon, cache_seconds: float, clock: Callable[[], float]) -> None:
        self._daemon = daemon
        self._cache_seconds = cache_seconds
        self._clock = clock
        self._list = _NOTHING
        self._refreshing: asyncio.Task[None] | None = None
        self._details: dict[str, ModelDetails] = {}
        self._fetching_details: dict[str, asyncio.Task[None]] = {}
        self._detail_requests = asyncio.Semaphore(_MAX_DETAIL_REQUESTS)
        self._running: Mapping[str, int | None] = {}
        self._running_asked_at = float("-inf")
        self._was_slow = False
        self._is_something_else = False
        self.breaker = CircuitBreaker()

    async def find(self, name: str) -> DaemonModel | None:
        """Return the model that a name means; ``None`` if there is none or the daemon is down."""
        await self._keep_fresh()
        if self.is_down:
            return None
        if (found := self.known(name)) is None and self._age > _MISS_SECONDS:
            await self.refresh()
            found = self.known(name)
        return None if self.is_down else found

    async def require(self, name: str) -> DaemonModel | None:
        """Do as ``find`` does, but ask a daemon that seems to be down whether it is back.

        Raises:
            LlmspellError: the daemon is down.

        """
        await self.look_again()
        found = await self.find(name)
        if self.is_down:
            raise self.outage_error()
        return found

    async def look_again(self) -> None:
        """Ask a daemon that seems to be down whether it is back, unless that was asked a moment ago."""
        if self.is_down and self.breaker.may_probe(self._clock()):
            await self.refresh()

    async def is_alive(self) -> bool:
        """Ask the daemon, and say whether it is there; one late answer does not count."""
        await self.refresh()
        return not self.is_down

    @property
    def is_down(self) -> bool:
        """Whether the daemon did not answer when it was last asked."""
        return self.breaker.reason is not None

    def known(self, name: str) -> DaemonModel | None:
        """Return the model that a name meant when the daemon last answered."""
        names = (each.lower() for each in equivalent_names(name))
        return next((self._list.models[each] for each in names if each in self._list.models), None)

    def outage_error(self) -> LlmspellError:
        """Build the error for a request that needs the daemon while it is down."""
        reason = self.breaker.reason or "it was down a moment ago"
        if self._is_something_else:
            return BackendError(reason, retry_after=RETRY_SECONDS)
        return unreachable(self._daemon.url, reason)

    def report_failure(self, reason: str) -> None:
        """Note that the daemon could not be reached."""
        if not self.is_down:
            # that there is none at all is nothing to be warned of
            level = logging.INFO if self._list is _NOTHING else logging.WARNING
            _log.log(level, "the Ollama daemon at %s does not answer: %s", self._daemon.url, reason)
        self.breaker.fail(reason, self._clock())
        self._is_something_else = False

    def forget(self, model: DaemonModel) -> None:
        """Note that the daemon does not have a model after all."""
        self._list = replace(
            self._list, models={name: each for name, each in self._list.models.items() if each != model}
        )

    async def cards(self, accept: Callable[[DaemonModel], bool]) -> Sequence[ModelCard]:
        """Describe the models that ``accept`` lets through; what the daemon is slow to tell of them is left out."""
        await self._keep_fresh()
        await self.look_again()
        if not self.is_down and self._age > _MISS_SECONDS:
            await self.refresh()
        if self.is_down:
            return []
        models = [model for model in self._list.models.values() if accept(model)]
        await asyncio.gather(self._refresh_running(), self._fetch_details(models))
        return [self._card(model) for model in models]

    async def card(self, model: DaemonModel) -> ModelCard:
        """Describe one model."""
        await asyncio.gather(self._refresh_running(), self._fetch_details([model]))
        return self._card(model)

    async def refresh(self) -> None:
        """Ask for the list; callers at the same time share one request."""
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh())
        # who goes away must not take the answer from the others, nor `close` end those who wait
        refreshing = self._refreshing
        await asyncio.wait([refreshing])
        if not refreshing.cancelled():
            refreshing.result()

    async def close(self) -> None:
        """Stop what runs in the background."""
        tasks = [task for task in (self._refreshing, *self._fetching_details.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def _age(self) -> float:
        return self._clock() - self._list.asked_at

    async def _keep_fresh(self) -> None:
        """Start a refresh where it is time for one, and wait for it only if there is no list yet."""
        if self.is_down:
            if self._refreshing is None and self.breaker.may_probe(self._clock()):
                self._refreshing = asyncio.create_task(self._refresh())
        elif self._list is _NOTHING:
            await self.refresh()
        elif self._age > self._cache_seconds and self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh())

    async def _refresh(self) -> None:
        asked_at = self._clock()
        try:
            models = await self._daemon.models()
        except LlmspellError as error:
            self._take_failure(error, asked_at)
        else:
            self._was_slow = False
            if self.is_down or self._list is _NOTHING:
                _log.info("the Ollama daemon at %s answers: it has %d models", self._daemon.url, len(models))
            self.breaker.succeed()
            self._list = _List({model.name.lower(): model for model in models}, asked_at)
            present = {model.digest for model in models}
            self._details = {digest: each for digest, each in self._details.items() if digest in present}
        finally:
            self._refreshing = None

    def _take_failure(self, error: LlmspellError, asked_at: float) -> None:
        is_slow = isinstance(error.__cause__, TimeoutError | httpx.TimeoutException)
        if is_slow and not self._was_slow and not self.is_down and self._list is not _NOTHING:
            # a machine that computes prompts on all cores may be late once: the last list will do until the next one
            self._was_slow = True
            self._list = replace(self._list, asked_at=asked_at)
            return
        self.report_failure(self._daemon.reason_of(error))
        self._is_something_else = self._daemon.is_something_else(error)

    async def _refresh_running(self) -> None:
        if self._clock() - self._running_asked_at > _STATES_SECONDS:
            self._running_asked_at = self._clock()
            with _tolerance():
                self._running = await self._daemon.running()

    async def _fetch_details(self, models: Sequence[DaemonModel]) -> None:
        """Ask for what the list does not say, once for each version of a model."""
        for model in models:
            if not self._is_described(model) and model.digest not in self._fetching_details:
                self._fetching_details[model.digest] = asyncio.create_task(self._ask_details(model))
        wanted = {model.digest for model in models}
        tasks = [task for digest, task in self._fetching_details.items() if digest in wanted]
        if tasks:
            await asyncio.wait(tasks, timeout=_DETAILS_PATIENCE_SECONDS)

    async def _ask_details(self, model: DaemonModel) -> None:
        try:
            with _tolerance():
                async with self._detail_requests:
                    self._details[model.digest] = await self._daemon.details(model.name)
        finally:
            del self._fetching_details[model.digest]

    def _is_described(self, model: DaemonModel) -> bool:
        # what the list says of capabilities lacks those that come from a Jinja template
        return model.digest in self._details

    def _card(self, model: DaemonModel) -> ModelCard:
        told = self._details.get(model.digest, model.details)
        capabilities = told.capabilities or model.details.capabilities or ("completion",)
        return ModelCard(
            model=model.name,
            backend=BackendName.OLLAMA,
            state=ModelState.WARM if model.name.lower() in self._running else ModelState.COLD,
            created=model.modified_at,
            size_bytes=model.size_bytes,
            context_length=told.context_length or model.details.context_length,
            capabilities=tuple(_CAPABILITIES.get(name, name) for name in capabilities),
            memory_bytes=self._running.get(model.name.lower()),
        )


@contextmanager
def _tolerance() -> Iterator[None]:
    try:
        yield
    except LlmspellError as error:
        _log.debug("a question to the Ollama daemon failed: %s", error)
