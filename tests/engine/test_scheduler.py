from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.scheduler import (
    Demand,
    Grant,
    Key,
    Shares,
    charged,
    divide,
    grant_decodes,
    most_behind,
    plan_step,
)
from server.engine.step_costs import Allowance, Prices, StepCosts, WidthSeconds

PRICES = Prices(0.01)


def decode(sequence_id: int, num_drafted: int = 0, *, num_missing: int = 1) -> Demand:
    return Demand(sequence_id, num_missing, is_decoding=True, num_drafted=num_drafted)


def prompt(sequence_id: int, num_missing: int, *, key: Key = None, at: float = 0.0, computed: int = 0) -> Demand:
    return Demand(sequence_id, num_missing, is_decoding=False, num_computed=computed, key=key, arrived_at=at)


def pairs(grants: Iterable[Grant]) -> list[tuple[int, int]]:
    return [(grant.sequence_id, grant.num_tokens) for grant in grants]


# Decodes.


@pytest.mark.parametrize(
    ("decodes", "expected"),
    [
        pytest.param([], [], id="none"),
        pytest.param([decode(0), decode(1)], [(0, 1), (1, 1)], id="a token each"),
        pytest.param([decode(0, 3), decode(1)], [(0, 4), (1, 1)], id="drafted tokens come along"),
        pytest.param([decode(0, 9), decode(1, 1)], [(0, 7), (1, 1)], id="no draft takes another's token"),
    ],
)
def test_decodes(decodes: list[Demand], expected: list[tuple[int, int]]) -> None:
    assert pairs(grant_decodes(decodes, 8)) == expected


@pytest.mark.parametrize(
    ("decodes", "num_behind", "expected"),
    [
        pytest.param([decode(0, num_missing=4), decode(1)], 9, [(0, 4), (1, 1)], id="all that is missing"),
        pytest.param([decode(0, num_missing=4), decode(1, num_missing=3)], 4, [(0, 4), (1, 2)], id="as time allows"),
        pytest.param([decode(0, num_missing=9), decode(1, num_missing=3)], 9, [(0, 7), (1, 1)], id="as room allows"),
        pytest.param([decode(0, 2, num_missing=3), decode(1)], 9, [(0, 5), (1, 1)], id="then what is drafted"),
        pytest.param([decode(0, 2, num_missing=3), decode(1)], 1, [(0, 2), (1, 1)], id="and not without it"),
        pytest.param([decode(0, num_missing=3), decode(1, 3)], 0, [(0, 1), (1, 4)], id="drafts have their own time"),
    ],
)
def test_decodes_that_are_behind(decodes: list[Demand], num_behind: int, expected: list[tuple[int, int]]) -> None:
    assert pairs(grant_decodes(decodes, 8, num_behind)) == expected


@pytest.mark.parametrize(("target", "expected"), [(0.5, 6), (0.081, 6), (0.06, 4), (0.02, 0), (0.001, 0)])
def test_decodes_catch_up_as_fast_as_the_target_allows(target: float, expected: int) -> None:
    costs = StepCosts()
    assert most_behind([decode(0, num_missing=7), decode(1)], costs, target) == 6, "nothing is known yet"
    costs.observe(num_decoded=2, prompts=(), seconds=0.02)
    assert most_behind([decode(0, num_missing=7), decode(1)], costs, target) == expected
    assert most_behind([decode(0), decode(1)], costs, target) == 0


# The division of an allowance.


