"""Tokens drawn where the logits are computed: llama.cpp's sampler chains as a part of a context's graph.

The chains stay with their sequences until something else is wanted there, because a change makes llama.cpp plan all its
buffers anew, which takes milliseconds. Another request with the same filters only needs other random numbers.
"""

from __future__ import annotations

import ctypes
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp

from server.core.batch import Chunk, DeviceSampling

Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int32]

_HEAVIEST = DeviceSampling(seed=0, temperature=0.5, top_p=0.5, min_p=0.5, logit_bias={0: 0.0})
"""What takes most memory: a cut to ``top_k`` makes the rest lighter."""

_LEAST_TEMPERATURE = 1e-6  # as in engine.sampling: greedy below it
_MOST_TEMPERATURE = 1e6

# llama.cpp keeps what is above the threshold of min_p, not what reaches it: too near to 1, rounding leaves nothing.
_MOST_MIN_P = 0.99

# llama.cpp tries a chain on so many tokens, and ends the process if top-k is to choose more than there are.
_MOST_TOP_K = 128 * 1024

# The seed 2**32 - 1 means "any" to llama.cpp.
_NUM_SEEDS = 2**32 - 1

# Where the sum of all probabilities, in float32, stays below the random number, llama.cpp draws the last candidate.
_UNLIKELY = 1e-4

_NOT_DRAWN = -1


class DeviceSamplers:
    """The chains of a context. Owns them: ``free`` after the context is freed, which points to them."""

    def __init__(self, *, num_sequences: int, vocabulary_size: int) -> None:
        """Make chains to create the context with, on all sequences, so that its buffers are sized for the worst."""
        self._vocabulary_size = vocabulary_size
        self._chains = {i: _Chain(_HEAVIEST, vocabulary_size) for i in range(num_sequences)}
        self._wanted: set[int] = set()
        self._drawn: Tokens = np.empty(0, dtype=np.int32)

    def configure(self, params: Any) -> None:  # noqa: ANN401 -- a ctypes structure
        """Put the chains into the parameters of the context."""
        configs = (llama_cpp.llama_sampler_seq_config * len(self._chains))()
        for config, (sequence_id, chain) in zip(configs, self._chains.items(), strict=True):
            config.seq_id = sequence_id
            config.sampler = ctypes.cast(chain.handle, ctypes.c_void_p)
        params.samplers = configs
        params.n_samplers = len(configs)
        params.n_outputs_max_per_seq = params.n_outputs_max  # any sequence may have a draft

    def sample(self, context: Any, sequence_id: int, sampling: DeviceSampling | None) -> bool:  # noqa: ANN401 -- a pointer
        """Draw the tokens of a sequence from now on, or (``None``) do not; ``False`` if the device cannot."""
        self._wanted.discard(sequence_id)
        if sampling is None:
            return True
        if not _is_safe(sampling, self._vocabulary_size):
            return False
        chain = self._chains.get(sequence_id)
        if chain is not None and chain.has_filters_of(sampling):
            chain.restart(sampling)
        elif not self._install(context, sequence_id, sampling):
            return False
        self._wanted.add(sequence_id)
        return True

    def prepare(self, context: Any, chunks: Sequence[Chunk]) -> None:  # noqa: ANN401 -- a pointer
        """Get ready for a decode: rows of logits come from sequences without a chain only."""
        for chunk in chunks:
            if chunk.sequence_id in self._wanted:
                self._chains[chunk.sequence_id].go_on(chunk)
        if any(chunk.num_rows and self._is_idle(chunk.sequence_id) for chunk in chunks):
            for sequence_id in [idle for idle in self._chains if self._is_idle(idle)]:
                self._remove(context, sequence_id)

    def collect(self, context: Any, chunks: Sequence[Chunk], rows: Logits) -> None:  # noqa: ANN401 -- a pointer
        """Read what was drawn in a decode.

        Args:
            context: the context, after its logits were asked for: only then are rows in the order of the batch.
            chunks: those of the decode.
            rows: their logits. Where nothing could be drawn they become NaN, which tells the caller why.

        """
        self._drawn = np.full(len(rows), _NOT_DRAWN, dtype=np.int32)
        if not self._wanted:
            return
        row = 0
        for chunk in chunks:
            for _ in range(chunk.num_rows):
                if chunk.sequence_id in self._wanted:
                    # a negative index counts rows from the end, not tokens
                    self._drawn[row] = token = self._chains[chunk.sequence_id].drawn(context, row - len(rows))
                    if token == _NOT_DRAWN:
                        rows[row] = np.nan
                row += 1

    def drawn(self) -> Tokens:
        """What was collected, -1 where a row is not the device's."""
        return self._drawn

    def free(self) -> None:
        """Free the chains. May be called again."""
        for chain in self._chains.values():
            chain.free()
        self._chains.clear()
        self._wanted.clear()

    def _is_idle(self, sequence_id: int) -> bool:
        return sequence_id in self._chains and sequence_id not in self._wanted

    def _install(self, context: Any, sequence_id: int, sampling: DeviceSampling) -> bool:  # noqa: ANN401 -- a pointer
        chain = _Chain(sampling, self._vocabulary_size)
        is_set = llama_cpp.llama_set_sampler(context, sequence_id, chain.handle)
        former = self._chains.pop(sequence_id, None)
        if former is not None:
            former.free()
        self._chains[sequence_id] = chain
        if is_set and chain.is_on_device():
            return True
        self._remove(context, sequence_id)
        return False

    def _remove(self, context: Any, sequence_id: int) -> None:  # noqa: ANN401 -- a pointer
        llama_cpp.llama_set_sampler(context, sequence_id, None)
        self._chains.pop(sequence_id).free()


