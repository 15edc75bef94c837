"""Seconds from starting the process to ready with the demo model, and resident memory without a model in memory."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from server_process import ROOT, running_server

ROUNDS = 7
COLD_MODEL = """\
[models."local/demo"]
path = '{path}'
preload = false
"""


def main() -> None:
    """Start and stop the server some times."""
    ready = []
    for _ in range(ROUNDS):
        with running_server("--demo") as server:
            ready.append(server.ready_seconds)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.toml"
        config.write_text(COLD_MODEL.format(path=ROOT / "server" / "assets" / "demo.gguf"))
        with running_server("--config", str(config)) as server:
            resident = server.process.memory_info().rss
    print("| start to ready, demo model | resident without a model |")
    print("| --- | --- |")
    print(f"| {statistics.median(ready):.2f} s ({min(ready):.2f} to {max(ready):.2f}) | {resident / 2**20:.0f} MiB |")


if __name__ == "__main__":
    main()
