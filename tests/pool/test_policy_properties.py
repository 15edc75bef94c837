"""What holds for the residency policy whatever happens; ``simulation`` checks each decision as it carries it out."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from simulation import Durations, SimulatedModel, SimulatedPool, TimedPool

from server.pool.policy import (
    Drain,
    Load,
    ModelSnapshot,
    PolicyConfig,
    PoolSnapshot,
    Refuse,
    Residence,
    Unload,
    decide,
    next_look,
)

BUDGETS = {"CUDA0": 10, "CUDA1": 6, "CPU": 8}
NAMES = "abcdef"
RESIDENT = (Residence.LOADING, Residence.WARM, Residence.DRAINING)

devices = st.sampled_from([*BUDGETS] * 5 + ["CUDA2"])
footprints = st.dictionaries(devices, st.integers(0, 7), max_size=3)
configs = st.builds(
    PolicyConfig,
    longest_wait_seconds=st.sampled_from([0.0, 2.0, 10.0]),
    least_residency_seconds=st.sampled_from([0.0, 1.0, 4.0]),
    idle_grace_seconds=st.sampled_from([0.0, 0.5]),
    max_concurrent_loads=st.integers(1, 3),
)
times = st.integers(0, 20).map(float)
model_snapshots = st.builds(
    ModelSnapshot,
    name=st.sampled_from(NAMES),
    residence=st.sampled_from(Residence),
    num_bytes=footprints,
    num_leases=st.integers(0, 2),
    waiting_since=st.none() | times,
    last_use=times,
    warm_since=times,
    keep_alive_until=st.none() | st.integers(0, 40).map(float),
    is_pinned=st.sampled_from([False, False, True]),
    is_dismissed=st.sampled_from([False, False, True]),
    not_before=st.sampled_from([0.0, 0.0, 25.0]),
)
pool_snapshots = st.builds(
    PoolSnapshot,
    models=st.lists(model_snapshots, max_size=6, unique_by=lambda model: model.name),
    budgets=st.just(BUDGETS),
    now=st.just(20.0),
)


def total(models: Sequence[ModelSnapshot], device: str) -> int:
    return sum(model.num_bytes.get(device, 0) for model in models)


def fits(needed: Mapping[str, int], beside: Sequence[ModelSnapshot]) -> bool:
    return all(total(beside, device) + num <= BUDGETS.get(device, 0) for device, num in needed.items() if num)


@given(pool_snapshots, configs)
def test_each_decision_is_allowed_in_any_snapshot(snapshot: PoolSnapshot, config: PolicyConfig) -> None:
    models = {model.name: model for model in snapshot.models}
    taken = [model for model in models.values() if model.residence is not Residence.COLD]
    num_loads = sum(model.residence is Residence.LOADING for model in models.values())
    decisions = decide(snapshot, config)
    assert len({decision.name for decision in decisions}) == len(decisions)
    for decision in decisions:
        model = models[decision.name]
        match decision:
            case Load():
                assert model.residence is Residence.COLD
                assert fits(model.num_bytes, taken)
                taken.append(model)
                num_loads += 1
                assert num_loads <= config.max_concurrent_loads
            case Unload():
                assert model.residence in (Residence.WARM, Residence.DRAINING)
                assert model.num_leases == 0
                assert not model.is_pinned
            case Drain():
                assert model.residence is Residence.WARM
                assert model.num_leases > 0
                assert not model.is_pinned


@given(pool_snapshots, configs)
def test_refused_is_exactly_what_cannot_fit(snapshot: PoolSnapshot, config: PolicyConfig) -> None:
    decisions = decide(snapshot, config)
    refusals = {decision.name: decision for decision in decisions if isinstance(decision, Refuse)}
    loads = {decision.name for decision in decisions if isinstance(decision, Load)}
    kept = [m for m in snapshot.models if m.is_pinned and (m.residence in RESIDENT or m.name in loads)]
    others = [model for model in snapshot.models if model.is_wanted and model.name not in loads]
    assert set(refusals) == {model.name for model in others if not fits(model.num_bytes, kept)}
    assert not any(isinstance(d, Unload | Drain) and d.room_for in refusals for d in decisions)
    for refusal in refusals.values():
        assert any(num > refusal.free[d] + refusal.evictable[d] for d, num in refusal.needed.items())


@given(pool_snapshots, configs)
def test_nothing_goes_in_vain(snapshot: PoolSnapshot, config: PolicyConfig) -> None:
    """A single claimant fits when what it takes is gone, and would not if any one of these stayed."""
    models = {model.name: replace(model, is_dismissed=False) for model in snapshot.models}
    decisions = decide(replace(snapshot, models=tuple(models.values())), config)
    claimants = {d.room_for for d in decisions if isinstance(d, Unload | Drain) and d.room_for is not None}
    wanted = [model for model in models.values() if model.is_wanted]
    if len(wanted) != 1 or not claimants:
        return
    assert claimants == {wanted[0].name}
    # What drained before goes on draining if the claimant needs it, which no decision says.
    kept_draining = {m.name for m in models.values() if m.residence is Residence.DRAINING} - {d.name for d in decisions}
    gone = {decision.name for decision in decisions if isinstance(decision, Unload | Drain)} | kept_draining
    taken = [model for model in models.values() if model.residence not in (Residence.COLD, Residence.UNLOADING)]
    rest = [model for model in taken if model.name not in gone]
    assert fits(wanted[0].num_bytes, rest)
    for decision in decisions:
        if isinstance(decision, Unload | Drain) and decision.room_for is not None:
            assert not fits(wanted[0].num_bytes, [*rest, models[decision.name]])


@given(pool_snapshots, configs, st.lists(st.floats(0, 30), max_size=5))
def test_decisions_do_not_change_before_the_next_look(
    snapshot: PoolSnapshot, config: PolicyConfig, seconds: list[float]
) -> None:
    now, look = snapshot.now, next_look(snapshot, config)
    assert look is None or look > now
    expected = decide(snapshot, config)
    for later in seconds:
        if look is None or now + later < look:
            assert decide(replace(snapshot, now=now + later), config) == expected


class RandomPool(RuleBasedStateMachine):
    """Anything may happen to a pool at any time; after each step it decides."""

    @initialize(shapes=st.lists(footprints, min_size=6, max_size=6), config=configs)
    def know_the_models(self, shapes: list[dict[str, int]], config: PolicyConfig) -> None:
        models = {name: SimulatedModel(shape) for name, shape in zip(NAMES, shapes, strict=True)}
        self.pool = SimulatedPool(models, BUDGETS, config)

    def names(self, *residences: Residence) -> list[str]:
        return [name for residence in residences for name in self.pool.in_state(residence)]

    def leased(self) -> list[str]:
        return [name for name, model in self.pool.models.items() if model.num_leases]

    def waiting(self) -> list[str]:
        return [name for name, model in self.pool.models.items() if model.waiting]

    @rule(name=st.sampled_from(NAMES), count=st.integers(1, 3))
    def request(self, name: str, count: int) -> None:
        for _ in range(count):
            self.pool.request(name)

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        self.pool.give_up(data.draw(st.sampled_from(self.waiting())))

    @precondition(lambda self: self.leased())
    @rule(data=st.data())
    def end_lease(self, data: st.DataObject) -> None:
        self.pool.end_lease(data.draw(st.sampled_from(self.leased())))

    @precondition(lambda self: self.names(Residence.LOADING))
    @rule(data=st.data(), fails=st.sampled_from([False, False, True]))
    def end_load(self, data: st.DataObject, *, fails: bool) -> None:
        self.pool.end_load(data.draw(st.sampled_from(self.names(Residence.LOADING))), fails=fails)

    @precondition(lambda self: self.names(Residence.UNLOADING))
    @rule(data=st.data())
    def end_unload(self, data: st.DataObject) -> None:
        self.pool.end_unload(data.draw(st.sampled_from(self.names(Residence.UNLOADING))))

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 5.0]))
    def pass_time(self, seconds: float) -> None:
        self.pool.now += seconds

    @precondition(lambda self: self.pool.next_look() is not None)
    @rule()
    def sleep_until_the_next_look(self) -> None:
        look = self.pool.next_look()
        assert look is not None
        assert look > self.pool.now
        self.pool.now = look

    @rule(name=st.sampled_from(NAMES), is_pinned=st.booleans())
    def pin(self, name: str, *, is_pinned: bool) -> None:
        self.pool.models[name].is_pinned = is_pinned

    @rule(name=st.sampled_from(NAMES), keep_alive=st.sampled_from([None, 0.0, 1.0]))
    def keep_alive(self, name: str, keep_alive: float | None) -> None:
        self.pool.models[name].keep_alive = keep_alive

    @precondition(lambda self: self.names(*RESIDENT))
    @rule(data=st.data())
    def dismiss(self, data: st.DataObject) -> None:
        self.pool.models[data.draw(st.sampled_from(self.names(*RESIDENT)))].is_dismissed = True

    @invariant()
    def each_decision_is_allowed_and_the_last(self) -> None:
        self.pool.settle()
        assert min(self.pool.ledger.free.values()) >= 0
        assert all(model.num_leases == 0 for model in self.pool.models.values() if model.residence not in RESIDENT)
        assert not any(self.pool.models[name].waiting for name in self.names(Residence.WARM))


TestRandomPool = RandomPool.TestCase
TestRandomPool.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@settings(deadline=None)
@given(
    st.lists(footprints, min_size=1, max_size=6),
    st.lists(st.tuples(st.floats(0, 60), st.integers(0, 5)), max_size=60),
    st.sets(st.integers(0, 5), max_size=2),
    configs,
    st.integers(0, 2**32),
)
def test_nobody_starves(
    shapes: list[dict[str, int]],
    arrivals: list[tuple[float, int]],
    pinned: set[int],
    config: PolicyConfig,
    seed: int,
) -> None:
    """Leases of random length end, and so does every wait: with a lease, or with a refusal."""
    rng = random.Random(seed)
    models = {NAMES[i]: SimulatedModel(shape, is_pinned=i in pinned) for i, shape in enumerate(shapes)}
    pool = TimedPool(models, BUDGETS, config, Durations(lease=lambda: rng.expovariate(0.2)))
    requests = [(time, NAMES[i % len(shapes)]) for time, i in arrivals]
    pool.run(requests)
    assert not any(model.waiting or model.num_leases for model in models.values())
    num_answers = sum(len(waits) for waits in pool.waits.values()) + sum(pool.num_refused.values())
    assert num_answers == len(requests)


CONFIG = PolicyConfig(longest_wait_seconds=10, least_residency_seconds=2, idle_grace_seconds=0.5)
DURATIONS = Durations(load=3.0, unload=0.5, lease=lambda: 1.0)


class ClosedLoop(TimedPool):
    """Clients that send their next request shortly after an answer, until some time."""

    def __init__(self, models: Mapping[str, SimulatedModel], budgets: Mapping[str, int], *, until: float) -> None:
        super().__init__(models, budgets, CONFIG, DURATIONS)
        self._until = until

    def end_lease(self, name: str) -> None:
        super().end_lease(name)
        if self.now < self._until:
            self.after(0.1, self.request, name)


def swaps(pool: SimulatedPool) -> int:
    return sum(isinstance(decision, Load) for _, decision in pool.history)


def test_a_burst_that_alternates_loads_each_model_once() -> None:
    pool = TimedPool({name: SimulatedModel({"GPU": 6}) for name in "ab"}, {"GPU": 10}, CONFIG, DURATIONS)
    pool.run([(0.0, "ab"[i % 2]) for i in range(100)])
    assert swaps(pool) == 2
    # a: its load; b: a's load, lease and pause, the unload, its own load
    assert pool.waits == {"a": [3.0] * 50, "b": [pytest.approx(3 + 1 + 0.5 + 0.5 + 3)] * 50}


@pytest.mark.parametrize("num_clients", [1, 5])
@pytest.mark.parametrize("names", ["ab", "abcd"])
def test_endless_alternation_swaps_only_after_the_longest_wait(names: str, num_clients: int) -> None:
    pool = ClosedLoop({name: SimulatedModel({"GPU": 6}) for name in names}, {"GPU": 10}, until=300)
    pool.run([(i / 7, name) for i in range(num_clients) for name in names])
    stays = [CONFIG.longest_wait_seconds if len(names) == 2 else CONFIG.least_residency_seconds]
    assert swaps(pool) <= 300 / stays[0] + len(names)
    for name in names:
        assert all(later - earlier >= stays[0] for earlier, later in pairwise(pool.load_times(name)))
        # overdue, then for each other model at most: residency, the last lease, unload and load
        turn = CONFIG.least_residency_seconds + 1.0 + DURATIONS.unload + DURATIONS.load
        assert max(pool.waits[name]) <= CONFIG.longest_wait_seconds + len(names) * turn


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 40), st.sampled_from("abc")), max_size=200))
def test_models_are_not_swapped_faster_than_they_settle_or_come_to_rest(arrivals: list[tuple[float, str]]) -> None:
    pool = TimedPool({name: SimulatedModel({"GPU": 10}) for name in "abc"}, {"GPU": 10}, CONFIG, DURATIONS)
    pool.run(arrivals)
    loads = [time for time, decision in pool.history if isinstance(decision, Load)]
    cycle = DURATIONS.load + 1.0 + CONFIG.idle_grace_seconds + DURATIONS.unload
    assert all(later - earlier >= cycle - 1e-6 for earlier, later in pairwise(loads))


def test_small_models_in_endless_use_do_not_starve_a_big_one() -> None:
    models = {name: SimulatedModel({"GPU": 2}) for name in "abcde"} | {"big": SimulatedModel({"GPU": 10})}
    pool = ClosedLoop(models, {"GPU": 10}, until=60)
    pool.run([*((i / 3, name) for i, name in enumerate("abcde" * 4)), (20.0, "big")])
    assert pool.waits["big"][0] <= CONFIG.longest_wait_seconds + 1.0 + DURATIONS.unload + DURATIONS.load


def test_one_model_in_endless_use_by_many_does_not_starve_another() -> None:
    pool = ClosedLoop({name: SimulatedModel({"GPU": 6}) for name in "ab"}, {"GPU": 10}, until=100)
    pool.run([*((i / 10, "a") for i in range(30)), (5.0, "b")])
    assert pool.waits["b"][0] == pytest.approx(10 + 1 + 0.5 + 3, abs=1)


def test_a_hundred_requests_for_twenty_models_on_a_budget_of_three() -> None:
    names = [f"m{i:02}" for i in range(20)]
    pool = TimedPool({name: SimulatedModel({"GPU": 3}) for name in names}, {"GPU": 10}, CONFIG, DURATIONS)
    rng = random.Random(5)
    pool.run([(0.0, name) for name in rng.sample(names * 5, 100)])
    assert swaps(pool) == 20
    assert sum(len(waits) for waits in pool.waits.values()) == 100


@settings(deadline=None)
@given(st.integers(0, 2**32), configs)
def test_a_model_that_fits_beside_all_others_is_never_unloaded_without_keep_alive(
    seed: int, config: PolicyConfig
) -> None:
    rng = random.Random(seed)
    pool = TimedPool({name: SimulatedModel({"GPU": 5}) for name in "ab"}, {"GPU": 10}, config, Durations())
    pool.run(sorted((rng.uniform(0, 100), rng.choice("ab")) for _ in range(50)))
    assert swaps(pool) == len([name for name in "ab" if pool.waits[name]])
