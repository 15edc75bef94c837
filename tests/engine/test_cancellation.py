from __future__ import annotations

from dataclasses import replace

import pytest
from scripted import GREEDY, Harness, ScriptedRunner, babbling, letters

from server.core.errors import QueueFull
from server.core.events import Started
from server.core.request import SamplingParameters
from server.engine.engine import EngineStatus

LONG = "the quick brown fox jumps over the lazy dog."
ENDLESS = replace(GREEDY, ignore_eos=True)
NOTHING = EngineStatus(num_running=0, num_waiting=0, num_reserved_cells=0)


def assert_free(bench: Harness) -> None:
    """Whatever ran is gone: as much as ever fits in."""
    assert bench.engine.status == NOTHING
    shape = bench.runner.shape
    ids = [
        bench.submit([sequence_id + 1, 9], max_tokens=shape.num_cells // shape.num_sequences - 2, sampling=ENDLESS)
        for sequence_id in range(shape.num_sequences)
    ]
    bench.step()
    assert bench.engine.status.num_running == shape.num_sequences
    for generation_id in ids:
        bench.engine.abort(generation_id)
    bench.step()
    assert bench.engine.status == NOTHING


def bench_of(*, num_sequences: int = 4, queue_size: int = 8, batch_size: int = 16) -> Harness:
    runner = ScriptedRunner(babbling(), num_sequences=num_sequences, num_cells=256, batch_size=batch_size)
    return Harness(runner, queue_size=queue_size)


def test_abort_before_the_engine_has_seen_the_request() -> None:
    bench = bench_of()
    bench.engine.abort(bench.submit("abc"))
    bench.step(2)
    assert (bench.runner.batches, bench.heard) == ([], {})
    assert_free(bench)


def test_abort_in_the_queue() -> None:
    bench = bench_of(num_sequences=1)
    first, queued, last = bench.submit("abc"), bench.submit("bcd"), bench.submit("cde")
    bench.step()
    bench.engine.abort(queued)
    bench.run()
    assert set(bench.heard) == {first, last}
    assert all(heard.finished for heard in bench.heard.values())
    assert_free(bench)


def test_abort_in_the_middle_of_a_prompt() -> None:
    bench = bench_of()
    one = bench.submit(LONG)
    bench.step()
    assert bench.heard[one].events == [Started()]
    bench.engine.abort(one)
    bench.step()
    assert len(bench.runner.batches) == 1
    assert bench.heard[one].events == [Started()]
    assert bench.answer(LONG).finished.usage.cached_tokens == 16
    assert_free(bench)


def test_abort_while_decoding_leaves_the_others_alone() -> None:
    bench = bench_of()
    ids = [bench.submit(prompt, max_tokens=20, sampling=ENDLESS) for prompt in ("abc", "bcd", "cde")]
    bench.step(5)
    heard = len(bench.heard[ids[1]].events)
    (dropped,) = [chunk.sequence_id for chunk in bench.runner.batches[0] if chunk.tokens == [2, 3, 4]]
    bench.engine.abort(ids[1])
    bench.step()
    assert dropped not in [chunk.sequence_id for chunk in bench.runner.batches[-1]]
    assert bench.engine.status.num_running == 2
    bench.run()
    assert len(bench.heard[ids[1]].events) == heard
    for prompt, generation_id in (("abc", ids[0]), ("cde", ids[2])):
        assert bench.heard[generation_id].text() == bench_of().answer(prompt, max_tokens=20, sampling=ENDLESS).text()
    assert_free(bench)


@pytest.mark.parametrize("num_steps", range(8))
def test_abort_of_several_choices_at_any_time(num_steps: int) -> None:
    bench = bench_of()
    one = bench.submit(LONG, n=3, sampling=SamplingParameters(seed=1, ignore_eos=True))
    bench.step(num_steps)
    num_batches = len(bench.runner.batches)
    bench.engine.abort(one)
    bench.step(2)
    assert len(bench.runner.batches) == num_batches
    assert_free(bench)


def test_abort_lets_the_next_one_in_at_once() -> None:
    bench = bench_of(num_sequences=1)
    first, second = bench.submit("abc"), bench.submit("bcd")
    bench.step(2)
    bench.engine.abort(first)
    bench.step()
    assert [chunk.tokens for chunk in bench.runner.batches[-1]] == [[*letters("bcd")]]
    bench.run()
    assert bench.heard[second].finished


def test_abort_after_the_end_twice_or_of_nobody_does_nothing() -> None:
    bench = bench_of(num_sequences=1, queue_size=0)
    one = bench.submit("abc")
    bench.run()
    events = [*bench.heard[one].events]
    for generation_id in (one, one, 999, -1):
        bench.engine.abort(generation_id)
    bench.step()
    assert bench.heard[one].events == events
    two = bench.submit("abc")
    with pytest.raises(QueueFull):
        bench.submit("abc")
    bench.engine.abort(two)
    bench.engine.abort(two)
    bench.step()
    bench.submit("abc")
    with pytest.raises(QueueFull):
        bench.submit("abc")
