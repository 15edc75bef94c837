"""What the pool knows about one model: its state, who waits for it, and what it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from server.core.duration import duration_seconds
from server.core.errors import LlmspellError
from server.core.model_spec import BackendName
from server.core.ports import LoadProgress, ModelCard, ModelState, ResidencyStatus
from server.pool.config import ModelConfig, PoolConfig
from server.pool.first_token import FirstTokens
from server.pool.loader import LoadMonitor
from server.pool.plan import LoadPlan
from server.pool.policy import ModelSnapshot, Residence
from server.pool.resident import Lease, Resident, Waited

_STATES = {
    Residence.LOADING: ModelState.LOADING,
    Residence.WARM: ModelState.WARM,
    Residence.DRAINING: ModelState.DRAINING,
    Residence.UNLOADING: ModelState.DRAINING,
}
_LONGEST_BACK_OFF_SECONDS = 60.0
_SHORT_LIFE_SECONDS = 10.0
_LEAST_UNUSED_SECONDS = 60.0
"""A model that was loaded before anybody asked for it stays this long at least, however short its keep_alive."""


def _back_off(num_failures: int) -> float:
    return min(2.0 ** min(num_failures - 1, 10), _LONGEST_BACK_OFF_SECONDS)


def _future() -> asyncio.Future[Lease]:
    return asyncio.get_running_loop().create_future()


@dataclass(slots=True, eq=False)
class Waiter:
    """Somebody who waits for a lease.

    ``since`` is the time of arrival, ``keep_alive`` what the request says about it, and ``is_use`` whether the model is
    going to be used: a preload or an operator only want it loaded.
    """

    since: float
    keep_alive: float | None = None
    is_use: bool = True
    lease: asyncio.Future[Lease] = field(default_factory=_future)


@dataclass(slots=True, eq=False)
class Entry:
    """One model that the pool could load. Only the pool changes it, on the event loop.

    Attributes:
        name: without provider.
        config: what the operator says about it; without a path it is the one that is found by its name.
        keep_alive: seconds that it stays in memory without use, negative for ever: the operator's word, or that of the
            latest request which said something.
        first_tokens: how long requests waited.
        is_pinned: whether it stays in memory once it is there.
        most_waiters: requests that may wait for it: as many as it would take at once.
        size_bytes: of the file, when it was last looked at.
        created: Unix time at which the file was made, in seconds.
        residence: its state.
        resident: the loaded model; set while it is warm or on its way out.
        planning: the task that finds out what a load will take.
        planning_began: when that task, or the one before it, began.
        planning_ended: when it ended.
        plan: its latest result.
        is_planned: whether that is for the load that is going to happen.
        num_bytes: bytes by device that it takes or would take.
        measured: bytes by device that the latest load took.
        monitor: of the load that goes on.
        load_began: when that load began.
        load_seconds: what the latest load took.
        warm_since: when the latest load ended.
        last_use: when a lease last began or ended; ``None`` before the first.
        idle_since: when it last became unused in memory.
        dismissed_at: when an operator asked to unload it, until it is out of memory.
        failure: why the latest load failed; ``None`` after one that did not.
        num_failures: loads that failed one after the other.
        num_early_deaths: engines that died soon after their load, one after the other.
        not_before: no load is tried earlier, unless the file changes.
        has_been_loaded: whether it was in memory, or was left out of the preload, since the start.
        waiters: in the order of their arrival.
        departures: those who wait until it is out of memory.

    """

    name: str
    config: ModelConfig
    keep_alive: float
    first_tokens: FirstTokens
    is_pinned: bool
    most_waiters: int
    size_bytes: int = 0
    created: int = 0
    residence: Residence = Residence.COLD
    resident: Resident | None = None
    planning: asyncio.Task[None] | None = None
    planning_began: float = 0.0
    planning_ended: float = 0.0
    plan: LoadPlan | None = None
    is_planned: bool = False
    num_bytes: Mapping[str, int] = field(default_factory=dict)
    measured: Mapping[str, int] | None = None
    monitor: LoadMonitor | None = None
    load_began: float = 0.0
    load_seconds: float | None = None
    warm_since: float = 0.0
    last_use: float | None = None
    idle_since: float = 0.0
    dismissed_at: float | None = None
    failure: LlmspellError | None = None
    num_failures: int = 0
    num_early_deaths: int = 0
    not_before: float = 0.0
    has_been_loaded: bool = False
    waiters: list[Waiter] = field(default_factory=list)
    departures: list[asyncio.Future[None]] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, config: ModelConfig, pool_config: PoolConfig) -> Entry:
        """Begin with a cold model."""
        target = pool_config.ttft_target_ms if config.ttft_target_ms < 0 else config.ttft_target_ms
        most_waiters = (config.max_sequences or pool_config.max_sequences) + pool_config.queue_size
        entry = cls(name, config, 0.0, FirstTokens(target / 1000 if target else None), config.pin, most_waiters)
        entry.forget_keep_alive(pool_config)
        entry.look_at_file()
        return entry

    def look_at_file(self) -> None:
        """Note size and age of a configured file, for the list of models; blocking."""
        if not self.config.path:
            return
        try:
            status = Path(self.config.path).stat()
        except (OSError, ValueError):  # it is listed all the same, and a request says what is wrong
            self.size_bytes = self.created = 0
        else:
            self.size_bytes, self.created = status.st_size, int(status.st_mtime)

    def forget_keep_alive(self, pool_config: PoolConfig) -> None:
        """Go back to the keep-alive that the operator set."""
        self.keep_alive = duration_seconds(self.config.keep_alive or pool_config.keep_alive)

    @property
    def is_usable(self) -> bool:
        """Whether leases are given out at once."""
        return self.residence is Residence.WARM and self.is_alive and self.dismissed_at is None

    @property
    def is_alive(self) -> bool:
        """Whether a loaded model serves requests."""
        return self.resident is not None and self.resident.is_alive

    @property
    def is_unused(self) -> bool:
        """Whether nobody waits for it, and nothing of it is in memory or on its way there."""
        is_idle = self.planning is None and not self.waiters and not self.departures
        return self.residence is Residence.COLD and is_idle

    @property
    def in_memory(self) -> Resident:
        """The loaded model of an entry that is warm or on its way out."""
        if self.resident is None:
            raise AssertionError(self.name)
        return self.resident

    @property
    def num_leases(self) -> int:
        """Requests that use the model."""
        return 0 if self.resident is None else self.resident.num_leases

    @property
    def keep_alive_until(self) -> float | None:
        """When an unused model goes; ``None`` for never."""
        if self.keep_alive < 0 or self.residence not in (Residence.WARM, Residence.DRAINING):
            return None
        if self.last_use is None or self.last_use < self.warm_since:
            return self.warm_since + max(self.keep_alive, _LEAST_UNUSED_SECONDS)
        return self.idle_since + self.keep_alive

    def may_serve(self, waiter: Waiter) -> bool:
        """Whether a warm model is for this waiter: an unload lets those finish who came before it."""
        return self.dismissed_at is None or waiter.since <= self.dismissed_at

    def waited(self, waiter: Waiter, now: float) -> Waited:
        """Divide the time that a waiter waited until now, when the model is warm; planning is part of the load."""
        planning = max(self.planning_ended - max(self.planning_began, waiter.since), 0.0)
        load = planning + max(self.warm_since - max(self.load_began, waiter.since), 0.0)
        return Waited(queued=max(now - waiter.since - load, 0.0), load=load)

    def note_failure(self, error: LlmspellError, now: float) -> None:
        """Remember a load that failed, and put the next one off."""
        self.failure = error
        self.num_failures += 1
        self.not_before = now + _back_off(self.num_failures)

    def note_death(self, now: float) -> None:
        """Remember that the engine died; one that keeps dying soon after its load is put off like a failing load."""
        self.num_early_deaths = self.num_early_deaths + 1 if now - self.warm_since < _SHORT_LIFE_SECONDS else 0
        if self.num_early_deaths > 1:
            self.not_before = now + _back_off(self.num_early_deaths - 1)
        self.has_been_loaded = False

    def note_success(self) -> None:
        """Forget earlier failures."""
        self.failure = None
        self.num_failures = 0
        self.not_before = 0.0
        self.has_been_loaded = True

    def snapshot(self) -> ModelSnapshot | None:
        """Describe the model for ``policy.decide``; ``None`` if it has no part in a decision."""
        is_claimant = self.residence is Residence.COLD and self.waiters and self.is_planned
        if self.residence is Residence.COLD and not is_claimant:
            return None
        return ModelSnapshot(
            name=self.name,
            residence=self.residence,
            num_bytes=self.num_bytes,
            num_leases=self.num_leases,
            waiting_since=self.waiters[0].since if self.waiters else None,
            last_use=self.last_use or 0.0,
            warm_since=self.warm_since,
            keep_alive_until=self.keep_alive_until,
            is_pinned=self.is_pinned and self.dismissed_at is None,  # an operator's unload is the later word
            is_dismissed=self.dismissed_at is not None,
            not_before=self.not_before,
        )

    @property
    def state(self) -> ModelState:
        """The state for clients and operators."""
        if self.residence is not Residence.COLD:
            is_dead = self.resident is not None and not self.resident.is_alive
            is_lost = is_dead and self.residence is Residence.WARM
            return ModelState.FAILED if is_lost else _STATES[self.residence]
        if self.waiters:
            return ModelState.LOADING
        return ModelState.COLD if self.failure is None else ModelState.FAILED

    @property
    def progress(self) -> LoadProgress | None:
        """How far the load is that somebody waits for."""
        if self.residence is Residence.LOADING and self.monitor is not None:
            return LoadProgress(self.monitor.fraction)
        # Between the load's end and the turn that serves them, the waiters wait for memory no more.
        return LoadProgress(0.0, is_queued=True) if self.waiters and not self.is_usable else None

    @property
    def context_length(self) -> int | None:
        """Tokens of one sequence, as far as they are decided."""
        if self.resident is not None:
            return self.resident.model.context_length
        if self.plan is not None:
            return self.plan.context.sequence_len
        length = self.config.context_length
        return length if isinstance(length, int) and length else None

    def card(self) -> ModelCard:
        """Describe the model for clients."""
        return ModelCard(
            model=self.name,
            backend=BackendName.LLAMACPP,
            state=self.state,
            created=self.created,
            size_bytes=self.size_bytes,
            context_length=self.context_length,
        )

    def status(self, to_unix: float) -> ResidencyStatus:
        """Describe the model for operators; ``to_unix`` added to a time of the pool's clock gives Unix time."""
        until = self.keep_alive_until if self.num_leases == 0 and not self.is_pinned else None
        context = None if self.plan is None else self.plan.context
        engine = None if self.resident is None else self.resident.model.engine.status
        return ResidencyStatus(
            model=self.name,
            state=self.state,
            is_pinned=self.is_pinned,
            is_preloaded=self.config.preload,
            predicted={} if self.plan is None else self.plan.predicted,
            measured=self.measured,
            num_leases=self.num_leases,
            num_waiting=len(self.waiters),
            last_use=None if self.last_use is None else self.last_use + to_unix,
            keep_alive_until=None if until is None else until + to_unix,
            context_length=self.context_length,
            kv_cells=None if context is None else context.num_cells,
            gpu_layers=None if self.plan is None else self.plan.load.gpu_layers,
            num_saved=0 if engine is None else engine.num_saved,
            saved_bytes=0 if engine is None else engine.num_saved_bytes,
            load_seconds=self.load_seconds,
            progress=self.progress,
            failure=None if self.failure is None else self.failure.message,
            first_token=self.first_tokens.record(),
        )
