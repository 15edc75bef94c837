"""What the pool costs: changing between models in memory, loading one, and starting with one.

``switch``: two models are in memory; the first token of a request after one to the other model, beside that after one
to the same model. ``load``: loading and warming up as the pool does it, its headers read ahead as at the server's
start, beside llama.cpp's own calls with its own defaults; each in a process of its own, with the file in the page
cache. ``cold``: from starting the server's process until it is ready, and to the first token of a request that is sent
then, with the memory that the process has in the end. Everything is interleaved in rounds. On a machine with a GPU the
same commands measure the GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import psutil
from server_process import ServerProcess, chat_body, running_server, stream

CONFIG = """\
[ollama]
enabled = false
[models."local/a"]
path = '{path}'
preload = true
context_length = {context}
kv_cells = {context}
[models."local/b"]
path = '{path}'
preload = true
context_length = {context}
kv_cells = {context}
"""
NUMBERS = count()


def first_token_seconds(port: int, model: str, since: float | None = None) -> float:
    """Return the time from before connecting, or from ``since``, until the first chunk with text."""
    started = time.perf_counter() if since is None else since
    text = f"{next(NUMBERS)} is the number of this question; please say something about it."
    for arrived, data in stream(port, chat_body(model, text, 2, temperature=0, ignore_eos=True)):
        if b'"delta":{"content":"' in data:
            return arrived - started
    raise SystemExit("no text arrived")


def figures(values: Sequence[float], unit: float = 1e3) -> str:
    """Write the median and the range."""
    return f"{statistics.median(values) * unit:.1f} ({min(values) * unit:.1f} to {max(values) * unit:.1f})"


def measure_switch(model: Path, rounds: int, context: int) -> None:
    """Compare the first token with and without a change of model."""
    switched, same = list[float](), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.toml"
        config.write_text(CONFIG.format(path=model, context=context))
        with running_server("--config", str(config)) as server:
            for number in range(rounds):
                for name in ("a", "b"):
                    first_token_seconds(server.port, f"local/{name}")
                    before, after = ("a", "b") if number % 2 else ("b", "a")
                    first_token_seconds(server.port, f"local/{before}")
                    switched.append(first_token_seconds(server.port, f"local/{after}"))
                    same.append(first_token_seconds(server.port, f"local/{after}"))
    ratio = statistics.median(switched) / statistics.median(same)
    print("| first token, ms | same model as before | another model than before | ratio of the medians |")
    print("| --- | --- | --- | --- |")
    print(f"| {model.stem} | {figures(same)} | {figures(switched)} | {ratio:.3f} |")


def bare_load(model: Path, context: int) -> float:
    """Load with llama.cpp's defaults, in this process, and compute one token."""
    from llama_cpp import llama_cpp  # noqa: PLC0415 (only in processes that load)

    llama_cpp.llama_backend_init()
    started = time.perf_counter()
    handle = llama_cpp.llama_model_load_from_file(os.fsencode(model), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_seq_max, params.kv_unified = context, 16, True
    params.n_threads = params.n_threads_batch = psutil.cpu_count(logical=False) or 1
    native = llama_cpp.llama_init_from_model(handle, params)
    batch = llama_cpp.llama_batch_get_one((llama_cpp.llama_token * 1)(0), 1)
    if llama_cpp.llama_decode(native, batch) != 0:
        raise SystemExit("llama.cpp cannot compute")
    return time.perf_counter() - started


def own_load(model: Path, context: int) -> float:
    """Load and warm up as the pool does, in this process; headers have been read ahead, as the server does."""
    from server.pool.config import ModelConfig, PoolConfig  # noqa: PLC0415
    from server.pool.loader import LoadMonitor, load_model  # noqa: PLC0415
    from server.pool.plan import Machine, make_plan  # noqa: PLC0415

    machine = Machine.this()
    config, pool_config = ModelConfig(str(model), context_length=context, kv_cells=context), PoolConfig()
    limits = {device.name: 1 << 50 for device in machine.devices}
    make_plan(config, pool_config, machine, limits)
    started = time.perf_counter()
    plan = make_plan(config, pool_config, machine, limits)
    load_model(plan, pool_config, lambda _: None, lambda: None, LoadMonitor())
    return time.perf_counter() - started


LOADS: dict[str, Callable[[Path, int], float]] = {"bare": bare_load, "own": own_load}


def child_load(kind: str, model: Path, context: int) -> tuple[float, float]:
    """Load in a process of its own; return seconds, and the resident memory that it has then."""
    command = [sys.executable, __file__, "--child", kind, "--context", str(context), str(model)]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    seconds, resident = json.loads(ended.stdout.splitlines()[-1])
    return seconds, resident


def measure_load(model: Path, rounds: int, context: int) -> None:
    """Compare our load with llama.cpp's own."""
    with model.open("rb") as file:  # into the page cache
        while file.read(1 << 24):
            pass
    seconds: dict[str, list[float]] = {kind: [] for kind in LOADS}
    resident: dict[str, list[float]] = {kind: [] for kind in LOADS}
    for number in range(rounds):
        for kind in LOADS if number % 2 else reversed(LOADS):
            took, takes = child_load(kind, model, context)
            seconds[kind].append(took)
            resident[kind].append(takes)
    print("| load | llama.cpp's defaults | the pool | ratio of the medians |")
    print("| --- | --- | --- | --- |")
    for name, values, unit in ((f"{model.stem}, s", seconds, 1.0), ("memory then, GB", resident, 1e-9)):
        ratio = statistics.median(values["own"]) / statistics.median(values["bare"])
        print(f"| {name} | {figures(values['bare'], unit)} | {figures(values['own'], unit)} | {ratio:.2f} |")


def measure_cold(model: Path, rounds: int, context: int) -> None:
    """Measure the way from nothing to the first token."""
    first, ready, resident = list[float](), list[float](), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.toml"
        config.write_text(CONFIG.format(path=model, context=context).split('[models."local/b"]')[0])
        for _ in range(rounds):
            started = time.perf_counter()
            with running_server("--config", str(config)) as server:
                ready.append(server.ready_seconds)
                first.append(first_token_seconds(server.port, "local/a", started))
                resident.append(memory_bytes(server))
    print("| from starting the process, s | ready | first token | resident then, GB |")
    print("| --- | --- | --- | --- |")
    print(f"| {model.stem} | {figures(ready, 1)} | {figures(first, 1)} | {figures(resident, 1e-9)} |")


def memory_bytes(server: ServerProcess) -> float:
    """Return the resident memory of the server."""
    return float(server.process.memory_info().rss)


MEASURES: dict[str, Callable[[Path, int, int], None]] = {
    "switch": measure_switch,
    "load": measure_load,
    "cold": measure_cold,
}


def main() -> None:
    """Measure the given model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a GGUF file with ChatML tokens")
    parser.add_argument("--only", choices=MEASURES, action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--context", type=int, default=4096, help="tokens of context, and KV cells")
    parser.add_argument("--child", choices=LOADS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    model = arguments.model.absolute()
    if arguments.child:
        took = LOADS[arguments.child](model, arguments.context)
        print(json.dumps([took, psutil.Process().memory_info().rss]), flush=True)
        os._exit(0)  # an engine's thread may still run
    for name in arguments.only or MEASURES:
        MEASURES[name](model, arguments.rounds, arguments.context)


if __name__ == "__main__":
    main()
