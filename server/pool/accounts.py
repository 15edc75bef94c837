"""The memory that models share: what there is of it, what each one takes, and what earlier loads really took."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from server.core.background import in_thread
from server.core.ports import DeviceMemory
from server.pool.budget import device_budgets
from server.pool.config import MemoryBudget
from server.pool.footprint_file import FootprintFile
from server.pool.ledger import Footprints, Ledger
from server.pool.plan import LoadPlan, Machine

_NOISE_BYTES = 32 << 20
"""What a process grows and shrinks by whatever it loads: a measurement so close to the prediction confirms it."""
_PLAUSIBLE_SHARE = 0.2
"""A measurement this far from the prediction may have been disturbed: by requests, or by memory freed meanwhile."""
_SAME_SHARE = 0.05
"""Two measurements that differ by no more agree."""

_log = logging.getLogger(__name__)


class MemoryAccounts:
    """Who has how many bytes on which device. Used on the event loop only; empty before ``machine`` was awaited."""

    def __init__(self, budget: MemoryBudget, find_machine: Callable[[], Machine], file: FootprintFile) -> None:
        """Allow what ``budget`` says; ``find_machine`` runs in a worker thread, once, before the first load."""
        self._budget = budget
        self._find_machine = find_machine
        self._file = file
        self._machine: Machine | None = None
        self._opening, self._writing = asyncio.Lock(), asyncio.Lock()
        self._doubtful: dict[str, Mapping[str, int]] = {}
        self._ledger = Ledger({})
        self._footprints = Footprints()

    async def machine(self) -> Machine:
        """Return what models are loaded on.

        Raises:
            ConfigurationError: the budget is wrong for this machine.

        """
        async with self._opening:
            if self._machine is None:
                self._machine = await self._open()
        return self._machine

    async def _open(self) -> Machine:
        machine = await in_thread(self._find_machine)
        budgets = device_budgets(self._budget, machine.devices)
        self._footprints = await in_thread(self._file.read)
        self._ledger = Ledger(budgets)
        sizes = ", ".join(f"{shown_bytes(size)} on {device}" for device, size in budgets.items())
        _log.info("models may take %s", sizes, extra={"budgets": budgets})
        return machine

    @property
    def budgets(self) -> Mapping[str, int]:
        """Bytes that each device may hold."""
        return self._ledger.budgets

    @property
    def is_anything_taken(self) -> bool:
        """Whether any model takes memory."""
        return any(self._ledger.taken.values())

    @property
    def is_overdrawn(self) -> bool:
        """Whether models take more than they may: one took more than was predicted."""
        return min(self._ledger.free.values(), default=0) < 0

    def limits(self, pinned: Iterable[str]) -> Mapping[str, int]:
        """Return the bytes on each device that these models leave to others."""
        limits = dict(self._ledger.budgets)
        for model in pinned:
            for device, num in self._ledger.reservation(model).items():
                limits[device] = max(limits[device] - num, 0)
        return limits

    def estimate(self, plan: LoadPlan) -> Mapping[str, int]:
        """Return the bytes that a load will take: what it took before, or else what is predicted."""
        return self._footprints.estimate(plan.fingerprint, plan.predicted)

    def lacking(self, num_bytes: Mapping[str, int]) -> Mapping[str, int]:
        """Return what is free on the devices that have less than these bytes left."""
        free = self._ledger.free
        return {device: max(free[device], 0) for device, num in num_bytes.items() if num > free[device]}

    def reserve(self, model: str, num_bytes: Mapping[str, int]) -> None:
        """Set memory aside for a load; ``ValueError`` if it is not there."""
        self._ledger.reserve(model, num_bytes)

    def release(self, model: str) -> None:
        """Give back what a model has, if anything."""
        self._ledger.release(model)

    def correct(self, model: str, plan: LoadPlan, measured: Mapping[str, int]) -> Mapping[str, int]:
        """Put what a load took in place of what was set aside, if that is to be believed; return what counts.

        What is far from the prediction is believed when two loads agree on it.
        """
        if measured == plan.predicted:  # disturbed: nothing has been learned
            return self._ledger.reservation(model)
        earlier = self._doubtful.pop(plan.fingerprint, None)
        if not _is_near(measured, plan.predicted, _PLAUSIBLE_SHARE) and (
            earlier is None or not _is_near(measured, earlier, _SAME_SHARE)
        ):
            self._doubtful[plan.fingerprint] = measured
            return self._ledger.reservation(model)
        believed = {
            device: expected if abs(measured.get(device, 0) - expected) <= _NOISE_BYTES else measured.get(device, 0)
            for device, expected in plan.predicted.items()
        }
        self._ledger.correct(model, believed)
        self._footprints.record(plan.fingerprint, believed)
        return believed

    def lessened(self, plan: LoadPlan, limits: Mapping[str, int]) -> Mapping[str, int] | None:
        """Return limits for another plan, if this one is known to take more than was predicted, and does not fit."""
        estimate = self.estimate(plan)
        if not any(
            predicted <= limits.get(device, 0) < estimate[device] for device, predicted in plan.predicted.items()
        ):
            return None
        excess = {device: max(estimate[device] - predicted, 0) for device, predicted in plan.predicted.items()}
        return {device: max(limit - excess.get(device, 0), 0) for device, limit in limits.items()}

    async def write(self) -> None:
        """Remember what loads took."""
        async with self._writing:
            await in_thread(self._file.write, self._footprints.to_json())

    def devices(self) -> Sequence[DeviceMemory]:
        """List the devices."""
        if self._machine is None:
            return ()
        budgets, taken = self._ledger.budgets, self._ledger.taken
        return [
            DeviceMemory(device.name, device.description, budgets[device.name], taken[device.name])
            for device in self._machine.devices
        ]


def shown_bytes(num_bytes: int) -> str:
    """Write a number of bytes exactly and so that it can be read."""
    return f"{num_bytes} bytes ({num_bytes / 2**30:.2f} GiB)"


def _is_near(measured: Mapping[str, int], expected: Mapping[str, int], share: float) -> bool:
    return all(abs(measured.get(device, 0) - num) <= max(num * share, _NOISE_BYTES) for device, num in expected.items())
