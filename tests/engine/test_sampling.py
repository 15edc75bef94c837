from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import exp, inf, log, nan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.request import SamplingParameters
from server.engine.runner import Logits
from server.engine.sampling import (
    Sampler,
    candidates,
    log_normalizer,
    nucleus,
    penalize_counts,
    penalize_repeats,
    top_ids,
)

GREEDY = SamplingParameters(temperature=0)


def row(*values: float) -> Logits:
    return np.array(values, dtype=np.float32)


def sampler(parameters: SamplingParameters, *, index: int = 0, end_tokens: tuple[int, ...] = ()) -> Sampler:
    return Sampler(parameters, index=index, end_tokens=end_tokens)


def drawn(parameters: SamplingParameters, logits: Logits, times: int) -> list[int]:
    one = sampler(parameters)
    return [one.sample(logits) for _ in range(times)]


# The slow, obviously right way: sort everything, walk down.


def reference_candidates(logits: Logits, top_k: int, top_p: float, min_p: float) -> tuple[set[int], bool]:
    """Tokens that survive, and whether rounding may decide otherwise about the end of the nucleus."""
    order = [int(i) for i in np.argsort(-logits, kind="stable")]
    if top_k > 0:
        order = order[:top_k]
    weights = np.exp(logits[order] - logits[order[0]])
    doubtful = False
    if top_p < 1:
        cumulative = weights.cumsum(dtype=np.float64)
        target = top_p * cumulative[-1]
        last = min(int((cumulative < target).sum()), len(order) - 1)
        doubtful = bool((abs(cumulative - target) < 1e-6 * cumulative[-1]).any())
        order, weights = order[: last + 1], weights[: last + 1]
    return {token for token, weight in zip(order, weights, strict=True) if weight >= np.float32(min_p)}, doubtful


def assert_same_candidates(logits: Logits, parameters: SamplingParameters) -> None:
    expected, doubtful = reference_candidates(logits, parameters.top_k, parameters.top_p, parameters.min_p)
    kept = candidates(logits, parameters)
    survivors = set(range(len(logits))) if kept is None else set(kept.tolist())
    if not doubtful:
        assert survivors == expected


few_logits = st.lists(
    st.one_of(st.floats(-30, 30, width=32), st.sampled_from([0.0, 1.0, -1.0, -inf, 200.0, -200.0])),
    min_size=1,
    max_size=12,
).filter(lambda values: max(values) > -inf)
filters = st.builds(
    SamplingParameters,
    top_k=st.one_of(st.just(0), st.integers(1, 15)),
    top_p=st.one_of(st.just(1.0), st.floats(0, 1)),
    min_p=st.one_of(st.just(0.0), st.floats(2.0**-100, 1)),
)


@given(few_logits, filters)
def test_filters_keep_what_sorting_keeps(values: list[float], parameters: SamplingParameters) -> None:
    assert_same_candidates(row(*values), parameters)


shapes = st.sampled_from(["flat", "equal", "peaked", "steps", "banned", "wide", "two"])


def shaped(shape: str, size: int, seed: int) -> Logits:
    numbers = np.random.default_rng(seed)
    logits = numbers.normal(scale=2, size=size).astype(np.float32)
    match shape:
        case "flat":
            logits *= np.float32(0.01)
        case "equal":
            logits[:] = 1.5
        case "peaked":
            logits[numbers.integers(size)] = 40
        case "steps":
            logits = np.round(logits)
        case "banned":
            logits[numbers.random(size) < 0.9] = -np.inf
            logits[numbers.integers(size)] = 0
        case "wide":
            logits *= 60
        case "two":
            logits[:] = -500
            logits[numbers.integers(size, size=2)] = 3
    return logits


wide_filters = st.builds(
    SamplingParameters,
    top_k=st.sampled_from([0, 1, 2, 40, 300, 1000, 5000]),
    top_p=st.sampled_from([1.0, 0.999, 0.95, 0.9, 0.5, 0.1, 0.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.05, 0.5, 1.0]),
)


@settings(deadline=None)
@given(shapes, st.integers(1, 3000), st.integers(0, 99), wide_filters)
def test_filters_keep_what_sorting_keeps_at_every_size(
    shape: str, size: int, seed: int, parameters: SamplingParameters
) -> None:
    assert_same_candidates(shaped(shape, size, seed), parameters)


@settings(deadline=None, max_examples=25)
@given(shapes, st.integers(100_000, 160_000), st.integers(0, 99), wide_filters)
def test_filters_keep_what_sorting_keeps_of_a_big_vocabulary(
    shape: str, size: int, seed: int, parameters: SamplingParameters
) -> None:
    assert_same_candidates(shaped(shape, size, seed), parameters)


@given(few_logits, st.integers(0, 15))
def test_top_ids_are_sorted_and_ties_go_to_the_smaller_id(values: list[float], k: int) -> None:
    expected = sorted(range(len(values)), key=lambda i: (-np.float32(values[i]), i))[:k]
    assert top_ids(row(*values), k).tolist() == expected


