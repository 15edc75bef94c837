from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scripted import GREEDY, NUM_LETTERS, Harness, Model, ScriptedRunner, babbling, letters, raising_once

from server.core.errors import BackendError, Draining
from server.core.events import Failed
from server.core.request import SamplingParameters
from server.engine.runner import Logits

LONG = "the quick brown fox jumps over the lazy dog."
ENDLESS = replace(GREEDY, ignore_eos=True)


def bench_of(model: Model | None = None, *, num_sequences: int = 4, queue_size: int = 8) -> Harness:
    runner = ScriptedRunner(model or babbling(), num_sequences=num_sequences, num_cells=256, batch_size=16)
    return Harness(runner, queue_size=queue_size)


def spoiled_for(prompt: str) -> Model:
    """A model whose logits are not numbers after ``prompt`` and two more tokens."""
    spoiled, good = letters(prompt), babbling(end_bias=-50)

    def logits(tokens: tuple[int, ...]) -> Logits:
        if tokens[: len(spoiled)] == spoiled and len(tokens) >= len(spoiled) + 2:
            return np.full(NUM_LETTERS, np.nan, dtype=np.float32)
        return good(tokens)

    return logits


# A decode call fails.


def test_a_failed_step_fails_what_was_in_it_and_nothing_else() -> None:
    bench = bench_of(num_sequences=2)
    ids = [bench.submit(prompt, sampling=ENDLESS) for prompt in ("abc", "bcd", "cde")]
    bench.step(3)
    bench.runner.before_decode = raising_once(RuntimeError("out of luck"))
    bench.step()
    for generation_id in ids[:2]:
        error = bench.heard[generation_id].failed.error
        assert isinstance(error, BackendError)
        assert "out of luck" in error.message
    assert ids[2] not in bench.heard
    bench.run()
    assert bench.heard[ids[2]].text() == bench_of().answer("cde", sampling=ENDLESS).text()


def test_a_failed_step_frees_its_cells_at_once() -> None:
    bench = Harness(ScriptedRunner(babbling(), num_cells=64, batch_size=64))
    bench.submit(LONG)
    bench.runner.before_decode = raising_once(RuntimeError("out of luck"))
    bench.run()
    heard = bench.answer("abc", max_tokens=61, sampling=ENDLESS)
    assert heard.finished.usage.completion_tokens == 61


def test_a_runner_that_fails_step_after_step_ends_the_engine() -> None:
    bench = bench_of()

    def fails(_: object) -> None:
        raise RuntimeError("the device is lost")

    bench.runner.before_decode = fails
    for _ in range(4):
        bench.submit("abc")
        bench.step()
    bench.submit("abc")
    with pytest.raises(RuntimeError, match="the device is lost"):
        bench.step()


def test_an_error_of_ours_reaches_the_client_as_it_is() -> None:
    bench = bench_of()
    one = bench.submit("abc")
    error = Draining("gone fishing")
    bench.runner.before_decode = raising_once(error)
    bench.step()
    assert bench.heard[one].failed.error is error


def test_after_a_failed_step_nothing_stale_is_reused() -> None:
    expected = bench_of().answer(LONG).text()
    bench = bench_of()
    for num_steps in range(6):
        one = bench.submit(LONG)
        bench.step(num_steps)
        if one in bench.heard and bench.heard[one].is_over:
            continue
        bench.runner.before_decode = raising_once(RuntimeError("out of luck"))
        bench.step()
        assert bench.heard[one].failed
        assert bench.engine.status.num_running == 0
        again = bench.answer(LONG)
        assert again.text() == expected


def test_a_prompt_that_was_not_in_the_failed_step_goes_on() -> None:
    bench = bench_of()
    first = bench.submit("abc" * 11)  # the shortest takes the whole batch but the share of the oldest
    second = bench.submit(LONG)
    bench.runner.before_decode = raising_once(RuntimeError("out of luck"))
    bench.step()
    assert bench.heard[first].failed
    bench.run()
    assert bench.heard[second].finished


