"""What drawing a token costs, beside llama.cpp's own sampler chain.

Both sides choose from the same rows of logits, one after the other, in one thread: ``Sampler.sample`` and
``llama_sampler_sample``, which reads a context's logits; they are written there. The rows are made, not computed, since
what matters is their shape: *peaked* ones have a heavy tail (normal, standard deviation 2, around 0) and twelve tokens
that stand out, the first by 10 to 14 and each one 1 less than the one before, so that the first has about half of the
mass, as in fluent text; *flat* ones have the tail alone. A ratio is the median of those of neighbouring calls.

    benchmarks/sampling.py /tmp/quarter.gguf [--rounds 200]

Any model with a large vocabulary will do; its weights do not matter. With logprobs the chain is charged with what it
takes to normalize all logits once more, without the sorting that llama-server does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from llama_cpp import llama_cpp

from server.core.request import SamplingParameters
from server.engine.runner import Logits
from server.engine.sampling import Sampler, log_normalizer, top_ids
from server.llama.model import LlamaModel, LoadOptions

NUM_ROWS = 8
HISTORY_LEN = 64
NUM_LOGPROBS = 20
FILTERED = SamplingParameters(temperature=0.8, top_k=40, top_p=0.95)
BIASED = ((5, -100.0), (77, 3.5), (1000, 1.0))

CASES: Mapping[str, SamplingParameters] = {
    "greedy": SamplingParameters(temperature=0),
    "OpenAI defaults": SamplingParameters(),
    "top_p 0.9": SamplingParameters(top_p=0.9),
    "top_k 40, top_p 0.95, temperature 0.8": FILTERED,
    "min_p 0.05": SamplingParameters(min_p=0.05),
    "repeat_penalty 1.1": SamplingParameters(repeat_penalty=1.1),
    "repeat_penalty 1.1, top_p 0.9": SamplingParameters(repeat_penalty=1.1, top_p=0.9),
    "repeat_penalty 1.1, top_k 40, top_p 0.95, temperature 0.8": replace(FILTERED, repeat_penalty=1.1),
    "repeat_penalty 1.1, min_p 0.05": SamplingParameters(repeat_penalty=1.1, min_p=0.05),
    "logit_bias": SamplingParameters(logit_bias=BIASED),
    "logit_bias, top_p 0.9": SamplingParameters(logit_bias=BIASED, top_p=0.9),
}
WITH_LOGPROBS = "greedy", "OpenAI defaults", "top_k 40, top_p 0.95, temperature 0.8"


@dataclass(frozen=True, slots=True)
class Prices:
    """What a case costs, in microseconds for each token, and the median ratio of neighbours."""

    native: float
    ours: float
    ratio: float

    def line(self) -> str:
        """Cells of a table."""
        return f"{self.native:.0f} | {self.ours:.0f} | {self.ratio:.2f}"


def rows_of(shape: str, vocabulary_size: int) -> Logits:
    """Make rows of logits."""
    numbers = np.random.default_rng(7)
    rows = numbers.normal(scale=2, size=(NUM_ROWS, vocabulary_size)).astype(np.float32)
    if shape == "peaked":
        for row in rows:
            likely = numbers.choice(vocabulary_size, size=12, replace=False)
            row[likely] = row.max() + numbers.uniform(10, 14) - np.arange(12)
    return rows


class NativeChain:
    """llama.cpp's chain for a request, in its order."""

    def __init__(self, context: object, vocabulary_size: int, parameters: SamplingParameters) -> None:
        """Put the chain together, without the stages that would do nothing."""
        self._context = context
        self._chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        for stage in self._stages(parameters, vocabulary_size):
            llama_cpp.llama_sampler_chain_add(self._chain, stage)

    def observe(self, tokens: range) -> None:
        """Let the penalties see a prompt."""
        for token in tokens:
            llama_cpp.llama_sampler_accept(self._chain, token)

    def sample(self) -> int:
        """Choose a token from the last row of the context and remember it."""
        return int(llama_cpp.llama_sampler_sample(self._chain, self._context, -1))

    def close(self) -> None:
        """Free the chain."""
        llama_cpp.llama_sampler_free(self._chain)

    @staticmethod
    def _stages(parameters: SamplingParameters, size: int) -> Iterator[object]:
        if parameters.logit_bias:
            bias = (llama_cpp.llama_logit_bias * len(parameters.logit_bias))(*parameters.logit_bias)
            yield llama_cpp.llama_sampler_init_logit_bias(size, len(bias), bias)
        if parameters.repeat_penalty != 1:
            yield llama_cpp.llama_sampler_init_penalties(size, HISTORY_LEN, parameters.repeat_penalty, 0.0, 0.0)
        if parameters.temperature == 0:
            yield llama_cpp.llama_sampler_init_greedy()
            return
        if parameters.top_k > 0:
            yield llama_cpp.llama_sampler_init_top_k(parameters.top_k)
        if parameters.top_p < 1:
            yield llama_cpp.llama_sampler_init_top_p(parameters.top_p, 1)
        if parameters.min_p > 0:
            yield llama_cpp.llama_sampler_init_min_p(parameters.min_p, 1)
        if parameters.temperature != 1:
            yield llama_cpp.llama_sampler_init_temp(parameters.temperature)
        yield llama_cpp.llama_sampler_init_dist(1)


