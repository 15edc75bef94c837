"""Scenarios of the residency policy, each a snapshot and what is decided; requests that wait longest come first."""

from __future__ import annotations

from dataclasses import replace

import pytest

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

NOW = 100.0
JUST_NOW = NOW - 0.1
LATELY = NOW - 3
OVERDUE = NOW - 10
LONG_AGO = NOW - 50
CONFIG = PolicyConfig(
    longest_wait_seconds=10, least_residency_seconds=2, idle_grace_seconds=0.5, max_concurrent_loads=2
)
GPU = {"CUDA0": 10}
TWO_GPUS = {"CUDA0": 10, "CUDA1": 10, "CPU": 100}

Models = list[ModelSnapshot]


def on(gpu: int = 0, gpu1: int = 0, cpu: int = 0) -> dict[str, int]:
    return {device: num for device, num in (("CUDA0", gpu), ("CUDA1", gpu1), ("CPU", cpu)) if num}


def cold(name: str, num_bytes: dict[str, int], *, waiting_since: float | None = None) -> ModelSnapshot:
    return ModelSnapshot(name, Residence.COLD, num_bytes, waiting_since=waiting_since)


def loading(name: str, num_bytes: dict[str, int]) -> ModelSnapshot:
    return ModelSnapshot(name, Residence.LOADING, num_bytes, waiting_since=LATELY)


def idle(name: str, num_bytes: dict[str, int], *, last_use: float = LONG_AGO) -> ModelSnapshot:
    return ModelSnapshot(name, Residence.WARM, num_bytes, last_use=last_use, warm_since=LONG_AGO)


def busy(name: str, num_bytes: dict[str, int], *, warm_since: float = LONG_AGO) -> ModelSnapshot:
    return ModelSnapshot(name, Residence.WARM, num_bytes, num_leases=1, last_use=LATELY, warm_since=warm_since)


def draining(name: str, num_bytes: dict[str, int], *, num_leases: int = 1) -> ModelSnapshot:
    return replace(busy(name, num_bytes), residence=Residence.DRAINING, num_leases=num_leases)


def unloading(name: str, num_bytes: dict[str, int]) -> ModelSnapshot:
    return ModelSnapshot(name, Residence.UNLOADING, num_bytes)


def pinned(model: ModelSnapshot) -> ModelSnapshot:
    return replace(model, is_pinned=True)


def dismissed(model: ModelSnapshot) -> ModelSnapshot:
    return replace(model, is_dismissed=True)


def kept_until(time: float, model: ModelSnapshot) -> ModelSnapshot:
    return replace(model, keep_alive_until=time)


def wanted_since(time: float, model: ModelSnapshot) -> ModelSnapshot:
    return replace(model, waiting_since=time)


def decided(models: Models, budgets: dict[str, int] = GPU, config: PolicyConfig = CONFIG) -> list[Decision]:
    return decide(PoolSnapshot(models, budgets, NOW), config)


def look(models: Models, budgets: dict[str, int] = GPU) -> float | None:
    return next_look(PoolSnapshot(models, budgets, NOW), CONFIG)


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        pytest.param([], [], id="nothing to do"),
        pytest.param([cold("a", on(4))], [], id="nobody waits"),
        pytest.param([cold("a", on(4), waiting_since=NOW)], [Load("a")], id="it fits"),
        pytest.param([cold("a", on(10), waiting_since=NOW)], [Load("a")], id="it just fits"),
        pytest.param([cold("a", {}, waiting_since=NOW)], [Load("a")], id="a model without bytes"),
        pytest.param([loading("a", on(4))], [], id="no duplicate load"),
        pytest.param(
            [cold("a", on(4), waiting_since=LATELY), cold("b", on(4), waiting_since=JUST_NOW)],
            [Load("a"), Load("b")],
            id="two at once",
        ),
        pytest.param(
            [cold(name, on(2), waiting_since=LATELY) for name in "abc"],
            [Load("a"), Load("b")],
            id="but not more at once than configured",
        ),
        pytest.param(
            [loading("a", on(1)), loading("b", on(1)), cold("c", on(1), waiting_since=OVERDUE)],
            [],
            id="loads under way count",
        ),
        pytest.param(
            [cold("new", on(6), waiting_since=JUST_NOW), cold("old", on(6), waiting_since=LATELY)],
            [Load("old")],
            id="the longest waiting first when only one fits",
        ),
        pytest.param(
            [loading("a", on(6)), cold("b", on(6), waiting_since=LATELY)], [], id="bytes of a loading model are taken"
        ),
        pytest.param(
            [draining("a", on(6)), cold("b", on(6), waiting_since=OVERDUE)], [], id="and those of a draining one"
        ),
        pytest.param(
            [unloading("a", on(6)), cold("b", on(6), waiting_since=OVERDUE)], [], id="and those of an unloading one"
        ),
    ],
)
def test_loads(models: Models, expected: list[Decision]) -> None:
    assert decided(models) == expected


