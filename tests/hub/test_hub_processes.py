"""Pulls that are killed, and pulls of several processes into one folder."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes.hub import FakeHub
from pulling import FILE, REPOSITORY, Puller, content

MIB = 1 << 20
ROOT = Path(__file__).parents[2]
PROGRAM = """
import asyncio, sys
from pathlib import Path
from server.core.errors import LlmspellError
from server.store.download import Downloads
from server.store.hub import Hub
from server.store.hub_settings import HubSettings
from server.store.pull_plan import plan_pull

async def main(url, root, repository):
    hub = Hub(HubSettings(url))
    async for event in Downloads(hub, Path(root)).pull(plan_pull(hub.listing(repository))):
        print(event, flush=True)

try:
    asyncio.run(main(*sys.argv[1:]))
except LlmspellError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def start(hub: FakeHub, tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start a process that pulls; it ends with the test at the latest."""
    processes = []

    def start_one(before: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", before + PROGRAM, hub.url, str(tmp_path / "models"), REPOSITORY]
        processes.append(
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
        return processes[-1]

    yield start_one
    for process in processes:
        process.kill()
        process.communicate()


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
async def test_what_was_killed_goes_on_where_it_stopped(
    hub: FakeHub, puller: Puller, start: Callable[[], subprocess.Popen[str]], signal_number: signal.Signals
) -> None:
    data = content(2 * MIB)
    hub.add(REPOSITORY, {FILE: data})
    hub.bytes_per_second = MIB
    process = start()
    until(lambda: puller.part_bytes > 300_000)

    process.send_signal(signal_number)
    process.communicate(timeout=10)

    kept = puller.part_bytes
    assert 300_000 < kept < len(data)
    assert puller.published == []
    hub.bytes_per_second = 0
    finished = await puller.pull()
    assert finished.path.read_bytes() == data
    assert hub.asked(FILE, at_hub=False)[-1].headers["range"] == f"bytes={kept}-"
    assert puller.parts == []


def test_processes_fetch_a_file_once(hub: FakeHub, puller: Puller, start: Callable[[], subprocess.Popen[str]]) -> None:
    data = content(2 * MIB)
    hub.add(REPOSITORY, {FILE: data})
    hub.bytes_per_second = MIB

    outputs = [process.communicate(timeout=30)[0] for process in (start(), start(), start())]

    assert all("Downloaded" in output for output in outputs)
    assert sum("PullActivity.WAITING" in output for output in outputs) == 2
    assert hub.bytes_sent == len(data)
    assert puller.parts == []


def test_who_waits_takes_over_from_who_is_killed(
    hub: FakeHub, puller: Puller, start: Callable[[], subprocess.Popen[str]]
) -> None:
    data = content(2 * MIB)
    hub.add(REPOSITORY, {FILE: data})
    hub.bytes_per_second = MIB
    first = start()
    until(lambda: puller.part_bytes > 100_000)
    second = start()
    until(lambda: len(hub.asked("/api/models/")) == 2)

    first.kill()
    output, _ = second.communicate(timeout=30)

    assert "Downloaded" in output
    assert puller.published == [f"hf.co/{REPOSITORY}/{FILE}"]
    assert (puller.root / puller.published[0]).read_bytes() == data
    assert "range" in hub.asked(FILE, at_hub=False)[-1].headers


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
def test_a_file_that_may_not_grow_is_told_and_kept(
    hub: FakeHub, puller: Puller, start: Callable[[str], subprocess.Popen[str]]
) -> None:
    hub.add(REPOSITORY, {FILE: content(MIB)})

    output, _ = start("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n").communicate(
        timeout=20
    )

    assert "CannotStore" in output
    assert "cannot hold files this large" in output
    assert puller.part_bytes == 500_000
