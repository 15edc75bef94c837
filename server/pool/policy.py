"""Which models to load, to drain and to unload: a decision over plain data, without clock, memory or tasks.

``decide`` looks at all models at once and says what to do now; ``next_look`` says when time alone could change that.
The caller asks again whenever something happened (a request came or went, a lease, a load or an unload ended) and at
``next_look``. Times are seconds of one monotonic clock. Before it asks, the caller leases every warm model to whoever
waits for it; so requests wait only for models that are cold, loading, draining or unloading.

**Room.** What is loading, warm, draining or unloading takes its bytes on each of its devices. A model is loaded when it
fits beside all of them; memory that an unload gives back counts once it is back.

**Turns.** Cold models that somebody waits for are *claimants*; they are served in the order of their oldest waiting
request. To make room, a claimant takes the least recently used models with bytes on a device that lacks some, and of
these no more than it needs. It may take

- models at rest, which nobody has used for ``idle_grace_seconds`` and nobody waits for: these are unloaded;
- once it is *overdue*, its oldest request having waited ``longest_wait_seconds``, every unpinned model that has been
  warm for ``least_residency_seconds`` and for which nobody waits longer: unleased ones are unloaded; leased ones are
  drained, and unloaded when their last lease ends.

Until then a model in use goes on serving all of its own requests, which makes batches of a burst that alternates, and
claimants whose turn comes later may be loaded into memory that the earlier one cannot use yet. A claimant that is
overdue, or that has the models it takes, holds its claim: nobody after it gets memory that it needs.

**Nobody starves**, if leases, loads, unloads and back-offs end, and what is pinned leaves room for the model. Take the
oldest of all waiting requests; no older one can come. If its model is warm, it has a lease. If it is draining, nobody
has waited longer, so nobody may take it, and it is undrained. If it is loading or unloading, that ends. If it is cold,
it is the first claimant: it gets the first free slot for a load as soon as it fits, and at the latest when it is
overdue it holds its claim. From then on free memory that it needs goes to nobody else, each load that is under way
ends, each unpinned model is in time resident for long enough, and nobody waits longer for any of these; so there are
enough models to take. A model that is drained gets no new leases, and is undrained only when the others that go
suffice, of which draining ones come before leased ones; so in time enough of them are unloaded, and the claimant fits.
The next oldest request follows. A failed load ends the wait of its requests with an error, which is the caller's part,
as is telling the refused ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Residence(StrEnum):
    """Where a model stands between its file and memory.

    ``DRAINING`` gives out no leases and can be undone; ``UNLOADING`` frees its memory and cannot.
    """

    COLD = "cold"
    LOADING = "loading"
    WARM = "warm"
    DRAINING = "draining"
    UNLOADING = "unloading"


@dataclass(frozen=True, slots=True)
class ModelSnapshot:
    """One model at the time of the decision.

    Attributes:
        name: unique among the models of a snapshot.
        residence: its state.
        num_bytes: by device (``"CPU"``, ``"CUDA0"``), what it takes, or what it would take if it were loaded.
        num_leases: how many use it.
        waiting_since: arrival of the oldest request that waits for it; ``None`` when none waits. A preload and an
            operator's load wait like requests.
        last_use: when a lease of it last began or ended.
        warm_since: when its load ended; means nothing unless it is warm or draining.
        keep_alive_until: from then on it is unloaded as soon as nobody uses it; ``None`` means never.
        is_pinned: never unloaded, whatever else is said about it.
        is_dismissed: is to go as soon as its leases end, and takes no new ones: an operator's unload.
        not_before: a cold model is not loaded earlier: the back-off after a failed load.

    """

    name: str
    residence: Residence
    num_bytes: Mapping[str, int]
    num_leases: int = 0
    waiting_since: float | None = None
    last_use: float = 0.0
    warm_since: float = 0.0
    keep_alive_until: float | None = None
    is_pinned: bool = False
    is_dismissed: bool = False
    not_before: float = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether nobody uses it and nobody waits for it."""
        return self.num_leases == 0 and self.waiting_since is None

    @property
    def last_active(self) -> float:
        """When it was last used or, if that is later, loaded."""
        return max(self.last_use, self.warm_since)

    @property
    def may_go(self) -> bool:
        """Whether it is in memory, not already on its way out, and not pinned."""
        return self.residence in (Residence.WARM, Residence.DRAINING) and not self.is_pinned

    @property
    def is_wanted(self) -> bool:
        """Whether it is cold and somebody waits for it."""
        return self.residence is Residence.COLD and self.waiting_since is not None


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """All models that are in memory or waited for, the bytes that each device may hold, and the time.

    A device without a budget holds nothing.
    """

    models: Sequence[ModelSnapshot]
    budgets: Mapping[str, int]
    now: float


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """What an operator can say about taking turns; none is negative.

    Attributes:
        longest_wait_seconds: a request that has waited this long for memory makes models in use drain.
        least_residency_seconds: a model in use is not drained earlier than this after its load.
        idle_grace_seconds: a model counts as in use until this long after its last use, so that the pause between two
            requests of one client does not cost it its place.
        max_concurrent_loads: how many models are loaded at a time, and for how many more room is made; at least 1.

    """

    longest_wait_seconds: float = 10.0
    least_residency_seconds: float = 2.0
    idle_grace_seconds: float = 0.25
    max_concurrent_loads: int = 2


