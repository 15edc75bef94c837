"""Several models in one budget: who stays, who goes, who waits, and what is said about it."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf_shapes import LlamaShape, write_llama
from pools import QUICK, TIMEOUT, Loader, bytes_of, generate, opened, pool_config, state_of, until

from server.core.duration import Duration
from server.core.errors import (
    ConfigurationError,
    Draining,
    InsufficientMemory,
    ModelLoadingFailed,
    ModelNotFound,
    QueueFull,
    TimedOut,
)
from server.core.events import Failed, Finished
from server.core.ports import LoadProgress, ModelState
from server.pool.config import ModelConfig
from server.pool.footprint_file import FootprintFile
from server.pool.loader import LoadedModel
from server.pool.plan import LoadPlan
from server.pool.policy import PolicyConfig
from server.pool.pool import Pool

COLD, LOADING, WARM, DRAINING, FAILED = (
    ModelState.COLD,
    ModelState.LOADING,
    ModelState.WARM,
    ModelState.DRAINING,
    ModelState.FAILED,
)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("residency") / "a.gguf"
    write_llama(path)
    return path


@pytest.fixture(scope="session")
def size(model_path: Path) -> int:
    """Bytes that one model takes."""
    return bytes_of(model_path)


@pytest.fixture
def loader() -> Loader:
    return Loader()


def models_of(model_path: Path, *names: str, **values: object) -> dict[str, ModelConfig]:
    """Models of the same size."""
    directory = model_path.parent
    for name in names:
        if not (directory / f"{name}.gguf").exists():
            shutil.copy(model_path, directory / f"{name}.gguf")
    return {name: ModelConfig(path=str(directory / f"{name}.gguf"), **values) for name in names}  # type: ignore[arg-type]


def taken(pool: Pool) -> int:
    """Bytes that models take in main memory."""
    return next(device.taken for device in pool.devices() if device.name == "CPU")


async def use(pool: Pool, model: str, keep_alive: float | None = None) -> None:
    """One short request."""
    with await asyncio.wait_for(pool.lease(model, keep_alive), TIMEOUT) as lease:
        assert isinstance((await generate(lease))[-1], Finished)


async def test_the_least_recently_used_model_makes_room(model_path: Path, size: int, loader: Loader) -> None:
    models = models_of(model_path, "a", "b", "c")
    async with opened(models, loader, pool_config(2 * size)) as pool:
        for name in ("a", "b", "a", "c"):
            await use(pool, name)
        assert {name: state_of(pool, name) for name in models} == {"a": WARM, "b": COLD, "c": WARM}
        assert taken(pool) == 2 * size
        await use(pool, "a")
        assert loader.loads == {"a": 1, "b": 1, "c": 1}


async def test_a_model_in_use_is_waited_for_and_not_cut(model_path: Path, size: int, loader: Loader) -> None:
    async with opened(models_of(model_path, "a", "b"), loader, pool_config(size)) as pool:
        lease = await pool.lease("a")
        running = asyncio.create_task(generate(lease, max_tokens=300))
        waiting = asyncio.create_task(pool.lease("b"))
        await until(lambda: state_of(pool, "a") is DRAINING)
        assert pool.progress("b") == LoadProgress(0.0, is_queued=True)
        later = asyncio.create_task(pool.lease("a"))
        await until(lambda: pool.status("a") is not None and pool.statuses()[0].num_waiting == 1)
        assert isinstance((await running)[-1], Finished)
        lease.release()
        with await asyncio.wait_for(waiting, TIMEOUT) as second:
            assert second.waited.queued > 0
            assert second.waited.load > 0
            assert state_of(pool, "a") in {COLD, LOADING}
        with await asyncio.wait_for(later, TIMEOUT):
            assert state_of(pool, "a") is WARM
        assert loader.loads == {"a": 2, "b": 1}


async def test_a_burst_that_alternates_is_served_in_batches_by_model(
    model_path: Path, size: int, loader: Loader
) -> None:
    policy = PolicyConfig(longest_wait_seconds=TIMEOUT, least_residency_seconds=0.0, idle_grace_seconds=0.05)
    async with opened(models_of(model_path, "a", "b"), loader, pool_config(size), policy) as pool:
        await asyncio.gather(*(use(pool, name) for _ in range(20) for name in ("a", "b")))
        assert loader.loads == {"a": 1, "b": 1}


async def test_nobody_waits_for_ever_for_a_model_that_is_always_in_use(
    model_path: Path, size: int, loader: Loader
) -> None:
    async with opened(models_of(model_path, "a", "b"), loader, pool_config(size)) as pool:
        stop = asyncio.Event()

        async def keep_using() -> None:
            while not stop.is_set():
                await use(pool, "a")

        busy = [asyncio.create_task(keep_using()) for _ in range(2)]
        await until(lambda: state_of(pool, "a") is WARM)
        await use(pool, "b")
        stop.set()
        await asyncio.gather(*busy)


async def test_what_does_not_fit_is_refused_before_anything_is_unloaded(
    model_path: Path, size: int, loader: Loader, tmp_path: Path
) -> None:
    big = tmp_path / "big.gguf"
    write_llama(big, LlamaShape(width=512, hidden=2048, layers=4, vocabulary=8192))
    needed = bytes_of(big, context_length=512, kv_cells=512)
    models = models_of(model_path, "a") | {"big": ModelConfig(str(big), context_length=512, kv_cells=512)}
    async with opened(models, loader, pool_config(size + 1000)) as pool:
        await use(pool, "a")
        with pytest.raises(InsufficientMemory) as caught:
            await pool.lease("big")
        for figure in (f"needed {needed} bytes", "free 1000 bytes", f"evictable {size} bytes"):
            assert figure in caught.value.message
        assert (state_of(pool, "a"), state_of(pool, "big")) == (WARM, COLD)
        assert loader.loads == {"a": 1}


async def test_a_budget_smaller_than_the_smallest_model_is_told_at_start(model_path: Path, size: int) -> None:
    models = models_of(model_path, "a", preload=True, context_length=512)
    async with opened(models, config=pool_config(size // 2)) as pool:
        with pytest.raises(InsufficientMemory, match="needed"):
            await pool.preload()


async def test_a_context_is_cut_to_what_fits(loader: Loader, tmp_path: Path) -> None:
    path = tmp_path / "wide.gguf"
    write_llama(path, LlamaShape(width=256, kv_heads=4, layers=8, context=8192))
    whole, least = bytes_of(path), bytes_of(path, context_length=512, kv_cells=512)
    async with opened({"wide": ModelConfig(str(path))}, loader, pool_config((whole + least) // 2)) as pool:
        await use(pool, "wide")
        status = pool.status("wide")
        assert status is not None
        assert status.context_length is not None
        assert status.kv_cells is not None
        assert 512 <= status.context_length <= 8192
        assert status.kv_cells < 16384
    async with opened({"wide": ModelConfig(str(path))}, loader, pool_config(least // 2)) as pool:
        with pytest.raises(InsufficientMemory):
            await pool.lease("wide")


async def test_a_pinned_model_stays(model_path: Path, size: int, loader: Loader) -> None:
    models = models_of(model_path, "a", pin=True, keep_alive=Duration("0s")) | models_of(model_path, "b", "c")
    async with opened(models, loader, pool_config(2 * size)) as pool:
        for name in ("a", "b", "c", "b"):
            await use(pool, name)
        assert {name: state_of(pool, name) for name in models} == {"a": WARM, "b": WARM, "c": COLD}
        pool.pin("a", pinned=False)
        await until(lambda: state_of(pool, "a") is COLD)  # its keep_alive is over
        pool.pin("b", pinned=True)
        for name in ("c", "a", "c"):
            await use(pool, name)
        assert state_of(pool, "b") is WARM


async def test_what_does_not_fit_beside_a_pinned_model_is_refused(model_path: Path, size: int) -> None:
    models = models_of(model_path, "a", pin=True) | models_of(model_path, "b", context_length=512, kv_cells=1024)
    async with opened(models, config=pool_config(size + 1000)) as pool:
        await use(pool, "a")
        with pytest.raises(InsufficientMemory, match=r"free 1000 bytes .* evictable 0 bytes"):
            await pool.lease("b")


async def test_keep_alive_of_a_request(model_path: Path, loader: Loader) -> None:
    async with opened(models_of(model_path, "a", "b", "c"), loader) as pool:
        await use(pool, "a", keep_alive=0)
        await until(lambda: state_of(pool, "a") is COLD)
        await use(pool, "b", keep_alive=0.05)
        assert state_of(pool, "b") is WARM
        await until(lambda: state_of(pool, "b") is COLD)
        await use(pool, "c", keep_alive=-1)
        status = pool.status("c")
        assert status is not None
        assert (status.state, status.keep_alive_until) == (WARM, None)
        await use(pool, "a")  # what an earlier request said is forgotten with the model
        assert state_of(pool, "a") is WARM


async def test_keep_alive_of_a_model_overrides_that_of_the_pool(model_path: Path, loader: Loader) -> None:
    models = models_of(model_path, "a") | models_of(model_path, "b", keep_alive=Duration("1h"))
    async with opened(models, loader, pool_config(keep_alive=Duration("0s"))) as pool:
        for name in ("a", "b"):
            await use(pool, name)
        await until(lambda: state_of(pool, "a") is COLD)
        status = pool.status("b")
        assert status is not None
        assert status.state is WARM
        assert status.last_use is not None
        assert status.keep_alive_until == pytest.approx(status.last_use + 3600, abs=1)


async def test_a_model_that_was_only_preloaded_waits_for_its_first_user(model_path: Path, loader: Loader) -> None:
    models = models_of(model_path, "a", preload=True, keep_alive=Duration("0s"))
    async with opened(models, loader) as pool:
        await pool.preload()
        await use(pool, "a")
        await until(lambda: state_of(pool, "a") is COLD)
        assert loader.num_loads == 1
        assert [model.is_ready for model in pool.preloaded()] == [True]


async def test_preloading_stops_where_the_memory_ends(
    model_path: Path, size: int, loader: Loader, caplog: pytest.LogCaptureFixture
) -> None:
    models = models_of(model_path, "a", "b", "c", preload=True)
    async with opened(models, loader, pool_config(2 * size)) as pool:
        assert [model.is_ready for model in pool.preloaded()] == [False] * 3
        await pool.preload()
        assert [model.card.state for model in pool.preloaded()] == [WARM, WARM, COLD]
        assert [model.is_ready for model in pool.preloaded()] == [True] * 3
        assert "local/c does not fit beside the others" in caplog.text
        await use(pool, "c")
        assert [model.is_ready for model in pool.preloaded()] == [True] * 3


async def test_a_load_that_fails_is_told_to_all_and_not_repeated_at_once(
    model_path: Path, size: int, loader: Loader
) -> None:
    async with opened(models_of(model_path, "a"), loader, pool_config(size)) as pool:
        loader.failure = RuntimeError("the device is gone")
        results = await asyncio.gather(*(pool.lease("a") for _ in range(3)), return_exceptions=True)
        assert all(isinstance(result, ModelLoadingFailed) for result in results)
        assert len({id(result) for result in results}) == 3
        assert (loader.num_loads, taken(pool), state_of(pool, "a")) == (1, 0, FAILED)
        loader.failure = None
        with pytest.raises(ModelLoadingFailed, match="the device is gone") as caught:
            await pool.lease("a")
        assert caught.value.retry_after is not None
        assert 0 < caught.value.retry_after <= 1
        assert loader.num_loads == 1
        async with asyncio.timeout(TIMEOUT):
            while loader.num_loads == 1:  # as a client does that is told when to come back
                try:
                    await use(pool, "a")
                except ModelLoadingFailed as error:
                    await asyncio.sleep(error.retry_after or 0)
        assert state_of(pool, "a") is WARM


async def test_a_file_that_was_replaced_is_tried_at_once(model_path: Path, loader: Loader, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(model_path, path)
    async with opened({"a": ModelConfig(str(path))}, loader) as pool:
        loader.failure = RuntimeError("no")
        with pytest.raises(ModelLoadingFailed):
            await pool.lease("a")
        loader.failure = None
        path.unlink()
        with pytest.raises(ModelLoadingFailed, match=r"model\.gguf"):
            await pool.lease("a")
        shutil.copy(model_path, path)
        os.utime(path, (1, 1))
        await use(pool, "a")


async def test_unloading_lets_those_finish_who_came_before(model_path: Path, loader: Loader) -> None:
    async with opened(models_of(model_path, "a"), loader) as pool:
        lease = await pool.lease("a")
        running = asyncio.create_task(generate(lease, max_tokens=300))
        unloading = asyncio.create_task(pool.unload("a", force=False))
        await until(lambda: state_of(pool, "a") is DRAINING)
        later = asyncio.create_task(pool.lease("a"))
        assert isinstance((await running)[-1], Finished)
        assert not unloading.done()
        lease.release()
        await asyncio.wait_for(unloading, TIMEOUT)
        with await asyncio.wait_for(later, TIMEOUT):
            assert loader.num_loads == 2


async def test_unloading_by_force_ends_what_runs_with_an_error(model_path: Path, loader: Loader) -> None:
    async with opened(models_of(model_path, "a", pin=True), loader) as pool:
        lease = await pool.lease("a")
        running = asyncio.create_task(generate(lease, max_tokens=480))
        unloading = asyncio.create_task(pool.unload("a", force=True))
        last = (await running)[-1]
        assert isinstance(last, Failed)
        assert isinstance(last.error, Draining)
        lease.release()
        await asyncio.wait_for(unloading, TIMEOUT)
        assert (state_of(pool, "a"), taken(pool)) == (COLD, 0)
        await pool.unload("a", force=True)
        await pool.unload("a", force=False)
        with pytest.raises(ModelNotFound):
            await pool.unload("b", force=False)


@pytest.mark.parametrize("force", [False, True])
async def test_unloading_during_a_load_that_nobody_waits_for_any_more(
    model_path: Path, loader: Loader, *, force: bool
) -> None:
    async with opened(models_of(model_path, "a"), loader) as pool:
        loader.gate = threading.Event()
        leaving = asyncio.create_task(pool.lease("a"))
        await until(lambda: loader.num_loads == 1)
        leaving.cancel()
        await asyncio.wait({leaving})
        unloading = asyncio.create_task(pool.unload("a", force=force))
        await asyncio.sleep(0)
        loader.gate.set()
        await asyncio.wait_for(unloading, TIMEOUT)
        assert (state_of(pool, "a"), taken(pool)) == (COLD, 0)
        await use(pool, "a")


@pytest.mark.parametrize("force", [False, True])
async def test_unloading_during_a_load_that_somebody_waits_for(
    model_path: Path, loader: Loader, *, force: bool
) -> None:
    async with opened(models_of(model_path, "a"), loader) as pool:
        loader.gate = threading.Event()
        waiting = asyncio.create_task(use(pool, "a"))
        await until(lambda: loader.num_loads == 1)
        unloading = asyncio.create_task(pool.unload("a", force=force))
        await asyncio.sleep(0)
        loader.gate.set()
        results = await asyncio.wait_for(asyncio.gather(waiting, unloading, return_exceptions=True), TIMEOUT)
        assert isinstance(results[0], Draining) if force else [*results] == [None, None]
        assert state_of(pool, "a") is COLD


async def test_an_operator_loads_a_model(model_path: Path, loader: Loader) -> None:
    async with opened(models_of(model_path, "a"), loader) as pool:
        await pool.load("a")
        await pool.load("a")
        status = pool.status("a")
        assert status is not None
        assert (status.state, status.num_leases, status.last_use, loader.num_loads) == (WARM, 0, None, 1)
        assert status.measured is not None
        assert status.predicted.keys() == {"CPU"}


async def test_progress_is_that_of_the_load(model_path: Path, loader: Loader) -> None:
    async with opened(models_of(model_path, "a"), loader) as pool:
        assert pool.progress("a") is None
        loader.gate = threading.Event()
        waiting = asyncio.create_task(pool.lease("a"))
        await until(lambda: loader.num_loads == 1)
        assert pool.progress("a") == LoadProgress(0.0)
        loader.gate.set()
        (await waiting).release()
        assert pool.progress("a") is None


async def test_progress_never_falls_back(model_path: Path, loader: Loader) -> None:
    async with opened(models_of(model_path, "a"), loader) as pool:
        loader.gate = threading.Event()
        waiting = asyncio.create_task(pool.lease("a"))
        await until(lambda: loader.num_loads == 1)
        loader.gate.set()
        seen: list[LoadProgress] = []
        async with asyncio.timeout(TIMEOUT):
            while not waiting.done():
                if (progress := pool.progress("a")) is not None:
                    seen.append(progress)
                await asyncio.sleep(0)  # every pass of the loop is looked at, that of the load's end too
        waiting.result().release()
        assert seen
        assert not any(progress.is_queued for progress in seen)
        assert [progress.fraction for progress in seen] == sorted(progress.fraction for progress in seen)


async def test_a_request_waits_as_long_as_it_may(model_path: Path, loader: Loader) -> None:
    config = pool_config(load_timeout=Duration("50ms"))
    async with opened(models_of(model_path, "a"), loader, config) as pool:
        loader.gate = threading.Event()
        with pytest.raises(TimedOut, match="within 50ms"):
            await pool.lease("a")
        loader.gate.set()
        await until(lambda: state_of(pool, "a") is WARM)
        await use(pool, "a")
        assert loader.num_loads == 1


async def test_closing_in_mid_load(model_path: Path, loader: Loader) -> None:
    async with opened(models_of(model_path, "a"), loader) as pool:
        loader.gate = threading.Event()
        waiting = asyncio.create_task(pool.lease("a"))
        await until(lambda: loader.num_loads == 1)
        closing = asyncio.create_task(pool.close())
        with pytest.raises(Draining):
            await waiting
        loader.gate.set()
        await asyncio.wait_for(closing, TIMEOUT)
        assert (state_of(pool, "a"), taken(pool)) == (COLD, 0)


async def test_a_lease_that_comes_as_its_caller_goes_away_is_given_back(model_path: Path, loader: Loader) -> None:
    async with opened(models_of(model_path, "a"), loader) as pool:
        loader.gate = threading.Event()
        waiting = [asyncio.create_task(pool.lease("a")) for _ in range(2)]
        await until(lambda: loader.num_loads == 1)
        loader.gate.set()
        await until(lambda: state_of(pool, "a") is WARM and pool.statuses()[0].num_leases > 0)
        for task in waiting:
            task.cancel()
        for task in waiting:
            with suppress(asyncio.CancelledError):
                (await task).release()
        assert pool.statuses()[0].num_leases == 0


async def test_a_budget_for_a_device_that_is_not_there(model_path: Path) -> None:
    models = models_of(model_path, "a")
    config = pool_config()
    async with opened(models, config=type(config)(memory_budget={"CUDA7": "1GiB"})) as pool:
        with pytest.raises(ConfigurationError, match="no device CUDA7"):
            await pool.preload()


async def test_what_a_load_took_is_remembered(tmp_path: Path) -> None:
    path, file = tmp_path / "model.gguf", FootprintFile(tmp_path / "cache" / "footprints.json")
    write_llama(path, LlamaShape(width=1024, hidden=4096, layers=4, vocabulary=8192))
    for _ in range(2):
        pool = Pool({"a": ModelConfig(str(path))}, pool_config(), footprints=file)
        await use(pool, "a")
        await until(lambda: len(file.read()) == 1)
        status = pool.status("a")
        await pool.close()
        assert status is not None
        assert status.measured is not None
        assert status.measured["CPU"] > path.stat().st_size / 2


async def test_a_context_is_cut_to_what_was_measured(loader: Loader, tmp_path: Path) -> None:
    path = tmp_path / "wide.gguf"
    write_llama(path, LlamaShape(width=512, kv_heads=4, layers=16, context=8192))
    more = 40 << 20

    def load_more(plan: LoadPlan, *others: Any) -> LoadedModel:  # noqa: ANN401 (the others are passed on)
        model = loader(plan, *others)
        return replace(model, measured={"CPU": plan.predicted["CPU"] + more})

    budget = bytes_of(path) + (1 << 20)
    pool = Pool({"wide": ModelConfig(str(path))}, pool_config(budget), load=load_more, policy=QUICK)
    cells = []
    for _ in range(2):
        await use(pool, "wide")
        cells.append(pool.statuses()[0].kv_cells or 0)
        await pool.unload("wide", force=False)
    await pool.close()
    assert 0 < cells[1] < cells[0]


async def test_an_operator_may_unload_what_is_being_preloaded(model_path: Path, loader: Loader) -> None:
    async with opened(models_of(model_path, "a", "b", preload=True), loader) as pool:
        loader.gate = threading.Event()
        preloading = asyncio.create_task(pool.preload())
        await until(lambda: loader.num_loads == 1)
        unloading = asyncio.create_task(pool.unload("a", force=True))
        await asyncio.sleep(0)
        loader.gate.set()
        await asyncio.wait_for(asyncio.gather(preloading, unloading), TIMEOUT)
        assert (state_of(pool, "a"), state_of(pool, "b")) == (COLD, WARM)
        assert [model.is_ready for model in pool.preloaded()] == [True, True]


async def test_preloading_takes_as_long_as_it_takes(model_path: Path, loader: Loader) -> None:
    config = pool_config(load_timeout=Duration("1ms"))
    async with opened(models_of(model_path, "a", preload=True), loader, config) as pool:
        loader.gate = threading.Event()
        preloading = asyncio.create_task(pool.preload())
        await until(lambda: loader.num_loads == 1)
        with pytest.raises(TimedOut):
            await pool.lease("a")
        loader.gate.set()
        await asyncio.wait_for(preloading, TIMEOUT)
        assert state_of(pool, "a") is WARM


async def test_a_preload_joins_a_load_that_a_request_began(model_path: Path, size: int, loader: Loader) -> None:
    models = models_of(model_path, "a", preload=True)
    async with opened(models, loader, pool_config(size)) as pool:
        loader.gate = threading.Event()
        asking = asyncio.create_task(use(pool, "a"))
        await until(lambda: loader.num_loads == 1)
        preloading = asyncio.create_task(pool.preload())
        await asyncio.sleep(0)
        assert not preloading.done()
        assert [model.is_ready for model in pool.preloaded()] == [False]
        loader.gate.set()
        await asyncio.wait_for(asyncio.gather(asking, preloading), TIMEOUT)
        assert loader.num_loads == 1


async def test_a_plan_is_not_used_after_who_it_was_made_for_went_away(
    model_path: Path, size: int, loader: Loader, tmp_path: Path
) -> None:
    path = tmp_path / "b.gguf"
    shutil.copy(model_path, path)
    models = models_of(model_path, "a") | {"b": ModelConfig(str(path))}
    patient = PolicyConfig(longest_wait_seconds=TIMEOUT, least_residency_seconds=0.0, idle_grace_seconds=0.0)
    async with opened(models, loader, pool_config(size), patient) as pool:
        with await pool.lease("a"):
            leaving = asyncio.create_task(pool.lease("b"))
            await until(lambda: (pool.status("b") or pool.statuses()[0]).kv_cells is not None)
            leaving.cancel()
            await asyncio.wait({leaving})
        path.unlink()
        shutil.copy(model_path, path)
        os.utime(path, (1, 1))
        await use(pool, "b")


async def test_no_more_requests_wait_for_a_load_than_it_can_serve(model_path: Path, loader: Loader) -> None:
    config = pool_config(queue_size=3)  # beside two sequences
    async with opened(models_of(model_path, "a"), loader, config) as pool:
        loader.gate = threading.Event()
        waiting = [asyncio.create_task(use(pool, "a")) for _ in range(5)]
        await until(lambda: pool.statuses()[0].num_waiting == 5)
        with pytest.raises(QueueFull) as caught:
            await pool.lease("a")
        assert caught.value.retry_after is not None
        await asyncio.sleep(0)
        loader.gate.set()
        await asyncio.gather(*waiting)


async def test_a_dismissed_model_that_dies_is_not_loaded_again(model_path: Path, loader: Loader) -> None:
    async with opened(models_of(model_path, "a", preload=True), loader) as pool:
        await pool.preload()
        lease = await pool.lease("a")
        unloading = asyncio.create_task(pool.unload("a", force=False))
        await until(lambda: state_of(pool, "a") is DRAINING)
        lease.model.engine.close(TIMEOUT)
        lease.release()
        await asyncio.wait_for(unloading, TIMEOUT)
        assert (state_of(pool, "a"), loader.num_loads) == (COLD, 1)


async def test_a_template_that_is_a_pipe_is_refused(model_path: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jinja")
    models = models_of(model_path, "a", chat_template=str(tmp_path / "pipe.jinja"))
    async with opened(models) as pool:
        with pytest.raises(ModelLoadingFailed, match="not a regular file"):
            await pool.lease("a")