@pytest.mark.parametrize(
    ("prompts", "allowance", "expected"),
    [
        pytest.param([], Allowance(16), [], id="nothing waits"),
        pytest.param([prompt(0, 50)], Allowance(16), [(0, 16)], id="one takes all"),
        pytest.param([prompt(0, 50), prompt(1, 5)], Allowance(16), [(0, 11), (1, 5)], id="the short one goes first"),
        pytest.param([prompt(0, 9), prompt(1, 9)], Allowance(12), [(0, 9), (1, 3)], id="equals by number"),
        pytest.param([prompt(0, 9, at=1), prompt(1, 9)], Allowance(9), [(1, 9)], id="equals by arrival"),
        pytest.param(
            [prompt(0, 90), prompt(1, 50, at=9)], Allowance(8), [(0, 2), (1, 6)], id="a quarter to the oldest"
        ),
        pytest.param([prompt(0, 90), prompt(1, 50, at=9)], Allowance(1), [(0, 1)], id="a token at least"),
        pytest.param([prompt(0, 90), prompt(1, 3, at=9)], Allowance(8), [(0, 5), (1, 3)], id="what is left goes on"),
        pytest.param([prompt(0, 50)], Allowance(16, seconds=0.105), [(0, 10)], id="seconds bound"),
        pytest.param([prompt(0, 50)], Allowance(16, seconds=0.0, least_tokens=4), [(0, 4)], id="never nothing"),
        pytest.param(
            [prompt(0, 3), prompt(1, 9)],
            Allowance(16, seconds=0.0, least_tokens=4),
            [(0, 3), (1, 1)],
            id="least of all",
        ),
        pytest.param([prompt(0, 9)], Allowance(0, seconds=0.0, least_tokens=4), [], id="no room"),
        pytest.param(
            [prompt(0, 9, key="a"), prompt(1, 3, key="b")], Allowance(8), [(1, 3), (0, 5)], id="level keys: urgency"
        ),
    ],
)
def test_divide(prompts: list[Demand], allowance: Allowance, expected: list[tuple[int, int]]) -> None:
    assert pairs(divide(prompts, allowance, PRICES, Shares())) == expected


def test_the_key_that_was_served_least_comes_first() -> None:
    prompts = [prompt(0, 5, key="a"), prompt(1, 90, key="b")]
    assert pairs(divide(prompts, Allowance(8), PRICES, Shares({"a": 20.0, "b": 10.0}))) == [(1, 8)]


def test_a_new_key_enters_level_with_the_one_served_least() -> None:
    shares = Shares({"a": 100.0, "b": 50.0})
    demands = [prompt(0, 90, key="a"), prompt(1, 90, key="b"), prompt(2, 90, key="c")]
    assert charged(shares, demands, [Grant(2, 8)]).served == {"a": 100.0, "b": 50.0, "c": 58.0}


def test_a_key_that_left_is_remembered_until_others_were_served_as_much() -> None:
    waiting = [prompt(0, 90, key="a")]
    shares = charged(Shares({"a": 10.0, "b": 50.0}), waiting, [Grant(0, 8)])
    assert shares.served == {"a": 18.0, "b": 50.0}
    assert charged(shares, waiting, [Grant(0, 32)]).served == {"a": 50.0}


def test_shares_are_forgotten_when_no_prompt_waits() -> None:
    weights: dict[Key, float] = {"a": 2.0}
    assert charged(Shares({"a": 10.0}, weights), [decode(0)], [Grant(0, 1)]) == Shares({}, weights)


@given(st.floats(0, 10), st.floats(1e-6, 0.1), st.floats(0, 1e-4), st.integers(0, 10_000))
def test_what_is_affordable_is_the_most_that_fits(seconds: float, token: float, context: float, before: int) -> None:
    prices = Prices(token, context)
    affordable = prices.affordable(seconds, before)
    assert prices.seconds(affordable, before) <= seconds * (1 + 1e-9)
    assert prices.seconds(affordable + 1, before) >= seconds * (1 - 1e-9)


def test_free_tokens_are_all_affordable() -> None:
    assert Prices(0.0).affordable(0.0, 0) > 1_000_000


prompts_of_keys = st.builds(
    lambda sizes: [
        prompt(number, size, key=key, at=at, computed=computed)
        for number, (size, key, at, computed) in enumerate(sizes)
    ],
    st.lists(
        st.tuples(st.integers(1, 400), st.sampled_from(["a", "b", None]), st.floats(0, 50), st.integers(0, 3000)),
        max_size=8,
    ),
)
some_prices = st.builds(Prices, st.sampled_from([0.0, 1e-4, 0.01]), st.sampled_from([0.0, 1e-6]))
some_shares = st.builds(
    Shares,
    st.dictionaries(st.sampled_from(["a", "b", None]), st.floats(0, 1000)),
    st.dictionaries(st.sampled_from(["a", "b", None]), st.floats(0.1, 10)),
)


