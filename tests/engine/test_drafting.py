from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from math import inf, sqrt
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.request import SamplingParameters
from server.engine.drafting import (
    LONGEST_DRAFT,
    LONGEST_MATCH,
    Acceptance,
    Draft,
    Match,
    NgramIndex,
    PromptLookup,
    Rate,
    draft_lengths,
    verify,
)
from server.engine.runner import Logits
from server.engine.sampling import Sampler
from server.engine.step_costs import WidthSeconds

GREEDY = SamplingParameters(temperature=0)
NUM_TOKENS = 6


# A model: logits that depend on all tokens before, and generation with and without speculation.


@cache
def model(seed: int, tokens: tuple[int, ...]) -> Logits:
    numbers = np.random.default_rng([seed, *tokens])
    return numbers.normal(scale=1.5, size=NUM_TOKENS).astype(np.float32)


Guess = Callable[[list[int]], list[int]]


def generate(
    parameters: SamplingParameters,
    prompt: Sequence[int],
    num_tokens: int,
    guess: Guess = lambda _: [],
    *,
    seed: int = 0,
) -> list[int]:
    """Generate with as many drafted tokens a step as ``guess`` says."""
    sampler = Sampler(parameters, index=0, end_tokens=())
    sampler.observe_prompt(prompt)
    tokens = list(prompt)
    while len(tokens) < len(prompt) + num_tokens:
        draft = guess(tokens)
        rows = [model(seed, (*tokens, *draft[:i])) for i in range(len(draft) + 1)]
        tokens += verify(sampler.sample, rows, draft)
    return tokens[len(prompt) :][:num_tokens]


def guesses(seed: int, share: float, most: int) -> Guess:
    """Guess what the likeliest token is with some chance, else anything: some drafts are confirmed, some are not."""
    numbers = random.Random(seed)

    def guess(tokens: list[int]) -> list[int]:
        draft: list[int] = []
        for _ in range(numbers.randint(0, most)):
            likeliest = int(model(0, (*tokens, *draft)).argmax())
            draft.append(likeliest if numbers.random() < share else numbers.randrange(NUM_TOKENS))
        return draft

    return guess


# The rule.


@pytest.mark.parametrize(
    ("draft", "sampled", "expected"),
    [
        pytest.param([], [3], [3], id="no draft"),
        pytest.param([3], [3, 4], [3, 4], id="confirmed, and one more"),
        pytest.param([3, 4], [3, 5, 6], [3, 5], id="the first that differs counts, what follows does not"),
        pytest.param([3, 4], [1, 4, 6], [1], id="differs at once"),
        pytest.param([3, 3], [3, 3, 3], [3, 3, 3], id="all confirmed"),
    ],
)
def test_verify(draft: list[int], sampled: list[int], expected: list[int]) -> None:
    numbers = iter(sampled)
    rows = [np.zeros(1, dtype=np.float32)] * (len(draft) + 1)
    assert list(verify(lambda _: next(numbers), rows, draft)) == expected


def test_a_consumer_that_stops_leaves_the_rest_unsampled() -> None:
    numbers = iter([7, 7, 7])
    tokens = verify(lambda _: next(numbers), [np.zeros(1, dtype=np.float32)] * 3, [7, 7])
    assert next(tokens) == 7
    assert list(numbers) == [7, 7]


sampling = st.builds(
    SamplingParameters,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.8]),
    top_k=st.sampled_from([0, 1, 3]),
    min_p=st.sampled_from([0.0, 0.1]),
    frequency_penalty=st.sampled_from([0.0, 0.7]),
    presence_penalty=st.sampled_from([0.0, -0.4]),
    repeat_penalty=st.sampled_from([1.0, 1.3]),
    logit_bias=st.sampled_from([(), ((2, 1.5),)]),
    seed=st.integers(0, 99),
)


@settings(deadline=None)
@given(sampling, st.integers(0, 99), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 5))
def test_speculation_changes_no_token_of_a_seed(
    parameters: SamplingParameters, seed: int, share: float, most: int
) -> None:
    alone = generate(parameters, [1, 2], 20)
    assert generate(parameters, [1, 2], 20, guesses(seed, share, most)) == alone