WANTS_4 = cold("new", on(4), waiting_since=JUST_NOW)


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        pytest.param([idle("a", on(5)), WANTS_4], [Load("new")], id="nothing goes for what fits"),
        pytest.param(
            [idle("a", on(5), last_use=LATELY), idle("b", on(5), last_use=LONG_AGO), WANTS_4],
            [Unload("b", "new")],
            id="the least recently used",
        ),
        pytest.param(
            [idle("a", on(2), last_use=LONG_AGO), idle("b", on(8), last_use=LATELY), WANTS_4],
            [Unload("b", "new")],
            id="not the small one, when the big one must go anyway",
        ),
        pytest.param(
            [idle("a", on(3)), idle("b", on(3), last_use=LATELY), idle("c", on(4), last_use=NOW - 1), WANTS_4],
            [Unload("a", "new"), Unload("b", "new")],
            id="two old ones before a recent one that would do alone",
        ),
        pytest.param(
            [
                *(idle("a", on(1)), idle("b", on(3), last_use=LATELY), idle("c", on(4), last_use=NOW - 1)),
                cold("new", on(7), waiting_since=NOW),
            ],
            [Unload("a", "new"), Unload("c", "new")],
            id="of two that could stay, the recent one",
        ),
        pytest.param(
            [replace(idle("a", on(5), last_use=0.0), warm_since=LATELY), idle("b", on(5)), WANTS_4],
            [Unload("b", "new")],
            id="a load is as good as a use",
        ),
        pytest.param(
            [replace(idle("a", on(8), last_use=0.0), warm_since=JUST_NOW), WANTS_4], [], id="whoever it was loaded for"
        ),
        pytest.param([pinned(idle("a", on(4))), idle("b", on(6)), WANTS_4], [Unload("b", "new")], id="not the pinned"),
        pytest.param([busy("a", on(4)), idle("b", on(6)), WANTS_4], [Unload("b", "new")], id="not one in use"),
        pytest.param([busy("a", on(4)), idle("b", on(3)), busy("c", on(3)), WANTS_4], [], id="nothing goes in vain"),
        pytest.param([idle("a", on(8), last_use=JUST_NOW), WANTS_4], [], id="not between two requests of a client"),
        pytest.param([unloading("a", on(8)), idle("b", on(2)), WANTS_4], [], id="not when enough is on its way out"),
        pytest.param(
            [idle("a", on(5)), idle("b", on(5)), WANTS_4, cold("newer", on(4), waiting_since=NOW)],
            [Unload("a", "new"), Unload("b", "newer")],
            id="each claimant takes its own",
        ),
        pytest.param(
            [idle("a", on(10)), WANTS_4, cold("newer", on(4), waiting_since=NOW)],
            [Unload("a", "new")],
            id="one that goes may do for two",
        ),
        pytest.param(
            [*(idle(name, on(3)) for name in "abc"), *(cold(f"new-{i}", on(3), waiting_since=i) for i in range(3))],
            [Unload("a", "new-0"), Unload("b", "new-1")],
            id="room is made for no more than can be loaded at a time",
        ),
        pytest.param(
            [
                *(idle(name, on(3)) for name in "abc"),
                *(cold(f"new-{i}", on(3), waiting_since=LATELY) for i in range(3)),
                cold("small", on(1), waiting_since=NOW),
            ],
            [Unload("a", "new-0"), Unload("b", "new-1"), Load("small")],
            id="whoever is not yet prepared for keeps nobody waiting",
        ),
        pytest.param(
            [idle("a", on(6)), cold("old", on(4), waiting_since=LATELY), WANTS_4],
            [Load("old"), Unload("a", "new")],
            id="free memory is given away once",
        ),
        pytest.param(
            [idle("a", on(7)), cold("old", on(8), waiting_since=LATELY), cold("newer", on(3), waiting_since=NOW)],
            [Unload("a", "old")],
            id="free memory is not given away behind the back of who waits for the rest of it",
        ),
    ],
)
def test_idle_models_make_room(models: Models, expected: list[Decision]) -> None:
    assert decided(models) == expected


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        pytest.param(
            [idle("a", on(8)), idle("b", on(gpu1=8)), cold("new", on(gpu1=4), waiting_since=NOW)],
            [Unload("b", "new")],
            id="only the device that lacks room",
        ),
        pytest.param(
            [idle("a", on(8, cpu=1)), idle("b", on(gpu1=8)), cold("new", on(4, 4, 4), waiting_since=NOW)],
            [Unload("a", "new"), Unload("b", "new")],
            id="each device that lacks room",
        ),
        pytest.param(
            [
                idle("a", on(8)),
                idle("b", on(gpu1=8), last_use=LATELY),
                idle("c", on(2, 2), last_use=NOW - 1),
                cold("new", on(2, 2), waiting_since=NOW),
            ],
            [Unload("a", "new"), Unload("b", "new")],
            id="least recently used by device",
        ),
        pytest.param(
            [busy("a", on(8)), cold("b", on(4), waiting_since=OVERDUE + 1), cold("c", on(gpu1=4), waiting_since=NOW)],
            [Load("c")],
            id="who waits for one device does not keep others from another",
        ),
        pytest.param(
            [busy("a", on(8)), cold("b", on(4, 8), waiting_since=OVERDUE), cold("c", on(gpu1=4), waiting_since=NOW)],
            [Drain("a", "b")],
            id="unless it needs both and is overdue",
        ),
        pytest.param(
            [busy("a", on(12)), cold("b", {"CUDA0": 0, "CUDA1": 4}, waiting_since=NOW)],
            [Load("b")],
            id="nothing fits even where nothing is left",
        ),
    ],
)
def test_devices(models: Models, expected: list[Decision]) -> None:
    assert decided(models, TWO_GPUS) == expected