@given(
    prompts_of_keys,
    st.builds(Allowance, st.integers(1, 600), st.one_of(st.just(inf), st.floats(0, 5)), st.integers(0, 16)),
    some_prices,
    some_shares,
)
def test_divide_keeps_its_promises(prompts: list[Demand], allowance: Allowance, prices: Prices, shares: Shares) -> None:
    grants = divide(prompts, allowance, prices, shares)
    by_id = {demand.sequence_id: demand for demand in prompts}
    total = sum(grant.num_tokens for grant in grants)
    seconds = sum(prices.seconds(grant.num_tokens, by_id[grant.sequence_id].num_computed) for grant in grants)
    assert len({grant.sequence_id for grant in grants}) == len(grants)
    assert all(0 < grant.num_tokens <= by_id[grant.sequence_id].num_missing for grant in grants)
    assert total <= allowance.most_tokens
    assert total <= allowance.least_tokens or seconds <= allowance.seconds * (1 + 1e-9)
    cut = [grant for grant in grants if grant.num_tokens < by_id[grant.sequence_id].num_missing]
    oldest = {
        min((d for d in prompts if d.key == key), key=lambda d: (d.arrived_at, d.sequence_id)).sequence_id
        for key in {d.key for d in prompts}
    }
    assert sum(grant.sequence_id not in oldest for grant in cut) <= 1, "few prompts are begun, many finished"
    if allowance.seconds == inf:
        assert total == min(allowance.most_tokens, sum(d.num_missing for d in prompts)), "no room is wasted"
    assert divide(prompts[::-1], allowance, prices, shares) == grants, "the order of demands does not matter"


# A machine: what a step takes, noise, and strays.


@dataclass
class Machine:
    """Steps as PEERS' machine takes them: a decode alone 29 ms, 8 decodes 66 ms, 8 ms for each token of a prompt."""

    first: float = 0.024
    per_decode: float = 0.00525
    per_token: float = 0.008
    per_context: float = 0.0
    per_cell: float = 0.0
    noise: float = 0.0
    strays: float = 0.0
    random: random.Random = field(default_factory=lambda: random.Random(7))

    def seconds(self, num_decoded: int, cells: int, chunks: list[tuple[int, int]]) -> float:
        exact = self.first + num_decoded * self.per_decode + cells * self.per_cell
        exact += sum(n * (self.per_token + self.per_context * (before + n / 2)) for n, before in chunks)
        stray = 4.0 if self.random.random() < self.strays else 1.0
        return exact * stray * self.random.lognormvariate(0, self.noise)


@dataclass
class Request:
    prompt: int
    output: int
    at: float = 0.0
    key: Key = None
    computed: int = 0
    token_times: list[float] = field(default_factory=list)

    @property
    def is_decoding(self) -> bool:
        return self.computed >= self.prompt

    @property
    def first_token(self) -> float:
        return self.token_times[0] - self.at

    def worst_gap(self, since: float = 0.0) -> float:
        return max((b - a for a, b in zip(self.token_times, self.token_times[1:], strict=False) if b >= since))


