from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
from scripted import GREEDY, LETTERS, Harness, ScriptedRunner, babbling, raising_once

from server.core.errors import BackendError, Draining, LlmspellError, ModelLoadingFailed
from server.core.events import Started
from server.engine.engine import Engine, EngineOptions
from server.engine.runner import Chunk

ENDLESS = replace(GREEDY, ignore_eos=True)
TIMEOUT = 20


class Gate:
    """A ``before_decode`` hook: once shut, the next decode call waits inside until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, _: Sequence[Chunk]) -> None:
        self.entered.set()
        assert self.opened.wait(TIMEOUT)


@contextmanager
def running(runner: ScriptedRunner | None = None, *, queue_size: int = 64) -> Iterator[Harness]:
    bench = Harness(runner or ScriptedRunner(babbling()), queue_size=queue_size)
    bench.engine.start()
    try:
        yield bench
    finally:
        assert bench.engine.close(TIMEOUT)
        assert not bench.runner.violations


def test_the_thread_serves_and_then_waits_for_more() -> None:
    expected = Harness(ScriptedRunner(babbling())).answer("abc").text()
    with running() as bench:
        for _ in range(3):
            one = bench.submit("abc")
            assert bench.wait_for(one, lambda heard: heard.is_over).text() == expected


def test_the_runner_rests_whenever_there_is_nothing_to_do() -> None:
    runner, rested = ScriptedRunner(babbling()), threading.Semaphore(0)
    runner.on_rest = rested.release
    with running(runner) as bench:
        for _ in range(3):
            assert rested.acquire(timeout=TIMEOUT)
            one = bench.submit("abc", max_tokens=20, sampling=ENDLESS)
            bench.wait_for(one, lambda heard: heard.is_over)
            assert not bench.runner.violations
        assert rested.acquire(timeout=TIMEOUT)
        assert not rested.acquire(blocking=False)  # and not between the steps
        bench.engine.rest()
        assert rested.acquire(timeout=TIMEOUT)


def test_requests_from_many_threads_are_all_served() -> None:
    ids: list[int] = []
    with running() as bench:
        threads = [threading.Thread(target=lambda: ids.append(bench.submit("abc"))) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(ids)) == 20
        assert len({bench.wait_for(i, lambda heard: heard.is_over).text() for i in ids}) == 1


def test_an_abort_in_the_middle_of_a_step_counts_from_the_next() -> None:
    with running() as bench:
        gate = Gate()
        bench.runner.before_decode = gate
        one = bench.submit("abc", max_tokens=100, sampling=ENDLESS)
        assert gate.entered.wait(TIMEOUT)
        bench.engine.abort(one)
        other = bench.submit("bcd")
        gate.opened.set()
        bench.wait_for(other, lambda heard: heard.is_over)
        assert [len(batch) for batch in bench.runner.batches] == [1] * len(bench.runner.batches)
        assert sum(batch[0].tokens == [1, 2, 3] for batch in bench.runner.batches) == 1
        assert bench.engine.status.num_running == 0


def test_close_fails_what_runs_and_what_waits_and_ends_the_thread() -> None:
    with running(ScriptedRunner(babbling(), num_sequences=1, num_cells=10_000, sequence_len=10_000)) as bench:
        ids = [bench.submit("abc", max_tokens=9_000, sampling=ENDLESS) for _ in range(2)]
        bench.wait_for(ids[0], lambda heard: len(heard.events) > 3)
        assert bench.engine.close(TIMEOUT)
        assert all(isinstance(bench.heard[i].failed.error, Draining) for i in ids)
        assert not bench.engine.is_alive
        assert bench.engine.status.num_running == 0
        with pytest.raises(Draining, match="unloaded"):
            bench.submit("abc")
        bench.engine.abort(ids[0])
        assert bench.engine.close(TIMEOUT)


def test_close_says_when_a_step_does_not_end_in_time() -> None:
    with running() as bench:
        gate = Gate()
        bench.runner.before_decode = gate
        one = bench.submit("abc")
        assert gate.entered.wait(TIMEOUT)
        assert not bench.engine.close(timeout=0)
        with pytest.raises(Draining):
            bench.submit("abc")
        gate.opened.set()
        assert bench.engine.close(TIMEOUT)
        assert bench.heard[one].failed
        assert len(bench.runner.batches) == 1


def test_an_engine_that_never_ran_can_be_closed() -> None:
    bench = Harness(ScriptedRunner(babbling()))
    assert bench.engine.close(TIMEOUT)
    with pytest.raises(Draining):
        bench.submit("abc")


def test_everything_accepted_is_answered_though_the_engine_closes() -> None:
    """Submitters race with close: each is refused, or hears the end of its request."""
    for _ in range(20):
        accepted: list[int] = []
        start = threading.Barrier(4)
        with running() as bench:

            def submit(bench: Harness, start: threading.Barrier, accepted: list[int]) -> None:
                start.wait(TIMEOUT)
                try:
                    while len(accepted) < 30:
                        accepted.append(bench.submit("abc", max_tokens=3))
                except LlmspellError:
                    return

            threads = [threading.Thread(target=submit, args=(bench, start, accepted)) for _ in range(3)]
            for thread in threads:
                thread.start()
            start.wait(TIMEOUT)
            assert bench.engine.close(TIMEOUT)
            for thread in threads:
                thread.join()
        assert set(bench.heard) == set(accepted)
        assert all(heard.is_over for heard in bench.heard.values())


def fail_in_clear(bench: Harness) -> None:
    bench.runner.before_clear = raising_once(OSError("the device is gone"))


def fail_in_deliver(bench: Harness) -> None:
    bench.before_deliver = raising_once(OSError("nobody listens"))


@pytest.mark.parametrize("sabotage", [fail_in_clear, fail_in_deliver])
def test_a_dead_engine_leaves_nobody_waiting(
    sabotage: Callable[[Harness], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "server.engine")
    with running(ScriptedRunner(babbling(), num_sequences=2)) as bench:
        gate = Gate()
        bench.runner.before_decode = gate
        ids = [bench.submit("abc", max_tokens=1)]
        assert gate.entered.wait(TIMEOUT)
        ids += [bench.submit(prompt, max_tokens=1) for prompt in ("bcd", "cde", "def")]
        sabotage(bench)
        gate.opened.set()
        for generation_id in ids:
            bench.wait_for(generation_id, lambda heard: heard.is_over)
        assert bench.engine.close(TIMEOUT)
        assert bench.heard[ids[0]].finished
        assert all(isinstance(bench.heard[i].failed.error, BackendError) for i in ids[1:])
        assert not bench.engine.is_alive
        with pytest.raises(BackendError, match="stopped"):
            bench.submit("abc")


def test_the_status_can_be_read_while_the_engine_works() -> None:
    with running(ScriptedRunner(babbling(), num_sequences=8, num_cells=4096)) as bench:
        ids = [bench.submit("abc", max_tokens=5 + 3 * i, sampling=ENDLESS) for i in range(16)]
        while not all(i in bench.heard and bench.heard[i].is_over for i in ids):
            status = bench.engine.status
            assert 0 <= status.num_running <= 8
            assert 0 <= status.num_reserved_cells <= 4096
        first = bench.heard[ids[0]].events[0]
        assert first == Started()


def test_a_model_that_cannot_compute_fails_the_start() -> None:
    runner = ScriptedRunner(babbling())
    runner.fails_to_warm_up = ModelLoadingFailed("no")
    ended = threading.Event()
    engine = Engine(
        runner, LETTERS, lambda _: None, EngineOptions(queue_size=1, inter_token_target=1), on_end=ended.set
    )
    with pytest.raises(ModelLoadingFailed):
        engine.start()
    assert ended.wait(TIMEOUT)
    assert not engine.is_alive
