"""Pools over real files; the loader is wrapped to count, to hold and to fail loads, never replaced by a fake."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from server.core.events import Event, Failed, Finished
from server.core.ports import ModelState
from server.core.request import SamplingParameters
from server.engine.engine import Delivery
from server.engine.sequence import GenerationRequest
from server.pool.config import ModelConfig, PoolConfig
from server.pool.loader import LoadedModel, LoadMonitor, load_model
from server.pool.plan import LoadPlan, Machine, make_plan
from server.pool.policy import PolicyConfig
from server.pool.pool import Pool
from server.pool.resident import Lease
from server.store.model_index import ModelIndex

TIMEOUT = 30.0
QUICK = PolicyConfig(longest_wait_seconds=0.3, least_residency_seconds=0.0, idle_grace_seconds=0.01)
"""Turns that take no test's patience."""


@dataclass
class Loader:
    """``load_model`` that counts loads by file, waits for ``gate`` if there is one, and fails when told to."""

    loads: Counter[str] = field(default_factory=Counter)
    gate: threading.Event | None = None
    failure: Exception | None = None

    @property
    def num_loads(self) -> int:
        """All loads."""
        return self.loads.total()

    def __call__(
        self,
        plan: LoadPlan,
        pool_config: PoolConfig,
        deliver: Callable[[list[Delivery]], None],
        on_end: Callable[[], None],
        monitor: LoadMonitor,
    ) -> LoadedModel:
        self.loads[plan.path.stem] += 1
        if self.gate is not None:
            assert self.gate.wait(TIMEOUT)
        if self.failure is not None:
            raise self.failure
        return load_model(plan, pool_config, deliver, on_end, monitor)


def pool_config(budget: int | str = "auto", **values: object) -> PoolConfig:
    """A small pool: two sequences, one thread, and the same bytes for a model whatever the budget."""
    usual = {"memory_budget": budget, "max_sequences": 2, "threads": 1, "prefix_memory": 0}
    return PoolConfig(**(usual | values))  # type: ignore[arg-type]


def bytes_of(path: Path, **values: object) -> int:
    """What the pool sets aside for a file in main memory."""
    config = ModelConfig(path=str(path), n_gpu_layers=0, **values)  # type: ignore[arg-type]
    plan = make_plan(config, pool_config(), Machine.this(), {"CPU": 2**40})
    return plan.predicted["CPU"]


@asynccontextmanager
async def opened(
    models: Mapping[str, ModelConfig],
    loader: Loader | None = None,
    config: PoolConfig | None = None,
    policy: PolicyConfig = QUICK,
    index: ModelIndex | None = None,
) -> AsyncIterator[Pool]:
    """A pool that is closed at the end of the block."""
    pool = Pool(models, config or pool_config(), index=index, load=loader or Loader(), policy=policy)
    try:
        yield pool
    finally:
        if loader is not None and loader.gate is not None:
            loader.gate.set()
        await asyncio.wait_for(pool.close(), TIMEOUT)


def state_of(pool: Pool, model: str) -> ModelState:
    """Where a model stands."""
    status = pool.status(model)
    assert status is not None
    return status.state


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something holds."""
    async with asyncio.timeout(TIMEOUT):
        while not condition():  # noqa: ASYNC110 (what is waited for is in the pool, which tells nobody)
            await asyncio.sleep(0.001)


async def generate(lease: Lease, max_tokens: int = 5, seed: int = 0) -> list[Event]:
    """All events of a generation."""
    events: list[Event] = []
    over = asyncio.Event()

    def listen(batch: object) -> None:
        assert isinstance(batch, list)
        events.extend(batch)
        if isinstance(events[-1], Finished | Failed):
            over.set()

    prompt = np.arange(20 + seed, 30 + seed, dtype=np.int32)
    lease.submit(GenerationRequest(prompt, SamplingParameters(temperature=0, ignore_eos=True), max_tokens), listen)
    await asyncio.wait_for(over.wait(), TIMEOUT)
    return events