@contextmanager
def native_row(model: LlamaModel) -> Iterator[tuple[object, Logits]]:
    """Give a context with the row of logits from which ``llama_sampler_sample`` chooses."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = 32
    params.n_threads = params.n_threads_batch = 1
    context = llama_cpp.llama_init_from_model(model.handle, params)
    token = (llama_cpp.llama_token * 1)(0)
    llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(token, 1))
    yield context, np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), shape=(model.vocabulary_size,))
    llama_cpp.llama_free(context)


def measure(
    context: object, shared: Logits, rows: Logits, parameters: SamplingParameters, rounds: int, *, logprobs: bool
) -> Prices:
    """Draw in turns from each of the rows, which are put into ``shared``, the context's own."""
    chain = NativeChain(context, len(shared), parameters)
    whole = NativeChain(context, len(shared), SamplingParameters())
    sampler = Sampler(replace(parameters, seed=1), index=0, end_tokens=())
    prompt = range(100, 100 + HISTORY_LEN)
    chain.observe(prompt)
    sampler.observe_prompt(prompt)

    def native() -> None:
        chain.sample()
        if logprobs:
            whole.sample()

    def ours() -> None:
        token = sampler.sample(shared)
        if logprobs:
            log_probabilities(shared, token)

    pairs = []
    for turn in range(rounds):
        shared[:] = rows[turn % len(rows)]
        # by turns, because the second one finds the caches as the first one has left them
        if turn % 2:
            pairs.append((seconds(native), seconds(ours)))
        else:
            mine = seconds(ours)
            pairs.append((seconds(native), mine))
    chain.close()
    whole.close()
    natives, oursides = zip(*pairs, strict=True)
    return Prices(
        native=statistics.median(natives) * 1e6,
        ours=statistics.median(oursides) * 1e6,
        ratio=statistics.median(mine / theirs for theirs, mine in pairs),
    )


def log_probabilities(logits: Logits, token: int) -> list[float]:
    """What the engine computes when logprobs are asked for."""
    normalizer = log_normalizer(logits)
    return [float(logits[token]) - normalizer, *(float(logits[i]) - normalizer for i in top_ids(logits, NUM_LOGPROBS))]


def seconds(call: Callable[[], None]) -> float:
    """Time a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    model = LlamaModel.load(arguments.model, LoadOptions())
    print(f"{model.vocabulary_size} tokens")
    print("| logits | sampling | native, µs | ours, µs | ratio |\n| --- | --- | --- | --- | --- |")
    cases = [(name, parameters, False) for name, parameters in CASES.items()]
    cases += [(f"{name}, 20 logprobs", CASES[name], True) for name in WITH_LOGPROBS]
    with native_row(model) as (context, shared):
        for shape in ("peaked", "flat"):
            rows = rows_of(shape, model.vocabulary_size)
            for name, parameters, logprobs in cases:
                prices = measure(context, shared, rows, parameters, arguments.rounds, logprobs=logprobs)
                print(
                    f"| {shape} | {name} | {prices.native:.0f} | {prices.ours:.0f} | {prices.ratio:.2f} |", flush=True
                )
    model.close()


if __name__ == "__main__":
    main()