class Simulation:
    """Steps of a machine until every request has its output; requests may be added while it runs."""

    def __init__(
        self, machine: Machine, target: float = 0.2, *, batch_size: int = 512, unlimited: bool = False
    ) -> None:
        self.machine = machine
        self.target = inf if unlimited else target
        self.batch_size = batch_size
        self.costs = StepCosts()
        self.shares = Shares()
        self.now = 0.0
        self.requests: list[Request] = []
        self.steps: list[tuple[float, int, int]] = []

    def run(self, requests: Iterable[Request] = (), until: Callable[[], bool] = lambda: False) -> None:
        self.requests += requests
        while not until():
            open_requests = [r for r in self.requests if len(r.token_times) < r.output]
            if not open_requests:
                return
            if all(r.at > self.now for r in open_requests):
                self.now = min(r.at for r in open_requests)
            self.step({i: r for i, r in enumerate(self.requests) if r in open_requests and r.at <= self.now})

    def step(self, running: dict[int, Request]) -> None:
        demands = [
            Demand(
                i,
                1 if r.is_decoding else r.prompt - r.computed,
                is_decoding=r.is_decoding,
                num_computed=r.computed,
                key=r.key,
                arrived_at=r.at,
            )
            for i, r in running.items()
        ]
        plan = plan_step(demands, self.costs, self.shares, batch_size=self.batch_size, target=self.target)
        self.shares = charged(self.shares, demands, plan)
        granted = {grant.sequence_id: grant.num_tokens for grant in plan}
        decoding = [r for r in running.values() if r.is_decoding]
        chunks = [(granted[i], r.computed) for i, r in running.items() if not r.is_decoding and i in granted]
        seconds = self.machine.seconds(len(decoding), sum(r.computed for r in decoding), chunks)
        self.costs.observe(num_decoded=len(decoding), prompts=chunks, seconds=seconds)
        self.now += seconds
        self.steps.append((seconds, len(decoding), sum(n for n, _ in chunks)))
        for i, num_tokens in granted.items():
            running[i].computed += num_tokens
            if running[i].is_decoding:
                running[i].token_times.append(self.now)


def streams(number: int, output: int, prompt: int = 10) -> list[Request]:
    return [Request(prompt, output) for _ in range(number)]


# Learning what steps cost.


def learned(machine: Machine, target: float, num_steps: int, *, costs: StepCosts | None = None) -> int:
    """Let the costs watch 8 streams beside an endless prompt, and return the tokens of the next chunk."""
    costs = costs or StepCosts()
    for _ in range(num_steps):
        chunk = next_chunk(costs, target)
        costs.observe(num_decoded=8, prompts=[(chunk, 0)], seconds=machine.seconds(8, 0, [(chunk, 0)]))
    return next_chunk(costs, target)


def next_chunk(costs: StepCosts, target: float, computed: int = 0) -> int:
    demands = [*(decode(i) for i in range(8)), prompt(9, 10_000, computed=computed)]
    return plan_step(demands, costs, Shares(), batch_size=512, target=target)[-1].num_tokens


def test_nothing_known_starts_small() -> None:
    assert next_chunk(StepCosts(), 0.2) == 16


@pytest.mark.parametrize("decodes_alone_first", [True, False])
@pytest.mark.parametrize(
    ("machine", "target", "expected"),
    [
        pytest.param(Machine(), 0.2, 16, id="slow"),
        pytest.param(Machine(), 1.0, 116, id="slow, with time"),
        pytest.param(Machine(first=0.007, per_decode=1e-4, per_token=1e-4), 0.05, 422, id="fast"),
        pytest.param(Machine(first=0.007, per_decode=1e-4, per_token=1e-5), 0.05, 504, id="all the batch"),
    ],
)
def test_the_chunk_converges_on_the_target_within_six_steps(
    machine: Machine, target: float, expected: int, *, decodes_alone_first: bool
) -> None:
    costs = StepCosts()
    if decodes_alone_first:
        costs.observe(num_decoded=8, prompts=[], seconds=machine.seconds(8, 0, []))
    # without having seen the decodes alone the price includes them: it takes longer, from below
    num_steps = 6 if decodes_alone_first else 40
    assert learned(machine, target, num_steps, costs=costs) == pytest.approx(expected, rel=0.02, abs=1)


def test_no_step_misses_the_target_on_the_way() -> None:
    machine, costs = Machine(), StepCosts()
    costs.observe(num_decoded=8, prompts=[], seconds=machine.seconds(8, 0, []))
    for _ in range(40):
        chunk = next_chunk(costs, 0.5)
        seconds = machine.seconds(8, 0, [(chunk, 0)])
        assert seconds <= 0.5
        costs.observe(num_decoded=8, prompts=[(chunk, 0)], seconds=seconds)


def test_the_first_chunks_grow_by_doubling() -> None:
    costs, chunks = StepCosts(), []
    for _ in range(5):
        chunks.append(next_chunk(costs, 1.0))
        costs.observe(num_decoded=8, prompts=[(chunks[-1], 0)], seconds=0.001)
    assert chunks == [16, 32, 64, 128, 256]


