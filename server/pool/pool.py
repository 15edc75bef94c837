"""The models of this process: who uses them, who waits for which, and what operators see of it.

Everything here runs on the event loop. What is loaded and unloaded, and when, is the business of ``turns``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from server.core.duration import duration_seconds
from server.core.errors import Draining, LlmspellError, ModelNotFound, QueueFull, TimedOut
from server.core.ports import DeviceMemory, LoadProgress, ModelCard, PreloadedModel, ResidencyStatus
from server.pool.accounts import MemoryAccounts, shown_bytes
from server.pool.config import ModelConfig, PoolConfig
from server.pool.entry import Entry, Waiter
from server.pool.footprint_file import FootprintFile
from server.pool.loader import load_model
from server.pool.plan import LoadPlan, Machine
from server.pool.policy import PolicyConfig, Residence
from server.pool.resident import Lease
from server.pool.shelf import Shelf
from server.pool.turns import LoadModel, Turns
from server.store.model_index import ModelIndex

_RETRY_AFTER_LOADING_SECONDS = 10.0
_DRAINING = Draining(
    "The server is shutting down; send the request to it again when it is back.",
    retry_after=5.0,
)

_log = logging.getLogger(__name__)


class Pool:
    """Models by name (``llama3.1:8b``); ``core.ports.Residency``."""

    def __init__(  # noqa: PLR0913 - collaborators, of which most have a default
        self,
        models: Mapping[str, ModelConfig],
        config: PoolConfig,
        *,
        index: ModelIndex | None = None,
        load: LoadModel = load_model,
        footprints: FootprintFile | None = None,
        machine: Callable[[], Machine] = Machine.this,
        policy: PolicyConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Know the models; nothing is loaded.

        Args:
            models: those that the operator configured, by name without provider.
            config: the section ``[llamacpp]``.
            index: finds further models on this machine; ``None`` finds none.
            load: runs in a worker thread.
            footprints: where measurements are kept between runs.
            machine: finds the devices; runs in a worker thread, before the first load.
            policy: how models take turns; by default what ``config`` says.
            clock: monotonic seconds.

        """
        self._load_timeout = config.load_timeout
        self._shelf = Shelf(models, config, index)
        self._accounts = MemoryAccounts(config.memory_budget, machine, footprints or FootprintFile(None))
        self._clock = clock
        policy = policy or PolicyConfig(longest_wait_seconds=config.longest_wait_seconds)
        self._turns = Turns(self._shelf, config, self._accounts, load, policy, clock)

    async def lease(self, name: str, keep_alive: float | None = None) -> Lease:
        """Use a model, having it loaded first if it is not in memory; callers who wait share one load.

        Args:
            name: the model.
            keep_alive: seconds that the model stays in memory after its last use from now on, negative for ever; until
                it is unloaded, or a later request says something else.

        Raises:
            ModelNotFound: there is no such model.
            QueueFull: as many requests wait for it as it could take at once.
            ModelLoadingFailed: it cannot be loaded.
            InsufficientMemory: it does not fit, whatever is unloaded.
            TimedOut: it was not in memory within ``load_timeout``.
            Draining: the server shuts down.

        """
        entry = await self._require(name)
        self._refuse_when_draining()
        waiter = Waiter(self._clock(), keep_alive)
        if entry.is_usable and not entry.waiters:
            return self._turns.lease(entry, waiter)
        if len(entry.waiters) >= entry.most_waiters:
            raise QueueFull(
                f"local/{name} is not in memory yet, and {len(entry.waiters)} requests wait for it already.",
                retry_after=_RETRY_AFTER_LOADING_SECONDS,
            )
        return await self._wait(entry, waiter)

    def note_first_token(self, name: str, seconds: float) -> None:
        """Note how long a request for a model waited for its first token."""
        if (entry := self._shelf.known(name)) is not None:
            entry.first_tokens.add(seconds)

    def progress(self, name: str) -> LoadProgress | None:
        """Return how far the load of a model is; ``None`` if nobody has to wait for one."""
        entry = self._shelf.known(name)
        return None if entry is None else entry.progress

    async def take_notice(self) -> None:
        """Look which models have come and gone."""
        await self._refresh()

    async def cards(self) -> list[ModelCard]:
        """Describe all models, each file once."""
        await self._refresh()
        return [entry.card() for entry in self._shelf.listed]

    async def card(self, name: str) -> ModelCard | None:
        """Describe one model; ``None`` if ``lease`` does not know the name."""
        entry = await self._shelf.find(name)
        return None if entry is None else entry.card()

    async def has_model(self, name: str) -> bool:
        """Whether ``lease`` knows the name."""
        return await self._shelf.find(name) is not None

    def problem(self, name: str) -> LlmspellError | None:
        """Say why a model that was found is not served; ``None`` if nothing is known of it."""
        return self._shelf.problem(name)

    async def preload(self) -> None:
        """Load the models that the configuration wants in memory from the start, one after the other.

        One that does not fit beside those before it is left for the first request: it would only drive them out.

        Raises:
            ModelLoadingFailed: one of them cannot be loaded.
            InsufficientMemory: one of them does not fit, even alone.
            ConfigurationError: the memory budget is wrong.

        """
        if self._shelf.configured:
            await self._accounts.machine()
        for entry in self._shelf.configured:
            if entry.config.preload and not entry.is_usable:
                await self._preload(entry)
        await self._refresh()
        self._turns.look_ahead()

    def preloaded(self) -> list[PreloadedModel]:
        """Describe the models that the configuration wants in memory from the start."""
        preloaded = [entry for entry in self._shelf.configured if entry.config.preload]
        return [PreloadedModel(entry.card(), entry.has_been_loaded) for entry in preloaded]

    async def close(self) -> None:
        """Refuse new leases, abort loads, fail what still runs, and free all memory."""
        await self._turns.close(_DRAINING)

    def devices(self) -> Sequence[DeviceMemory]:
        """List the devices that models can be in; none before the first look at them."""
        return self._accounts.devices()

    def statuses(self) -> Sequence[ResidencyStatus]:
        """List all models, in memory or not."""
        to_unix = time.time() - self._clock()
        listed = dict.fromkeys((*self._shelf.listed, *(e for e in self._shelf.entries.values() if not e.is_unused)))
        return [entry.status(to_unix) for entry in listed]

    def status(self, model: str) -> ResidencyStatus | None:
        """Describe one model; ``None`` if it does not exist."""
        entry = self._shelf.known(model)
        return None if entry is None else entry.status(time.time() - self._clock())

    async def load(self, model: str) -> None:
        """Wait until a model is in memory, having it loaded if it is not; raises what ``lease`` raises."""
        entry = await self._require(model)
        self._refuse_when_draining()
        if not entry.is_usable:
            (await self._wait(entry, Waiter(self._clock(), is_use=False))).release()

    async def unload(self, model: str, *, force: bool) -> None:
        """Wait until a model is out of memory; see ``core.ports.Residency``.

        Raises:
            ModelNotFound: there is no such model.

        """
        await self._turns.unload(await self._require(model), force=force)

    def pin(self, model: str, *, pinned: bool) -> None:
        """Keep a model in memory once it is there, or no longer.

        Raises:
            ModelNotFound: there is no such model.

        """
        if (entry := self._shelf.known(model)) is None:
            raise _not_found(model)
        entry.is_pinned = pinned
        self._turns.wake()

    async def _require(self, name: str) -> Entry:
        entry = await self._shelf.find(name)
        if entry is None:
            raise self._shelf.problem(name) or _not_found(name)
        return entry

    async def _refresh(self) -> None:
        await self._shelf.refresh()
        for entry in self._shelf.gone:
            if entry.dismissed_at is None:
                self._turns.dismiss(entry)

    def _refuse_when_draining(self) -> None:
        if self._turns.is_closing:
            raise Draining(_DRAINING.message, retry_after=_DRAINING.retry_after)

    async def _wait(self, entry: Entry, waiter: Waiter) -> Lease:
        seconds = duration_seconds(self._load_timeout)
        try:
            async with asyncio.timeout(seconds if seconds >= 0 else None):
                return await self._turns.wait(entry, waiter)
        except TimeoutError:
            raise TimedOut(
                f"local/{entry.name} was not in memory within {self._load_timeout} (load_timeout in [llamacpp]); "
                "try again later.",
                retry_after=_RETRY_AFTER_LOADING_SECONDS,
            ) from None

    async def _preload(self, entry: Entry) -> None:
        is_cold = entry.residence is Residence.COLD and not entry.waiters
        if is_cold and (lacking := await self._lacking_beside_others(entry)):
            _log.warning("local/%s does not fit beside the others and is not preloaded: needs %s", entry.name, lacking)
            entry.has_been_loaded = True
            return
        try:
            # without load_timeout, which is for requests
            (await self._turns.wait(entry, Waiter(self._clock(), is_use=False))).release()
        except Draining:
            if self._turns.is_closing:
                raise
            _log.info("local/%s is not preloaded: it was unloaded by an operator", entry.name)
            entry.has_been_loaded = True

    async def _lacking_beside_others(self, entry: Entry) -> str:
        """Say what is missing for a model that would fit if others did not take memory; nothing if it fits."""
        plan = await self._planned(entry)
        num_bytes = self._accounts.estimate(plan)
        lacking = self._accounts.lacking(num_bytes)
        could_fit = all(num <= self._accounts.budgets[device] for device, num in num_bytes.items())
        if not could_fit or not self._accounts.is_anything_taken:
            return ""
        return ", ".join(
            f"{shown_bytes(num_bytes[device])} of {shown_bytes(free)} free on {device}"
            for device, free in lacking.items()
        )

    async def _planned(self, entry: Entry) -> LoadPlan:
        try:
            return await self._turns.plan(entry)
        except LlmspellError as error:
            entry.failure = error
            raise


def _not_found(name: str) -> ModelNotFound:
    return ModelNotFound(f"The model {name!r} is not on this machine.", param="model")
