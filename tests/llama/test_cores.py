from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.llama.cores import usable_cores


@pytest.fixture
def four_threads_on_two_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for cpu in range(4):
        topology = tmp_path / f"devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 2},{cpu % 2 + 2}\n", encoding="ascii")
    return tmp_path


def limit(system: Path, text: str) -> Path:
    (system / "fs/cgroup").mkdir(parents=True)
    (system / "fs/cgroup/cpu.max").write_text(text, encoding="ascii")
    return system


def test_threads_of_one_core_count_once(four_threads_on_two_cores: Path) -> None:
    assert usable_cores(four_threads_on_two_cores) == 2


@pytest.mark.parametrize(("text", "expected"), [("max 100000", 2), ("100000 100000", 1), ("5000 100000", 1)])
def test_a_quota_is_kept_to(four_threads_on_two_cores: Path, text: str, expected: int) -> None:
    assert usable_cores(limit(four_threads_on_two_cores, text)) == expected


def test_logical_cores_where_the_system_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert usable_cores(tmp_path) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores(tmp_path) == 8
