"""Random arrivals, aborts, failures and lengths: everything ends, everything is right, everything is free again."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scripted import END, GREEDY, LETTERS, Harness, ScriptedRunner, babbling, raising_once

from server.core.errors import QueueFull
from server.core.events import Failed, Finished
from server.core.request import SamplingParameters

MODEL = babbling(end_bias=3.0)
QUEUE_SIZE = 6
NUM_CELLS = 48
MOST_SEQUENCES = 4


@dataclass(frozen=True)
class Arrive:
    prompt: tuple[int, ...]
    max_tokens: int
    n: int
    is_greedy: bool


@dataclass(frozen=True)
class Leave:
    which: int


@dataclass(frozen=True)
class Break:
    pass


@dataclass(frozen=True)
class Step:
    times: int


Event = Arrive | Leave | Break | Step

arrivals = st.builds(
    Arrive,
    prompt=st.lists(st.sampled_from([1, 2]), min_size=1, max_size=20).map(tuple),
    max_tokens=st.integers(1, 20),
    n=st.sampled_from([1, 1, 1, 2, 3]),
    is_greedy=st.booleans(),
)
histories = st.lists(
    st.one_of(
        arrivals, arrivals, st.builds(Leave, st.integers(0, 12)), st.just(Break()), st.builds(Step, st.integers(1, 6))
    ),
    max_size=25,
)


def greedy_text(prompt: tuple[int, ...], max_tokens: int) -> str:
    """What the model says, without any engine."""
    tokens = prompt
    while len(tokens) < len(prompt) + max_tokens:
        token = int(np.argmax(MODEL(tokens)))
        if token == END:
            break
        tokens = (*tokens, token)
    return b"".join(LETTERS.piece(token) for token in tokens[len(prompt) :]).decode("utf-8", "replace")


def sampling_of(arrival: Arrive) -> SamplingParameters:
    return GREEDY if arrival.is_greedy else SamplingParameters(seed=len(arrival.prompt))


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "server.engine")


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history=histories,
    num_sequences=st.integers(3, MOST_SEQUENCES),
    batch_size=st.sampled_from([4, 7, 32]),
    memory=st.sampled_from(["whole", "uncuttable", "unshared"]),
    seconds_a_token=st.sampled_from([0.0, 0.01]),
)
@example([Arrive((1,), 1, 1, is_greedy=True)], 3, 4, "whole", 0.0)
def test_everything_ends_and_is_right(
    history: list[Event], num_sequences: int, batch_size: int, memory: str, seconds_a_token: float
) -> None:
    runner = ScriptedRunner(
        MODEL,
        num_sequences=num_sequences,
        num_cells=NUM_CELLS,
        batch_size=batch_size,
        can_share=memory != "unshared",
        can_cut=memory == "whole",
    )
    runner.seconds = lambda chunks: 0.01 + seconds_a_token * sum(len(chunk.tokens) for chunk in chunks)
    bench = Harness(runner, queue_size=QUEUE_SIZE)
    accepted: dict[int, Arrive] = {}
    aborted: set[int] = set()
    for event in history:
        match event:
            case Arrive():
                try:
                    generation_id = bench.submit(
                        event.prompt, max_tokens=event.max_tokens, n=event.n, sampling=sampling_of(event)
                    )
                except QueueFull:
                    continue
                accepted[generation_id] = event
            case Leave(which):
                aborted.add(which)
                bench.engine.abort(which)
            case Break():
                runner.before_decode = raising_once(RuntimeError("out of luck"))
            case Step(times):
                bench.step(times)
        assert bench.engine.status.num_reserved_cells <= NUM_CELLS
    num_tokens = sum((len(a.prompt) + a.max_tokens) * a.n for a in accepted.values())
    bench.run(most_steps=num_tokens + 2)  # each step computes something
    assert runner.most_cells <= NUM_CELLS
    for generation_id, arrival in accepted.items():
        match bench.heard[generation_id].events[-1] if generation_id in bench.heard else None:
            case Finished():
                assert_right(bench, generation_id, arrival)
            case Failed():
                assert Break() in history
            case _:
                assert generation_id in aborted
    assert_all_free(bench)


def assert_right(bench: Harness, generation_id: int, arrival: Arrive) -> None:
    heard = bench.heard[generation_id]
    texts = [heard.text(index) for index in range(arrival.n)]
    assert heard.finished.usage.prompt_tokens == len(arrival.prompt)
    assert heard.finished.usage.cached_tokens < len(arrival.prompt)
    if arrival.is_greedy:
        assert texts == [greedy_text(arrival.prompt, arrival.max_tokens)] * arrival.n
    else:
        alone = Harness(ScriptedRunner(MODEL)).answer(
            arrival.prompt, max_tokens=arrival.max_tokens, n=arrival.n, sampling=sampling_of(arrival)
        )
        assert texts == [alone.text(index) for index in range(arrival.n)]


def assert_all_free(bench: Harness) -> None:
    """The door lets as many in as ever, and the cache can be filled to the last cell."""
    bench.runner.before_decode = lambda _: None
    num_sequences = bench.runner.shape.num_sequences
    each = NUM_CELLS // num_sequences - 1
    endless = replace(GREEDY, ignore_eos=True)
    ids = [bench.submit([3 + i], max_tokens=each, sampling=endless) for i in range(num_sequences + QUEUE_SIZE)]
    with pytest.raises(QueueFull):
        bench.submit([1])
    bench.step()
    assert bench.engine.status.num_running == num_sequences
    bench.run()
    assert all(bench.heard[i].finished.usage.completion_tokens == each for i in ids)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 18)), min_size=2, max_size=10))
def test_requests_are_admitted_in_order(lengths: list[tuple[int, int]]) -> None:
    bench = Harness(ScriptedRunner(MODEL, num_cells=NUM_CELLS, batch_size=8))
    ids = [
        bench.submit([1 + (i + k) % 9 for k in range(prompt_len)], max_tokens=max_tokens)
        for i, (prompt_len, max_tokens) in enumerate(lengths)
    ]
    bench.run()
    assert [*bench.heard] == ids  # the first thing heard of each is that it was admitted
