"""The models in memory: loaded when asked for, replaced when options want it, dropped when their time is up."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from fakes.catalogue import FakeModel, details
from fakes.reading import FOR_EVER, Refused
from fakes.records import Records
from fakes.wire import Exchange

_FIVE_MINUTES = 300.0
_TOO_BUSY = "server busy, please try again.  maximum pending requests exceeded"
_OF_A_RUNNER = ("num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")


@dataclass(frozen=True)
class Runner:
    """What a model is loaded with; a request that asks for something else has it loaded anew."""

    num_ctx: int
    automatic: bool
    shift: bool
    options: tuple[object, ...]

    @classmethod
    def wanted(cls, model: FakeModel, options: Mapping[str, Any], default_ctx: int, *, shift: bool) -> Runner:
        """What a request with these options wants."""
        num_ctx = default_ctx if options.get("num_ctx") is None else int(options["num_ctx"])
        num_ctx = max(num_ctx, 2048 if model.can("vision") else 4)
        others = tuple(options.get(name) for name in _OF_A_RUNNER)
        return cls(min(num_ctx, model.context_length), "num_ctx" not in options, shift, others)

    def serves(self, wanted: Runner) -> bool:
        """Whether a request that wants the other one can have this one."""
        same_context = self.num_ctx == wanted.num_ctx or (self.automatic and wanted.automatic)
        return same_context and (self.shift, self.options) == (wanted.shift, wanted.options)


@dataclass(eq=False)
class Loaded:
    """A model in memory."""

    model: FakeModel
    runner: Runner
    slots: asyncio.Semaphore | None
    keep_alive: float = _FIVE_MINUTES
    num_users: int = 0
    num_queued: int = 0
    expires: datetime | None = None
    timer: asyncio.TimerHandle | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def row(self) -> dict[str, Any]:
        """What ``/api/ps`` says of it."""
        shown = self.model.full_name.shortest
        size = 2 * self.model.size + 2304 * self.runner.num_ctx
        row: dict[str, Any] = {"name": shown, "model": shown, "size": size, "digest": self.model.sha256}
        expires = self.expires or _in(self.keep_alive)
        row |= {"details": details(self.model), "expires_at": expires.isoformat().replace("+00:00", "Z")}
        return row | {"size_vram": 0, "context_length": self.runner.num_ctx}


class Memory:
    """Loads and unloads; lives on the stand-in's loop."""

    def __init__(self, records: Records, parallel: int | None, max_queue: int | None) -> None:
        self._records = records
        self._parallel = parallel
        self._max_queue = max_queue
        self._loaded: dict[str, Loaded] = {}

    @property
    def names(self) -> list[str]:
        return [loaded.model.full_name.shortest for loaded in list(self._loaded.values())]

    def rows(self) -> list[dict[str, Any]]:
        """What is loaded, the one that stays longest first."""
        rows = [loaded.row for loaded in self._loaded.values()]
        return sorted(rows, key=lambda row: str(row["expires_at"])[:19], reverse=True)

    def clear(self) -> None:
        self._loaded.clear()

    def unload(self, key: str) -> None:
        """Drop a model, whoever uses it."""
        loaded = self._loaded.pop(key, None)
        if loaded is None:
            return
        if loaded.timer is not None:
            loaded.timer.cancel()
        loaded.gone.set()
        with self._records.change():
            pass

    def expire(self, model: FakeModel) -> None:
        """Drop a model once nobody uses it."""
        loaded = self._loaded.get(model.full_name.key)
        if loaded is not None:
            loaded.keep_alive = 0
            if not loaded.num_users:
                self.unload(model.full_name.key)

    async def enter(self, exchange: Exchange, model: FakeModel, wanted: Runner, keep_alive: float | None) -> Loaded:
        """Have the model for a request, which must ``leave`` it."""
        key = model.full_name.key
        while (loaded := self._loaded.get(key)) is not None and not loaded.runner.serves(wanted):
            self.expire(model)
            await loaded.gone.wait()
        if loaded is None:
            slots = None if self._parallel is None else asyncio.Semaphore(self._parallel)
            loaded = self._loaded[key] = Loaded(model, wanted, slots)
            self._records.loaded()
            arriving = self._load(exchange, loaded)
        else:
            arriving = self._await(loaded)
        loaded.num_users += 1
        if loaded.timer is not None:
            loaded.timer.cancel()
        if keep_alive is not None:
            loaded.keep_alive = keep_alive
        try:
            await arriving
        except asyncio.CancelledError:
            self.leave(loaded)
            raise
        return loaded

    def leave(self, loaded: Loaded) -> None:
        """A request is done with the model; the last one starts the clock that unloads it."""
        loaded.num_users -= 1
        key = loaded.model.full_name.key
        if loaded.num_users or self._loaded.get(key) is not loaded:
            return
        loaded.expires = _in(loaded.keep_alive)
        if loaded.keep_alive <= 0:
            self.unload(key)
        elif loaded.keep_alive != FOR_EVER:
            loop = asyncio.get_running_loop()
            loaded.timer = loop.call_later(loaded.keep_alive, self.unload, key)

    def slot(self, loaded: Loaded) -> Slot:
        return Slot(loaded, self._max_queue)

    async def _load(self, exchange: Exchange, loaded: Loaded) -> None:
        try:
            await exchange.wait_at("load")
            await asyncio.sleep(loaded.model.load_seconds)
        finally:
            loaded.ready.set()

    async def _await(self, loaded: Loaded) -> None:
        await loaded.ready.wait()


class Slot:
    """One of the requests that a model works on at once; more of them wait."""

    def __init__(self, loaded: Loaded, max_queue: int | None) -> None:
        self._loaded = loaded
        self._max_queue = max_queue

    async def __aenter__(self) -> None:
        slots = self._loaded.slots
        if slots is None:
            return
        if self._max_queue is not None and slots.locked() and self._loaded.num_queued >= self._max_queue:
            raise Refused(503, _TOO_BUSY)
        self._loaded.num_queued += 1
        try:
            await slots.acquire()
        finally:
            self._loaded.num_queued -= 1

    async def __aexit__(self, *_: object) -> None:
        if self._loaded.slots is not None:
            self._loaded.slots.release()


def _in(seconds: float) -> datetime:
    try:
        return datetime.now(UTC) + timedelta(seconds=seconds)
    except OverflowError:
        return datetime.now(UTC) + timedelta(days=106751)  # as many nanoseconds as Go counts
