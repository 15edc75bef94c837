"""The memory that models share: what there is of it, what each one takes, and what earlier loads really took."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from server.core.ports import DeviceMemory
from server.pool.budget import device_budgets
from server.pool.config import MemoryBudget
from server.pool.footprint_file import FootprintFile
from server.pool.ledger import Footprints, Ledger
from server.pool.plan import LoadPlan, Machine

_NOISE_BYTES = 32 << 20
"""What a process grows and shrinks by whatever it loads: a measurement so close to the prediction confirms it."""
_LEAST_PLAUSIBLE_SHARE = 0.5
"""A measurement of less than this share of the prediction was disturbed, by memory that was freed meanwhile."""

_log = logging.getLogger(__name__)


class MemoryAccounts:
    """Who has how many bytes on which device. Used on the event loop only; empty before ``machine`` was awaited."""

    def __init__(self, budget: MemoryBudget, find_machine: Callable[[], Machine], file: FootprintFile) -> None:
        """Allow what ``budget`` says; ``find_machine`` runs in a worker thread, once, before the first load."""
        self._budget = budget
        self._find_machine = find_machine
        self._file = file
        self._machine: Machine | None = None
        self._opening = asyncio.Lock()
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
        machine = await asyncio.to_thread(self._find_machine)
        budgets = device_budgets(self._budget, machine.devices)
        self._footprints = await asyncio.to_thread(self._file.read)
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
        """Put what a load took in place of what was set aside, if that is to be believed; return what counts."""
        believed = _believed(plan.predicted, measured)
        if believed is None or measured == plan.predicted:  # disturbed: nothing has been learned
            return self._ledger.reservation(model)
        self._ledger.correct(model, believed)
        self._footprints.record(plan.fingerprint, believed)
        return believed

    async def write(self) -> None:
        """Remember what loads took."""
        await asyncio.to_thread(self._file.write, self._footprints.to_json())

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


def _believed(predicted: Mapping[str, int], measured: Mapping[str, int]) -> Mapping[str, int] | None:
    """Return the bytes to count, device by device; ``None`` if the measurement was disturbed."""
    believed = {}
    for device, expected in predicted.items():
        found = measured.get(device, 0)
        if abs(found - expected) <= _NOISE_BYTES:
            believed[device] = expected
        elif found < expected * _LEAST_PLAUSIBLE_SHARE:
            return None
        else:
            believed[device] = found
    return believed