@settings(deadline=None, max_examples=50)
@given(shapes, st.integers(200, 3000), st.integers(0, 99), st.sampled_from([0, 1, 2, 5, 20, 300]))
def test_top_ids_of_larger_vocabularies(shape: str, size: int, seed: int, k: int) -> None:
    logits = shaped(shape, size, seed)
    assert top_ids(logits, k).tolist() == np.argsort(-logits, kind="stable")[:k].tolist()


def test_the_nucleus_of_nothing_is_the_likeliest_token() -> None:
    assert nucleus(row(0.25, 1.0, 0.5), 0.0).tolist() == [1]


def test_the_nucleus_cuts_equal_tokens_by_number() -> None:
    assert sorted(nucleus(np.zeros(1000, dtype=np.float32), 0.3).tolist()) == list(range(300))
    assert sorted(nucleus(np.zeros(10_000, dtype=np.float32), 0.3).tolist()) == list(range(3000))


@given(few_logits)
def test_log_normalizer(values: list[float]) -> None:
    peak = max(values)
    expected = peak + log(sum(exp(value - peak) for value in values))
    assert log_normalizer(row(*values)) == pytest.approx(expected, rel=1e-5, abs=1e-5)


# Which token is chosen.


def chi_square(counts: Counter[int], probabilities: dict[int, float]) -> float:
    total = sum(counts.values())
    return sum((counts[token] - total * p) ** 2 / (total * p) for token, p in probabilities.items())


def assert_drawn_from(logits: Logits, parameters: SamplingParameters, times: int = 8_000) -> None:
    kept, _ = reference_candidates(logits, parameters.top_k, parameters.top_p, parameters.min_p)
    weights = {token: exp(float(logits[token] - logits.max()) / parameters.temperature) for token in kept}
    probabilities = {token: weight / sum(weights.values()) for token, weight in weights.items() if weight}
    counts = Counter(drawn(replace(parameters, seed=11), logits, times))
    assert set(counts) <= set(probabilities)
    freedom = len(probabilities) - 1
    # Wilson and Hilferty's approximation of the chi-square quantile that is exceeded once in 30 000 times.
    limit = freedom * (1 - 2 / (9 * freedom) + 4 * sqrt(2 / (9 * freedom))) ** 3
    assert chi_square(counts, probabilities) < limit


@pytest.mark.parametrize(
    "parameters",
    [
        SamplingParameters(),
        SamplingParameters(temperature=0.5),
        SamplingParameters(temperature=2.0),
        SamplingParameters(top_k=3),
        SamplingParameters(top_p=0.8),
        SamplingParameters(min_p=0.2, temperature=1.5),
        SamplingParameters(top_k=5, top_p=0.9, min_p=0.05, temperature=0.7),
    ],
)
def test_draws_follow_the_distribution(parameters: SamplingParameters) -> None:
    assert_drawn_from(row(1.0, -inf, 0.5, 0.0, 2.0, -1.0, 1.9, 0.0), parameters)


@pytest.mark.parametrize("parameters", [SamplingParameters(), SamplingParameters(top_p=0.9, temperature=1.3)])
def test_draws_follow_the_distribution_over_blocks(parameters: SamplingParameters) -> None:
    logits = np.random.default_rng(3).normal(scale=1, size=700).astype(np.float32)
    logits[100:400] = -np.inf
    assert_drawn_from(logits, parameters, 20_000)


def test_the_same_seed_draws_the_same_tokens_and_another_does_not() -> None:
    logits = np.zeros(1000, dtype=np.float32)
    first = drawn(SamplingParameters(seed=1), logits, 20)
    assert drawn(SamplingParameters(seed=1), logits, 20) == first
    assert drawn(SamplingParameters(seed=2), logits, 20) != first
    assert drawn(SamplingParameters(), logits, 20) != drawn(SamplingParameters(), logits, 20)


def test_choices_of_one_request_differ_and_repeat() -> None:
    logits = np.zeros(1000, dtype=np.float32)
    by_choice = [
        [s.sample(logits) for _ in range(20)] for s in (sampler(SamplingParameters(seed=1), index=i) for i in (0, 1, 2))
    ]
    again = sampler(SamplingParameters(seed=1), index=2)
    assert [again.sample(logits) for _ in range(20)] == by_choice[2]
    assert len({tuple(tokens) for tokens in by_choice}) == 3
    assert by_choice[0] == drawn(SamplingParameters(seed=1), logits, 20)


@pytest.mark.parametrize(
    "parameters",
    [GREEDY, SamplingParameters(top_k=1), SamplingParameters(temperature=1e-6), SamplingParameters(top_p=0)],
)
def test_greedy_takes_the_likeliest_token(parameters: SamplingParameters) -> None:
    assert drawn(parameters, row(0.5, 3.0, 2.9, -inf), 50) == [1] * 50


