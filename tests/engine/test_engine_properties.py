"""Random arrivals, aborts, failures and lengths: everything ends, everything is right, everything is free again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scripted import END, GREEDY, LETTERS, Guessing, Harness, ScriptedRunner, babbling, raising_once

from server.core.errors import ContextLengthExceeded, NoFreeCells, QueueFull
from server.core.events import Failed, Finished
from server.core.request import SamplingParameters
from server.engine.drafting import Acceptance, Drafter, PromptLookup
from server.engine.kv_cells import Saving
from server.engine.radix_tree import common_prefix_len

MODEL = babbling(end_bias=3.0)
QUEUE_SIZE = 6
NUM_CELLS = 60
MOST_SEQUENCES = 4
MOST_FAILURES = 4  # an engine whose steps keep failing ends
PUBLIC = (np.array([1, 1, 2], dtype=np.int32), np.array([1, 1, 2, 2, 1, 2], dtype=np.int32))

DRAFTERS: dict[str, Callable[[], Drafter] | None] = {
    "none": None,
    "lookup": lambda: PromptLookup(Acceptance()),
    "right": lambda: Guessing(MODEL),
    "wrong": lambda: Guessing(MODEL, wrong_every=1),
    "sometimes wrong": lambda: Guessing(MODEL, wrong_every=3),
    "too long": lambda: Guessing(MODEL, wrong_every=7, excess=20),
}


@dataclass(frozen=True)
class Setting:
    """A kind of runner, and how the engine uses it."""

    num_sequences: int
    batch_size: int = 32
    memory: str = "whole"
    seconds_a_token: float = 0.0
    drafter: str = "none"
    isolates_keys: bool = False
    has_public_prefixes: bool = False
    can_draw: bool = False
    least_wait: int = 1
    saving: Saving | None = None
    can_restore: bool = True

    def bench(self) -> Harness:
        is_unified = self.memory != "separate"
        runner = ScriptedRunner(
            MODEL,
            num_sequences=self.num_sequences,
            num_cells=NUM_CELLS,
            sequence_len=NUM_CELLS if is_unified else NUM_CELLS // self.num_sequences,
            batch_size=self.batch_size,
            can_share=self.memory != "unshared",
            can_cut=self.memory != "uncuttable",
            can_draw=self.can_draw,
            is_unified=is_unified,
            window_len=5 if self.memory == "window" else 0,
        )
        runner.restores = self.can_restore
        runner.seconds = lambda chunks: 0.01 + self.seconds_a_token * sum(len(chunk.tokens) for chunk in chunks)
        return Harness(
            runner,
            queue_size=QUEUE_SIZE,
            isolates_keys=self.isolates_keys,
            public_prefixes=PUBLIC if self.has_public_prefixes else (),
            least_wait=self.least_wait,
            new_drafter=DRAFTERS[self.drafter],
            device_sampling=self.can_draw,
            saving=self.saving,
        )


@dataclass(frozen=True)
class Arrive:
    """A request; the prompt of one that continues is that of an earlier one, its answer as far as that says, and this.

    ``goes_on`` counts tokens of what the model says greedily; 0 for a prompt of its own.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    n: int
    is_greedy: bool
    key: str | None = None
    stop: tuple[str, ...] = ()
    goes_on: int = 0


@dataclass(frozen=True)
class Leave:
    which: int


@dataclass(frozen=True)
class Break:
    has_no_cells: bool


@dataclass(frozen=True)
class Step:
    times: int


Event = Arrive | Leave | Break | Step