def test_prompts_alone_tell_a_price_until_there_is_a_better_one() -> None:
    costs = StepCosts()
    costs.observe(num_decoded=0, prompts=[(512, 0)], seconds=512 * 0.02)
    costs.observe(num_decoded=8, prompts=[], seconds=0.066)
    assert next_chunk(costs, 0.066 + 0.2) == 10


def test_prompts_have_a_quarter_of_the_time_of_decodes_that_leave_no_time() -> None:
    costs = StepCosts()
    machine = Machine(per_token=0.0005)
    for _ in range(7):
        costs.observe(num_decoded=8, prompts=[], seconds=0.066)
    assert learned(machine, 0.05, 10, costs=costs) == pytest.approx(0.066 / 4 / 0.0005, abs=1)


def test_what_was_learned_late_in_a_prompt_does_not_make_the_next_one_look_free() -> None:
    costs = StepCosts()
    for context in range(8000, 8240, 10):  # all of the price seems to be context, from the noise of a narrow range
        costs.observe(num_decoded=0, prompts=[(10, context)], seconds=10 * (0.01 + (context - 8000) * 1e-4))
    assert costs.prices.per_token > 0.003


def test_a_second_chunk_of_a_prompt_costs_what_its_context_does() -> None:
    prices = Prices(0.001, 0.001)
    prompts = [prompt(0, 40), prompt(1, 2, at=1)]
    seconds = prices.seconds(20, 0) + prices.seconds(2, 0)
    granted = dict(pairs(divide(prompts, Allowance(99, seconds), prices, Shares())))
    assert granted == {0: 20, 1: 2}


def test_prompts_go_on_when_decodes_alone_miss_the_target() -> None:
    costs = StepCosts()
    machine = Machine(first=0.5, per_token=0.05)
    costs.observe(num_decoded=8, prompts=[], seconds=machine.seconds(8, 0, []))
    assert learned(machine, 0.05, 10, costs=costs) == 8


def test_the_chunk_follows_a_machine_that_changes() -> None:
    costs = StepCosts()
    costs.observe(num_decoded=8, prompts=[], seconds=0.066)
    assert learned(Machine(), 1.0, 30, costs=costs) == pytest.approx(116, abs=2)
    assert learned(Machine(per_token=0.016), 1.0, 12, costs=costs) == pytest.approx(58, abs=2)
    assert learned(Machine(per_token=0.008), 1.0, 6, costs=costs) == pytest.approx(116, abs=2)


def test_a_few_strays_do_not_matter() -> None:
    costs = StepCosts()
    for stray in (1, 1, 10, 1, 1):
        costs.observe(num_decoded=8, prompts=[], seconds=0.066 * stray)
    learned(Machine(), 1.0, 20, costs=costs)
    for _ in range(4):
        costs.observe(num_decoded=8, prompts=[(100, 0)], seconds=9.0)
    assert next_chunk(costs, 1.0) == pytest.approx(116, abs=3)


@pytest.mark.parametrize("seed", range(5))
def test_noise_costs_little_and_most_steps_keep_the_target(seed: int) -> None:
    machine, costs = Machine(noise=0.1, strays=0.02, random=random.Random(seed)), StepCosts()
    chunks = [learned(machine, 0.5, 1, costs=costs) for _ in range(200)]
    steady = [machine.seconds(8, 0, [(chunk, 0)]) for chunk in chunks[20:]]
    assert sum(seconds > 0.5 * 1.1 for seconds in steady) < 0.2 * len(steady)
    assert sum(chunks[20:]) / len(steady) > 0.75 * 54