@dataclass(frozen=True, slots=True)
class Load:
    """Load this cold model: it fits beside everything that takes memory now."""

    name: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Unload this unleased, unpinned model.

    ``room_for`` is the model that needs its memory; ``None`` when its keep-alive is over, it is dismissed, or a device
    holds more than its budget.
    """

    name: str
    room_for: str | None = None


@dataclass(frozen=True, slots=True)
class Drain:
    """Give out no more leases of this warm model; ``room_for`` as in ``Unload``."""

    name: str
    room_for: str | None = None


@dataclass(frozen=True, slots=True)
class Undrain:
    """Make this draining model warm again: nobody needs its memory any more."""

    name: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell all that wait for this model that it cannot be loaded, whatever is unloaded.

    Attributes:
        name: the model.
        needed: bytes on each of its devices.
        free: bytes of these that nothing takes now.
        evictable: bytes that unloading everything unpinned would add.

    """

    name: str
    needed: Mapping[str, int]
    free: Mapping[str, int]
    evictable: Mapping[str, int]


_HELD = (Residence.LOADING, Residence.WARM, Residence.DRAINING)

Decision = Load | Unload | Drain | Undrain | Refuse


def decide(snapshot: PoolSnapshot, config: PolicyConfig) -> list[Decision]:
    """Say what to do now, in this order; nothing is unloaded for what is refused.

    The same snapshot always gives the same decisions. Once they are carried out there are no more at the same time,
    except where an undrained model was leased to those that waited for it: others may now be next to get its memory.
    """
    plan = _Plan(snapshot, config)
    plan.refuse()
    plan.let_go_by_themselves()
    plan.return_to_budget()
    plan.serve_claimants()
    plan.refuse()  # what no longer fits because a pinned model is loaded
    plan.undrain()
    return plan.decisions


def next_look(snapshot: PoolSnapshot, config: PolicyConfig) -> float | None:
    """Return the earliest time after ``now`` at which time alone could change the decisions; ``None`` if never."""
    going = [model for model in snapshot.models if model.may_go]
    wanted = [model for model in snapshot.models if model.is_wanted]
    times = [model.keep_alive_until for model in going if model.is_idle and model.keep_alive_until is not None]
    times += [model.not_before for model in wanted]
    times += [_overdue_at(model, config) for model in wanted]
    if wanted or min(_free(snapshot).values(), default=0) < 0:
        times += [_at_rest_at(model, config) for model in going if model.is_idle]
        times += [_settled_at(model, config) for model in going]
    return min((time for time in times if time > snapshot.now), default=None)


