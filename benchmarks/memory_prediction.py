"""Predicted bytes beside those that llama.cpp reports and the process takes, for shapes of many kinds.

Each shape is loaded in a process of its own, which collects llama.cpp's lines about buffer sizes, computes one whole
batch, and sees how much its resident set has grown. ``buffers`` compares what llama.cpp allocates, ``resident`` adds
what it does not report. On a machine with a GPU, ``--gpu-layers -1`` compares the GPU's buffers as well.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from gguf_shapes import LlamaShape, write_hybrid, write_llama, write_recurrent, write_sliding_window
from gguf_shapes.families import write_latent, write_linear_attention, write_qwen3

from server.store.footprint import ContextShape, FlashAttention, Footprint, predict_footprint, repacked_formats
from server.store.gguf import read_gguf_header

MIB = 1 << 20
MOST_OVER, MOST_UNDER = 1.10, 0.98
LINE = re.compile(r"^(?P<place>\S+)\s+(?P<what>model|KV|RS|output|compute) buffer size =\s+(?P<size>[\d.]+) MiB")
CACHE_TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2}
FLASH = {FlashAttention.AUTO: -1, FlashAttention.OFF: 0, FlashAttention.ON: 1}

MODELS: dict[str, Callable[[Path], object]] = {
    "dense f16": lambda path: write_llama(path, LlamaShape(4, 1024, 16, 16, 2816, 4096, 4096, "F16", tied=False)),
    "grouped q8_0": lambda path: write_llama(path, LlamaShape(8, 1024, 16, 4, 4096, 4096, 4096, "Q8_0", tied=False)),
    "grouped q4_k": lambda path: write_llama(path, LlamaShape(8, 1024, 16, 4, 4096, 32_000, 4096, "Q4_K", tied=False)),
    "tied q4_k": lambda path: write_llama(path, LlamaShape(6, 1024, 16, 4, 3072, 32_000, 4096, "Q4_K")),
    "tied 152k": lambda path: write_llama(path, LlamaShape(8, 896, 14, 2, 2432, 151_936, 4096, "Q8_0")),
    "experts": lambda path: write_llama(path, LlamaShape(2, 512, 8, 2, 1024, 4096, 4096, experts=8, tied=False)),
    "qwen3": lambda path: write_qwen3(path, LlamaShape(4, 1024, 16, 8, 3072, 151_936, 4096, "Q8_0")),
    "qwen3moe": lambda path: write_qwen3(
        path, LlamaShape(2, 1024, 16, 4, 256, 32_000, 4096, experts=32), experts_used=8
    ),
    "gemma2": lambda path: write_sliding_window(path, LlamaShape(6, 512, 8, 2, 2048, 4096, 8192, "Q8_0"), window=256),
    "deepseek2": lambda path: write_latent(path, LlamaShape(4, 1024, 16, 16, 2048, 32_000, 4096), rank=512, rotated=64),
    "qwen3next": lambda path: write_linear_attention(
        path, LlamaShape(4, 1024, 16, 4, 512, 32_000, 4096, tied=False, experts=8), state=64
    ),
    "mamba": lambda path: write_recurrent(path, LlamaShape(4, 512, 8, 2, 2048, 4096, 8192)),
    "jamba": lambda path: write_hybrid(path, LlamaShape(4, 512, 8, 2, 2048, 4096, 8192)),
}


class Case(NamedTuple):
    """A model in a context."""

    model: str
    cells: int = 4096
    sequences: int = 1
    batch: int = 512
    kv: str = "f16"
    flash: FlashAttention = FlashAttention.AUTO
    mmap: bool = True
    full_windows: bool = True


CASES = (
    Case("dense f16", cells=512),
    Case("dense f16"),
    Case("grouped q8_0"),
    Case("grouped q8_0", cells=32_768, sequences=16, batch=64),
    Case("grouped q8_0", cells=16_384, kv="q4_0"),
    Case("grouped q8_0", flash=FlashAttention.OFF),
    Case("grouped q8_0", batch=2048),
    Case("grouped q4_k"),
    Case("grouped q4_k", mmap=False, kv="q8_0", cells=8192),
    Case("tied q4_k"),
    Case("tied 152k", sequences=16, cells=16_384),
    Case("experts"),
    Case("experts", batch=1024, kv="q8_0"),
    Case("qwen3", sequences=8, kv="q8_0"),
    Case("qwen3moe"),
    Case("gemma2", cells=8192, sequences=4),
    Case("gemma2", cells=8192, full_windows=False, flash=FlashAttention.OFF),
    Case("deepseek2"),
    Case("deepseek2", cells=2048, flash=FlashAttention.OFF),
    Case("qwen3next", sequences=8),
    Case("mamba", sequences=8),
    Case("jamba", sequences=8),
)


@dataclass(frozen=True)
class Measured:
    """Bytes that llama.cpp reports, and by which the process has grown."""

    cpu: float
    gpu: float
    resident: float


def resident_bytes() -> int:
    """Return the resident set of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def context_shape(case: Case, gpu_layers: int, system_info: str) -> ContextShape:
    """Return the case as the prediction wants it."""
    return ContextShape(
        case.cells,
        case.sequences,
        case.batch,
        case.kv,
        case.flash,
        num_gpu_layers=gpu_layers,
        use_mmap=case.mmap,
        full_windows=case.full_windows,
        repacked=repacked_formats(system_info),
    )


