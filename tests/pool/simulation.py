"""A pool without models: carries out what the policy decides, and checks with every decision that it may."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from server.pool.ledger import Ledger
from server.pool.policy import (
    Decision,
    Drain,
    Load,
    ModelSnapshot,
    PolicyConfig,
    PoolSnapshot,
    Refuse,
    Residence,
    Undrain,
    Unload,
    decide,
    next_look,
)


@dataclass(slots=True)
class SimulatedModel:
    """A model that is nothing but its bytes; ``waiting`` holds arrival times, oldest first."""

    num_bytes: Mapping[str, int]
    keep_alive: float | None = None
    is_pinned: bool = False
    is_dismissed: bool = False
    residence: Residence = Residence.COLD
    num_leases: int = 0
    waiting: list[float] = field(default_factory=list)
    last_use: float = 0.0
    warm_since: float = 0.0

    def snapshot(self, name: str) -> ModelSnapshot:
        last_active = max(self.last_use, self.warm_since)
        return ModelSnapshot(
            name,
            self.residence,
            self.num_bytes,
            num_leases=self.num_leases,
            waiting_since=self.waiting[0] if self.waiting else None,
            last_use=self.last_use,
            warm_since=self.warm_since,
            keep_alive_until=None if self.keep_alive is None else last_active + self.keep_alive,
            is_pinned=self.is_pinned,
            is_dismissed=self.is_dismissed,
        )


class SimulatedPool:
    """What the pool does around the policy; loads, leases and unloads end when the test says so.

    ``history`` holds every decision with its time, ``waits`` by model how long each request waited for its lease, and
    ``num_refused`` by model how many were told that it does not fit.
    """

    def __init__(self, models: Mapping[str, SimulatedModel], budgets: Mapping[str, int], config: PolicyConfig) -> None:
        self.models = dict(models)
        self.config = config
        self.ledger = Ledger(budgets)
        self.now = 0.0
        self.history: list[tuple[float, Decision]] = []
        self.waits: dict[str, list[float]] = {name: [] for name in models}
        self.num_refused = dict.fromkeys(models, 0)

    def request(self, name: str) -> None:
        self.models[name].waiting.append(self.now)

    def give_up(self, name: str) -> None:
        """The client that has waited longest goes away."""
        self.models[name].waiting.pop(0)

    def end_lease(self, name: str) -> None:
        model = self.models[name]
        model.num_leases -= 1
        model.last_use = self.now

    def end_load(self, name: str, *, fails: bool = False) -> None:
        model = self.models[name]
        if fails:
            model.residence, model.waiting = Residence.COLD, []
            self.ledger.release(name)
        else:
            model.residence, model.warm_since = Residence.WARM, self.now
            self.ledger.correct(name, model.num_bytes)

    def end_unload(self, name: str) -> None:
        self.models[name].residence = Residence.COLD
        self.ledger.release(name)

    def snapshot(self) -> PoolSnapshot:
        models = [model.snapshot(name) for name, model in self.models.items()]
        return PoolSnapshot(models, self.ledger.budgets, self.now)

    def next_look(self) -> float | None:
        return next_look(self.snapshot(), self.config)

    def settle(self) -> list[Decision]:
        """Decide, carry it out, and check that nothing remains to be decided."""
        decisions = self._step()
        if any(isinstance(decision, Undrain) for decision in decisions):
            decisions += self._step()
        assert decide(self.snapshot(), self.config) == []
        return decisions

    def _step(self) -> list[Decision]:
        self._lease_what_is_warm()
        snapshot = self.snapshot()
        decisions = decide(snapshot, self.config)
        backwards = PoolSnapshot(tuple(reversed(snapshot.models)), snapshot.budgets, snapshot.now)
        assert decide(backwards, self.config) == decisions
        for decision in decisions:
            self.history.append((self.now, decision))
            self._carry_out(decision)
        self._lease_what_is_warm()
        return decisions

    def in_state(self, residence: Residence) -> list[str]:
        return [name for name, model in self.models.items() if model.residence is residence]

    def load_times(self, name: str) -> list[float]:
        return [time for time, decision in self.history if decision == Load(name)]

    def lease_begins(self, name: str) -> None:
        """Hook: one more lease."""

    def load_begins(self, name: str) -> None:
        """Hook: a load to be ended."""

    def unload_begins(self, name: str) -> None:
        """Hook: an unload to be ended."""

    def _lease_what_is_warm(self) -> None:
        for name in self.in_state(Residence.WARM):
            model = self.models[name]
            while model.waiting:
                self.waits[name].append(self.now - model.waiting.pop(0))
                model.num_leases += 1
                model.last_use = self.now
                self.lease_begins(name)

    def _carry_out(self, decision: Decision) -> None:
        model = self.models[decision.name]
        match decision:
            case Load(name):
                self._load(name, model)
            case Unload(name, room_for):
                self._unload(name, model, room_for)
            case Drain(_, room_for):
                assert model.residence is Residence.WARM
                assert model.num_leases > 0
                assert not model.is_pinned
                self._check_turn(model, room_for)
                assert model.is_dismissed or self._is_turn_over(model, room_for)
                model.residence = Residence.DRAINING
            case Undrain():
                assert model.residence is Residence.DRAINING
                model.residence = Residence.WARM
            case Refuse():
                self._refuse(decision, model)

    def _load(self, name: str, model: SimulatedModel) -> None:
        assert model.residence is Residence.COLD
        assert model.waiting
        assert len(self.in_state(Residence.LOADING)) < self.config.max_concurrent_loads
        self.ledger.reserve(name, model.num_bytes)
        model.residence = Residence.LOADING
        self.load_begins(name)

    def _unload(self, name: str, model: SimulatedModel, room_for: str | None) -> None:
        assert model.residence in (Residence.WARM, Residence.DRAINING)
        assert model.num_leases == 0
        assert not model.is_pinned
        self._check_turn(model, room_for)
        model.residence, model.is_dismissed = Residence.UNLOADING, False
        self.unload_begins(name)

    def _check_turn(self, model: SimulatedModel, room_for: str | None) -> None:
        if room_for is not None and not model.is_dismissed:
            assert self.models[room_for].residence is Residence.COLD
            assert not model.waiting or self.models[room_for].waiting[0] < model.waiting[0]
            assert any(model.num_bytes.get(device, 0) for device in self.models[room_for].num_bytes)

    def _is_turn_over(self, model: SimulatedModel, room_for: str | None) -> bool:
        is_settled = self.now >= model.warm_since + self.config.least_residency_seconds
        arrival = self.models[room_for].waiting[0] if room_for is not None else self.now
        return is_settled and self.now >= arrival + self.config.longest_wait_seconds

    def _refuse(self, refusal: Refuse, model: SimulatedModel) -> None:
        kept = [m for m in self.models.values() if m.is_pinned and m.residence not in GONE]
        room = {d: self.ledger.budgets.get(d, 0) - sum(m.num_bytes.get(d, 0) for m in kept) for d in model.num_bytes}
        assert model.residence is Residence.COLD
        assert any(num > room[device] for device, num in model.num_bytes.items())
        assert all(refusal.free[device] + refusal.evictable[device] == max(room[device], 0) for device in room)
        self.num_refused[refusal.name] += len(model.waiting)
        model.waiting.clear()


GONE = (Residence.COLD, Residence.UNLOADING)


@dataclass(frozen=True, slots=True)
class Durations:
    """Seconds that things take; ``lease`` is asked anew for each one."""

    load: float = 1.0
    unload: float = 0.1
    lease: Callable[[], float] = lambda: 1.0


class TimedPool(SimulatedPool):
    """A simulated pool with a clock that jumps from event to event, like a pool that sleeps until ``next_look``."""

    def __init__(
        self,
        models: Mapping[str, SimulatedModel],
        budgets: Mapping[str, int],
        config: PolicyConfig,
        durations: Durations,
    ) -> None:
        super().__init__(models, budgets, config)
        self._durations = durations
        self._events: list[tuple[float, int, Callable[[str], None], str]] = []
        self._num_events = 0

    def lease_begins(self, name: str) -> None:
        self.after(self._durations.lease(), self.end_lease, name)

    def load_begins(self, name: str) -> None:
        self.after(self._durations.load, self.end_load, name)

    def unload_begins(self, name: str) -> None:
        self.after(self._durations.unload, self.end_unload, name)

    def run(self, arrivals: Sequence[tuple[float, str]], until: float = float("inf")) -> None:
        """Let requests arrive and time pass until nothing can happen any more, or until some time."""
        for time, name in arrivals:
            self.after(time - self.now, self.request, name)
        while (time_of_next := self._time_of_next()) is not None and time_of_next <= until:
            self.now = time_of_next
            while self._events and self._events[0][0] <= self.now:
                _, _, act, name = heapq.heappop(self._events)
                act(name)
            self.settle()

    def _time_of_next(self) -> float | None:
        times = [self.next_look(), self._events[0][0] if self._events else None]
        return min((time for time in times if time is not None), default=None)

    def after(self, seconds: float, act: Callable[[str], None], name: str) -> None:
        """Let something happen to a model so many seconds from now."""
        self._num_events += 1
        heapq.heappush(self._events, (self.now + seconds, self._num_events, act, name))