@settings(deadline=None, max_examples=30)
@given(sampling.map(lambda parameters: replace(parameters, temperature=0)), st.integers(0, 9))
def test_prompt_lookup_changes_no_greedy_token(parameters: SamplingParameters, seed: int) -> None:
    drafter = PromptLookup(Acceptance())

    def guess(tokens: list[int]) -> list[int]:
        draft = drafter.propose(tokens, 4)
        return list(draft.tokens) if draft else []

    prompt = [seed % 3, 1, 2, 3, 1, 2, 4, 1, 2]
    assert generate(parameters, prompt, 40, guess) == generate(parameters, prompt, 40)


def probabilities(logits: Logits, temperature: float) -> dict[int, float]:
    weights = np.exp(logits.astype(np.float64) / temperature)
    return {token: float(weight) for token, weight in enumerate(weights / weights.sum())}


Outcome = TypeVar("Outcome")


def assert_distributed(counts: Counter[Outcome], expected: Mapping[Outcome, float]) -> None:
    total = sum(counts.values())
    assert set(counts) <= set(expected)
    square = sum((counts[what] - total * p) ** 2 / (total * p) for what, p in expected.items())
    freedom = len(expected) - 1
    # Wilson and Hilferty's approximation of the chi-square quantile that is exceeded once in 30 000 times.
    assert square < freedom * (1 - 2 / (9 * freedom) + 4 * sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_completions_are_distributed_as_without_drafts(share: float) -> None:
    parameters = SamplingParameters(temperature=1.5)
    guess = guesses(1, share, 3)
    counts = Counter(tuple(generate(replace(parameters, seed=i), [1], 2, guess)) for i in range(12_000))
    expected: dict[tuple[int, ...], float] = {
        (first, second): p * q
        for first, p in probabilities(model(0, (1,)), 1.5).items()
        for second, q in probabilities(model(0, (1, first)), 1.5).items()
    }
    assert_distributed(counts, expected)


@pytest.mark.parametrize("drafted", range(NUM_TOKENS))
def test_the_rule_is_that_of_speculative_sampling(drafted: int) -> None:
    """Kept with the probability of the token; otherwise drawn from the others, renormalised."""
    logits = model(0, (1,))
    p = probabilities(logits, 1.0)
    first = Counter(
        next(verify(Sampler(SamplingParameters(seed=i), index=0, end_tokens=()).sample, [logits], [drafted]))
        for i in range(12_000)
    )
    kept = first.pop(drafted)
    assert_distributed(Counter({True: kept, False: first.total()}), {True: p[drafted], False: 1 - p[drafted]})
    assert_distributed(first, {token: q / (1 - p[drafted]) for token, q in p.items() if token != drafted})


# The index.


def slow_find(tokens: Sequence[int]) -> Match | None:
    """The longest earlier occurrence of the end, by looking everywhere."""
    for length in range(min(LONGEST_MATCH, len(tokens) - 1), 1, -1):
        for end in range(len(tokens) - 1, length - 1, -1):
            if tokens[end - length : end] == tokens[-length:]:
                return Match(end, length)
    return None


def indexed(tokens: Sequence[int]) -> NgramIndex:
    index = NgramIndex()
    for token in tokens:
        index.push(token)
    return index


few_tokens = st.lists(st.integers(0, 4), max_size=18)


@given(few_tokens)
def test_the_longest_and_last_match_is_found(tokens: list[int]) -> None:
    assert indexed(tokens).find() == slow_find(tokens)


@given(st.lists(st.integers(0, 200_000), max_size=60), st.data())
def test_learning_at_once_is_learning_one_by_one(tokens: list[int], data: st.DataObject) -> None:
    tokens += data.draw(st.lists(st.sampled_from([*tokens, 0]), max_size=60))
    cut = data.draw(st.integers(0, len(tokens)))
    middle = data.draw(st.integers(cut, len(tokens)))
    index = indexed(tokens[:cut])
    index.extend(tokens[cut:middle])
    index.extend(tokens[middle:])
    slowly = indexed(tokens)
    assert index.find() == slowly.find()
    assert (index._tokens, index._newest, index._earlier) == (slowly._tokens, slowly._newest, slowly._earlier)


def test_a_repetition_is_taken_to_go_on() -> None:
    index = indexed([9, 1, 2, 3, 1, 2, 3])
    match = index.find()
    assert match == Match(4, 3)
    assert match is not None
    assert index.continuation(match, 7) == [1, 2, 3, 1, 2, 3, 1]


def test_a_longer_match_is_found_behind_a_later_one() -> None:
    assert indexed([7, 1, 2, 8, 0, 1, 2, 9, 7, 1, 2]).find() == Match(3, 3)


def test_memory_is_two_numbers_a_token() -> None:
    index = NgramIndex()
    index.extend(list(range(10_000)))
    assert len(index._tokens) == len(index._earlier) == 10_000
    assert index._tokens.itemsize == index._earlier.itemsize == 4


def test_a_text_of_one_token_costs_no_more_than_others() -> None:
    index = indexed([5] * 3000)
    assert index.find() == Match(2999, LONGEST_MATCH)


# The drafter.


def drafted(drafter: PromptLookup, tokens: list[int], most: int = 4) -> list[int]:
    draft = drafter.propose(tokens, most)
    return [] if draft is None else list(draft.tokens)


def test_the_drafter_follows_the_prompt() -> None:
    prompt = [*range(100), 200, 10, 11]
    drafter = PromptLookup(Acceptance())
    assert drafted(drafter, prompt) == [12, 13, 14, 15]
    assert drafted(drafter, [*prompt, 12]) == [13, 14, 15, 16]
    assert drafted(drafter, [*prompt, 12, 99]) == []
    assert drafted(drafter, [*prompt, 12, 99, 50, 51], most=2) == [52, 53]


def test_the_drafter_never_drafts_more_than_is_useful() -> None:
    assert len(drafted(PromptLookup(Acceptance()), [*range(100), 1, 2], most=99)) == LONGEST_DRAFT


@given(few_tokens, st.lists(st.integers(1, 5), max_size=6))
def test_the_drafter_finds_the_same_however_many_tokens_come_at_once(tokens: list[int], sizes: list[int]) -> None:
    drafter, num_known = PromptLookup(Acceptance()), 0
    for size in sizes:
        num_known += size
        drafter.propose(tokens[:num_known], 3)
    stepwise = PromptLookup(Acceptance())
    for end in range(len(tokens) + 1):
        stepwise.propose(tokens[:end], 3)
    assert drafted(drafter, tokens, 3) == drafted(stepwise, tokens, 3)


def chance_after(prompt: list[int], text: list[int]) -> float:
    """The chance that a drafter sees at the end of a text whose tokens came one by one."""
    drafter, last = PromptLookup(Acceptance()), 0.0
    for end in range(len(text) + 1):
        guess = drafter.propose(prompt + text[:end], 1)
        last = last if guess is None else guess.chance
    return last


def test_the_chance_is_learned_without_drafting() -> None:
    prompt = list(range(200))
    invention = [token for number in range(30) for token in (1000 + number, 1, 2)]
    assert chance_after(prompt, prompt[50:90]) > 0.9
    assert chance_after(prompt, invention) < 0.2


def test_a_prompt_teaches_nothing_about_guesses() -> None:
    draft = PromptLookup(Acceptance()).propose([1, 2, 3, 4] * 10, 1)
    assert draft is not None
    assert draft.chance == 0.5


def test_sequences_of_a_model_learn_from_each_other() -> None:
    acceptance = Acceptance()
    for _ in range(200):
        acceptance.observe(3, hit=True)
    draft = PromptLookup(acceptance).propose([*range(80), 200, 5, 6, 7], 4)
    assert draft is not None
    assert draft.chance > 0.95


def test_a_rate_fades() -> None:
    rate = Rate(memory=10)
    for _ in range(100):
        rate.observe(hit=True)
    assert rate.given(0.5) > 0.8
    for _ in range(20):
        rate.observe(hit=False)
    assert rate.given(0.5) < 0.25


# How many tokens pay.


def draft(num_tokens: int, chance: float) -> Draft:
    return Draft(range(num_tokens), chance)


def linear(first: float, per_token: float) -> Callable[[int], float]:
    return lambda width: first + width * per_token


@pytest.mark.parametrize(
    ("drafts", "num_decodes", "seconds", "expected"),
    [
        pytest.param([], 1, linear(1, 0), [], id="no drafts"),
        pytest.param([None, None], 2, linear(1, 0), [0, 0], id="no matches"),
        pytest.param([draft(8, 0.9)], 1, linear(1, 0), [8], id="free tokens"),
        pytest.param([draft(8, 0.9)], 1, linear(0, 1), [0], id="a token costs as much as a step"),
        pytest.param([draft(8, 0.05)], 1, linear(1, 0.1), [0], id="hardly ever right"),
        pytest.param([draft(8, 0.5)], 1, linear(1, 0.1), [2], id="the better half"),
        pytest.param([draft(8, 0.9), None, draft(8, 0.5)], 3, linear(1, 0.1), [8, 0, 1], id="the likelier gets more"),
        pytest.param([draft(8, 0.9)], 1, lambda width: 1 if width < 2 else 1.5, [8], id="a staircase"),
        pytest.param([draft(15, 1.0)], 1, linear(1, 0.5), [7], id="bounded by the target"),
        pytest.param([draft(1, 0.5)], 1, linear(0.55, 0.45), [0], id="too little to be sure"),
    ],
)
def test_draft_lengths(
    drafts: list[Draft | None], num_decodes: int, seconds: Callable[[int], float], expected: list[int]
) -> None:
    assert draft_lengths(drafts, num_decodes=num_decodes, seconds=seconds, most_tokens=99, most_seconds=5.0) == expected


def test_nothing_is_drafted_before_a_step_was_measured() -> None:
    assert draft_lengths(
        [draft(8, 1.0)], num_decodes=1, seconds=WidthSeconds().hopeful_seconds, most_tokens=99, most_seconds=5.0
    ) == [0]


@given(
    st.lists(st.one_of(st.none(), st.builds(draft, st.integers(1, 6), st.floats(0, 1))), max_size=4),
    st.lists(st.floats(0.001, 1), min_size=40, max_size=40),
)
def test_no_other_lengths_promise_more(drafts: list[Draft | None], steps: list[float]) -> None:
    widths = [*accumulate(steps, max)]
    num_decodes = max(len(drafts), 1)
    lengths = draft_lengths(
        drafts, num_decodes=num_decodes, seconds=lambda width: widths[width], most_tokens=99, most_seconds=inf
    )

    def speed(chosen: Sequence[int]) -> float:
        gained = sum(d.chance ** (i + 1) for d, length in zip(drafts, chosen, strict=True) if d for i in range(length))
        return (num_decodes + gained) / widths[num_decodes + sum(chosen)]

    best = speed(lengths)
    assert all(length <= (len(d.tokens) if d else 0) for d, length in zip(drafts, lengths, strict=True))
    numbers = random.Random(0)
    for _ in range(30):
        other = [numbers.randint(0, len(d.tokens) if d else 0) for d in drafts]
        assert speed(other) <= max(best, 1.1 * speed([0] * len(drafts))) * (1 + 1e-9)


# Simulations: text that repeats its prompt and text that does not, on a machine that is measured as it goes.


@dataclass
class Run:
    seconds: float
    num_steps: int
    num_drafted: int


def recited(rest: Sequence[int], guess: Sequence[int]) -> list[int]:
    """What a sampler that is about to say ``rest`` says in one step along a guess."""
    numbers = iter(rest)
    return list(verify(lambda _: next(numbers), [np.zeros(1, dtype=np.float32)] * (len(guess) + 1), guess))


def simulate(texts: list[list[int]], prompts: list[list[int]], seconds: Callable[[int], float], *, drafts: bool) -> Run:
    """Run streams that will say ``texts``, whatever is drafted."""
    widths, acceptance = WidthSeconds(), Acceptance()
    drafters = [PromptLookup(acceptance) for _ in texts]
    said = [1] * len(texts)
    run = Run(0.0, 0, 0)
    while running := [i for i, text in enumerate(texts) if said[i] < len(text)]:
        proposals = [
            drafters[i].propose(prompts[i] + texts[i][: said[i]], len(texts[i]) - said[i] - 1) if drafts else None
            for i in running
        ]
        lengths = draft_lengths(
            proposals, num_decodes=len(running), seconds=widths.hopeful_seconds, most_tokens=99, most_seconds=0.2
        )
        width = len(running) + sum(lengths)
        step = seconds(width)
        widths.observe(width, step)
        run = Run(run.seconds + step, run.num_steps + 1, run.num_drafted + sum(lengths))
        for i, proposal, length in zip(running, proposals, lengths, strict=True):
            guess = proposal.tokens[:length] if proposal else []
            said[i] += len(recited(texts[i][said[i] :], guess))
    return run


def machine(width: int) -> float:
    return 0.024 + 0.00525 * width


def edited(numbers: random.Random, prompt: list[int], every: int) -> list[int]:
    """The prompt again, with a token changed now and then."""
    return [numbers.randrange(50_000) if i % every == every - 1 else token for i, token in enumerate(prompt)]


def speedup(texts: list[list[int]], prompts: list[list[int]]) -> float:
    alone = simulate(texts, prompts, machine, drafts=False)
    with_drafts = simulate(texts, prompts, machine, drafts=True)
    return alone.seconds / with_drafts.seconds


@pytest.mark.parametrize(("every", "least"), [(1000, 2.8), (25, 2.0), (12, 1.6), (5, 1.05)])
def test_editing_is_faster(every: int, least: float) -> None:
    numbers = random.Random(every)
    prompt = [numbers.randrange(50_000) for _ in range(400)]
    assert speedup([edited(numbers, prompt, every)], [prompt]) > least


def test_two_streams_gain_and_eight_lose_nothing() -> None:
    numbers = random.Random(3)
    prompts = [[numbers.randrange(50_000) for _ in range(200)] for _ in range(8)]
    texts = [edited(numbers, prompt, 25) for prompt in prompts]
    assert speedup(texts[:2], prompts[:2]) > 1.5
    assert speedup(texts, prompts) > 1.0


@pytest.mark.parametrize("seed", range(4))
def test_noise_and_strays_change_little(seed: int) -> None:
    numbers = random.Random(seed)

    def noisy(width: int) -> float:
        return machine(width) * numbers.lognormvariate(0, 0.1) * (4 if numbers.random() < 0.02 else 1)

    prompt = [numbers.randrange(50_000) for _ in range(400)]
    texts = [edited(numbers, prompt, 25)]
    alone = simulate(texts, [prompt], noisy, drafts=False)
    assert alone.seconds / simulate(texts, [prompt], noisy, drafts=True).seconds > 1.8


def test_a_machine_that_gains_nothing_from_width_is_found_out_in_a_few_steps() -> None:
    prompt = list(range(400))
    run = simulate([prompt], [prompt], lambda width: 0.03 * width, drafts=True)
    assert run.seconds < 1.05 * 400 * 0.03


def test_new_text_costs_next_to_nothing() -> None:
    numbers = random.Random(5)
    prompt = [numbers.randrange(60) for _ in range(300)]  # pairs repeat, but say nothing about what follows
    text = [numbers.randrange(60) for _ in range(600)]
    run = simulate([text], [prompt], machine, drafts=True)
    assert speedup([text], [prompt]) > 0.97
    assert run.num_drafted < 30