def run_case(path: Path, case: Case, gpu_layers: int) -> Measured:
    """Load the model, compute one batch, and return what was reported; run this in a fresh process."""
    from llama_cpp import llama_cpp  # noqa: PLC0415 -- not in the process that predicts

    lines: list[str] = []
    callback = llama_cpp.llama_log_callback(lambda _level, text, _data: lines.append(text.decode("utf-8", "replace")))
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    before = resident_bytes()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers, params.load_mode = gpu_layers, int(case.mmap)
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    context = llama_cpp.llama_init_from_model(model, _context_params(llama_cpp, case))
    if not context:
        raise SystemExit("".join(lines[-5:]))
    _compute_batch(llama_cpp, context, llama_cpp.llama_n_batch(context))
    resident = resident_bytes() - before
    sizes = [found for line in lines if (found := LINE.match(line.partition(":")[2].strip()))]
    on_cpu = [found["place"].startswith(("CPU", "CUDA_Host")) for found in sizes]
    totals = [
        sum(float(found["size"]) for found, cpu in zip(sizes, on_cpu, strict=True) if cpu is wanted) * MIB
        for wanted in (True, False)
    ]
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return Measured(totals[0], totals[1], resident)


def _context_params(llama_cpp: Any, case: Case) -> Any:  # noqa: ANN401 -- ctypes
    """As server.llama.runner makes them."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_seq_max, params.n_outputs_max = case.cells, case.sequences, case.sequences
    params.n_batch = params.n_ubatch = case.batch
    params.n_threads = params.n_threads_batch = 2
    params.kv_unified, params.swa_full = True, case.full_windows
    params.type_k = params.type_v = CACHE_TYPES[case.kv]
    params.flash_attn_type = FLASH[case.flash]
    return params


def _compute_batch(llama_cpp: Any, context: Any, length: int) -> None:  # noqa: ANN401 -- ctypes
    tokens = (llama_cpp.llama_token * length)(*([7] * length))
    if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, length)) != 0:
        raise SystemExit("the batch could not be computed")


def measure(path: Path, number: int, gpu_layers: int) -> Measured:
    """Run a case in a process of its own."""
    command = [sys.executable, __file__, "--run", str(path), str(number), "--gpu-layers", str(gpu_layers)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return Measured(**json.loads(answer.stdout.splitlines()[-1]))


def row(case: Case, predicted: Footprint, measured: Measured) -> tuple[str, bool]:
    """Return a line of the table, and whether the prediction is good."""
    pairs = [
        (predicted.buffers_cpu, measured.cpu),
        (predicted.buffers_gpu, measured.gpu),
        (predicted.buffers_cpu + predicted.host, measured.resident),
    ]
    figures = [f"{a / MIB:.1f} / {b / MIB:.1f} | {a / b:.3f}" if b else "| " for a, b in pairs]
    good = all(MOST_UNDER <= a / b <= MOST_OVER for a, b in pairs[:2] if b)
    options = [f"{case.sequences} seq", f"batch {case.batch}", case.kv]
    options += [f"flash {case.flash}"] if case.flash is not FlashAttention.AUTO else []
    options += ["read"] if not case.mmap else []
    options += ["small windows"] if not case.full_windows else []
    return f"| {case.model} | {case.cells} | {', '.join(options)} | {' | '.join(figures)} |", good


def main() -> None:
    """Print the table; fail if a prediction is off."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu-layers", type=int, default=0)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        path, number = arguments.run
        print(json.dumps(vars(run_case(Path(path), CASES[int(number)], arguments.gpu_layers))))
        return
    from llama_cpp import llama_cpp  # noqa: PLC0415 -- not in a process that measures before it is time

    info = llama_cpp.llama_print_system_info().decode()
    print("| model | cells | context | CPU, MiB | ratio | GPU, MiB | ratio | resident, MiB | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(CASES):
            path = Path(folder) / f"{case.model.replace(' ', '-')}.gguf"
            if not path.exists():
                MODELS[case.model](path)
            shape = context_shape(case, arguments.gpu_layers, info)
            predicted = predict_footprint(read_gguf_header(path), shape)
            line, good = row(case, predicted, measure(path, number, arguments.gpu_layers))
            print(line if good else f"{line} off", flush=True)
            bad += not good
    if bad:
        sys.exit(f"{bad} of {len(CASES)} predictions are more than 10 % over or 2 % under")


if __name__ == "__main__":
    main()