@pytest.mark.parametrize("temperature", [1e-3, 1e-8, 1e-30, 1e-40, 1e-45, 5e-324])
def test_the_smallest_temperatures_take_the_likeliest_token(temperature: float) -> None:
    logits = np.linspace(-30, 30, 600, dtype=np.float32)
    assert drawn(SamplingParameters(temperature=temperature), logits, 20) == [599] * 20


def test_a_large_temperature_is_nearly_uniform() -> None:
    counts = Counter(drawn(SamplingParameters(temperature=1e30, seed=1), row(1, 2, 3, -inf), 3000))
    assert set(counts) == {0, 1, 2}
    assert all(800 < count < 1200 for count in counts.values())


def test_logits_are_not_changed() -> None:
    logits = row(1, 2, 3, 4)
    parameters = SamplingParameters(
        temperature=0.7,
        top_k=3,
        top_p=0.9,
        min_p=0.1,
        frequency_penalty=1,
        presence_penalty=1,
        repeat_penalty=1.5,
        logit_bias=((1, 5.0),),
        seed=1,
    )
    drawn(parameters, logits, 5)
    assert logits.tolist() == [1, 2, 3, 4]


# Penalties and bias.


def test_repeats_are_penalized_towards_less_likely() -> None:
    logits = row(2.0, -2.0, 0.0, 4.0, -inf)
    penalize_repeats(logits, [0, 0, 1, 2, 4], 2.0)
    assert logits.tolist() == [1.0, -4.0, 0.0, 4.0, -inf]


def test_counts_are_penalized_by_frequency_and_presence() -> None:
    logits = row(2.0, 2.0, 2.0, -inf)
    penalize_counts(
        logits, Counter({0: 3, 1: 1, 3: 1}), SamplingParameters(frequency_penalty=0.5, presence_penalty=0.25)
    )
    assert logits.tolist() == [0.25, 1.25, 2.0, -inf]


def test_openai_penalties_count_the_completion_only() -> None:
    one = sampler(replace(GREEDY, frequency_penalty=1.0, presence_penalty=0.5))
    one.observe_prompt([0, 0, 0])
    logits = row(3.0, 2.0, 0.0)
    # 3 | 1.5, 2: | 1.5, .5 → 0 | .5, .5: the smaller id | -.5, .5
    assert [one.sample(logits) for _ in range(5)] == [0, 1, 0, 0, 1]


def test_the_repeat_penalty_sees_the_last_64_tokens_of_prompt_and_completion() -> None:
    one = sampler(replace(GREEDY, repeat_penalty=4.0))
    one.observe_prompt([0] * 100 + [1] * 62)
    logits = row(4.0, 5.0, 3.0)
    # Two 0 are still in the window, then one and the 2, then none.
    assert [one.sample(logits) for _ in range(3)] == [2, 1, 0]


def test_bias_forces_and_forbids() -> None:
    logits = row(10.0, 0.0, 5.0)
    assert drawn(replace(GREEDY, logit_bias=((1, 100.0),)), logits, 3) == [1] * 3
    assert drawn(replace(GREEDY, logit_bias=((0, -100.0),)), logits, 3) == [2] * 3
    assert drawn(SamplingParameters(logit_bias=((0, -100.0), (2, -inf))), logits, 20) == [1] * 20
    assert drawn(replace(GREEDY, logit_bias=((0, -1.0), (2, 4.5))), logits, 1) == [2]


def test_ignore_eos_forbids_every_end_token_even_a_wanted_one() -> None:
    parameters = SamplingParameters(ignore_eos=True, logit_bias=((0, 100.0),))
    one = sampler(parameters, end_tokens=(0, 2))
    assert {one.sample(row(10.0, 0.0, 10.0, 0.0)) for _ in range(50)} == {1, 3}


# What cannot be sampled.

LATE = np.append(np.arange(30_000, dtype=np.float32) / 1000, np.float32(nan))
hopeless = [row(nan, nan, nan), row(1.0, nan, 2.0), row(-inf, -inf, -inf), row(1.0, inf, 2.0)]


@pytest.mark.parametrize("logits", [*hopeless, np.concatenate([np.zeros(2000, dtype=np.float32), hopeless[1]]), LATE])
@pytest.mark.parametrize(
    "parameters",
    [
        GREEDY,
        SamplingParameters(),
        SamplingParameters(temperature=0.5, logit_bias=((0, 1.0),)),
        SamplingParameters(top_k=1),
        SamplingParameters(top_k=2),
        SamplingParameters(top_p=0.5),
        SamplingParameters(min_p=0.1),
        SamplingParameters(top_k=2, top_p=0.5, min_p=0.1, repeat_penalty=1.1),
    ],
)
def test_logits_without_a_finite_peak_are_an_error(logits: Logits, parameters: SamplingParameters) -> None:
    with pytest.raises(ValueError, match="finite"):
        sampler(parameters).sample(logits)


def test_banning_every_token_is_an_error() -> None:
    parameters = SamplingParameters(ignore_eos=True, logit_bias=((1, -inf),))
    with pytest.raises(ValueError, match="finite"):
        sampler(parameters, end_tokens=(0,)).sample(row(1.0, 2.0))
