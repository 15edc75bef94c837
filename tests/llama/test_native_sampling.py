"""The sampler against llama.cpp's own chain: the same candidates, the same probabilities, all parameters together.

The native side is ``llama_sampler_chain`` with the stages in the order of llama-server, applied to a row of logits;
what it leaves is read back. Two liberties are taken: llama.cpp adds up the nucleus in float32, one token after the
other, so that its end may lie some tokens off; and which of equal logits it keeps at a cut is left to its sorting,
where ours are the smaller ids.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from llama_cpp import llama_cpp

from server.core.request import SamplingParameters
from server.engine.runner import Logits
from server.engine.sampling import Sampler, candidates, choose

Ids = npt.NDArray[np.intp]
Weights = npt.NDArray[np.float64]

WINDOW = 64
TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
EPSILON = 2.0**-23


# The native side.


@dataclass(frozen=True, slots=True)
class Request:
    """Parameters with what was said before."""

    parameters: SamplingParameters
    prompt: Sequence[int] = ()
    completion: Sequence[int] = ()
    end_tokens: tuple[int, ...] = ()


def stages(request: Request, size: int) -> Iterator[Any]:
    """Bias and penalties, which are two: llama.cpp would count the prompt for OpenAI's."""
    parameters = request.parameters
    bias = [*parameters.logit_bias, *((token, -np.inf) for token in request.end_tokens if parameters.ignore_eos)]
    yield llama_cpp.llama_sampler_init_logit_bias(size, len(bias), (llama_cpp.llama_logit_bias * len(bias))(*bias))
    repeat = llama_cpp.llama_sampler_init_penalties(size, WINDOW, parameters.repeat_penalty, 0.0, 0.0)
    counts = llama_cpp.llama_sampler_init_penalties(
        size, 10_000, 1.0, parameters.frequency_penalty, parameters.presence_penalty
    )
    for token in [*request.prompt, *request.completion]:
        llama_cpp.llama_sampler_accept(repeat, token)
    for token in request.completion:
        llama_cpp.llama_sampler_accept(counts, token)
    yield repeat
    yield counts


def filters(parameters: SamplingParameters) -> Iterator[Any]:
    if parameters.temperature == 0:
        yield llama_cpp.llama_sampler_init_greedy()
        return
    yield llama_cpp.llama_sampler_init_top_k(parameters.top_k)
    yield llama_cpp.llama_sampler_init_top_p(parameters.top_p, 1)
    yield llama_cpp.llama_sampler_init_min_p(parameters.min_p, 1)
    yield llama_cpp.llama_sampler_init_temp(parameters.temperature)
    yield llama_cpp.llama_sampler_init_dist(1)


def native(logits: Logits, samplers: Iterator[Any]) -> tuple[npt.NDArray[Any], int]:
    """Return what a chain leaves, with its probabilities, and the token that it selects (-1 for none)."""
    data = np.zeros(len(logits), dtype=TOKEN_DATA)
    data["id"], data["logit"] = np.arange(len(logits)), logits
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    for sampler in samplers:
        llama_cpp.llama_sampler_chain_add(chain, sampler)
    array = llama_cpp.llama_token_data_array(
        data=data.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data)), size=len(data), selected=-1, sorted=False
    )
    llama_cpp.llama_sampler_apply(chain, ctypes.byref(array))
    llama_cpp.llama_sampler_free(chain)
    # a stage may have put another array into the place of ours
    left = np.ctypeslib.as_array(ctypes.cast(array.data, ctypes.POINTER(ctypes.c_byte)), (array.size * 12,))
    left = left.view(TOKEN_DATA).copy()
    return left, -1 if array.selected < 0 else int(left["id"][array.selected])


# Our side.


def said(request: Request, size: int) -> Sampler:
    """A sampler that has said the completion: each token of it was the only one to choose."""
    sampler = Sampler(request.parameters, index=0, end_tokens=request.end_tokens)
    sampler.observe_prompt(request.prompt)
    for token in request.completion:
        only = np.full(size, -np.inf, dtype=np.float32)
        only[token] = 0
        assert sampler.sample(only) == token
    return sampler


class Fixed(random.Random):
    """Always the same number."""

    def __init__(self, number: float) -> None:
        super().__init__(0)
        self._number = number

    def random(self) -> float:
        return self._number


