"""What is loaded and unloaded next, and the doing of it.

Everything here runs on the event loop, the only writer of the models' states. Planning, loading and freeing happen in
worker threads whose results come back to it. ``policy.decide`` says what to do; it is asked in one turn after whatever
has happened, and when time alone may have changed the answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from server.core.background import in_thread
from server.core.errors import Draining, InsufficientMemory, LlmspellError, ModelLoadingFailed
from server.engine.engine import Delivery
from server.pool.accounts import MemoryAccounts, shown_bytes
from server.pool.config import PoolConfig
from server.pool.entry import Entry, Waiter
from server.pool.loader import LoadCancelled, LoadedModel, LoadMonitor
from server.pool.plan import LoadPlan, make_plan
from server.pool.policy import (
    Decision,
    Drain,
    Load,
    PolicyConfig,
    PoolSnapshot,
    Refuse,
    Residence,
    Undrain,
    Unload,
    decide,
    next_look,
)
from server.pool.resident import EventDispatch, Lease, Resident
from server.pool.shelf import Shelf

LoadModel = Callable[
    [LoadPlan, PoolConfig, Callable[[list[Delivery]], None], Callable[[], None], LoadMonitor], LoadedModel
]

_USABLE = (Residence.WARM, Residence.DRAINING)
_CLOSE_TIMEOUT_SECONDS = 60.0
_UNLOADED_BY_OPERATOR = Draining("The model was unloaded by an operator; send the request again.", retry_after=1.0)
_MISTAKE = LlmspellError("The server failed to load the model; its log has the details.")

_log = logging.getLogger(__name__)


class Turns:
    """Moves the entries of a pool between their file and memory."""

    def __init__(
        self,
        shelf: Shelf,
        config: PoolConfig,
        accounts: MemoryAccounts,
        load: LoadModel,
        policy: PolicyConfig,
        clock: Callable[[], float],
    ) -> None:
        """Take care of the shelf's models, also of those that come later; nothing happens before ``wake``."""
        self._shelf = shelf
        self._entries = shelf.entries
        self._config = config
        self._accounts = accounts
        self._load_model = load
        self._policy = policy
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_turn_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._is_closing = False
        self._looking_ahead: asyncio.Task[None] | None = None

    @property
    def is_closing(self) -> bool:
        """Whether nothing is loaded any more."""
        return self._is_closing

    def wake(self) -> None:
        """Have a turn soon: once for everything that happens until then."""
        if not self._is_turn_due:
            self._is_turn_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def lease(self, entry: Entry, waiter: Waiter) -> Lease:
        """Give a lease of a usable model to somebody who has waited for it, if only since now."""
        now = self._clock()
        if waiter.is_use:
            entry.last_use = now
        if waiter.keep_alive is not None:
            entry.keep_alive = waiter.keep_alive
        return entry.in_memory.lease(entry.waited(waiter, now))

    async def wait(self, entry: Entry, waiter: Waiter) -> Lease:
        """Wait for a lease.

        Raises:
            LlmspellError: the model cannot be loaded, or not now.

        """
        entry.waiters.append(waiter)
        self.wake()
        try:
            return await waiter.lease
        except BaseException:
            if waiter.lease.done() and not waiter.lease.cancelled() and waiter.lease.exception() is None:
                waiter.lease.result().release()  # it came in the moment in which the caller went away
            raise
        finally:
            if waiter in entry.waiters:
                entry.waiters.remove(waiter)
                _forget_plan(entry)
                self.wake()

    async def plan(self, entry: Entry) -> LoadPlan:
        """Find out how a model will be loaded, and what that will take.

        Raises:
            ModelNotFound: it has no file.
            ModelLoadingFailed: its file cannot be used, or could not be used a moment ago.
            ConfigurationError: the memory budget is wrong.

        """
        machine = await self._accounts.machine()
        limits = self._accounts.limits(o.name for o in self._entries.values() if o.is_pinned and o is not entry)
        material = await in_thread(self._shelf.material, entry)
        plan = await in_thread(make_plan, entry.config, self._config, machine, limits, material)
        if lessened := self._accounts.lessened(plan, limits):
            plan = await in_thread(make_plan, entry.config, self._config, machine, lessened, material)
        is_same_file = entry.plan is not None and plan.identity == entry.plan.identity
        if not is_same_file:
            entry.not_before = 0.0
        elif entry.failure is not None and (wait := entry.not_before - self._clock()) > 0:
            failure = _copy(entry.failure)
            failure.retry_after = wait
            raise failure
        return plan

    def look_ahead(self) -> None:
        """Plan, one after the other, what nobody has asked for yet: its first load need not, and what is wrong is told.

        Operators see what the models would take.
        """
        self._looking_ahead = self._start(self._look_ahead())

    async def _look_ahead(self) -> None:
        for entry in self._shelf.configured:
            if entry.residence is Residence.COLD and entry.plan is None and not entry.waiters:
                try:
                    plan = await self.plan(entry)
                except LlmspellError as error:
                    _log.warning("local/%s cannot be loaded as things are: %s", entry.name, error)
                else:
                    entry.plan = entry.plan or plan

    async def unload(self, entry: Entry, *, force: bool) -> None:
        """Unload a model after those who came before, or with ``force`` at once; wait until it is out of memory."""
        if force:
            _fail_waiters(entry, _UNLOADED_BY_OPERATOR)
        if entry.residence is Residence.COLD and not entry.waiters:
            return
        departure = asyncio.get_running_loop().create_future()
        entry.departures.append(departure)
        self.dismiss(entry)
        if force and entry.residence in _USABLE:
            self._begin_unload(entry)
        await departure

    def dismiss(self, entry: Entry) -> None:
        """Have a model unloaded after those who came before."""
        entry.dismissed_at = self._clock()
        if entry.monitor is not None and not entry.waiters:
            entry.monitor.cancel()
        self.wake()

    async def close(self, reason: LlmspellError) -> None:
        """Fail who waits with ``reason``, abort loads, fail what still runs, and free all memory."""
        self._is_closing = True
        if self._looking_ahead is not None:
            self._looking_ahead.cancel()
        for entry in self._entries.values():
            _fail_waiters(entry, reason)
            if entry.planning is not None:
                entry.planning.cancel()
            if entry.monitor is not None:
                entry.monitor.cancel()
            elif entry.residence in _USABLE:
                self._begin_unload(entry)
            elif entry.residence is Residence.COLD:
                _depart(entry)
        self._look_again_at(None)
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_SECONDS):
                while self._tasks:
                    await asyncio.wait(self._tasks)
        except TimeoutError:
            _log.error("a load or an unload does not end; giving it up")

    def _turn(self) -> None:
        self._is_turn_due = False
        if self._is_closing:
            return
        try:
            self._move_on()
        except Exception:  # noqa: BLE001 (logged, and told to everybody who waits)
            # Nobody may wait for ever because of a mistake here.
            _log.exception("the pool cannot decide what to load")
            for entry in self._entries.values():
                _fail_waiters(entry, _MISTAKE)

    def _move_on(self) -> None:
        for entry in self._entries.values():
            if entry.residence in _USABLE and not entry.is_alive:
                self._bury(entry)
        while True:
            for entry in self._entries.values():
                self._serve_waiters(entry)
            snapshot = self._snapshot()
            decisions = decide(snapshot, self._policy)
            if not decisions:
                break
            for decision in decisions:
                self._carry_out(decision)
        self._look_again_at(next_look(snapshot, self._policy))

    def _snapshot(self) -> PoolSnapshot:
        models = [found for entry in self._entries.values() if (found := entry.snapshot()) is not None]
        return PoolSnapshot(models, self._accounts.budgets, self._clock())

    def _look_again_at(self, time: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if time is not None:
            delay = max(time - self._clock(), 0.0)
            self._timer = asyncio.get_running_loop().call_later(delay, self.wake)

    def _serve_waiters(self, entry: Entry) -> None:
        """Lease a warm model to those who wait, and find out what a cold one takes."""
        if entry.residence is Residence.WARM and entry.is_alive:
            waiters = entry.waiters
            entry.waiters = [waiter for waiter in waiters if not entry.may_serve(waiter)]
            for waiter in filter(entry.may_serve, waiters):
                if not waiter.lease.done():
                    waiter.lease.set_result(self.lease(entry, waiter))
        elif entry.residence is Residence.COLD and entry.dismissed_at is not None and not entry.waiters:
            _depart(entry)
        elif entry.residence is Residence.COLD and entry.waiters and not entry.is_planned and entry.planning is None:
            entry.planning_began = self._clock()
            entry.planning = self._start(self._make_plan(entry))

    def _carry_out(self, decision: Decision) -> None:
        entry = self._entries[decision.name]
        match decision:
            case Load() if entry.plan is not None:
                self._begin_load(entry, entry.plan)
            case Unload():
                _log.info("local/%s is unloaded%s", entry.name, _reason(decision.room_for))
                self._begin_unload(entry)
            case Drain():
                entry.residence = Residence.DRAINING
            case Undrain():
                entry.residence = Residence.WARM
            case Refuse():
                _fail_waiters(entry, self._refusal(decision, entry))
            case _:
                raise AssertionError(decision)

    def _refusal(self, decision: Refuse, entry: Entry) -> InsufficientMemory:
        entry.is_planned = False
        figures = "; ".join(
            f"{device}: needed {shown_bytes(needed)}, free {shown_bytes(decision.free[device])}, "
            f"evictable {shown_bytes(decision.evictable[device])}"
            for device, needed in decision.needed.items()
        )
        error = InsufficientMemory(
            f"local/{entry.name} does not fit into memory ({figures}). Raise memory_budget in [llamacpp], lower the "
            "model's context_length, kv_cells or max_sequences, choose a smaller kv_cache_type, or unpin another model."
        )
        _log.log(_gravity(entry), "%s", error)
        return error

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_log_mistake)
        return task

    async def _make_plan(self, entry: Entry) -> None:
        try:
            plan = await self.plan(entry)
        except Exception as error:  # noqa: BLE001 (told to everybody who waits)
            failure = _as_loading_failure(entry, error)
            entry.failure = failure
            _fail_waiters(entry, failure)
        else:
            entry.plan = plan
            entry.size_bytes, entry.created = plan.identity.size, plan.identity.mtime_ns // 10**9
            entry.num_bytes = self._accounts.estimate(plan)
            entry.is_planned = True
            _forget_plan(entry)
        finally:
            entry.planning = None
            entry.planning_ended = self._clock()
            self.wake()

    def _begin_load(self, entry: Entry, plan: LoadPlan) -> None:
        self._accounts.reserve(entry.name, entry.num_bytes)
        entry.residence = Residence.LOADING
        entry.monitor = LoadMonitor()
        entry.load_began = self._clock()
        entry.measured = None
        entry.is_planned = False
        self._start(self._load(entry, plan, entry.monitor))

    async def _load(self, entry: Entry, plan: LoadPlan, monitor: LoadMonitor) -> None:
        _log.info("local/%s is being loaded: %s", entry.name, plan.choice)
        loop = asyncio.get_running_loop()
        dispatch = EventDispatch(loop)

        def on_end() -> None:
            with suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(self.wake)

        try:
            model = await in_thread(self._load_model, plan, self._config, dispatch.deliver, on_end, monitor)
        except LoadCancelled:
            self._become_cold(entry)
        except Exception as error:  # noqa: BLE001 (told to everybody who waits)
            failure = _as_loading_failure(entry, error)
            _log.log(_gravity(entry), "local/%s: %s", entry.name, failure)
            entry.note_failure(failure, self._clock())
            failure.retry_after = entry.not_before - self._clock()
            _fail_waiters(entry, failure)
            self._become_cold(entry)
        else:
            entry.measured = model.measured
            entry.num_bytes = self._accounts.correct(entry.name, plan, model.measured)
            self._become_warm(entry, model, dispatch)
            self._start(self._accounts.write())

    def _become_warm(self, entry: Entry, model: LoadedModel, dispatch: EventDispatch) -> None:
        entry.resident = Resident(model, dispatch, lambda: self._on_unused(entry))
        entry.residence = Residence.WARM
        entry.warm_since = self._clock()
        entry.load_seconds = entry.warm_since - entry.load_began
        entry.monitor = None
        entry.note_success()
        _log.info(
            "local/%s is loaded: %d tokens of context, %.1f s", entry.name, model.context_length, entry.load_seconds
        )
        if self._is_closing:
            self._begin_unload(entry)
        self.wake()

    def _on_unused(self, entry: Entry) -> None:
        now = entry.idle_since = self._clock()
        if entry.last_use is not None and entry.last_use >= entry.warm_since:
            entry.last_use = now
        matters = entry.keep_alive_until is not None or not entry.is_usable or self._accounts.is_overdrawn
        if matters or any(other.waiters for other in self._entries.values()):
            self.wake()

    def _begin_unload(self, entry: Entry) -> None:
        entry.residence = Residence.UNLOADING
        self._start(self._unload(entry, entry.in_memory))

    async def _unload(self, entry: Entry, resident: Resident) -> None:
        await resident.retire()
        entry.resident = None
        self._become_cold(entry)

    def _become_cold(self, entry: Entry) -> None:
        self._accounts.release(entry.name)
        entry.residence = Residence.COLD
        entry.monitor = None
        entry.is_planned = False
        entry.forget_keep_alive(self._config)
        _depart(entry)
        self.wake()

    def _bury(self, entry: Entry) -> None:
        """Unload a model whose engine died, and have it loaded again if it is always to be there.

        Without the latter, the server would not be ready again before somebody asked for it.
        """
        _log.warning("local/%s died", entry.name)
        entry.note_death(self._clock())
        self._begin_unload(entry)
        if (entry.config.preload or entry.is_pinned) and entry.dismissed_at is None:
            self._start(self._load_again(entry))

    async def _load_again(self, entry: Entry) -> None:
        try:
            (await self.wait(entry, Waiter(self._clock(), is_use=False))).release()
        except LlmspellError as error:
            _log.error("local/%s cannot be loaded again: %s", entry.name, error)


