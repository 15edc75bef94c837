"""Prompts that begin alike, and what can go wrong while they share: crowds, full caches, cancellations, failures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from scripted import GREEDY, LETTERS, NUM_LETTERS, Guessing, Harness, Model, ScriptedRunner, babbling, raising_once

from server.core.errors import BackendError, NoFreeCells
from server.core.events import Failed, Started
from server.core.request import SamplingParameters
from server.engine.engine import EngineStatus
from server.engine.runner import Chunk, Logits

MODEL = babbling(end_bias=-50)
ENDLESS = replace(GREEDY, ignore_eos=True)
NOTHING = EngineStatus(num_running=0, num_waiting=0, num_reserved_cells=0)
COMMON = tuple(1 + (7 * i * i + i) % 31 for i in range(48))


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "server.engine")


def bench_of(*, queue_size: int = 64, least_wait: int = 1, model: Model = MODEL, **shape: int) -> Harness:
    return Harness(ScriptedRunner(model, **shape), queue_size=queue_size, least_wait=least_wait)  # type: ignore[arg-type]


def said(prompt: Sequence[int], max_tokens: int) -> str:
    """What the model says, without any engine."""
    tokens = tuple(prompt)
    for _ in range(max_tokens):
        tokens = (*tokens, int(np.argmax(MODEL(tokens))))
    return b"".join(LETTERS.piece(token) for token in tokens[len(prompt) :]).decode("utf-8", "replace")


def check_all_said(bench: Harness, prompts: Mapping[int, Sequence[int]], max_tokens: int) -> None:
    for generation_id, prompt in prompts.items():
        assert bench.heard[generation_id].finished
        assert bench.heard[generation_id].text() == said(prompt, max_tokens)


def assert_free(bench: Harness) -> None:
    """Nothing is reserved, and the whole cache can be had by one request."""
    assert bench.engine.status == NOTHING
    shape = bench.runner.shape
    longest = min(shape.sequence_len, shape.num_cells)
    assert bench.answer([33], max_tokens=longest - 1, sampling=ENDLESS).finished
    assert bench.runner.most_cells <= shape.num_cells


# A thousand requests with a common prefix and one token of difference.


@pytest.mark.parametrize("is_unified", [True, False])
@pytest.mark.parametrize("place", ["front", "middle", "end"])
def test_a_thousand_requests_with_a_common_prefix_and_one_token_of_difference(place: str, *, is_unified: bool) -> None:
    """One token of ``NUM_LETTERS`` differs, so of a thousand prompts most occur many times."""
    num_requests, num_sequences = 1000, 8
    at = {"front": 0, "middle": len(COMMON) // 2, "end": len(COMMON) - 1}[place]
    prompts = [(*COMMON[:at], i % NUM_LETTERS, *COMMON[at + 1 :]) for i in range(num_requests)]
    runner = ScriptedRunner(
        MODEL,
        num_sequences=num_sequences,
        num_cells=8 * 64,
        sequence_len=64,
        batch_size=64,
        is_unified=is_unified,
    )
    bench = Harness(runner, queue_size=num_requests)
    ids = {bench.submit(prompt, max_tokens=2): prompt for prompt in prompts}
    bench.run(most_steps=3 * num_requests)
    check_all_said(bench, ids, 2)
    alike = at if place != "end" else len(COMMON) - 1
    computed_alone = sum(len(prompt) for prompt in prompts) + num_requests
    # the first computes everything; of the others each computes from the difference on, and one token it has said
    shared = len(COMMON) + num_requests * (len(COMMON) - alike + 1)
    assert runner.num_computed <= (computed_alone if place == "front" else shared)
    assert sum(bench.heard[i].finished.usage.cached_tokens for i in ids) >= (num_requests - 1) * alike
    in_step = 2 * num_requests / num_sequences + runner.num_computed / runner.shape.batch_size
    assert len(runner.batches) <= in_step + num_sequences
    assert_free(bench)


def test_a_crowd_computes_its_common_prefix_once() -> None:
    bench = bench_of(num_sequences=16, num_cells=2048, batch_size=32)
    prompts = [(*COMMON, i + 1, i + 2) for i in range(16)]
    ids = {bench.submit(prompt, max_tokens=3): prompt for prompt in prompts}
    bench.run()
    check_all_said(bench, ids, 3)
    assert bench.runner.num_computed == len(COMMON) + 16 * (2 + 2)
    assert [bench.heard[i].finished.usage.cached_tokens for i in ids] == [0, *[len(COMMON)] * 15]


def test_what_is_not_worth_waiting_for_is_computed_at_once() -> None:
    bench = bench_of(least_wait=32, batch_size=64)
    ids = {bench.submit(prompt): prompt for prompt in [(*COMMON[:31], i) for i in range(1, 4)]}
    bench.step()
    assert bench.engine.status.num_running == 3
    bench.run()
    check_all_said(bench, ids, 8)


# Prompts that fill the whole context.


@pytest.mark.parametrize("num_cells", [64, 100, 128])
@pytest.mark.parametrize("is_alike", [True, False])
def test_prompts_that_fill_the_whole_context(num_cells: int, *, is_alike: bool) -> None:
    bench = bench_of(num_sequences=4, num_cells=num_cells, sequence_len=64, batch_size=16)
    prompts = [tuple(1 + (i * k + k * (not is_alike or k == 62)) % 30 for k in range(63)) for i in range(2, 8)]
    if is_alike:
        prompts = [(*COMMON, *COMMON[: 63 - 48 - 1], i) for i in range(2, 8)]
    ids = {bench.submit(prompt, max_tokens=1): prompt for prompt in prompts * 2}
    bench.run()
    check_all_said(bench, ids, 1)
    assert bench.runner.most_cells <= num_cells
    assert_free(bench)


def test_equal_prompts_that_fill_the_whole_cache_run_together() -> None:
    """They share all cells but the last two: the second and third one need two cells each."""
    bench = bench_of(num_sequences=4, num_cells=64 + 4, sequence_len=64, batch_size=16)
    prompt = (*COMMON, *COMMON[:15])
    ids = {bench.submit(prompt, max_tokens=1): prompt for _ in range(3)}
    most = 0
    while not all(i in bench.heard and bench.heard[i].is_over for i in ids):
        bench.step()
        most = max(most, len(bench.runner.batches[-1]))
    check_all_said(bench, ids, 1)
    assert most == 2
    assert bench.runner.num_computed == len(prompt) + 2


# Cancellation in the middle of a shared prefix that others wait for.


def begun(bench: Harness, num_others: int = 3, **first: int) -> tuple[int, Mapping[int, Sequence[int]]]:
    """One request that computes a common prefix, of which a batch is done, and others that wait for it."""
    one = bench.submit((*COMMON, 1), **first)  # type: ignore[arg-type]
    ids = {bench.submit(prompt, max_tokens=3): prompt for prompt in [(*COMMON, 2 + i) for i in range(num_others)]}
    bench.step(2)
    assert [*bench.heard] == [one]
    assert bench.engine.status.num_waiting >= num_others
    return one, ids


def test_cancellation_in_the_middle_of_a_shared_prefix_has_another_one_take_over() -> None:
    bench = bench_of(batch_size=16)
    one, ids = begun(bench)
    assert bench.runner.num_computed == 32
    bench.engine.abort(one)
    bench.step()
    assert bench.engine.status == EngineStatus(num_running=1, num_waiting=2, num_reserved_cells=52)
    bench.run()
    check_all_said(bench, ids, 3)
    assert bench.runner.num_computed == len(COMMON) + 3 * (1 + 2)
    assert [bench.heard[i].finished.usage.cached_tokens for i in ids] == [32, 48, 48]
    assert_free(bench)


def test_a_chain_of_cancellations_computes_the_prefix_once_nevertheless() -> None:
    bench = bench_of(batch_size=8, num_sequences=4)
    ids = {bench.submit(prompt, max_tokens=3): prompt for prompt in [(*COMMON, 1 + i) for i in range(8)]}
    bench.step()
    for generation_id in [*ids][:5]:
        bench.engine.abort(generation_id)
        bench.step()
    bench.run()
    left = {generation_id: ids[generation_id] for generation_id in [*ids][5:]}
    check_all_said(bench, left, 3)
    assert bench.runner.num_computed == len(COMMON) + 3 * (1 + 2)
    assert_free(bench)


def test_cancellation_of_one_that_waits_leaves_nothing_behind() -> None:
    bench = bench_of(batch_size=16)
    one, ids = begun(bench)
    left, *rest = ids
    bench.engine.abort(left)
    bench.run()
    assert left not in bench.heard
    assert bench.heard[one].finished
    check_all_said(bench, {i: ids[i] for i in rest}, 3)
    assert_free(bench)


def test_cancellation_of_everybody_in_the_middle_of_a_shared_prefix() -> None:
    bench = bench_of(batch_size=16)
    one, ids = begun(bench)
    for generation_id in (one, *ids):
        bench.engine.abort(generation_id)
    bench.step()
    assert bench.engine.status == NOTHING
    assert bench.runner.num_computed == 32
    assert bench.answer((*COMMON, 9)).finished.usage.cached_tokens == 32
    assert_free(bench)


def test_failure_of_the_step_of_the_one_that_others_wait_for_has_another_one_compute_it_anew() -> None:
    bench = bench_of(batch_size=16)
    one, ids = begun(bench)
    bench.runner.before_decode = raising_once(RuntimeError("out of luck"))
    bench.step()
    assert bench.heard[one].failed
    bench.run()
    check_all_said(bench, ids, 3)
    computed_in_vain = 48
    assert bench.runner.num_computed == computed_in_vain + len(COMMON) + 3 * (1 + 2)
    assert_free(bench)


def test_cancellation_of_several_choices_in_the_middle_of_their_prompt_has_others_take_over() -> None:
    bench = bench_of(batch_size=16)
    one, ids = begun(bench, num_others=2, n=3)
    bench.engine.abort(one)
    bench.run()
    check_all_said(bench, ids, 3)
    assert bench.runner.num_computed == len(COMMON) + 2 * (1 + 2)
    assert_free(bench)


def test_several_choices_compute_their_prompt_once() -> None:
    bench = bench_of(batch_size=16)
    one = bench.submit(COMMON, n=4, max_tokens=3, sampling=SamplingParameters(seed=3, ignore_eos=True))
    bench.run()
    assert bench.heard[one].finished
    assert bench.runner.num_computed == len(COMMON) + 3 * 1 + 4 * 2


def test_somebody_who_waited_in_vain_three_times_computes_on_his_own() -> None:
    """Else those whose steps fail could hold up for long who begins alike."""
    bench = bench_of(batch_size=8)
    leaders = [bench.submit((*COMMON, i)) for i in range(1, 5)]
    other = bench.submit((*COMMON[:40], 2), max_tokens=3)
    bench.step()
    for leader in leaders[:3]:
        assert other not in bench.heard
        bench.runner.before_decode = raising_once(RuntimeError("out of luck"))
        bench.step()
        assert bench.heard[leader].failed
    bench.step()
    assert other in bench.heard
    bench.run()
    assert bench.heard[other].text() == said((*COMMON[:40], 2), 3)
    assert bench.heard[leaders[3]].text() == said((*COMMON, 4), 8)


def test_a_wait_ends_when_the_awaited_one_is_followed_by_another_in_its_sequence() -> None:
    bench = bench_of(batch_size=16, num_sequences=2)
    one = bench.submit((*COMMON, 1))
    bench.step()
    other = bench.submit((*COMMON, 2), max_tokens=3)
    bench.step()
    bench.engine.abort(one)
    strangers = [bench.submit([i] * 40, max_tokens=20) for i in (30, 31)]
    bench.run()
    assert bench.heard[other].text() == said((*COMMON, 2), 3)
    assert all(bench.heard[i].finished for i in strangers)
    assert bench.heard[other].finished.usage.cached_tokens == 32


# A cache that is full of locked prefixes.


def test_a_cache_full_of_running_sequences_has_the_next_request_wait() -> None:
    bench = bench_of(num_sequences=3, num_cells=512)
    running = {bench.submit((*COMMON, i), max_tokens=6 + i): (*COMMON, i) for i in (1, 2, 3)}
    bench.step(4)
    assert bench.engine.status.num_running == 3
    late = bench.submit((*COMMON, 9), max_tokens=2)
    num_cleared = bench.runner.num_cleared
    while not any(bench.heard[i].is_over for i in running):
        assert late not in bench.heard
        bench.step()
        assert bench.runner.num_cleared == num_cleared
    bench.step()
    assert late in bench.heard
    bench.run()
    for (generation_id, prompt), extra in zip(running.items(), (1, 2, 3), strict=True):
        assert bench.heard[generation_id].text() == said(prompt, 6 + extra)
    assert bench.heard[late].text() == said((*COMMON, 9), 2)
    assert bench.heard[late].finished.usage.cached_tokens == len(COMMON)


def test_a_cache_full_of_locked_cells_has_the_next_request_wait() -> None:
    bench = bench_of(num_sequences=4, num_cells=100, batch_size=64)
    running = {bench.submit([i] * 10, max_tokens=40): [i] * 10 for i in (1, 2)}
    bench.step(3)
    assert bench.engine.status == EngineStatus(num_running=2, num_waiting=0, num_reserved_cells=100)
    late = bench.submit([3], max_tokens=1)
    bench.step(20)
    assert late not in bench.heard
    bench.run()
    check_all_said(bench, running, 40)
    assert bench.heard[late].text() == said([3], 1)
    assert bench.runner.most_cells <= 100


def test_one_that_shares_cells_in_use_is_admitted_where_a_stranger_is_not() -> None:
    bench = bench_of(num_sequences=4, num_cells=70, batch_size=64)
    bench.submit((*COMMON, 1), max_tokens=10, sampling=ENDLESS)
    bench.step(2)
    same = bench.submit((*COMMON, 2), max_tokens=9)
    bench.step()
    assert same in bench.heard
    assert bench.heard[same].events[0] == Started()
    stranger = bench.submit([5] * 10, max_tokens=10)
    bench.step()
    assert stranger not in bench.heard
    bench.run()
    assert bench.heard[same].text() == said((*COMMON, 2), 9)
    assert bench.heard[stranger].text() == said([5] * 10, 10)
    assert bench.runner.most_cells <= 70


def test_idle_prefixes_are_given_up_before_anybody_waits() -> None:
    bench = bench_of(num_sequences=4, num_cells=128, batch_size=64)
    for i in range(3):
        bench.answer([i + 1] * 30, max_tokens=5)
    assert bench.runner.num_cells_used > 90
    one = bench.submit([9] * 60, max_tokens=60)
    bench.step()
    assert one in bench.heard
    bench.run()
    assert bench.heard[one].text() == said([9] * 60, 60)
    assert bench.runner.most_cells <= 128


# A native decode that returns "no slot", an error, or is aborted.


def no_room(times: int) -> Callable[[Sequence[Chunk]], None]:
    left = [times]

    def hook(_: Sequence[Chunk]) -> None:
        if left[0]:
            left[0] -= 1
            raise NoFreeCells("no slot")

    return hook


def test_no_slot_has_idle_prefixes_given_up_and_the_batch_computed_again() -> None:
    bench = bench_of()
    for i in range(3):
        bench.answer([i + 1] * 20)
    used = bench.runner.num_cells_used
    bench.runner.before_decode = no_room(2)
    one = bench.submit([9] * 20, max_tokens=3)
    bench.step()
    assert bench.runner.num_cells_used < used
    bench.run()
    assert bench.heard[one].text() == said([9] * 20, 3)
    # what was given up is computed again, and what was not is still there
    cached = [bench.answer([i + 1] * 20).finished.usage.cached_tokens for i in (2, 1, 0)]
    assert sorted(cached) == [0, 0, 19]
    assert_free(bench)


def test_no_slot_does_not_evict_what_runs_or_was_just_shared() -> None:
    bench = bench_of()
    bench.answer(COMMON, max_tokens=2)
    running = bench.submit([7] * 20, max_tokens=12)
    bench.step(3)
    bench.runner.before_decode = no_room(1)
    one = bench.submit((*COMMON, 5), max_tokens=3)
    bench.run()
    assert bench.heard[one].text() == said((*COMMON, 5), 3)
    assert bench.heard[one].finished.usage.cached_tokens == len(COMMON)
    assert bench.heard[running].text() == said([7] * 20, 12)
    assert_free(bench)


def test_no_slot_with_nothing_left_to_give_up_fails_the_batch_and_the_engine_goes_on() -> None:
    bench = bench_of(num_sequences=2)
    bench.answer([1] * 20)
    ids = [bench.submit([i] * 20) for i in (8, 9)]
    last = bench.submit([5] * 20, max_tokens=3)
    bench.step()
    bench.runner.before_decode = no_room(1)
    bench.step()
    errors = [bench.heard[i].failed.error for i in ids]
    assert all(isinstance(error, NoFreeCells) for error in errors)
    bench.run()
    assert bench.heard[last].text() == said([5] * 20, 3)
    assert_free(bench)


@pytest.mark.parametrize("reason", ["aborted (2)", "invalid batch (-1)", "fatal error (-3)"])
def test_a_decode_that_fails_or_is_aborted_takes_its_batch_along_and_nobody_else(reason: str) -> None:
    bench = bench_of(batch_size=16)
    one, ids = begun(bench)
    error = BackendError(f"llama.cpp could not compute a batch of 16 tokens: {reason}.")
    bench.runner.before_decode = raising_once(error)
    bench.step()
    assert bench.heard[one].failed.error is error
    bench.run()
    check_all_said(bench, ids, 3)
    assert_free(bench)


def test_a_failed_decode_leaves_the_prefix_of_others_alone() -> None:
    """Who lent its prompt keeps it; what the broken sequence held beside it is gone."""
    bench = bench_of(batch_size=64)
    bench.answer(COMMON, max_tokens=2)
    one = bench.submit((*COMMON, 4, 5, 6))
    bench.runner.before_decode = raising_once(RuntimeError("out of luck"))
    bench.step()
    assert bench.heard[one].failed
    again = bench.answer((*COMMON, 7), max_tokens=3)
    assert again.text() == said((*COMMON, 7), 3)
    assert_free(bench)


# Keys that share nothing but what is public.


def isolating_bench(*public: Sequence[int]) -> Harness:
    prefixes = [np.array(prefix, dtype=np.int32) for prefix in public]
    return Harness(ScriptedRunner(MODEL, batch_size=16), isolates_keys=True, public_prefixes=prefixes, least_wait=1)


def test_a_key_does_not_wait_for_what_another_one_computes() -> None:
    """Else the time to the first token would tell that somebody asks the same right now."""
    bench = isolating_bench()
    ids = [bench.submit((*COMMON, 1), max_tokens=3, key=key) for key in ("a", "b", None)]
    bench.step()
    assert bench.engine.status == EngineStatus(num_running=3, num_waiting=0, num_reserved_cells=3 * (49 + 3))
    bench.run()
    assert [bench.heard[i].finished.usage.cached_tokens for i in ids] == [0, 0, 0]
    assert bench.runner.num_computed == 3 * (49 + 2)
    check_all_said(bench, dict.fromkeys(ids, (*COMMON, 1)), 3)


def test_keys_compute_a_public_prefix_once_even_at_the_same_time() -> None:
    bench = isolating_bench(COMMON[:10], COMMON)
    ids = {bench.submit(prompt, max_tokens=3, key="abc"[i]): prompt for i in range(3) for prompt in [(*COMMON, 1, 2)]}
    bench.run()
    assert sorted(bench.heard[i].finished.usage.cached_tokens for i in ids) == [0, len(COMMON), len(COMMON)]
    assert bench.runner.num_computed == len(COMMON) + 3 * (2 + 2)
    check_all_said(bench, ids, 3)


def test_cancellation_in_the_middle_of_a_public_prefix_has_another_key_take_over_what_is_public() -> None:
    bench = isolating_bench(COMMON[:10], COMMON)
    one = bench.submit((*COMMON, 1), key="a")
    other = bench.submit((*COMMON, 2), max_tokens=3, key="b")
    bench.step(2)
    assert other not in bench.heard
    bench.engine.abort(one)
    bench.run()
    assert bench.heard[other].finished.usage.cached_tokens == 10  # the longer one was not computed whole
    assert bench.heard[other].text() == said((*COMMON, 2), 3)


# Drafts and the cache.


def guessing_bench(*, wrong_every: int, model: Model = MODEL, excess: int = 0, **shape: int) -> Harness:
    runner = ScriptedRunner(model, **shape)  # type: ignore[arg-type]
    runner.seconds = lambda _: 0.01
    return Harness(runner, new_drafter=lambda: Guessing(MODEL, wrong_every=wrong_every, excess=excess))


@pytest.mark.parametrize("wrong_every", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("at", range(6, 12))
def test_a_draft_behind_a_stop_string_is_not_taken_for_what_was_said(wrong_every: int, at: int) -> None:
    prompt = (8, 9)
    tokens: tuple[int, ...] = prompt
    while len(tokens) < 20:
        tokens = (*tokens, int(MODEL(tokens).argmax()))
    bench = guessing_bench(wrong_every=wrong_every)
    stop = LETTERS.piece(tokens[at]).decode("utf-8", "replace")
    bench.answer(prompt, max_tokens=18, stop=(stop,))
    longer = (*tokens[:14], 1, 2)
    assert bench.answer(longer, max_tokens=5).text() == said(longer, 5)


@pytest.mark.parametrize("excess", [1, 100])
def test_a_draft_longer_than_was_asked_for_does_not_leave_the_reservation(excess: int) -> None:
    bench = guessing_bench(wrong_every=0, excess=excess, num_cells=32, sequence_len=32, num_sequences=1, num_rows=24)
    for max_tokens in (2, 5, 30):
        heard = bench.answer([1, 2], max_tokens=max_tokens)
        assert heard.text() == said([1, 2], max_tokens)
        assert heard.finished.usage.completion_tokens == max_tokens
    assert bench.runner.most_cells <= 32


def test_drafts_of_siblings_of_a_choice_that_fails_leave_no_cells_behind() -> None:
    """The first choice fails in the middle of the step in which the draft of the second one was computed."""

    def spoiled(tokens: tuple[int, ...]) -> Logits:
        return MODEL(tokens) * np.float32(np.nan if tokens[:1] == (3,) and len(tokens) >= 9 else 1)

    bench = guessing_bench(wrong_every=1, model=spoiled, num_cells=96, batch_size=64)
    one = bench.submit([3, 4, 5], n=3, max_tokens=20)
    bench.run()
    assert isinstance(bench.heard[one].events[-1], Failed)
    assert min(len(chunk.tokens) for chunk in bench.runner.batches[-1]) > 1
    known = said([3, 4, 5], 20).encode()
    for sequence_id in range(3):
        held = b"".join(LETTERS.piece(token) for token in bench.runner.held(sequence_id)[3:])
        assert known.startswith(held.decode("utf-8", "ignore").encode())
    assert_free(bench)