def test_tokens_cost_more_after_many_others() -> None:
    machine, costs = Machine(per_context=4e-6), StepCosts()
    costs.observe(num_decoded=8, prompts=[], seconds=0.066)
    computed = 0
    while computed < 4000:
        chunk = next_chunk(costs, 0.5, computed)
        seconds = machine.seconds(8, 0, [(chunk, computed)])
        assert seconds < 0.51
        costs.observe(num_decoded=8, prompts=[(chunk, computed)], seconds=seconds)
        computed += chunk
    assert seconds > 0.45
    assert costs.prices.per_context == pytest.approx(4e-6, rel=0.05)
    assert costs.prices.per_token == pytest.approx(0.008, rel=0.05)
    assert costs.prices.affordable(0.5 - 0.066, 0) == pytest.approx(54, abs=3)


steps_seen = st.lists(
    st.tuples(
        st.integers(0, 9), st.lists(st.tuples(st.integers(1, 64), st.integers(0, 5000)), max_size=3), st.floats(0, 10)
    ),
    max_size=40,
)


@settings(deadline=None)
@given(steps_seen, st.floats(0, 1), st.integers(1, 9), st.integers(9, 512))
def test_whatever_was_measured_a_plan_fits_the_batch_and_goes_on(
    seen: list[tuple[int, list[tuple[int, int]], float]], target: float, num_decodes: int, batch_size: int
) -> None:
    costs = StepCosts()
    for num_decoded, prompts, seconds in seen:
        if num_decoded or prompts:
            costs.observe(num_decoded=num_decoded, prompts=prompts, seconds=seconds)
    demands = [*(decode(i, num_drafted=i) for i in range(num_decodes)), prompt(99, 1000), prompt(98, 30, at=1)]
    plan = plan_step(demands, costs, Shares(), batch_size=batch_size, target=target)
    granted = dict(pairs(plan))
    assert sum(granted.values()) <= batch_size
    assert all(1 <= granted[i] <= 1 + i for i in range(num_decodes))
    if sum(granted[i] for i in range(num_decodes)) < batch_size:
        assert {98, 99} & set(granted)
    alone = plan_step(demands[num_decodes:], costs, Shares(), batch_size=batch_size, target=target)
    assert sum(grant.num_tokens for grant in alone) == batch_size


def test_widths_between_known_ones_are_interpolated() -> None:
    widths = WidthSeconds()
    assert widths.seconds(3) is None
    assert widths.hopeful_seconds(3) is None
    widths.observe(2, 0.02)
    widths.observe(6, 0.04)
    assert widths.seconds(4) == pytest.approx(0.03)
    assert (widths.seconds(1), widths.hopeful_seconds(1)) == pytest.approx((0.02, 0.01))
    assert (widths.seconds(12), widths.hopeful_seconds(12)) == pytest.approx((0.08, 0.04))
    assert widths.hopeful_seconds(24) == pytest.approx(0.04)
    assert widths.hopeful_seconds(25) is None


def test_a_width_that_was_not_seen_for_long_is_forgotten() -> None:
    widths = WidthSeconds()
    widths.observe(4, 1.0)
    for _ in range(501):
        widths.observe(1, 0.01)
    assert widths.seconds(4) == pytest.approx(0.04)


# Simulations.


@pytest.mark.parametrize("target", [0.2, 0.5, 1.0])
@pytest.mark.parametrize(
    ("machine", "most_missed"),
    [
        pytest.param(Machine, 1.0, id="exact"),
        pytest.param(lambda: Machine(per_context=4e-6, per_cell=9e-6), 1.1, id="attention grows"),
        pytest.param(lambda: Machine(noise=0.05), 1.25, id="noise"),
    ],
)
def test_two_long_prompts_do_not_stop_eight_streams(
    machine: Callable[[], Machine], most_missed: float, target: float
) -> None:
    simulation = Simulation(machine(), target)
    eight = streams(8, 10_000)
    simulation.run(eight, until=lambda: len(eight[0].token_times) >= 10)
    arrival, num_before = simulation.now, len(simulation.steps)
    long = [Request(1000, 2, arrival), Request(1000, 2, arrival)]
    simulation.run(long, until=lambda: all(request.token_times for request in long))

    steps = simulation.steps[num_before:]
    unlimited = Machine(per_context=simulation.machine.per_context).seconds(0, 0, [(1000, 0), (1000, 0)])
    of_decodes = sum(
        simulation.machine.first + 8 * simulation.machine.per_decode + simulation.machine.per_cell * 8 * 150
        for _ in steps
    )
    assert max(request.worst_gap(arrival) for request in eight) <= target * most_missed
    assert max(request.first_token for request in long) <= 1.3 * (unlimited + of_decodes)
    assert max(request.first_token for request in long) <= 1.05 * unlimited * target / (target - 0.1)