def exact_probabilities(logits: Logits, temperature: float) -> Weights:
    values = logits.astype(np.float64)
    weights: Weights = np.exp((values - values.max()) / temperature)
    weights /= weights.sum()
    return weights


def count_kept(descending: Weights, parameters: SamplingParameters, sums: float, weights: float) -> int:
    """How many of sorted logits survive if sums of probabilities and single ones come out different by so much."""
    kept = descending[: parameters.top_k] if parameters.top_k > 0 else descending
    masses = np.exp(kept - kept[0])
    count = len(masses)
    top_p = parameters.top_p + sums
    if parameters.top_p < 1 and top_p < 1:
        cumulative = masses.cumsum()
        count = min(count, int(np.searchsorted(cumulative, top_p * cumulative[-1])) + 1)
    if parameters.min_p > 0:
        count = min(count, int(np.count_nonzero(masses[:count] >= parameters.min_p * (1 - weights))))
    return max(count, 1)


def assert_count(count: int, logits: Logits, parameters: SamplingParameters, sums: float) -> None:
    descending = -np.sort(-logits.astype(np.float64))
    weights = 1e-5 + 4 * EPSILON * abs(descending[0])
    assert (
        count_kept(descending, parameters, -sums, -weights)
        <= count
        <= count_kept(descending, parameters, sums, weights)
    )


def assert_same(logits: Logits, request: Request, numbers: Sequence[float]) -> None:
    """All that is claimed, for one row."""
    parameters = request.parameters
    before = logits.copy()
    adjusted = said(request, len(logits)).adjust(logits)
    expected, _ = native(logits, stages(request, len(logits)))
    np.testing.assert_array_equal(logits, before)
    np.testing.assert_allclose(adjusted, expected["logit"], rtol=4 * EPSILON, atol=1e-6)
    if not np.isfinite(adjusted.max()):
        with pytest.raises(ValueError, match="finite"):
            choose(adjusted, parameters, Fixed(0.5))
        return

    left, selected = native(adjusted, filters(parameters))
    if parameters.temperature < 1e-6 or parameters.top_k == 1:
        chosen = choose(adjusted, parameters, Fixed(0.5))
        assert adjusted[chosen] == adjusted[selected] == adjusted.max()
        assert parameters.temperature > 0 or chosen == selected
        return

    ids = candidates(adjusted, parameters)
    ids = np.arange(len(adjusted)) if ids is None else ids
    assert len(set(ids.tolist())) == len(ids)
    assert_count(len(ids), adjusted, parameters, 1e-6)
    assert_count(len(left), adjusted, parameters, 1e-6 + len(adjusted) * EPSILON)
    probabilities = exact_probabilities(adjusted[ids], parameters.temperature)
    if len(ids) == len(left):
        np.testing.assert_array_equal(np.sort(adjusted[ids]), np.sort(adjusted[left["id"]]))
        rounding = 4 * EPSILON * max(1.0, float(abs(adjusted[ids].max()))) / parameters.temperature
        np.testing.assert_allclose(np.sort(left["p"]), np.sort(probabilities), rtol=1e-4 + rounding, atol=1e-7)
    assert_inverts(adjusted, ids, probabilities, parameters, numbers)


def assert_inverts(
    adjusted: Logits, ids: Ids, probabilities: Weights, parameters: SamplingParameters, numbers: Sequence[float]
) -> None:
    """A number chooses the token at which the sum of probabilities, in the order of ``ids``, exceeds it."""
    position_of = {int(token): position for position, token in enumerate(ids)}
    reached = probabilities.cumsum()
    slack = 1e-5 + EPSILON * float(abs(adjusted[ids].max())) / parameters.temperature
    for number in numbers:
        position = position_of[choose(adjusted, parameters, Fixed(number))]
        assert probabilities[position] > 0
        assert reached[position] - probabilities[position] - slack <= number <= reached[position] + slack


# What is tried.


SHAPES = ["normal", "flat", "equal", "ties", "spiky", "banned", "wide", "two", "late"]