def test_choices_that_wait_for_a_failed_sibling_fail_with_it() -> None:
    bench = bench_of()
    one = bench.submit(LONG, n=3)
    bench.runner.before_decode = raising_once(RuntimeError("out of luck"))
    bench.run()
    assert [type(event) for event in bench.heard[one].events].count(Failed) == 1
    assert bench.answer("abc").finished


def test_a_failure_makes_room_in_the_queue() -> None:
    bench = bench_of(num_sequences=1, queue_size=0)
    for _ in range(3):
        one = bench.submit("abc")
        bench.runner.before_decode = raising_once(RuntimeError("out of luck"))
        bench.run()
        assert bench.heard[one].failed
    assert bench.answer("abc").finished


# Sampling fails.


def test_logits_that_are_not_numbers_fail_their_request_only() -> None:
    bench = bench_of(spoiled_for("bcd"))
    ids = [bench.submit(prompt) for prompt in ("abc", "bcd", "cde")]
    bench.run()
    assert "finite" in bench.heard[ids[1]].failed.error.message
    assert len(bench.heard[ids[1]].text()) == 2
    for prompt, generation_id in (("abc", ids[0]), ("cde", ids[2])):
        assert bench.heard[generation_id].text() == bench_of(babbling(end_bias=-50)).answer(prompt).text()


def test_a_bias_outside_of_the_vocabulary_fails_its_request_only() -> None:
    bench = bench_of()
    bad = bench.submit("abc", sampling=SamplingParameters(logit_bias=((NUM_LETTERS, 1.0),)))
    good = bench.submit("abc")
    bench.run()
    assert bench.heard[bad].failed
    assert bench.heard[good].text() == bench_of().answer("abc").text()


def test_a_request_that_cannot_even_be_taken_apart_is_its_senders_problem() -> None:
    bench = bench_of()
    with pytest.raises(OverflowError):
        bench.submit("abc", sampling=SamplingParameters(logit_bias=((2**80, 1.0),)))
    assert bench.answer("abc").finished


@pytest.mark.parametrize("can_share", [True, False])
def test_a_choice_that_fails_takes_its_siblings_and_their_cells(*, can_share: bool) -> None:
    runner = ScriptedRunner(spoiled_for(LONG), num_cells=200, batch_size=64, can_share=can_share)
    bench = Harness(runner)
    for _ in range(4):
        one = bench.submit(LONG, n=3, max_tokens=10)
        bench.run()
        assert bench.heard[one].failed
    # what the siblings had computed is accounted for: requests that fill the cache find it free
    for start in range(4):
        filling = [bench.submit([start + 1, i + 1], max_tokens=48) for i in range(4)]
        bench.run()
        assert all(bench.heard[i].finished for i in filling)


def test_what_a_failed_choices_sibling_computed_in_the_same_step_is_accounted_for() -> None:
    def not_a_number_at_the_second_token(tokens: tuple[int, ...]) -> Logits:
        return babbling(end_bias=-50)(tokens) * np.float32(np.nan if len(tokens) == len(LONG) + 1 else 1)

    runner = ScriptedRunner(not_a_number_at_the_second_token, num_cells=112, batch_size=64, can_share=False)
    bench = Harness(runner)
    one = bench.submit(LONG, n=2, max_tokens=10)
    bench.run()
    assert bench.heard[one].failed
    assert [len(batch) for batch in runner.batches] == [1, 2]
    assert bench.answer([5], max_tokens=30).finished
    bench.submit([6], max_tokens=111)
    bench.run()
    assert runner.most_cells <= 112


def test_the_same_prompt_after_a_sampling_failure_is_right() -> None:
    bench = bench_of()
    bench.submit(LONG, sampling=replace(GREEDY, logit_bias=((-NUM_LETTERS - 1, 1.0),)))
    bench.run()
    heard = bench.answer(LONG)
    assert heard.text() == bench_of().answer(LONG).text()
    assert heard.finished.usage.cached_tokens == len(LONG) - 1