class _Chain:
    """The filters of one sequence and its random numbers."""

    def __init__(self, sampling: DeviceSampling, vocabulary_size: int) -> None:
        self._filters = replace(sampling, seed=0, logit_bias=dict(sampling.logit_bias))
        self._vocabulary_size = vocabulary_size
        self.handle = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        self._stages = tuple(_stages(sampling, vocabulary_size))
        for stage in self._stages:
            llama_cpp.llama_sampler_chain_add(self.handle, stage)
        self._is_greedy = _is_greedy(sampling)
        self._redraws = random.Random(sampling.seed)
        self._first_position = self._num_drawn = 0

    def has_filters_of(self, sampling: DeviceSampling) -> bool:
        """Whether only the random numbers differ."""
        return self._filters == replace(sampling, seed=0)

    def is_on_device(self) -> bool:
        """Whether all filters are: llama.cpp marks the names of those that are not with a minus."""
        return not any(llama_cpp.llama_sampler_name(stage).startswith(b"-") for stage in self._stages)

    def restart(self, sampling: DeviceSampling) -> None:
        """Take the random numbers of another request."""
        fresh = _Chain(sampling, self._vocabulary_size)
        llama_cpp.llama_sampler_copy(fresh.handle, self.handle)
        fresh.free()
        self._redraws = random.Random(sampling.seed)
        self._num_drawn = 0

    def go_on(self, chunk: Chunk) -> None:
        """Move the random numbers on by the tokens that were taken since the last decode, then note what is drawn next.

        Each row draws the token after it; of the rows of a draft the caller takes those up to where the chunk starts.
        """
        for _ in range(min(self._num_drawn, chunk.start - self._first_position)):
            llama_cpp.llama_sampler_accept(self.handle, 0)
        self._first_position = chunk.start + len(chunk.tokens) - chunk.num_rows
        self._num_drawn = chunk.num_rows

    def drawn(self, context: Any, row: int) -> int:  # noqa: ANN401 -- a pointer
        """Return the token of a row, -1 if its logits are not numbers."""
        token = int(llama_cpp.llama_get_sampled_token_ith(context, row))
        if self._is_greedy:
            return token if math.isfinite(llama_cpp.llama_get_sampled_logits_ith(context, row)[token]) else _NOT_DRAWN
        num_candidates = llama_cpp.llama_get_sampled_probs_count_ith(context, row)
        candidates = llama_cpp.llama_get_sampled_candidates_ith(context, row)
        probabilities = llama_cpp.llama_get_sampled_probs_ith(context, row)
        last = num_candidates - 1
        if token != candidates[last] or probabilities[last] >= _UNLIKELY:
            return token
        position = invert(np.ctypeslib.as_array(probabilities, shape=(num_candidates,)), self._redraws.random())
        return _NOT_DRAWN if position is None else int(candidates[position])

    def free(self) -> None:
        llama_cpp.llama_sampler_free(self.handle)


def invert(probabilities: Logits, number: float) -> int | None:
    """Return the first position at which the sum of probabilities exceeds ``number``; ``None`` if they are NaN."""
    cumulative = probabilities.cumsum(dtype=np.float64)
    if not math.isfinite(cumulative[-1]):
        return None
    return int(np.searchsorted(cumulative, number * cumulative[-1], side="right"))


def _is_safe(sampling: DeviceSampling, vocabulary_size: int) -> bool:
    """Whether llama.cpp computes what is meant, and does not end the process."""
    return (
        (sampling.temperature < _LEAST_TEMPERATURE or sampling.temperature <= _MOST_TEMPERATURE)
        and (sampling.top_k <= _MOST_TOP_K or sampling.top_k >= vocabulary_size)
        and not math.isnan(sampling.top_p)
        and sampling.min_p <= _MOST_MIN_P
        and all(0 <= token < vocabulary_size and bias < math.inf for token, bias in sampling.logit_bias.items())
    )


def _is_greedy(sampling: DeviceSampling) -> bool:
    return sampling.temperature < _LEAST_TEMPERATURE or sampling.top_k == 1


def _stages(sampling: DeviceSampling, vocabulary_size: int) -> Iterator[Any]:
    """Make the samplers, in the order of ``engine.sampling``."""
    if sampling.logit_bias:
        yield _bias_stage(sampling.logit_bias, vocabulary_size)
    if _is_greedy(sampling):
        yield llama_cpp.llama_sampler_init_greedy()
        return
    if 0 < sampling.top_k < vocabulary_size:
        yield llama_cpp.llama_sampler_init_top_k(sampling.top_k)
    if sampling.top_p < 1:
        yield llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1)
    if sampling.min_p > 0:
        yield llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1)
    yield llama_cpp.llama_sampler_init_temp(sampling.temperature)
    yield llama_cpp.llama_sampler_init_dist(sampling.seed % _NUM_SEEDS)


def _bias_stage(bias: Mapping[int, float], vocabulary_size: int) -> Any:  # noqa: ANN401 -- a pointer
    values = (llama_cpp.llama_logit_bias * len(bias))(*bias.items())
    return llama_cpp.llama_sampler_init_logit_bias(vocabulary_size, len(bias), values)
