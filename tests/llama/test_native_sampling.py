"""The numpy filters against llama.cpp's own sampler chain."""

from __future__ import annotations

import ctypes
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp import llama_cpp

from server.core.request import SamplingParameters
from server.engine.sampling import candidates, penalize_counts, penalize_repeats

Floats = npt.NDArray[np.float32]


def native(logits: Floats, *samplers: object) -> dict[int, float]:
    """Return what a chain of native samplers leaves of the logits, by token."""
    data = (llama_cpp.llama_token_data * len(logits))()
    for token, logit in enumerate(logits):
        data[token].id, data[token].logit, data[token].p = token, float(logit), 0.0
    array = llama_cpp.llama_token_data_array(data=data, size=len(logits), selected=-1, sorted=False)
    for sampler in samplers:
        llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
        llama_cpp.llama_sampler_free(sampler)
    return {array.data[i].id: array.data[i].logit for i in range(array.size)}


def numbers(seed: int, size: int, scale: float) -> Floats:
    return (np.random.default_rng(seed).normal(size=size) * scale).astype(np.float32)


@settings(deadline=None, max_examples=300)
@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([2, 17, 300, 5000]),
    scale=st.sampled_from([0.1, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 299]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.95, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.1, 0.9, 1.0]),
)
def test_the_same_tokens_survive(seed: int, size: int, scale: float, top_k: int, top_p: float, min_p: float) -> None:
    logits = numbers(seed, size, scale)
    chain = [llama_cpp.llama_sampler_init_top_k(top_k)] if top_k else []
    chain += [llama_cpp.llama_sampler_init_top_p(top_p, 1)] if top_p < 1 else []
    chain += [llama_cpp.llama_sampler_init_min_p(min_p, 1)] if min_p else []

    expected = set(native(logits, *chain))
    ids = candidates(logits, SamplingParameters(top_k=top_k, top_p=top_p, min_p=min_p))
    kept = set(range(size)) if ids is None else {int(token) for token in ids}

    # float32 sums put the border of a nucleus a token further or nearer; such a token hardly weighs anything
    weights = np.exp(logits - logits.max())
    strays = expected ^ kept
    assert weights[list(strays)].sum(dtype=np.float64) <= 1e-3 * weights.sum(dtype=np.float64)


def penalties(repeat: float, frequency: float, presence: float, tokens: list[int]) -> object:
    sampler = llama_cpp.llama_sampler_init_penalties(100, 64, repeat, frequency, presence)
    for token in tokens:
        llama_cpp.llama_sampler_accept(sampler, token)
    return sampler


@pytest.mark.parametrize("seed", range(5))
def test_repeat_penalty(seed: int) -> None:
    logits, tokens = numbers(seed, 100, 3.0), [3, 5, 5, 99]
    expected = native(logits, penalties(1.3, 0.0, 0.0, tokens))

    penalize_repeats(logits, tokens, 1.3)

    np.testing.assert_allclose(logits, [expected[i] for i in range(100)], rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_frequency_and_presence_penalties(seed: int) -> None:
    logits, tokens = numbers(seed, 100, 3.0), [3, 5, 5, 99]
    expected = native(logits, penalties(1.0, 0.7, -0.4, tokens))

    penalize_counts(logits, Counter(tokens), SamplingParameters(frequency_penalty=0.7, presence_penalty=-0.4))

    np.testing.assert_allclose(logits, [expected[i] for i in range(100)], rtol=1e-5)
