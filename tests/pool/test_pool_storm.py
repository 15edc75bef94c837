"""Many requests for many models at once, and anything that may happen to them, in any order."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from gguf_shapes import write_llama
from pools import TIMEOUT, Loader, bytes_of, generate, opened, pool_config, until

from server.core.errors import Draining, LlmspellError, ModelLoadingFailed
from server.core.events import Finished
from server.core.ports import ModelState
from server.pool.config import ModelConfig
from server.pool.pool import Pool

NAMES = [f"m{number}" for number in range(20)]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, ModelConfig]:
    directory = tmp_path_factory.mktemp("storm")
    write_llama(directory / f"{NAMES[0]}.gguf")
    for name in NAMES[1:]:
        shutil.copy(directory / f"{NAMES[0]}.gguf", directory / f"{name}.gguf")
    return {name: ModelConfig(str(directory / f"{name}.gguf")) for name in NAMES}


@pytest.fixture(scope="session")
def size(models: Mapping[str, ModelConfig]) -> int:
    return bytes_of(Path(models[NAMES[0]].path))


def taken(pool: Pool) -> int:
    return sum(device.taken for device in pool.devices())


async def test_a_hundred_requests_for_twenty_models_on_a_budget_of_three(
    models: Mapping[str, ModelConfig], size: int
) -> None:
    loader, most = Loader(), 0
    async with opened(models, loader, pool_config(3 * size)) as pool:

        async def use(name: str) -> None:
            nonlocal most
            with await asyncio.wait_for(pool.lease(name), TIMEOUT) as lease:
                most = max(most, taken(pool))
                assert isinstance((await generate(lease))[-1], Finished)

        await asyncio.gather(*(use(NAMES[number % 20]) for number in range(100)))
    # All the requests of a model are there when it is loaded, so one load serves them.
    assert loader.loads == dict.fromkeys(NAMES, 1)
    assert most <= 3 * size


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_nobody_waits_for_ever_and_the_books_are_right(
    models: Mapping[str, ModelConfig], size: int, seed: int
) -> None:
    choose, loader, names = random.Random(seed), Loader(), NAMES[:5]
    async with opened({name: models[name] for name in names}, loader, pool_config(2 * size)) as pool:

        async def use() -> None:
            keep_alive = choose.choice([None, None, 0.0, 0.01, -1.0])
            try:
                with await pool.lease(choose.choice(names), keep_alive) as lease:
                    last = (await generate(lease, choose.choice([1, 5, 50])))[-1]
                    assert isinstance(last, Finished) or isinstance(last.error, Draining)  # type: ignore[union-attr]
            except LlmspellError as error:
                assert isinstance(error, Draining | ModelLoadingFailed)  # noqa: PT017 (others are failures)

        async def leave() -> None:
            task = asyncio.create_task(use())
            await asyncio.sleep(choose.random() * 0.05)
            task.cancel()
            await asyncio.wait({task})

        async def steer() -> None:
            name = choose.choice(names)
            await pool.unload(name, force=choose.random() < 0.5)

        async def pin() -> None:
            name = choose.choice(names[:1])
            pool.pin(name, pinned=choose.random() < 0.5)

        async def fail() -> None:
            loader.failure = RuntimeError("for a moment")
            await asyncio.sleep(0.01)
            loader.failure = None

        async def client() -> None:
            for _ in range(15):
                await choose.choices([use, leave, steer, pin, fail], [10, 3, 2, 1, 1])[0]()
                assert taken(pool) <= 2 * size

        await asyncio.wait_for(asyncio.gather(*(client() for _ in range(8))), TIMEOUT)
        pool.pin(names[0], pinned=False)
        for status in pool.statuses():
            assert (status.num_leases, status.num_waiting) == (0, 0)
        await until(
            lambda: all(s.state in {ModelState.COLD, ModelState.WARM, ModelState.FAILED} for s in pool.statuses())
        )
        assert taken(pool) == size * sum(status.state is ModelState.WARM for status in pool.statuses())
