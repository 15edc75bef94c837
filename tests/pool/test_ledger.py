from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.core.errors import ConfigurationError
from server.pool.ledger import Footprints, Ledger, parse_memory_size

BUDGETS = {"CPU": 100, "CUDA0": 10}
GIB = 2**30


def test_reservations_add_up_by_device() -> None:
    ledger = Ledger(BUDGETS)
    ledger.reserve("a", {"CPU": 30, "CUDA0": 4})
    ledger.reserve("b", {"CUDA0": 6})
    assert ledger.taken == {"CPU": 30, "CUDA0": 10}
    assert ledger.free == {"CPU": 70, "CUDA0": 0}
    assert ledger.reservation("a") == {"CPU": 30, "CUDA0": 4}
    ledger.release("a")
    assert ledger.free == {"CPU": 100, "CUDA0": 4}
    assert ledger.reservation("a") == {}


@pytest.mark.parametrize(
    ("model", "num_bytes", "message"),
    [
        ("b", {"CPU": 1, "CUDA0": 7}, "b needs 7 bytes on CUDA0, which has 6 left"),
        ("b", {"CUDA1": 1}, "b needs 1 bytes on CUDA1, which has 0 left"),
        ("b", {"CPU": -1}, "-1 bytes on CPU"),
        ("a", {"CPU": 1}, "a already has a reservation"),
    ],
)
def test_a_reservation_that_cannot_be_changes_nothing(model: str, num_bytes: dict[str, int], message: str) -> None:
    ledger = Ledger(BUDGETS)
    ledger.reserve("a", {"CUDA0": 4})
    with pytest.raises(ValueError, match=message):
        ledger.reserve(model, num_bytes)
    assert ledger.taken == {"CPU": 0, "CUDA0": 4}


def test_what_a_load_took_replaces_the_prediction_even_beyond_the_budget() -> None:
    ledger = Ledger(BUDGETS)
    ledger.reserve("a", {"CPU": 30, "CUDA0": 4})
    ledger.correct("a", {"CUDA0": 12})
    assert ledger.free == {"CPU": 100, "CUDA0": -2}
    ledger.reserve("b", {"CPU": 1, "CUDA0": 0})
    with pytest.raises(ValueError, match="-1 bytes"):
        ledger.correct("a", {"CUDA0": -1})
    ledger.release("a")
    assert ledger.free == {"CPU": 99, "CUDA0": 10}


def test_only_what_is_reserved_can_be_corrected() -> None:
    ledger = Ledger(BUDGETS)
    with pytest.raises(KeyError):
        ledger.correct("a", {"CPU": 1})
    ledger.release("a")
    assert ledger.taken == {"CPU": 0, "CUDA0": 0}


some_bytes = st.dictionaries(st.sampled_from(["CPU", "CUDA0", "CUDA1"]), st.integers(0, 60))
operations = st.lists(
    st.tuples(st.sampled_from(["reserve", "correct", "release"]), st.sampled_from("abc"), some_bytes), max_size=30
)


@given(operations)
def test_the_ledger_is_the_sum_of_its_reservations(steps: list[tuple[str, str, dict[str, int]]]) -> None:
    ledger = Ledger(BUDGETS)
    held: dict[str, dict[str, int]] = {}
    for operation, model, num_bytes in steps:
        free = dict(ledger.free)
        if operation == "release":
            ledger.release(model)
            held.pop(model, None)
        elif operation == "correct" and model in held:
            ledger.correct(model, num_bytes)
            held[model] = num_bytes
        elif operation == "reserve":
            fits = all(num <= max(free.get(device, 0), 0) for device, num in num_bytes.items())
            try:
                ledger.reserve(model, num_bytes)
            except ValueError:
                assert model in held or not fits
            else:
                assert fits
                held[model] = num_bytes
        for device in ("CPU", "CUDA0", "CUDA1"):
            taken = sum(each.get(device, 0) for each in held.values())
            assert ledger.taken.get(device, 0) == taken
            assert ledger.free.get(device, 0) == BUDGETS.get(device, 0) - taken


