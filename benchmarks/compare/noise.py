"""How much of the machine was used by processes that have nothing to do with a measurement."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil

WATCH_SECONDS = 0.5


class Noise:
    """Measures the share of the machine's CPU time that others take.

    ``last`` is the share of the latest block, from 0 to 1; ``shares`` are those that the owner of this object keeps.
    """

    def __init__(self, process_ids: Sequence[int]) -> None:
        """Take the servers that are measured; this process counts as one of them."""
        self._processes = [psutil.Process(), *(psutil.Process(process_id) for process_id in process_ids)]
        self.last = 0.0
        self.shares: list[float] = []

    async def quiet(self, most: float, patience: float) -> None:
        """Return when others have taken no more than the share ``most`` for a while, or after ``patience`` seconds."""
        deadline = time.monotonic() + patience
        while True:
            with self.watched():
                await asyncio.sleep(WATCH_SECONDS)
            if self.last <= most or time.monotonic() > deadline:
                return

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Set ``last`` to the share of others while the block runs, unless it raises."""
        before = self._seconds()
        yield
        after = self._seconds()
        own, busy, whole = (late - early for early, late in zip(before, after, strict=True))
        self.last = foreign_share(own, busy, whole)

    def _seconds(self) -> tuple[float, float, float]:
        """Return CPU seconds of the servers, of everything that ran, and of all cores, idle or not."""
        own = sum(times.user + times.system for times in (process.cpu_times() for process in self._processes))
        machine = psutil.cpu_times()
        # guest time is part of user time; waiting for a disk is idleness
        busy = machine.user + machine.nice + machine.system + getattr(machine, "steal", 0.0)
        return own, busy, busy + machine.idle + getattr(machine, "iowait", 0.0)


def foreign_share(own: float, busy: float, whole: float) -> float:
    """Return the share of ``whole`` that was busy, but not with our own work; times are in seconds."""
    return max(busy - own, 0.0) / whole if whole > 0 else 0.0
