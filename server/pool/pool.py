"""The models of this process: which exist, which are in memory, and who gets them.

States: cold → loading → warm, or failed. Everything here runs on the event loop, the only writer of this state; loading
and freeing happen in worker threads whose results come back to it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from server.core.errors import Draining, LlmspellError, ModelLoadingFailed, ModelNotFound
from server.core.model_spec import BackendName, equivalent_names
from server.core.ports import ModelCard, ModelState
from server.engine.engine import Delivery
from server.pool.config import ModelConfig, PoolConfig
from server.pool.loader import LoadedModel, load_model
from server.pool.resident import EventDispatch, Lease, Resident

_log = logging.getLogger(__name__)

Load = Callable[[ModelConfig, PoolConfig, Callable[[list[Delivery]], None], Callable[[], None]], LoadedModel]

_RETRY_AFTER_DRAINING_SECONDS = 5.0


@dataclass(slots=True)
class _Entry:
    """What the pool knows about one configured model."""

    name: str
    config: ModelConfig
    resident: Resident | None = None
    loading: asyncio.Task[Resident] | None = None
    has_failed: bool = False

    @property
    def state(self) -> ModelState:
        if self.loading is not None:
            return ModelState.LOADING
        if self.resident is not None and self.resident.is_alive:
            return ModelState.WARM
        return ModelState.FAILED if self.has_failed or self.resident is not None else ModelState.COLD


class Pool:
    """Models by name (``llama3.1:8b``)."""

    def __init__(self, models: Mapping[str, ModelConfig], config: PoolConfig, load: Load = load_model) -> None:
        """Know the models; ``load`` runs in a worker thread."""
        self._load_model = load
        self._entries = {name: _Entry(name, model_config) for name, model_config in models.items()}
        self._config = config
        self._is_draining = False

    async def preload(self) -> None:
        """Load the models that the configuration wants in memory from the start, one after the other.

        Raises:
            ModelLoadingFailed: one of them cannot be loaded.

        """
        for entry in self._entries.values():
            if entry.config.preload:
                await self._resident(entry)

    async def lease(self, name: str) -> Lease:
        """Use a model, loading it first if it is not in memory; concurrent callers share one load.

        Raises:
            ModelNotFound: no such model is configured.
            ModelLoadingFailed: its file cannot be used.
            Draining: the server shuts down.

        """
        entry = self._entry(name)
        if entry is None:
            raise ModelNotFound(f"The model {name!r} is not configured.", param="model")
        return (await self._resident(entry)).lease()

    def cards(self) -> list[ModelCard]:
        """Describe all models."""
        return [_card(entry) for entry in self._entries.values()]

    def preloaded_cards(self) -> list[ModelCard]:
        """Describe the models that the configuration wants in memory from the start."""
        return [_card(entry) for entry in self._entries.values() if entry.config.preload]

    def card(self, name: str) -> ModelCard | None:
        """Describe one model; ``None`` if ``lease`` does not know the name."""
        entry = self._entry(name)
        return None if entry is None else _card(entry)

    def has_model(self, name: str) -> bool:
        """Whether ``lease`` knows the name."""
        return self._entry(name) is not None

    async def close(self) -> None:
        """Refuse new leases, fail what still runs, and free all memory."""
        self._is_draining = True
        await asyncio.gather(*(self._close(entry) for entry in self._entries.values()))

    def _entry(self, name: str) -> _Entry | None:
        return next((self._entries[each] for each in equivalent_names(name) if each in self._entries), None)

    def _refuse_when_draining(self) -> None:
        if self._is_draining:
            raise Draining(
                "The server is shutting down; send the request to it again when it is back.",
                retry_after=_RETRY_AFTER_DRAINING_SECONDS,
            )

    async def _resident(self, entry: _Entry) -> Resident:
        self._refuse_when_draining()
        if entry.resident is not None and entry.resident.is_alive:
            return entry.resident
        if entry.loading is None:
            entry.loading = asyncio.create_task(self._load(entry))
        # A caller that goes away must not cancel the load that others wait for.
        return await asyncio.shield(entry.loading)

    async def _load(self, entry: _Entry) -> Resident:
        loop = asyncio.get_running_loop()
        dispatch = EventDispatch(loop)

        def on_end() -> None:
            with suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(self._replace_dead, entry)

        try:
            await _retire(entry)  # a dead one goes first, because memory may not do for two
            self._refuse_when_draining()
            model = await asyncio.to_thread(self._load_model, entry.config, self._config, dispatch.deliver, on_end)
        except Draining:
            raise
        except LlmspellError:
            entry.has_failed = True
            raise
        except Exception as error:
            entry.has_failed = True
            _log.exception("local/%s cannot be loaded", entry.name)
            raise ModelLoadingFailed(f"{entry.config.path} cannot be loaded: {error}") from error
        finally:
            entry.loading = None
        _log_load(entry, model)
        entry.has_failed = False
        entry.resident = Resident(model, dispatch)
        return entry.resident

    def _replace_dead(self, entry: _Entry) -> None:
        """Load a model anew whose engine died; without it the server would not be ready, so no request would come."""
        is_dead = entry.resident is not None and not entry.resident.is_alive
        if is_dead and entry.config.preload and entry.loading is None and not self._is_draining:
            _log.warning("local/%s died and is loaded again", entry.name)
            entry.loading = asyncio.create_task(self._load(entry))
            entry.loading.add_done_callback(_log_failure)

    async def _close(self, entry: _Entry) -> None:
        if entry.loading is not None:
            await asyncio.wait([entry.loading])
        await _retire(entry)


async def _retire(entry: _Entry) -> None:
    resident, entry.resident = entry.resident, None
    if resident is not None:
        await resident.retire()


def _log_failure(loading: asyncio.Task[Resident]) -> None:
    if not loading.cancelled() and (error := loading.exception()) is not None:
        _log.error("%s", error)


def _log_load(entry: _Entry, model: LoadedModel) -> None:
    _log.info("local/%s is loaded: %d tokens of context, %.1f s", entry.name, model.context_length, model.load_seconds)


def _card(entry: _Entry) -> ModelCard:
    try:
        status = Path(entry.config.path).stat()
        size_bytes, created = status.st_size, int(status.st_mtime)
    except OSError:  # the file went away: the model is listed all the same, and a request says what is wrong
        size_bytes = created = 0
    context_length = entry.resident.model.context_length if entry.resident else entry.config.context_length
    return ModelCard(
        model=entry.name,
        backend=BackendName.LLAMACPP,
        state=entry.state,
        created=created,
        size_bytes=size_bytes,
        context_length=context_length or None,
    )