runs = st.builds(
    Setting,
    num_sequences=st.integers(3, MOST_SEQUENCES),
    batch_size=st.sampled_from([4, 7, 32]),
    memory=st.sampled_from(["whole", "whole", "separate", "window", "uncuttable", "unshared"]),
    seconds_a_token=st.sampled_from([0.0, 0.0, 0.01]),
    drafter=st.sampled_from([*DRAFTERS]),
    isolates_keys=st.booleans(),
    has_public_prefixes=st.booleans(),
    can_draw=st.sampled_from([False, False, True]),
    least_wait=st.sampled_from([1, 3]),
    saving=st.none() | st.builds(Saving, st.sampled_from([120, 2000]), st.integers(1, 4), st.integers(1, 5)),
    can_restore=st.sampled_from([True, True, True, False]),
)
arrivals = st.builds(
    Arrive,
    prompt=st.lists(st.sampled_from([1, 2]), min_size=1, max_size=20).map(tuple)
    | st.lists(st.sampled_from([1, 2]), min_size=1, max_size=10).map(lambda end: (1, 1, 2, 2, 1, 2, *end)),
    max_tokens=st.integers(1, 20),
    n=st.sampled_from([1, 1, 1, 2, 3]),
    is_greedy=st.booleans(),
    key=st.sampled_from([None, "a", "a", "b"]),
    stop=st.sampled_from([(), (), ("a", "e", "i", "o"), ("b", "mn", "t", ".")]),
    goes_on=st.sampled_from([0, 0, 0, 2, 5, 9, 20]),
)
histories = st.lists(
    st.one_of(
        arrivals,
        arrivals,
        st.builds(Leave, st.integers(0, 12)),
        st.builds(Break, st.booleans()),
        st.builds(Step, st.integers(1, 6)),
    ),
    max_size=25,
)


@cache
def greedy_tokens(prompt: tuple[int, ...], max_tokens: int) -> tuple[int, ...]:
    """What the model says, without any engine."""
    tokens = prompt
    while len(tokens) < len(prompt) + max_tokens:
        token = int(np.argmax(MODEL(tokens)))
        if token == END:
            break
        tokens = (*tokens, token)
    return tokens[len(prompt) :]


def greedy_text(prompt: tuple[int, ...], max_tokens: int, stop: tuple[str, ...]) -> str:
    pieces = [LETTERS.piece(token) for token in greedy_tokens(prompt, max_tokens)]
    for num_pieces in range(1, len(pieces) + 1):
        text = b"".join(pieces[:num_pieces]).decode("utf-8", "replace")
        ends = [(text.find(string) + len(string), text.find(string)) for string in stop if string in text]
        if ends:
            return text[: min(ends)[1]]
    return b"".join(pieces).decode("utf-8", "replace")


def sampling_of(arrival: Arrive) -> SamplingParameters:
    return GREEDY if arrival.is_greedy else SamplingParameters(seed=len(arrival.prompt))


def whole(arrival: Arrive, earlier: Sequence[Arrive]) -> Arrive:
    """Write out the prompt of a request that continues another one."""
    if not arrival.goes_on or not earlier:
        return arrival
    first = earlier[arrival.goes_on % len(earlier)].prompt
    prompt = (*first, *greedy_tokens(first, arrival.goes_on), *arrival.prompt[:3])
    return replace(arrival, prompt=prompt, max_tokens=min(arrival.max_tokens, max(NUM_CELLS - len(prompt), 1)))


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "server.engine")


@settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories, setting=runs)
@example([Arrive((1,), 1, 1, is_greedy=True)], Setting(3, 4))
@example(
    [
        Arrive((1, 1, 2, 2, 1, 2, 2, 1, 2, 1, 2, 1, 2, 1, 2), length, n, is_greedy=False)
        for length, n in ((4, 2), (11, 1))
    ],
    Setting(3, 7, memory="window", drafter="right"),
)
def test_everything_ends_and_is_right(history: list[Event], setting: Setting) -> None:
    bench = setting.bench()
    story = Story(bench)
    for event in history:
        story.tell(event)
        assert bench.engine.status.num_reserved_cells <= NUM_CELLS
        assert bench.engine.status.num_saved_bytes <= (setting.saving.most_bytes if setting.saving else 0)
    num_tokens = sum((len(a.prompt) + a.max_tokens) * a.n for a in story.accepted.values())
    bench.run(most_steps=num_tokens + 2)  # each step computes something
    assert bench.runner.most_cells <= NUM_CELLS
    for generation_id, arrival in story.accepted.items():
        match bench.heard[generation_id].events[-1] if generation_id in bench.heard else None:
            case Finished():
                assert_right(bench, setting, generation_id, arrival)
                others = [other for i, other in story.accepted.items() if i != generation_id]
                assert_private(bench, setting, generation_id, arrival, others)
            case Failed():
                assert story.num_failures
            case _:
                assert generation_id in story.aborted
    assert_all_free(bench, setting.num_sequences)