OVERDUE_8 = cold("late", on(8), waiting_since=OVERDUE)


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        pytest.param([busy("a", on(8)), cold("b", on(8), waiting_since=OVERDUE + 0.1)], [], id="not yet"),
        pytest.param([busy("a", on(8)), OVERDUE_8], [Drain("a", "late")], id="overdue"),
        pytest.param(
            [pinned(busy("a", on(2))), busy("b", on(8)), OVERDUE_8], [Drain("b", "late")], id="not the pinned"
        ),
        pytest.param([busy("a", on(8), warm_since=NOW - 1), OVERDUE_8], [], id="one just loaded serves first"),
        pytest.param([idle("a", on(8), last_use=JUST_NOW), OVERDUE_8], [Unload("a", "late")], id="a pause is enough"),
        pytest.param(
            [busy("a", on(4)), idle("b", on(4)), OVERDUE_8],
            [Unload("b", "late"), Drain("a", "late")],
            id="idle ones go, too",
        ),
        pytest.param([busy("a", on(2)), idle("b", on(8)), OVERDUE_8], [Unload("b", "late")], id="idle ones suffice"),
        pytest.param([draining("a", on(8)), OVERDUE_8], [], id="its leases have not ended"),
        pytest.param([draining("a", on(8), num_leases=0), OVERDUE_8], [Unload("a", "late")], id="they have ended"),
        pytest.param(
            [wanted_since(NOW - 5, draining("a", on(8), num_leases=0)), OVERDUE_8],
            [Unload("a", "late")],
            id="who waits for the draining model came later",
        ),
        pytest.param(
            [wanted_since(OVERDUE - 1, draining("a", on(8))), OVERDUE_8],
            [Undrain("a")],
            id="who waits for the draining model came earlier",
        ),
        pytest.param(
            [wanted_since(OVERDUE, draining("a", on(8))), OVERDUE_8], [Undrain("a")], id="or at the same time"
        ),
        pytest.param(
            [replace(draining("a", on(5)), last_use=NOW), busy("b", on(5)), cold("late", on(5), waiting_since=OVERDUE)],
            [],
            id="once one drains, no other does",
        ),
        pytest.param([draining("a", on(8))], [Undrain("a")], id="whoever needed it went away"),
        pytest.param([draining("a", on(2)), OVERDUE_8], [Load("late"), Undrain("a")], id="it fits by now"),
        pytest.param(
            [draining("a", on(8)), idle("b", on(2)), cold("late", on(2), waiting_since=OVERDUE)],
            [Unload("b", "late"), Undrain("a")],
            id="another became idle",
        ),
        pytest.param([pinned(draining("a", on(2)))], [Undrain("a")], id="pinned while it drained"),
        pytest.param(
            [busy("a", on(8)), cold("newer", on(2), waiting_since=NOW), cold("late", on(4), waiting_since=OVERDUE)],
            [Drain("a", "late"), Load("newer")],
            id="the next may have what the overdue one leaves over",
        ),
        pytest.param(
            [busy("a", on(8)), cold("newer", on(2), waiting_since=NOW), OVERDUE_8],
            [Drain("a", "late"), Load("newer")],
            id="to the last byte",
        ),
        pytest.param(
            [busy("a", on(8)), cold("newer", on(2), waiting_since=NOW), cold("late", on(9), waiting_since=OVERDUE)],
            [Drain("a", "late")],
            id="but not more",
        ),
        pytest.param(
            [loading("a", on(8)), cold("newer", on(2), waiting_since=NOW), cold("late", on(9), waiting_since=OVERDUE)],
            [],
            id="nor while nothing can go for the overdue one",
        ),
        pytest.param(
            [busy("a", on(8)), cold("newer", on(2), waiting_since=NOW), cold("b", on(8), waiting_since=LATELY)],
            [Load("newer")],
            id="before it is overdue the next may have what it cannot use",
        ),
    ],
)
def test_overdue_requests_drain_models_in_use(models: Models, expected: list[Decision]) -> None:
    assert decided(models) == expected


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        pytest.param([kept_until(NOW + 1, idle("a", on(4)))], [], id="not yet"),
        pytest.param([kept_until(NOW, idle("a", on(4)))], [Unload("a")], id="over, without any pressure"),
        pytest.param([kept_until(NOW, idle("a", on(4), last_use=NOW))], [Unload("a")], id="zero: at once"),
        pytest.param([kept_until(LATELY, busy("a", on(4)))], [], id="in use"),
        pytest.param([kept_until(LATELY, wanted_since(NOW, idle("a", on(4))))], [], id="wanted"),
        pytest.param([pinned(kept_until(LATELY, idle("a", on(4))))], [], id="pinned"),
        pytest.param([kept_until(LATELY, draining("a", on(4), num_leases=0))], [Unload("a")], id="drained"),
        pytest.param(
            [kept_until(NOW, idle("a", on(8), last_use=LATELY)), idle("b", on(2)), WANTS_4],
            [Unload("a")],
            id="what goes anyway spares others",
        ),
        pytest.param([dismissed(idle("a", on(4), last_use=NOW))], [Unload("a")], id="dismissed"),
        pytest.param([dismissed(busy("a", on(4)))], [Drain("a")], id="dismissed while in use"),
        pytest.param([dismissed(draining("a", on(4)))], [], id="not undrained although nobody needs the memory"),
        pytest.param([dismissed(busy("a", on(8))), OVERDUE_8], [Drain("a")], id="drained once"),
        pytest.param(
            [
                dismissed(busy("a", on(5), warm_since=JUST_NOW)),
                busy("b", on(5)),
                cold("c", on(5), waiting_since=OVERDUE),
            ],
            [Drain("a")],
            id="what is dismissed spares others that are in use",
        ),
        pytest.param([dismissed(loading("a", on(4)))], [], id="dismissed in mid-load"),
        pytest.param([pinned(dismissed(idle("a", on(4))))], [], id="pinned beats dismissed"),
        pytest.param(
            [dismissed(draining("a", on(4))), idle("b", on(6)), WANTS_4],
            [Unload("b", "new")],
            id="nobody waits for the last lease of a dismissed one while others are idle",
        ),
    ],
)
def test_models_that_go_by_themselves(models: Models, expected: list[Decision]) -> None:
    assert decided(models) == expected


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        pytest.param(
            [cold("big", on(11), waiting_since=NOW), idle("a", on(3)), busy("b", on(4))],
            [Refuse("big", on(11), free=on(3), evictable=on(7))],
            id="too big for the budget",
        ),
        pytest.param(
            [cold("big", on(7), waiting_since=NOW), pinned(idle("a", on(4))), idle("b", on(5))],
            [Refuse("big", on(7), free=on(1), evictable=on(5))],
            id="too big beside what is pinned",
        ),
        pytest.param(
            [cold("big", on(6), waiting_since=OVERDUE + 1), pinned(idle("a", on(4))), busy("b", on(5))],
            [],
            id="what is in use counts as evictable",
        ),
        pytest.param(
            [pinned(cold("a", on(6), waiting_since=LATELY)), cold("b", on(6), waiting_since=JUST_NOW)],
            [Load("a"), Refuse("b", on(6), free=on(4), evictable={"CUDA0": 0})],
            id="too big beside what is loaded to stay",
        ),
        pytest.param([cold("big", on(11))], [], id="nobody asked"),
        pytest.param(
            [cold("b", on(cpu=1), waiting_since=NOW)],
            [Refuse("b", on(cpu=1), free={"CPU": 0}, evictable={"CPU": 0})],
            id="a device without a budget",
        ),
        pytest.param(
            [cold("big", on(11), waiting_since=OVERDUE), idle("a", on(10)), WANTS_4],
            [Refuse("big", on(11), free={"CUDA0": 0}, evictable=on(10)), Unload("a", "new")],
            id="nothing goes for it, and it keeps nobody waiting",
        ),
        pytest.param(
            [cold("big", on(11), waiting_since=NOW), busy("a", on(12))],
            [Refuse("big", on(11), free={"CUDA0": 0}, evictable=on(10))],
            id="figures add up to the budget even where it is exceeded",
        ),
    ],
)
def test_refusals(models: Models, expected: list[Decision]) -> None:
    assert decided(models) == expected


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        pytest.param(
            [busy("a", on(9)), idle("b", on(2)), idle("c", on(2), last_use=LATELY)], ["b", "c"], id="all idle"
        ),
        pytest.param(
            [busy("a", on(7)), idle("b", on(4)), idle("c", on(2), last_use=LATELY)], ["b"], id="one is enough"
        ),
        pytest.param([busy("a", on(12)), idle("b", on(2)), pinned(idle("c", on(2)))], ["b"], id="as far as it goes"),
        pytest.param([busy("a", on(12))], [], id="what is in use is not drained for it"),
        pytest.param([busy("a", on(9)), idle("b", on(2), last_use=JUST_NOW)], [], id="at rest only"),
    ],
)
def test_more_taken_than_predicted(models: Models, expected: list[str]) -> None:
    assert decided(models) == [Unload(name) for name in expected]


