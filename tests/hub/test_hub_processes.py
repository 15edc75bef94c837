"""Pulls that are killed, and pulls of several processes into one folder."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes.hub import FakeHub, Generated, Rule, Stall
from pulling import FILE, REPOSITORY, Puller, content

MIB = 1 << 20
GIGABYTE = 1_000_000_000
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
    downloads = Downloads(hub, Path(root), **globals().get("OPTIONS", {}))
    async for event in downloads.pull(plan_pull(hub.listing(repository))):
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


def test_a_gigabyte_goes_on_where_it_stopped_and_is_verified(
    hub: FakeHub, puller: Puller, start: Callable[[], subprocess.Popen[str]]
) -> None:
    if shutil.disk_usage(puller.root.parent).free < 3 * GIGABYTE:
        pytest.skip("a gigabyte needs more room than there is for temporary files")
    generated = Generated(GIGABYTE)
    hub.add(REPOSITORY, {FILE: generated})
    # however fast it is, it cannot be finished when it is killed
    hub.rules.append(Rule(FILE, Stall(after=GIGABYTE // 2), times=1, at_hub=False))
    first = start()
    until(lambda: puller.part_bytes > GIGABYTE // 3)

    first.kill()
    first.communicate(timeout=10)
    kept = puller.part_bytes
    assert puller.published == []
    second = start()
    destination = puller.root / f"hf.co/{REPOSITORY}/{FILE}"
    while second.poll() is None:
        assert not destination.exists() or destination.stat().st_size == GIGABYTE, "it appears at once and whole"
        time.sleep(0.01)

    assert "Downloaded" in second.communicate(timeout=10)[0]
    ranges = [each.headers.get("range") for each in hub.asked(FILE, at_hub=False)]
    assert ranges == [None, f"bytes={kept}-"]
    # a kernel with large buffers holds 36 MiB for a process that has to wait for its turn, and a piece is on its way
    assert hub.bytes_sent - GIGABYTE < 64 * MIB, "only what was on its way comes twice"
    with destination.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == hub.digest(generated)
    assert puller.parts == []
    destination.unlink()  # pytest keeps what tests leave


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


SMALL_DISK = """
set -e
mount -t tmpfs -o size=3m tmpfs "$1"
pull() { "$2" -c "$3" "$4" "$1" "$5" | grep -v PullProgress; }
pull "$@"
echo "kept $(stat -c %s "$1"/.llmspell/incomplete/*.part)"
mount -o remount,ro,size=20m "$1"
pull "$@"
mount -o remount,rw "$1"
pull "$@"
"""


@pytest.fixture
def on_small_disk(hub: FakeHub, tmp_path: Path) -> Callable[[str], list[str]]:
    """Run a script where it may mount file systems, of which nobody else sees anything; return what it says."""
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        subprocess.run([*alone, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("file systems cannot be mounted here")
    root = tmp_path / "small"
    root.mkdir()

    def run(script: str) -> list[str]:
        # as if the disk had filled up after the download began
        program = "OPTIONS = {'free_bytes': lambda _: 1 << 50}\n" + PROGRAM
        command = [*alone, "sh", "-c", script, "sh", str(root), sys.executable, program, hub.url, REPOSITORY]
        finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout.splitlines()

    return run


def test_a_full_and_a_read_only_disk_are_told_and_what_came_is_kept(
    hub: FakeHub, on_small_disk: Callable[[str], list[str]]
) -> None:
    hub.add(REPOSITORY, {FILE: content(5 * MIB)})

    full, kept, read_only, finished = on_small_disk(SMALL_DISK)

    assert full.startswith("DiskFull The disk with ")
    assert "is full. Delete something and pull again" in full
    num_kept = int(kept.removeprefix("kept "))
    assert 2 * MIB < num_kept < 3 * MIB, "all that the disk could take"
    assert read_only.startswith("CannotStore ")
    assert "cannot be written to (Read-only file system)" in read_only
    assert finished.startswith("Downloaded(")
    ranges = [each.headers.get("range") for each in hub.asked(FILE, at_hub=False)]
    assert ranges == [None, f"bytes={num_kept}-"]