class Story:
    """Makes events happen to an engine, and remembers which."""

    def __init__(self, bench: Harness) -> None:
        self._bench = bench
        self.accepted: dict[int, Arrive] = {}
        self.aborted: set[int] = set()
        self.num_failures = 0

    def tell(self, event: Event) -> None:
        match event:
            case Arrive():
                self._submit(whole(event, [*self.accepted.values()]))
            case Leave(which):
                self.aborted.add(which)
                self._bench.engine.abort(which)
            case Break(has_no_cells):
                self._fail(NoFreeCells("no slot") if has_no_cells else RuntimeError("out of luck"))
            case Step(times):
                self._bench.step(times)

    def _submit(self, arrival: Arrive) -> None:
        with suppress(QueueFull, ContextLengthExceeded):
            generation_id = self._bench.submit(
                arrival.prompt,
                max_tokens=arrival.max_tokens,
                n=arrival.n,
                sampling=sampling_of(arrival),
                stop=arrival.stop,
                key=arrival.key,
            )
            self.accepted[generation_id] = arrival

    def _fail(self, error: Exception) -> None:
        if self.num_failures < MOST_FAILURES:
            self.num_failures += 1
            self._bench.runner.before_decode = raising_once(error)


def assert_right(bench: Harness, setting: Setting, generation_id: int, arrival: Arrive) -> None:
    heard = bench.heard[generation_id]
    texts = [heard.text(index) for index in range(arrival.n)]
    assert heard.finished.usage.prompt_tokens == len(arrival.prompt)
    assert heard.finished.usage.cached_tokens < len(arrival.prompt)
    if arrival.is_greedy or setting.can_draw:  # the scripted device draws the likeliest token
        assert texts == [greedy_text(arrival.prompt, arrival.max_tokens, arrival.stop)] * arrival.n
    else:
        alone = Harness(ScriptedRunner(MODEL)).answer(
            arrival.prompt,
            max_tokens=arrival.max_tokens,
            n=arrival.n,
            sampling=sampling_of(arrival),
            stop=arrival.stop,
        )
        assert texts == [alone.text(index) for index in range(arrival.n)]


def assert_private(
    bench: Harness, setting: Setting, generation_id: int, arrival: Arrive, others: Sequence[Arrive]
) -> None:
    """With keys apart, a prompt found nothing but what those of its key have in common with it, and what is public."""
    prompt = np.array(arrival.prompt, dtype=np.int32)

    def most_from(other: Arrive) -> int:
        length = common_prefix_len(prompt, np.array(other.prompt, dtype=np.int32))
        return len(prompt) if length == len(other.prompt) else length  # it may go on as the other one was answered

    sharers = others if not setting.isolates_keys else [other for other in others if other.key == arrival.key]
    allowed = max([most_from(other) for other in sharers], default=0)
    if setting.has_public_prefixes and others:
        allowed = max([allowed, *(common_prefix_len(prompt, public) for public in PUBLIC)])
    if setting.memory == "unshared":
        allowed = 0
    assert bench.heard[generation_id].finished.usage.cached_tokens <= allowed


def assert_all_free(bench: Harness, num_sequences: int) -> None:
    """The door lets as many in as ever, and the cache can be filled to the last cell."""
    bench.runner.before_decode = lambda _: None
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