class _Plan:
    """The decisions as they come together, and what memory remains beside them."""

    def __init__(self, snapshot: PoolSnapshot, config: PolicyConfig) -> None:
        self.decisions: list[Decision] = []
        self._now = snapshot.now
        self._config = config
        self._models = sorted(snapshot.models, key=lambda model: (model.last_active, model.name))
        self._free = _free(snapshot)
        # What could be free if everything unpinned were unloaded.
        self._room = Counter(snapshot.budgets)
        self._room.subtract(_sum(m for m in self._models if m.is_pinned and m.residence in _HELD))
        # What remains when all that goes is gone and all that holds a claim is loaded.
        self._remaining = Counter(self._free)
        self._remaining.update(_sum(self._in(Residence.UNLOADING)))
        self._going: set[str] = set()
        self._answered: set[str] = set()  # refused or loaded
        self._num_slots = config.max_concurrent_loads - len(self._in(Residence.LOADING))
        self._num_preparing = 0

    def refuse(self) -> None:
        """Refuse what does not fit beside what is pinned."""
        for model in self._models:
            if model.is_wanted and model.name not in self._answered and _lacking(model.num_bytes, self._room):
                self._answered.add(model.name)
                self.decisions.append(self._refusal(model))

    def let_go_by_themselves(self) -> None:
        """Unload what nobody uses after its keep-alive, and unload or drain what is dismissed."""
        for model in filter(self._may_take, self._models):
            is_over = model.keep_alive_until is not None and model.keep_alive_until <= self._now
            if (is_over and model.is_idle) or (model.is_dismissed and model.num_leases == 0):
                self._let_go(model, None)
            elif model.is_dismissed and model.residence is Residence.WARM:
                self.decisions.append(Drain(model.name))

    def return_to_budget(self) -> None:
        """Unload models at rest while a device holds more than its budget: one took more than was predicted."""
        at_rest = [model for model in filter(self._may_take, self._models) if self._is_at_rest(model)]
        evictable = _sum(at_rest)
        over = {device: min(-num, evictable[device]) for device, num in self._remaining.items() if num < 0}
        for model in _fewest(at_rest, over) or ():
            self._let_go(model, None)

    def serve_claimants(self) -> None:
        """Load what fits, and make room for what does not."""
        for claimant in sorted(self._models, key=lambda model: (model.waiting_since or 0.0, model.name)):
            if claimant.is_wanted and claimant.name not in self._answered and claimant.not_before <= self._now:
                self._serve(claimant)

    def undrain(self) -> None:
        """Keep the draining models that nobody needs to go."""
        for model in self._in(Residence.DRAINING):
            if model.name not in self._going and (model.is_pinned or not model.is_dismissed):
                self.decisions.append(Undrain(model.name))

    def _in(self, residence: Residence) -> list[ModelSnapshot]:
        return [model for model in self._models if model.residence is residence]

    def _refusal(self, model: ModelSnapshot) -> Refuse:
        free = {device: max(self._free[device], 0) for device in model.num_bytes}
        evictable = {device: max(self._room[device] - num, 0) for device, num in free.items()}
        return Refuse(model.name, dict(model.num_bytes), free, evictable)

    def _serve(self, claimant: ModelSnapshot) -> None:
        if _lacking(claimant.num_bytes, self._free) or _lacking(claimant.num_bytes, self._remaining):
            self._prepare(claimant)
            return
        self._remaining.subtract(claimant.num_bytes)
        if self._num_slots > 0:
            self._load(claimant)

    def _load(self, claimant: ModelSnapshot) -> None:
        self._num_slots -= 1
        self._answered.add(claimant.name)
        self._free.subtract(claimant.num_bytes)
        if claimant.is_pinned:
            self._room.subtract(claimant.num_bytes)
        self.decisions.append(Load(claimant.name))

    def _prepare(self, claimant: ModelSnapshot) -> None:
        """Hold a claim if there are models to take for it, or if it is overdue; let others use the memory if not."""
        taken = self._models_to_take(claimant) if self._num_preparing < self._config.max_concurrent_loads else None
        if taken is not None:
            self._num_preparing += 1
            for model in taken:
                self._let_go(model, claimant.name)
        if taken is not None or self._is_overdue(claimant):
            self._remaining.subtract(claimant.num_bytes)

    def _models_to_take(self, claimant: ModelSnapshot) -> list[ModelSnapshot] | None:
        """Choose what goes for a claimant: nothing if what goes already suffices, ``None`` if all of it would not."""
        lacking = _lacking(claimant.num_bytes, self._remaining)
        candidates = [model for model in filter(self._may_take, self._models) if self._may_go_for(model, claimant)]
        return _fewest(sorted(candidates, key=_disturbance), lacking)

    def _may_take(self, model: ModelSnapshot) -> bool:
        return model.may_go and model.name not in self._going

    def _may_go_for(self, model: ModelSnapshot, claimant: ModelSnapshot) -> bool:
        if self._is_at_rest(model):
            return True
        is_its_turn_over = _settled_at(model, self._config) <= self._now and _is_after(model, claimant)
        return self._is_overdue(claimant) and (is_its_turn_over or model.is_dismissed)

    def _is_at_rest(self, model: ModelSnapshot) -> bool:
        return model.is_idle and _at_rest_at(model, self._config) <= self._now

    def _is_overdue(self, claimant: ModelSnapshot) -> bool:
        return _overdue_at(claimant, self._config) <= self._now

    def _let_go(self, model: ModelSnapshot, room_for: str | None) -> None:
        self._going.add(model.name)
        self._remaining.update(model.num_bytes)
        if model.num_leases == 0:
            self.decisions.append(Unload(model.name, room_for))
        elif model.residence is Residence.WARM and not model.is_dismissed:
            self.decisions.append(Drain(model.name, room_for))