def test_a_failed_load_is_not_tried_again_before_its_time_and_keeps_nobody_waiting() -> None:
    failed = replace(cold("failed", on(10), waiting_since=LONG_AGO), not_before=NOW + 1)
    assert decided([failed, WANTS_4]) == [Load("new")]
    assert look([failed]) == NOW + 1
    assert decided([replace(failed, not_before=NOW), WANTS_4]) == [Load("failed")]


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        pytest.param([], None, id="nothing"),
        pytest.param([idle("a", on(4)), busy("b", on(4)), loading("c", on(2))], None, id="nobody waits, no deadline"),
        pytest.param([kept_until(NOW + 5, idle("a", on(4)))], NOW + 5, id="keep-alive"),
        pytest.param([kept_until(NOW + 5, busy("a", on(4)))], None, id="the end of its leases comes first"),
        pytest.param([pinned(kept_until(NOW + 5, idle("a", on(4))))], None, id="pinned"),
        pytest.param(
            [busy("a", on(8)), cold("b", on(8), waiting_since=LATELY)], LATELY + 10, id="when the request is overdue"
        ),
        pytest.param([busy("a", on(8), warm_since=NOW - 1), OVERDUE_8], NOW + 1, id="when the model has served enough"),
        pytest.param([idle("a", on(8), last_use=JUST_NOW), WANTS_4], JUST_NOW + 0.5, id="when the model is at rest"),
        pytest.param([idle("a", on(11), last_use=JUST_NOW)], JUST_NOW + 0.5, id="at rest, and over the budget"),
    ],
)
def test_next_look(models: Models, expected: float | None) -> None:
    assert look(models) == expected
