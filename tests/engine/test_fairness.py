"""Who gets sequences and prompt tokens when more is asked than there is, and what running streams feel of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from scripted import GREEDY, Harness, ScriptedRunner, babbling

from server.core.events import Started
from server.engine.runner import Chunk

ENDLESS = replace(GREEDY, ignore_eos=True)
MODEL = babbling(end_bias=-50)


def bench_of(
    seconds: Callable[[Sequence[Chunk]], float] = lambda _: 0.01,
    *,
    queue_size: int = 100,
    inter_token_target: float = 0.05,
    **shape: int,
) -> Harness:
    runner = ScriptedRunner(MODEL, **({"num_cells": 8192, "sequence_len": 2048} | shape))  # type: ignore[arg-type]
    runner.seconds = seconds
    return Harness(runner, queue_size=queue_size, inter_token_target=inter_token_target, least_wait=10_000)


def prompt_of(number: int, length: int) -> list[int]:
    """A prompt that begins as no other one does."""
    return [1 + number % 31, 1 + number // 31 % 31, *(1 + (number * k + k * k) % 31 for k in range(length - 2))]


def is_started(bench: Harness, generation_id: int) -> bool:
    return generation_id in bench.heard and Started() in bench.heard[generation_id].events


def is_over(bench: Harness, generation_id: int) -> bool:
    return generation_id in bench.heard and bench.heard[generation_id].is_over


def steps_until(bench: Harness, condition: Callable[[], bool], most: int = 500) -> int:
    for num_steps in range(most):
        if condition():
            return num_steps
        bench.step()
    raise AssertionError(f"not within {most} steps")


def computed_of(bench: Harness, prompt: Sequence[int]) -> int:
    """How many tokens of a prompt are computed, wherever that is."""
    held = [bench.runner.held(i) for i in range(bench.runner.shape.num_sequences)]
    return max(sum(1 for _ in _agreement(tokens, prompt)) for tokens in held)


def _agreement(left: Sequence[int], right: Sequence[int]) -> list[int]:
    agreed = []
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        agreed.append(one)
    return agreed


# Sequences.


def test_a_key_that_floods_the_queue_does_not_keep_another_one_waiting() -> None:
    bench = bench_of(num_sequences=4)
    flood = [bench.submit(prompt_of(i, 10), max_tokens=5 + i % 7, sampling=ENDLESS, key="a") for i in range(60)]
    bench.step()
    one = bench.submit(prompt_of(100, 10), max_tokens=5, sampling=ENDLESS, key="b")
    bench.step()
    assert not is_started(bench, one)
    steps_until(bench, lambda: any(is_over(bench, i) for i in flood))
    bench.step()
    assert is_started(bench, one)
    assert sum(is_started(bench, i) for i in flood) == 4
    bench.run()
    assert all(bench.heard[i].finished for i in [*flood, one])


def test_two_keys_that_flood_the_queue_get_half_of_the_sequences_each() -> None:
    bench = bench_of(num_sequences=4)
    first = [bench.submit(prompt_of(i, 10), max_tokens=8, sampling=ENDLESS, key="a") for i in range(40)]
    second = [bench.submit(prompt_of(50 + i, 10), max_tokens=8, sampling=ENDLESS, key="b") for i in range(20)]
    steps_until(bench, lambda: all(is_over(bench, i) for i in second))
    assert 16 <= sum(is_started(bench, i) for i in first) <= 24


def test_within_a_key_who_came_first_is_first() -> None:
    bench = bench_of(num_sequences=2)
    ids = [bench.submit(prompt_of(i, 10), max_tokens=3, sampling=ENDLESS, key="ab"[i % 2]) for i in range(20)]
    bench.run()
    for key in (0, 1):
        assert [i for i in bench.heard if i in ids[key::2]] == ids[key::2]


def test_requests_without_a_key_are_as_one_key() -> None:
    bench = bench_of(num_sequences=4)
    flood = [bench.submit(prompt_of(i, 10), max_tokens=5 + i % 7, sampling=ENDLESS) for i in range(40)]
    bench.step()
    one = bench.submit(prompt_of(100, 10), max_tokens=5, sampling=ENDLESS, key="b")
    steps_until(bench, lambda: any(is_over(bench, i) for i in flood))
    bench.step()
    assert is_started(bench, one)


def test_a_large_request_of_a_key_with_nothing_running_is_not_overtaken_for_ever() -> None:
    bench = bench_of(num_sequences=4, num_cells=300)
    small = [bench.submit(prompt_of(i, 20), max_tokens=20, sampling=ENDLESS, key=f"key {i % 3}") for i in range(30)]
    bench.step(2)
    large = bench.submit(prompt_of(100, 280), max_tokens=20, sampling=ENDLESS, key="large")
    later = [
        bench.submit(prompt_of(200 + i, 20), max_tokens=20, sampling=ENDLESS, key=f"key {i % 3}") for i in range(30)
    ]
    steps_until(bench, lambda: is_started(bench, large))
    assert not any(is_started(bench, i) for i in later)
    bench.run()
    assert all(bench.heard[i].finished for i in [*small, large, *later])


# Prompt tokens.


def test_a_key_with_one_prompt_gets_half_of_the_prompt_tokens() -> None:
    bench = bench_of(num_sequences=8, batch_size=64, queue_size=0)
    for i in range(7):
        bench.submit(prompt_of(i, 800), max_tokens=1, key="a")
    bench.step(2)
    prompt = prompt_of(100, 400)
    bench.submit(prompt, max_tokens=1, key="b")
    bench.step(10)
    assert computed_of(bench, prompt) == pytest.approx(320, abs=64)


def test_beside_running_streams_a_key_with_one_prompt_gets_half_of_what_prompts_get() -> None:
    bench = bench_of(lambda chunks: 0.005 + 0.001 * sum(len(c.tokens) for c in chunks), num_sequences=8, batch_size=64)
    stream = bench.submit([5, 5], max_tokens=400, sampling=ENDLESS, key="c")
    bench.step(5)
    for i in range(6):
        bench.submit(prompt_of(i, 800), max_tokens=1, key="a")
    bench.step(6)
    prompt = prompt_of(100, 400)
    bench.submit(prompt, max_tokens=1, key="b")
    before = bench.runner.num_computed
    bench.step(12)
    for_prompts = bench.runner.num_computed - before - 12
    assert computed_of(bench, prompt) == pytest.approx(for_prompts / 2, rel=0.2)
    assert not bench.heard[stream].is_over


def test_a_long_prompt_is_not_starved_by_endless_short_ones() -> None:
    bench = bench_of(num_sequences=4, batch_size=32)
    long = bench.submit(prompt_of(0, 640), max_tokens=1)
    number = 0
    num_steps = 0
    while not is_over(bench, long):
        for _ in range(bench.engine.status.num_waiting, 3):
            number += 1
            bench.submit(prompt_of(number, 40), max_tokens=1)
        bench.step()
        num_steps += 1
        assert num_steps <= 4 * 640 / 32 + 8  # a quarter of every step is for the oldest


def test_a_short_prompt_is_not_stuck_behind_a_long_one() -> None:
    bench = bench_of(num_sequences=4, batch_size=32)
    bench.submit(prompt_of(0, 1600), max_tokens=1)
    bench.step(2)
    short = bench.submit(prompt_of(1, 48), max_tokens=1)
    assert steps_until(bench, lambda: is_over(bench, short)) <= 3


# What running streams feel.


@pytest.mark.parametrize("per_context", [0.0, 2e-6])
def test_gaps_between_tokens_of_running_streams_stay_under_the_target(per_context: float) -> None:
    def seconds(chunks: Sequence[Chunk]) -> float:
        attention = sum(len(c.tokens) * (c.start + len(c.tokens) / 2) for c in chunks)
        return 0.02 + 0.001 * sum(len(c.tokens) for c in chunks) + per_context * attention

    target = 0.1
    bench = bench_of(seconds, num_sequences=8, batch_size=512, inter_token_target=target)
    streams = [bench.submit([5 + i, 5], max_tokens=300, sampling=ENDLESS) for i in range(4)]
    bench.step(10)
    prompts = [bench.submit(prompt_of(i, 1500), max_tokens=1) for i in range(3)]
    times = [bench.clock.now]
    while not all(is_over(bench, i) for i in prompts):
        bench.step()
        times.append(bench.clock.now)
        assert sum(chunk.num_rows == len(chunk.tokens) == 1 for chunk in bench.runner.batches[-1]) >= len(streams)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert sum(gap > target * 1.001 for gap in gaps) <= 0.02 * len(gaps)
    assert max(gaps) <= target * 1.1
    # what is left of the time is used: prompts take nearly all of it
    assert sum(gaps[5:]) / len(gaps[5:]) >= 0.8 * target


def test_a_target_that_decodes_alone_miss_lets_prompts_advance_nevertheless() -> None:
    bench = bench_of(lambda chunks: 0.2 + 0.001 * sum(len(c.tokens) for c in chunks), batch_size=64)
    bench.submit([5, 5], max_tokens=500, sampling=ENDLESS)
    bench.step(5)
    prompt = bench.submit(prompt_of(1, 600), max_tokens=1)
    assert steps_until(bench, lambda: is_over(bench, prompt)) <= 600 / 8 + 3


def test_without_running_streams_prompts_take_whole_batches() -> None:
    bench = bench_of(lambda chunks: 1.0 * len(chunks), batch_size=64)
    for i in range(3):
        bench.submit(prompt_of(i, 200), max_tokens=1)
    bench.run()
    sizes = [sum(len(chunk.tokens) for chunk in batch) for batch in bench.runner.batches]
    assert sizes[:-1] == [64] * (len(sizes) - 1)