def _free(snapshot: PoolSnapshot) -> Counter[str]:
    """Bytes by device that nothing takes; negative where more is taken than the budget."""
    free = Counter(snapshot.budgets)
    free.subtract(_sum(model for model in snapshot.models if model.residence is not Residence.COLD))
    return free


def _sum(models: Iterable[ModelSnapshot]) -> Counter[str]:
    total: Counter[str] = Counter()
    for model in models:
        total.update(model.num_bytes)
    return total


def _lacking(needed: Mapping[str, int], available: Counter[str]) -> dict[str, int]:
    return {device: num - available[device] for device, num in needed.items() if num > max(available[device], 0)}


def _fewest(candidates: Sequence[ModelSnapshot], lacking: Mapping[str, int]) -> list[ModelSnapshot] | None:
    """Leave out, from the back, who is not needed to cover ``lacking``; ``None`` if all together do not."""
    taken = list(candidates)
    if _lacking(lacking, _sum(taken)):
        return None
    for candidate in reversed(candidates):
        others = [model for model in taken if model is not candidate]
        if not _lacking(lacking, _sum(others)):
            taken = others
    return taken


def _disturbance(model: ModelSnapshot) -> int:
    """Order what can go by whom it disturbs: nobody, those whom it already keeps waiting, or those whom it serves."""
    if model.is_idle:
        return 0
    return 1 if model.residence is Residence.DRAINING or model.is_dismissed else 2


def _is_after(model: ModelSnapshot, claimant: ModelSnapshot) -> bool:
    """Whether nobody has waited longer for the model than for the claimant."""
    if model.waiting_since is None or claimant.waiting_since is None:
        return True
    return model.waiting_since > claimant.waiting_since


def _overdue_at(claimant: ModelSnapshot, config: PolicyConfig) -> float:
    return (claimant.waiting_since or 0.0) + config.longest_wait_seconds


def _settled_at(model: ModelSnapshot, config: PolicyConfig) -> float:
    return model.warm_since + config.least_residency_seconds


def _at_rest_at(model: ModelSnapshot, config: PolicyConfig) -> float:
    return model.last_active + config.idle_grace_seconds
