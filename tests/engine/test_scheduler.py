from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.scheduler import Gap, PromptBudget, schedule


def decode(sequence_id: int) -> Gap:
    return Gap(sequence_id, 1, is_decoding=True)


def prompt(sequence_id: int, num_missing: int) -> Gap:
    return Gap(sequence_id, num_missing, is_decoding=False)


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        pytest.param([], [], id="nothing to do"),
        pytest.param([decode(0), decode(1)], [(0, 1), (1, 1)], id="decodes only"),
        pytest.param([prompt(0, 3)], [(0, 3)], id="a prompt that fits"),
        pytest.param([prompt(0, 50)], [(0, 16)], id="a prompt alone takes the whole batch"),
        pytest.param([prompt(0, 10), prompt(1, 10)], [(0, 10), (1, 6)], id="two prompts share the batch in order"),
        pytest.param([prompt(0, 50), prompt(1, 1)], [(0, 16)], id="a short prompt does not overtake"),
        pytest.param([decode(0), prompt(1, 50)], [(0, 1), (1, 4)], id="the budget bounds prompts beside decodes"),
        pytest.param([prompt(0, 50), decode(1)], [(1, 1), (0, 4)], id="decodes come first"),
        pytest.param([prompt(0, 3), decode(1), prompt(2, 3)], [(1, 1), (0, 3), (2, 1)], id="what is left goes on"),
        pytest.param(
            [*(decode(i) for i in range(14)), prompt(14, 9)],
            [*((i, 1) for i in range(14)), (14, 2)],
            id="what the batch has left",
        ),
        pytest.param(
            [*(decode(i) for i in range(16)), prompt(16, 9)], [(i, 1) for i in range(16)], id="no room for prompts"
        ),
    ],
)
def test_schedule(gaps: list[Gap], expected: list[tuple[int, int]]) -> None:
    assert schedule(gaps, batch_size=16, prompt_budget=4) == expected


gaps_of_few_sequences = st.lists(st.one_of(st.just(0), st.integers(1, 40)), max_size=8).map(
    lambda sizes: [decode(i) if size == 0 else prompt(i, size) for i, size in enumerate(sizes)]
)


@given(gaps_of_few_sequences, st.integers(8, 64), st.integers(1, 80))
def test_schedule_keeps_its_promises(gaps: list[Gap], batch_size: int, prompt_budget: int) -> None:
    plan = schedule(gaps, batch_size=batch_size, prompt_budget=prompt_budget)
    spent = dict(plan)
    missing = {gap.sequence_id: gap.num_missing for gap in gaps}
    decodes = [gap.sequence_id for gap in gaps if gap.is_decoding]
    prompts = [gap.sequence_id for gap in gaps if not gap.is_decoding]
    assert len(spent) == len(plan)
    assert sum(spent.values()) <= batch_size
    assert [sequence_id for sequence_id, _ in plan[: len(decodes)]] == decodes
    assert all(0 < spent[sequence_id] <= missing[sequence_id] for sequence_id in spent)
    if decodes:
        assert sum(spent.get(sequence_id, 0) for sequence_id in prompts) <= prompt_budget
    served = [sequence_id for sequence_id, _ in plan[len(decodes) :]]
    assert served == prompts[: len(served)]
    assert all(spent[sequence_id] == missing[sequence_id] for sequence_id in served[:-1])
    assert bool(plan) == bool(gaps)


def learned(budget: PromptBudget, *, base: float, per_token: float, steps: int = 60) -> int:
    """Let the budget watch a machine that takes ``base + n * per_token`` seconds, always with a prompt waiting."""
    for _ in range(steps):
        tokens = budget.tokens
        budget.observe(num_decodes=4, num_prompt_tokens=tokens, seconds=base + tokens * per_token)
    return budget.tokens


@pytest.mark.parametrize("decodes_alone_first", [True, False])
@pytest.mark.parametrize(
    ("base", "per_token", "expected"),
    [(0.010, 0.0002, 200), (0.030, 0.0005, 40), (0.010, 0.00001, 512), (0.049, 0.001, 16), (0.5, 0.1, 16)],
)
def test_the_budget_converges_on_the_target(
    base: float, per_token: float, expected: int, *, decodes_alone_first: bool
) -> None:
    budget = PromptBudget(0.05, 512)
    if decodes_alone_first:
        budget.observe(num_decodes=4, num_prompt_tokens=0, seconds=base)
    assert learned(budget, base=base, per_token=per_token) == pytest.approx(expected, rel=0.02, abs=1)


def test_the_budget_follows_a_machine_that_changes() -> None:
    budget = PromptBudget(0.05, 512)
    assert learned(budget, base=0.01, per_token=0.0002) == pytest.approx(200, rel=0.02)
    assert learned(budget, base=0.01, per_token=0.0004) == pytest.approx(100, rel=0.02)
    assert learned(budget, base=0.01, per_token=0.0002) == pytest.approx(200, rel=0.02)


def test_the_budget_recovers_from_one_slow_step() -> None:
    budget = PromptBudget(0.05, 512)
    learned(budget, base=0.01, per_token=0.0002)
    budget.observe(num_decodes=4, num_prompt_tokens=200, seconds=10)
    assert budget.tokens == 16
    assert learned(budget, base=0.01, per_token=0.0002) == pytest.approx(200, rel=0.02)


def test_prompts_of_one_token_say_little_about_long_ones() -> None:
    budget = PromptBudget(0.05, 512)
    budget.observe(num_decodes=4, num_prompt_tokens=0, seconds=0.01)
    learned(budget, base=0.01, per_token=0.0002)
    for _ in range(3):  # prompts that were cached but for their last token
        budget.observe(num_decodes=0, num_prompt_tokens=1, seconds=0.01)
    assert budget.tokens > 100


def test_a_budget_that_knows_nothing_starts_small() -> None:
    assert PromptBudget(0.05, 512).tokens == 64
    assert PromptBudget(0.05, 8).tokens == 8


@given(
    st.integers(1, 64),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 64), st.floats(0, 10)), max_size=30),
    st.floats(0, 1),
)
def test_the_budget_is_always_some_tokens_and_never_more_than_a_batch(
    batch_size: int, steps: list[tuple[int, int, float]], target: float
) -> None:
    budget = PromptBudget(target, batch_size)
    for num_decodes, num_prompt_tokens, seconds in steps:
        budget.observe(num_decodes=num_decodes, num_prompt_tokens=num_prompt_tokens, seconds=seconds)
        assert min(16, batch_size) <= budget.tokens <= batch_size


@pytest.mark.parametrize("target", [0.05, 0.0])
def test_steps_too_short_to_measure_do_not_upset_the_budget(target: float) -> None:
    budget = PromptBudget(target, 512)
    budget.observe(num_decodes=1, num_prompt_tokens=0, seconds=0.001)
    budget.observe(num_decodes=0, num_prompt_tokens=1, seconds=0.001)
    for _ in range(4000):
        budget.observe(num_decodes=1, num_prompt_tokens=64, seconds=0.0)
    assert 16 <= budget.tokens <= 512
