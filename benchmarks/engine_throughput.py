"""Aggregate decode speed of the engine beside bare ``llama_decode`` calls with the same batch sizes.

Both run on the same context in one process, in turns: a round of bare calls (one token for each sequence, logits
fetched, nothing else), then a round of the engine serving as many greedy streams, then one with OpenAI's default
sampling. The ratio within a pair of rounds is what counts; speeds move with the machine.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec

import numpy as np

from server.core.batch import Chunk
from server.core.events import Failed, Finished
from server.core.request import SamplingParameters
from server.engine.engine import Delivery, Engine, EngineOptions
from server.engine.sequence import GenerationRequest
from server.llama.model import ContextOptions, LlamaModel, LoadOptions
from server.llama.runner import LlamaRunner

P = ParamSpec("P")

PROMPT_LEN = 16
SAMPLINGS = {
    "greedy": SamplingParameters(temperature=0, ignore_eos=True),
    "OpenAI defaults": SamplingParameters(seed=1, ignore_eos=True),
}


class EngineRound:
    """Serves one round of streams and tells how long the tokens after the first took."""

    def __init__(self, runner: LlamaRunner, model: LlamaModel) -> None:
        options = EngineOptions(queue_size=0, inter_token_target=10.0)
        self.engine = Engine(runner, model.vocabulary, self._deliver, options)
        self.engine.start()
        self._pending: set[int] = set()
        self._ended = threading.Event()
        self._decode_seconds: list[float] = []

    def tokens_per_second(self, prompts: list[np.ndarray], num_tokens: int, sampling: SamplingParameters) -> float:
        """Serve one stream for each prompt and return the speed of all together."""
        self._ended.clear()
        self._decode_seconds.clear()
        requests = [GenerationRequest(prompt, sampling, max_tokens=num_tokens) for prompt in prompts]
        self._pending = {self.engine.submit(request) for request in requests}
        self._ended.wait()
        return len(prompts) * (num_tokens - 1) / statistics.median(self._decode_seconds)

    def _deliver(self, deliveries: list[Delivery]) -> None:
        for generation_id, events in deliveries:
            match events[-1]:
                case Finished(timings=timings):
                    self._decode_seconds.append(timings.decode)
                    self._pending.discard(generation_id)
                case Failed(error=error):
                    raise error
        if not self._pending:
            self._ended.set()


def bare_tokens_per_second(runner: LlamaRunner, prompts: list[np.ndarray], num_tokens: int) -> float:
    """Decode ``num_tokens`` for each prompt with nothing but llama.cpp, and return the speed of all together."""
    for sequence_id, prompt in enumerate(prompts):
        runner.clear(sequence_id)
        runner.decode([Chunk(sequence_id, 0, prompt.tolist(), num_rows=1)])
    started = time.perf_counter()
    for position in range(PROMPT_LEN, PROMPT_LEN + num_tokens):
        runner.decode([Chunk(i, position, [int(prompt[0])], num_rows=1) for i, prompt in enumerate(prompts)])
    seconds = time.perf_counter() - started
    for sequence_id in range(len(prompts)):
        runner.clear(sequence_id)
    return len(prompts) * num_tokens / seconds


def in_own_thread(work: Callable[P, float], *arguments: P.args, **keywords: P.kwargs) -> float:
    """Run ``work`` in a thread of its own, as the engine does; OpenMP's workers end with the thread that used them.

    With the workers of two threads there would be more of them than cores, and all would sleep at barriers.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work, *arguments, **keywords).result()


def measure(path: Path, num_streams: int, num_tokens: int, num_rounds: int) -> None:
    """Print one row of the table for each way of sampling."""
    model = LlamaModel.load(path, LoadOptions(gpu_layers=-1, use_mmap=True, use_mlock=False), lambda _: True)
    num_cells = max(num_streams * (PROMPT_LEN + num_tokens + 2), 256)
    runner = LlamaRunner(model, ContextOptions(num_streams, num_cells, num_cells, 512))
    numbers = np.random.default_rng(0)
    speeds: dict[str, list[float]] = {"bare": [], **{name: [] for name in SAMPLINGS}}
    for _ in range(num_rounds):
        # fresh prompts for each round: nothing may come from the prefix cache
        prompts = [numbers.integers(0, 256, PROMPT_LEN).astype(np.int32) for _ in range(num_streams)]
        speeds["bare"].append(in_own_thread(bare_tokens_per_second, runner, prompts, num_tokens))
        for name, sampling in SAMPLINGS.items():
            # a new engine and empty cells: what earlier rounds left behind would be attended to
            for sequence_id in range(num_streams):
                runner.clear(sequence_id)
            serving = EngineRound(runner, model)
            speeds[name].append(serving.tokens_per_second(prompts, num_tokens, sampling))
            serving.engine.close()
    for name in SAMPLINGS:
        ratios = [ours / bare for ours, bare in zip(speeds[name], speeds["bare"], strict=True)]
        print(
            f"| {num_streams} | {name} | {statistics.median(speeds['bare']):.1f} | "
            f"{statistics.median(speeds[name]):.1f} | {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f}) |"
        )
    runner.close()
    model.close()


def main() -> None:
    """Measure the given model at 1, 8 and 16 streams."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each stream")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print("| streams | sampling | bare llama_decode, tokens/s | engine, tokens/s | ratio, median (range) |")
    print("| --- | --- | --- | --- | --- |")
    for num_streams in (1, 8, 16):
        measure(arguments.model, num_streams, arguments.tokens, arguments.rounds)


if __name__ == "__main__":
    main()
