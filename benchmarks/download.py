"""How fast a model is pulled, hashing included, beside curl from the same local server, in turns.

Run it on an idle machine: ``python benchmarks/download.py [GIGABYTES] [ROUNDS] [FOLDER]``.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from server.store.download import Downloads
from server.store.hub import Hub
from server.store.hub_settings import HubSettings
from server.store.pull_plan import plan_pull

TESTS = Path(__file__).resolve().parent.parent / "tests"
SERVER = """
import sys
from pathlib import Path
from fakes.hub import FakeHub

with FakeHub() as hub:
    hub.add("bench/model", {"model-Q4_K_M.gguf": Path(sys.argv[1])})
    print(hub.url, flush=True)
    sys.stdin.read()
"""


async def pull(url: str, root: Path) -> None:
    """Pull as `llmspell model pull` does, without what was asked before."""
    hub = Hub(HubSettings(url))
    async for _ in Downloads(hub, root).pull(plan_pull(hub.listing("bench/model"))):
        pass
    hub.close()


def with_curl(url: str, root: Path) -> None:
    """Download without hashing."""
    command = ["curl", "-sSfL", "-o", str(root / "file"), f"{url}/bench/model/resolve/main/model-Q4_K_M.gguf"]
    subprocess.run(command, check=True)


def seconds(url: str, folder: Path, *, is_ours: bool) -> float:
    """Time one download into a new folder."""
    with tempfile.TemporaryDirectory(dir=folder) as root:
        start = time.perf_counter()
        if is_ours:
            asyncio.run(pull(url, Path(root)))
        else:
            with_curl(url, Path(root))
        return time.perf_counter() - start


def main() -> None:
    """Print a table."""
    gigabytes, rounds, folder = (*sys.argv[1:], *(None,) * 3)[:3]
    num_bytes = int(float(gigabytes or 1) * 1e9)
    work = Path(tempfile.mkdtemp(dir=folder))
    source = work / "source"
    with source.open("wb") as file:
        for _ in range(num_bytes >> 20):
            file.write(random.randbytes(1 << 20))
    size = source.stat().st_size
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(source)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=TESTS, text=True
    )
    try:
        url = server.stdout.readline().strip() if server.stdout else ""
        seconds(url, work, is_ours=False)
        times = [(seconds(url, work, is_ours=True), seconds(url, work, is_ours=False)) for _ in range(int(rounds or 5))]
    finally:
        server.kill()
        server.communicate()
        shutil.rmtree(work)
    print("| client | MB/s, median (range) |\n| --- | --- |")
    for name, taken in zip(("this project, with SHA-256", "curl"), zip(*times, strict=True), strict=True):
        speeds = sorted(size / each / 1e6 for each in taken)
        print(f"| {name} | {statistics.median(speeds):.0f} ({speeds[0]:.0f}-{speeds[-1]:.0f}) |")
    print(f"\nours is {statistics.median(theirs / ours for ours, theirs in times):.0%} of curl (median of the rounds)")


if __name__ == "__main__":
    main()
