"""Seconds from starting the program to what somebody waits for, and resident memory without a model in memory."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from model_listing import write_models
from server_process import ROOT, running_server

ROUNDS = 7
COMMAND_ROUNDS = 20
NUM_MODELS = 500
COLD_MODEL = """\
[models."local/demo"]
path = '{path}'
preload = false
"""
COMMANDS = (
    ("--help",),
    ("model", "--help"),
    ("model", "list"),
    ("model", "list", "--json"),
    ("model", "available"),
    ("model", "status"),
)


def main() -> None:
    """Start and stop the server, and run commands, some times."""
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
    print()
    with tempfile.TemporaryDirectory() as folder:
        measure_commands(Path(folder))


def measure_commands(home: Path) -> None:
    """Run commands beside many model files, without a server and a daemon; what they remember is warm."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LLMSPELL_", "XDG_"))}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program has its bytecode
    environment |= {"HOME": str(home), "OLLAMA_HOST": "127.0.0.1:9", "LLMSPELL_SERVER__PORT": "9"}
    write_models(home / ".local/share/llmspell/models", NUM_MODELS, vocabulary=100)
    print(f"| command, {NUM_MODELS} models | median ms of {COMMAND_ROUNDS} | range | CPU ms |")
    print("| --- | --- | --- | --- |")
    for arguments in COMMANDS:
        runs = [seconds_of(arguments, environment) for _ in range(COMMAND_ROUNDS + 1)][1:]
        elapsed, computed = ([1000 * run[kind] for run in runs] for kind in range(2))
        print(
            f"| `llmspell {' '.join(arguments)}` | {statistics.median(elapsed):.0f} | {min(elapsed):.0f} to "
            f"{max(elapsed):.0f} | {statistics.median(computed):.0f} |"
        )


def seconds_of(arguments: tuple[str, ...], environment: dict[str, str]) -> tuple[float, float]:
    """Run a command to its end; return the seconds that passed, and those that it computed."""
    before, begin = os.times(), time.perf_counter()
    command = [sys.executable, "-m", "server", *arguments]
    subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True)
    after = os.times()
    computed = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - begin, computed


if __name__ == "__main__":
    main()
