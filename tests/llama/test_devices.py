from __future__ import annotations

import mmap
from pathlib import Path

import psutil
import pytest

from server.llama.devices import CPU, devices, free_bytes, gpu_handles, native_version, system_info
from server.llama.main_memory import give_back_freed, main_memory, resident_bytes

GIB = 1 << 30


def test_main_memory_comes_first_and_gpus_follow() -> None:
    first, *others = devices()

    assert (first.name, first.is_gpu) == (CPU, False)
    assert first.description
    assert 0 < first.free <= first.total <= psutil.virtual_memory().total
    assert all(device.is_gpu and device.total > 0 for device in others)
    assert len(others) == len(gpu_handles())
    assert len({device.name for device in devices()}) == len(devices())


def test_free_memory_of_a_device() -> None:
    assert free_bytes(CPU) == pytest.approx(devices()[0].free, rel=0.2)
    with pytest.raises(ValueError, match="Abacus0"):
        free_bytes("Abacus0")


def test_what_the_processor_can_do() -> None:
    assert "CPU : " in system_info()
    assert native_version()


def test_memory_that_is_touched_is_resident_until_it_is_given_back() -> None:
    before = resident_bytes()
    with mmap.mmap(-1, 64 << 20) as block:
        block.write(b"x" * len(block))
        assert resident_bytes() - before > 60 << 20
    give_back_freed()
    assert resident_bytes() - before < 10 << 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The files of a machine with 8 GiB, of which 6 are available."""
    return write(tmp_path, "proc/meminfo", f"MemTotal: {8 << 20} kB\nMemFree: 100 kB\nMemAvailable: {6 << 20} kB\n")


def write(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")
    return root


def group(folder: str, limit: str, used: int, *pages: str) -> dict[str, str]:
    """The files of a cgroup of version 2."""
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.current": str(used),
        f"{folder}/memory.stat": "\n".join(["anon 5", *pages]),
    }


def test_memory_of_a_machine_without_cgroups(root: Path) -> None:
    assert main_memory(root) == (6 * GIB, 8 * GIB)


def test_where_the_system_does_not_tell(tmp_path: Path) -> None:
    assert main_memory(tmp_path) is None


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, (6, 8)),
        ({"a/b": "max"}, (6, 8)),
        ({"a/b": 4}, (3, 4)),  # of which one is used
        ({"a": 3, "a/b": "max"}, (2, 3)),
        ({"a": 3, "a/b": 5}, (2, 3)),
        ({"": 2}, (1, 2)),  # a container sees its own group as the root
        ({"a/b": 20}, (6, 8)),
    ],
)
def test_the_tightest_group_counts(root: Path, limits: dict[str, int | str], expected: tuple[int, int]) -> None:
    write(root, "proc/self/cgroup", "0::/a/b\n")
    for name, limit in limits.items():
        stated = "max\n" if limit == "max" else f"{int(limit) * GIB}\n"
        for path, text in group(f"sys/fs/cgroup/{name}", stated, GIB).items():
            write(root, path, text)

    assert main_memory(root) == tuple(num * GIB for num in expected)


def test_pages_of_files_can_be_dropped_from_a_group(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/\n")
    for path, text in group(
        "sys/fs/cgroup", str(4 * GIB), 4 * GIB, f"active_file {GIB}", f"inactive_file {2 * GIB}"
    ).items():
        write(root, path, text)

    assert main_memory(root) == (3 * GIB, 4 * GIB)


def test_groups_of_version_1(root: Path) -> None:
    write(root, "proc/self/cgroup", "9:cpu:/a\n4:memory:/a\n0::/\n")
    write(root, "sys/fs/cgroup/memory/a/memory.limit_in_bytes", str(2 * GIB))
    write(root, "sys/fs/cgroup/memory/a/memory.usage_in_bytes", str(GIB + 5))
    write(root, "sys/fs/cgroup/memory/a/memory.stat", f"inactive_file 3\ntotal_inactive_file {GIB}\n")

    assert main_memory(root) == (2 * GIB - 5, 2 * GIB)