def _gravity(entry: Entry) -> int:
    """Say how loud a failure to load is logged: what fails a preload or an operator's load is told to them."""
    return logging.WARNING if any(waiter.is_use for waiter in entry.waiters) else logging.INFO


def _fail_waiters(entry: Entry, error: LlmspellError) -> None:
    waiters, entry.waiters = entry.waiters, []
    _forget_plan(entry)
    for waiter in waiters:
        if not waiter.lease.done():
            # each gets one of its own: raising an exception again makes its traceback longer
            waiter.lease.set_exception(_copy(error))


def _forget_plan(entry: Entry) -> None:
    """Drop the plan of a load that nobody waits for any more: the next one may come when the file is another one."""
    if not entry.waiters:
        entry.is_planned = False


def _depart(entry: Entry) -> None:
    entry.dismissed_at = None
    departures, entry.departures = entry.departures, []
    for departure in departures:
        if not departure.done():
            departure.set_result(None)


def _copy(error: LlmspellError) -> LlmspellError:
    return type(error)(error.message, param=error.param, retry_after=error.retry_after)


def _as_loading_failure(entry: Entry, error: Exception) -> LlmspellError:
    if isinstance(error, LlmspellError):
        return error
    _log.error("local/%s cannot be loaded", entry.name, exc_info=error)
    return ModelLoadingFailed(f"local/{entry.name} cannot be loaded: {error}")


def _reason(room_for: str | None) -> str:
    return "" if room_for is None else f" to make room for local/{room_for}"


def _log_mistake(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("a task of the pool failed", exc_info=error)
