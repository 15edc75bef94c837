"""What is believed of a measurement, and what becomes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from gguf_shapes import LlamaShape, write_llama
from pools import pool_config

from server.llama.devices import Device
from server.pool.accounts import MemoryAccounts
from server.pool.config import ModelConfig
from server.pool.footprint_file import FootprintFile
from server.pool.plan import LoadPlan, Machine, make_plan

MIB = 1 << 20
MACHINE = Machine((Device("CPU", "a processor", is_gpu=False, free=2**34, total=2**34),), "CPU : AVX2 = 1")


@pytest.fixture
def plan(tmp_path: Path) -> LoadPlan:
    path = tmp_path / "model.gguf"
    write_llama(path, LlamaShape(layers=1))
    made = make_plan(ModelConfig(str(path)), pool_config(), MACHINE, {"CPU": 2**34})
    return replace(made, predicted={"CPU": 1000 * MIB})


async def accounts_of(file: FootprintFile) -> MemoryAccounts:
    accounts = MemoryAccounts("2GiB", lambda: MACHINE, file)
    await accounts.machine()
    return accounts


@pytest.mark.parametrize(
    ("measured", "counted"),
    [
        (1000, 1000),
        (990, 1000),  # within the noise: the prediction is confirmed
        (1031, 1000),
        (1100, 1100),
        (850, 850),
        (1300, 1000),  # so far off that something else may have been measured
        (500, 1000),
    ],
)
async def test_what_counts_after_one_load(plan: LoadPlan, tmp_path: Path, measured: int, counted: int) -> None:
    file = FootprintFile(tmp_path / "cache" / "footprints.json")
    accounts = await accounts_of(file)
    accounts.reserve("m", accounts.estimate(plan))
    assert accounts.correct("m", plan, {"CPU": measured * MIB}) == {"CPU": counted * MIB}
    assert accounts.devices()[0].taken == counted * MIB
    await accounts.write()
    assert (await accounts_of(file)).estimate(plan) == {"CPU": counted * MIB}


@pytest.mark.parametrize(("second", "counted"), [(1310, 1310), (1700, 1000), (1000, 1000)])
async def test_what_is_far_off_counts_when_it_is_measured_twice(plan: LoadPlan, second: int, counted: int) -> None:
    accounts = await accounts_of(FootprintFile(None))
    for measured in (1300, second):
        accounts.reserve("m", accounts.estimate(plan))
        accounts.correct("m", plan, {"CPU": measured * MIB})
        accounts.release("m")
    assert accounts.estimate(plan) == {"CPU": counted * MIB}


async def test_a_plan_that_takes_more_than_predicted_is_made_anew_for_less(plan: LoadPlan) -> None:
    accounts = await accounts_of(FootprintFile(None))
    limits = {"CPU": 1050 * MIB}
    assert accounts.lessened(plan, limits) is None
    accounts.reserve("m", accounts.estimate(plan))
    accounts.correct("m", plan, {"CPU": 1100 * MIB})
    assert accounts.lessened(plan, limits) == {"CPU": 950 * MIB}
    assert accounts.lessened(plan, {"CPU": 1100 * MIB}) is None
    assert accounts.lessened(plan, {"CPU": 900 * MIB}) is None  # it did not fit as predicted either


async def test_accounts_are_overdrawn_when_a_load_takes_more_than_there_is(plan: LoadPlan) -> None:
    accounts = await accounts_of(FootprintFile(None))
    for model in ("m", "n"):
        accounts.reserve(model, plan.predicted)
    found = [accounts.is_overdrawn]
    for model in ("m", "n"):
        accounts.correct(model, plan, {"CPU": 1100 * MIB})
    found.append(accounts.is_overdrawn)
    accounts.release("m")
    found.append(accounts.is_overdrawn)
    assert found == [False, True, False]


async def test_a_file_that_is_broken_or_cannot_be_written_is_no_obstacle(
    plan: LoadPlan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "footprints.json"
    path.write_bytes(b"\xff\x00 no JSON")
    accounts = await accounts_of(FootprintFile(path))
    assert accounts.estimate(plan) == plan.predicted
    path.unlink()
    path.mkdir()
    await accounts.write()
    assert "cannot be remembered" in caplog.text
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith("footprints")] == ["footprints.json"]
