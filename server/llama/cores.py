"""How many threads a model is best computed with: one for each physical core that this process may use.

Two threads on one core share its arithmetic units and only wait for each other, and threads beyond a container's quota
are stopped in the middle of a step that all others wait for.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_SYSTEM = Path("/sys")


def usable_cores(system: Path = _SYSTEM) -> int:
    """Count the physical cores that affinity and cgroup quota leave; logical ones where the system does not tell."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cpus = os.sched_getaffinity(0)
    cores = {_siblings(system, cpu) for cpu in cpus}
    return max(1, min(len(cores), _quota(system)))


def _siblings(system: Path, cpu: int) -> str:
    """Name the physical core of a logical one by the logical ones that share it."""
    try:
        path = system / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return str(cpu)


def _quota(system: Path) -> int:
    """Cores' worth of CPU time that the cgroup may use; version 2 of cgroups, as seen from inside of a container."""
    try:
        quota, period = (system / "fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no limit is written as "max"
        return os.cpu_count() or 1
