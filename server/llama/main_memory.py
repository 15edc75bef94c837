"""Main memory: what this process may use of it, what it has, and giving back what it has freed."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_ROOT = Path("/")
_MAPPINGS = Path("/proc/self/maps")
_NOT_NEEDED = 4  # MADV_DONTNEED


class MainMemory(NamedTuple):
    """Bytes that are available now, and that this process may use at most."""

    free: int
    total: int


class _Files(NamedTuple):
    """Where a cgroup says what it may use, what it uses, and what of this are pages of files; by cgroup version."""

    folder: str
    limit: str
    usage: str
    droppable: tuple[str, ...]


_VERSION_1 = _Files(
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)
_VERSION_2 = _Files("sys/fs/cgroup", "memory.max", "memory.current", ("active_file", "inactive_file"))


def main_memory(root: Path = _ROOT) -> MainMemory | None:
    """Return what the machine and all cgroups around this process leave it; ``None`` where the system does not tell.

    Pages of files count as available, because the system drops them when memory is wanted.
    """
    try:
        stated = _table(root / "proc/meminfo")
        free, total = stated["MemAvailable:"] * 1024, stated["MemTotal:"] * 1024
    except (OSError, KeyError):
        return None
    for limit, used in _cgroups(root):
        free, total = min(free, limit - used), min(total, limit)
    return MainMemory(max(free, 0), total)


def resident_bytes() -> int:
    """Return the resident size of this process, with the pages of files that it maps; 0 where nobody tells."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def give_back_freed() -> None:
    """Return memory that was freed to the system; the C library would keep some of it for later."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:  # glibc
        trim(ctypes.c_size_t(0))


def can_release_mappings() -> bool:
    """Whether ``release_mapping`` works here."""
    return _MAPPINGS.exists() and hasattr(ctypes.CDLL(None), "madvise")


def release_mapping(path: Path) -> None:
    """Give back the resident pages of a mapped file; those that are needed again come back from the page cache."""
    identity = path.stat()
    madvise = ctypes.CDLL(None).madvise
    for line in _MAPPINGS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        # https://man7.org/linux/man-pages/man5/proc_pid_maps.5.html
        addresses, _, _, device, inode, *_ = line.split(maxsplit=5)
        major, minor = (int(part, 16) for part in device.split(":"))
        if (int(inode), major, minor) == (identity.st_ino, os.major(identity.st_dev), os.minor(identity.st_dev)):
            begin, end = (int(address, 16) for address in addresses.split("-"))
            madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _NOT_NEEDED)


def _table(path: Path) -> dict[str, int]:
    """Read lines of a name and a number, as the kernel writes them."""
    lines = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _cgroups(root: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and undroppable use of this process's cgroups that have a limit, from the innermost outwards."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0" or "memory" in controllers.split(","):
            files = _VERSION_2 if hierarchy == "0" else _VERSION_1
            # Inside of a container the path may be the host's, where only the mount's root exists.
            for folder in (root / files.folder / path.strip("/") / "_").parents:
                if folder == root / "sys/fs":
                    break
                yield from _limit(folder, files)


def _limit(folder: Path, files: _Files) -> Iterator[tuple[int, int]]:
    try:
        limit = int((folder / files.limit).read_text(encoding="ascii"))
        used = int((folder / files.usage).read_text(encoding="ascii"))
        pages = _table(folder / "memory.stat")
    except (OSError, ValueError):  # no such group, or no limit, which version 2 writes as "max"
        return
    yield limit, max(used - sum(pages.get(name, 0) for name in files.droppable), 0)