def test_estimates_are_measurements_where_there_are_some() -> None:
    footprints = Footprints()
    assert footprints.estimate("f1", {"CPU": 5}) == {"CPU": 5}
    footprints.record("f1", {"CPU": 7, "CUDA0": 2})
    footprints.record("f1", {"CPU": 6})
    assert footprints.estimate("f1", {"CPU": 5}) == {"CPU": 6}
    assert footprints.estimate("f2", {"CPU": 5}) == {"CPU": 5}
    with pytest.raises(ValueError, match="-1 bytes on CPU"):
        footprints.record("f1", {"CPU": -1})


def test_the_most_recent_measurements_are_kept() -> None:
    footprints = Footprints()
    for i in range(600):
        footprints.record("always", {"CPU": 1})
        footprints.record(f"f{i}", {"CPU": i})
    assert len(footprints) == 512
    assert footprints.estimate("always", {}) == {"CPU": 1}
    assert footprints.estimate("f0", {}) == {}
    assert footprints.estimate("f599", {}) == {"CPU": 599}


@given(st.dictionaries(st.text(), st.dictionaries(st.text(), st.integers(0, 2**62)), max_size=5))
def test_measurements_survive_being_written_down(recorded: dict[str, dict[str, int]]) -> None:
    footprints = Footprints()
    for fingerprint, measured in recorded.items():
        footprints.record(fingerprint, measured)
    restored = Footprints.from_json(footprints.to_json())
    assert restored.to_json() == footprints.to_json()
    assert all(restored.estimate(fingerprint, {"CPU": -1}) == recorded[fingerprint] for fingerprint in recorded)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.text() | json_values.map(json.dumps))
@example("[" * 100_000)
@example("9" * 10_000)
@example('{"version": 2, "footprints": {"f": {"CPU": 1}}}')
def test_garbage_is_no_measurement(text: str) -> None:
    assert len(Footprints.from_json(text)) == 0


@given(json_values)
@example({"CPU": True})
@example({"CPU": 1.0})
@example({"CPU": -1})
@example([])
def test_one_bad_entry_does_not_spoil_the_others(bad: object) -> None:
    document = {"version": 1, "footprints": {"bad": bad, "good": {"CPU": 1}}}
    restored = Footprints.from_json(json.dumps(document))
    assert restored.estimate("good", {}) == {"CPU": 1}
    assert all(type(num) is int and num >= 0 for num in restored.estimate("bad", {}).values())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (123, 123),
        (0, 0),
        ("123", 123),
        ("12GiB", 12 * GIB),
        (" 12 gib ", 12 * GIB),
        ("1.5GiB", 3 * GIB // 2),
        ("500MB", 500_000_000),
        ("64kB", 64_000),
        ("64KiB", 65_536),
        ("1.1B", 1),
        ("0.1GB", 100_000_000),
        ("2TiB", 2 * 2**40),
        ("auto", "auto"),
        ("AUTO", "auto"),
    ],
)
def test_memory_sizes(value: object, expected: object) -> None:
    assert parse_memory_size(value) == expected


@pytest.mark.parametrize(
    "value", ["", "GiB", "twelve", "-1GiB", "1,5GiB", "1e9", "1 2GiB", "٣GiB", True, None, 1.5, []]
)
def test_what_is_no_memory_size(value: object) -> None:
    with pytest.raises(ConfigurationError, match=r'which is not a memory size\. Write "12GiB"') as raised:
        parse_memory_size(value)
    assert repr(value) in raised.value.message


@pytest.mark.parametrize("unit", ["G", "GBit", "PB", "bytes"])
def test_an_unknown_unit_is_named(unit: str) -> None:
    with pytest.raises(ConfigurationError, match=f"memory_budget: '{unit}' is not a unit of memory. Use B, kB"):
        parse_memory_size(f"12{unit}")


def test_a_negative_size_names_the_setting() -> None:
    with pytest.raises(ConfigurationError, match=r"llamacpp\.memory_budget\.CUDA0 cannot be negative, but is -1"):
        parse_memory_size(-1, "llamacpp.memory_budget.CUDA0")


@given(st.text() | st.integers() | st.floats() | st.none())
def test_any_value_is_a_size_or_a_configuration_error(value: object) -> None:
    try:
        size = parse_memory_size(value)
    except ConfigurationError:
        return
    assert size == "auto" or (type(size) is int and size >= 0)