def test_short_prompts_do_not_wait_for_a_long_one() -> None:
    simulation = Simulation(Machine())
    short = [Request(40, 20, at=0.5 + number) for number in range(8)]
    simulation.run([*streams(4, 200), Request(2000, 2, at=0.1), *short])
    assert max(request.first_token for request in short) < 1.2
    assert simulation.requests[4].first_token > 16


def test_short_prompts_do_not_wait_for_a_long_one_in_a_whole_batch() -> None:
    simulation = Simulation(Machine())
    long, short = Request(2000, 2), Request(40, 2, at=0.1)
    simulation.run([long, short])
    assert short.first_token < 2 * 512 * 0.008 + 0.3


def test_an_endless_stream_of_short_prompts_does_not_starve_a_long_one() -> None:
    simulation = Simulation(Machine())
    long = Request(1000, 2)
    endless = [Request(40, 1, at=0.3 * number) for number in range(400)]  # more than the machine can compute
    simulation.run([long, *endless], until=lambda: len(long.token_times) > 0)
    assert long.first_token < 4 * 1000 * 0.008 * 1.1
    assert sum(bool(request.token_times) for request in endless) > 40


def test_a_long_prompt_is_done_after_four_times_its_tokens_whatever_arrives() -> None:
    missing, served = 1000, 0
    while missing:
        demands = [prompt(0, missing), *(prompt(i, 7, at=i) for i in range(1, 50))]
        granted = dict(pairs(divide(demands, Allowance(64), PRICES, Shares())))
        missing -= granted[0]
        served += sum(granted.values())
    assert served <= 4 * 1000 + 64


def test_keys_share_alike_however_many_requests_they_send() -> None:
    simulation = Simulation(Machine())
    greedy = [Request(300, 1, key="greedy") for _ in range(30)]
    simulation.run([*streams(1, 3000), *greedy], until=lambda: simulation.now > 10)
    modest = [Request(300, 1, simulation.now, "modest") for _ in range(3)]
    before = sum(request.computed for request in greedy)
    simulation.run(modest, until=lambda: all(request.token_times for request in modest))
    assert sum(request.computed for request in greedy) - before == pytest.approx(900, rel=0.05)


def test_keys_share_by_weight() -> None:
    weights: dict[Key, float] = {"heavy": 3.0}
    shares = Shares(weights=weights)
    computed = {"heavy": 0, "light": 0}
    for _ in range(100):
        demands = [
            prompt(i, 100_000 - computed[key], key=key, computed=computed[key]) for i, key in enumerate(computed)
        ]
        plan = divide(demands, Allowance(16), PRICES, shares)
        shares = charged(shares, demands, plan)
        for grant in plan:
            computed["heavy" if grant.sequence_id == 0 else "light"] += grant.num_tokens
    assert computed["heavy"] / computed["light"] == pytest.approx(3, rel=0.05)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(1, 300)), min_size=2, max_size=20),
    st.integers(8, 128),
)
def test_keys_that_wait_never_differ_by_more_than_a_step(work: list[tuple[str, int]], step: int) -> None:
    missing = dict(enumerate(size for _, size in work))
    keys = dict(enumerate(key for key, _ in work))
    shares, served = Shares(), dict.fromkeys(keys.values(), 0)
    while len({keys[i] for i in missing}) == len(served):
        assert max(served.values()) - min(served.values()) <= step
        demands = [prompt(i, left, key=keys[i]) for i, left in missing.items()]
        plan = divide(demands, Allowance(step), PRICES, shares)
        shares = charged(shares, demands, plan)
        for grant in plan:
            served[keys[grant.sequence_id]] += grant.num_tokens
            missing[grant.sequence_id] -= grant.num_tokens
        missing = {i: left for i, left in missing.items() if left}