def shaped(shape: str, size: int, seed: int) -> Logits:
    numbers = np.random.default_rng(seed)
    logits = numbers.normal(scale=2, size=size).astype(np.float32)
    match shape:
        case "flat":
            logits *= np.float32(0.01)
        case "equal":
            logits[:] = -1.5
        case "ties":
            logits = np.round(logits)
        case "spiky":
            likely = numbers.integers(size, size=12)
            logits[likely] += numbers.uniform(5, 20, size=12).astype(np.float32)
        case "banned":
            logits[numbers.random(size) < 0.9] = -np.inf
            logits[numbers.integers(size)] = 0
        case "wide":
            logits *= 30
        case "two":
            logits[:] = -500
            logits[numbers.integers(size, size=2)] = 3
        case "late":
            logits.sort()
    return logits


@st.composite
def requests(draw: st.DrawFn, size: int) -> Request:
    """Each parameter is off half of the time, so that all combinations come up."""

    def maybe(off: float, *others: float) -> float:
        return draw(st.one_of(st.just(off), st.sampled_from(others)))

    tokens = st.integers(0, size - 1)
    biases = st.sampled_from([-100.0, -1.5, 0.0, 2.0, 100.0, -np.inf])
    bias = draw(st.one_of(st.just({}), st.dictionaries(tokens, biases, max_size=min(size - 1, 5))))
    end_tokens = draw(st.lists(tokens, max_size=2, unique=True)) if size > 2 else []
    ignore_eos = draw(st.booleans())
    forbidden = {token for token, value in bias.items() if value == -np.inf} | set(end_tokens if ignore_eos else [])
    assume(len(forbidden) < size)
    parameters = SamplingParameters(
        temperature=maybe(1.0, 0.0, 1e-7, 0.01, 0.6, 2.0, 100.0),
        top_k=int(maybe(0, 1, 2, 40, 299, 5000)),
        top_p=maybe(1.0, 0.0, 0.05, 0.5, 0.9, 0.95, 0.999),
        min_p=maybe(0.0, 0.01, 0.05, 0.5, 1.0),
        repeat_penalty=maybe(1.0, 0.5, 1.1, 2.0),
        frequency_penalty=maybe(0.0, 0.3, -0.5, 2.0),
        presence_penalty=maybe(0.0, 0.7, -2.0),
        logit_bias=tuple(bias.items()),
        ignore_eos=ignore_eos,
    )
    completion = draw(st.lists(tokens.filter(lambda token: token not in forbidden), max_size=6))
    prompt_start, prompt_len = draw(tokens), draw(st.sampled_from([0, 3, 40, 90]))
    prompt = [(prompt_start + i) % size for i in range(prompt_len)]
    return Request(parameters, prompt, completion, tuple(end_tokens))


numbers_between = st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=3).map(
    lambda some: [0.0, *some, 1 - 2**-53]
)


@settings(deadline=None, max_examples=400, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**32), numbers=numbers_between)
def test_the_same_distribution(data: st.DataObject, shape: str, seed: int, numbers: list[float]) -> None:
    size = data.draw(st.sampled_from([1, 2, 3, 17, 300, 5000]))
    assert_same(shaped(shape, size, seed), data.draw(requests(size)), numbers)


@settings(deadline=None, max_examples=50, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), shape=st.sampled_from(SHAPES), seed=st.integers(0, 99), numbers=numbers_between)
def test_the_same_distribution_of_a_big_vocabulary(
    data: st.DataObject, shape: str, seed: int, numbers: list[float]
) -> None:
    size = data.draw(st.sampled_from([151_936, 131_072, 128_257]))
    assert_same(shaped(shape, size, seed), data.draw(requests(size)), numbers)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "parameters",
    [
        SamplingParameters(),
        SamplingParameters(temperature=0),
        SamplingParameters(top_k=40, top_p=0.95),
        SamplingParameters(top_k=1000),
        SamplingParameters(top_p=0.3),
        SamplingParameters(top_p=0.9),
        SamplingParameters(top_p=0.9, min_p=0.02, temperature=0.7),
        SamplingParameters(min_p=0.05),
    ],
)
def test_each_filter_on_each_shape_of_a_big_vocabulary(shape: str, parameters: SamplingParameters) -> None:
    assert_same(shaped(shape, 151_999, 5), Request(parameters), [0.0, 0.2, 0.5, 0.8, 1 - 2**-53])
