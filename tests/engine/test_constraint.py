"""Sequences that a constraint keeps to what it allows: scripted ones, because the engine knows no grammar."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from automata import Automaton, Knowing, TooComplex, Walk, Walks
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scripted import END, GREEDY, LETTERS, NUM_LETTERS, Harness, Heard, Model, ScriptedRunner, babbling, letters

from server.core.events import FinishReason, TextDelta
from server.core.request import SamplingParameters
from server.engine.drafting import Drafter
from server.engine.guidance import Guidance
from server.engine.runner import Logits
from server.engine.sampling import Sampler

MODEL = babbling(end_bias=1.0)
PROMPT = letters("so")
ENDLESS = replace(GREEDY, ignore_eos=True)


def bench_of(model: Model = MODEL, *, drafter: Drafter | None = None, **parameters: bool) -> Harness:
    runner = ScriptedRunner(model, num_cells=400, batch_size=32, **parameters)
    runner.seconds = lambda _: 0.01  # whatever is guessed costs nothing
    return Harness(
        runner,
        new_drafter=None if drafter is None else lambda: drafter,
        device_sampling=parameters.get("can_draw", False),
    )


def text_of(tokens: Sequence[int]) -> str:
    return b"".join(LETTERS.piece(token) for token in tokens).decode("utf-8", "replace")


# Whatever the constraint, and however it is computed: the answer is one that the constraint accepts, and the same.


@dataclass(frozen=True)
class Case:
    """A request under a constraint."""

    automaton: int
    sampling: SamplingParameters
    max_tokens: int = 20
    n: int = 1
    prompt: tuple[int, ...] = PROMPT

    def serve(self, bench: Harness, walks: Walks, top_logprobs: int | None = None) -> Heard:
        return bench.answer(
            self.prompt,
            max_tokens=self.max_tokens,
            sampling=self.sampling,
            n=self.n,
            top_logprobs=top_logprobs,
            new_constraint=walks,
        )


samplings = st.one_of(
    st.builds(SamplingParameters, temperature=st.just(0.0)),
    st.builds(
        SamplingParameters,
        temperature=st.sampled_from([0.3, 1.0, 2.0]),
        top_p=st.sampled_from([1.0, 1.0, 0.5]),
        top_k=st.sampled_from([0, 0, 3]),
        min_p=st.sampled_from([0.0, 0.0, 0.2]),
        frequency_penalty=st.sampled_from([0.0, 0.0, 1.5]),
        repeat_penalty=st.sampled_from([1.0, 1.0, 1.3]),
        logit_bias=st.sampled_from(
            [(), (), ((3, float("-inf")), (4, 5.0)), tuple((i, -100.0) for i in range(NUM_LETTERS))]
        ),
        ignore_eos=st.booleans(),
        seed=st.integers(0, 99),
    ),
)
cases = st.builds(
    Case,
    automaton=st.integers(0, 5000),
    sampling=samplings,
    max_tokens=st.integers(1, 30),
    n=st.sampled_from([1, 1, 3]),
    prompt=st.sampled_from([PROMPT, letters("a much longer prompt than a batch of tokens")]),
)


@settings(deadline=None, max_examples=60)
@given(case=cases, wrong_every=st.sampled_from([0, 1, 3]), memory=st.sampled_from(["whole", "whole", "uncuttable"]))
def test_answers_are_accepted_and_do_not_depend_on_how_they_are_computed(
    case: Case, wrong_every: int, memory: str
) -> None:
    automaton, walks = Automaton.random(case.automaton), Walks(Automaton.random(case.automaton))
    plain = bench_of()
    heard = case.serve(plain, walks)
    answers = [tuple(walk.accepted) for walk in walks.made]
    assert heard.finished.usage.completion_tokens == sum(map(len, answers))
    for index, (walk, answer) in enumerate(zip(walks.made, answers, strict=True)):
        assert not walk.complaints
        assert heard.text(index) == text_of(answer)
        state = automaton.walk(answer)
        if heard.reason(index) is FinishReason.LENGTH:
            assert len(answer) == case.max_tokens
        else:
            assert state in automaton.final
    if case.sampling == GREEDY:
        assert set(answers) == {automaton.greedy(MODEL, case.prompt, case.max_tokens)}

    drafter = Knowing([(*case.prompt, *answer) for answer in answers], wrong_every=wrong_every)
    guessing = bench_of(drafter=drafter, can_cut=memory == "whole")
    others = [case.serve(guessing, again := Walks(automaton)), case.serve(bench_of(), Walks(automaton), top_logprobs=0)]
    assert [tuple(walk.accepted) for walk in again.made] == answers
    for other in others:
        assert [other.text(i) for i in range(case.n)] == [heard.text(i) for i in range(case.n)]
        assert [other.reason(i) for i in range(case.n)] == [heard.reason(i) for i in range(case.n)]
        assert other.finished.usage.completion_tokens == heard.finished.usage.completion_tokens
    # what is left in the cells is what was said: a prompt that goes on finds it, and the model says what it would
    for bench in (plain, guessing):
        longer = (*case.prompt, *answers[0], 5)
        assert bench.answer(longer, sampling=GREEDY).text() == bench_of().answer(longer, sampling=GREEDY).text()


@settings(deadline=None, max_examples=25)
@given(st.lists(cases, min_size=2, max_size=6), st.lists(st.booleans(), min_size=6, max_size=6), st.booleans())
def test_constrained_and_free_requests_run_together(run: list[Case], are_free: list[bool], can_draw: bool) -> None:  # noqa: FBT001
    bench = bench_of(can_draw=can_draw)
    ids, made = [], []
    for case, is_free in zip(run, are_free, strict=False):
        made.append(None if is_free else Walks(Automaton.random(case.automaton)))
        sampling = GREEDY if is_free else case.sampling
        ids.append(
            bench.submit(case.prompt, max_tokens=case.max_tokens, sampling=sampling, n=case.n, new_constraint=made[-1])
        )
        bench.step(2)
    bench.run()
    for case, walks, generation_id in zip(run, made, ids, strict=True):
        heard = bench.heard[generation_id]
        if walks is None:
            alone = bench_of().answer(case.prompt, max_tokens=case.max_tokens, n=case.n)
        else:
            alone = case.serve(bench_of(), Walks(Automaton.random(case.automaton)))
            assert not any(walk.complaints for walk in walks.made)
        assert [heard.text(i) for i in range(case.n)] == [alone.text(i) for i in range(case.n)]


# The distribution.


@pytest.mark.parametrize("refused", [0.05, 0.5, 0.97])
@pytest.mark.parametrize(
    "parameters",
    [
        SamplingParameters(seed=3),
        SamplingParameters(seed=4, temperature=0.5, logit_bias=((2, 1.5),)),
        SamplingParameters(seed=5, top_k=4),
        SamplingParameters(seed=6, top_p=0.7, temperature=1.5),
        SamplingParameters(seed=7, min_p=0.2),
    ],
    ids=["temperature 1", "bias", "top_k", "top_p", "min_p"],
)
def test_tokens_are_drawn_as_often_as_their_probability_says(parameters: SamplingParameters, refused: float) -> None:
    """Without filters it is the model's distribution given what is allowed; filters cut in both draws."""
    probabilities = np.array([0.3, 0.05, 0.2, 0.02, 0.08, 0.15, 0.12, 0.08])
    order = np.argsort(probabilities)[::-1] if refused > 0.5 else np.argsort(probabilities)
    num_refused = max(1, int(np.searchsorted(probabilities[order].cumsum(), refused)))
    allowed = np.sort(order[num_refused:])
    automaton = Automaton([dict.fromkeys((int(token) for token in allowed), 0)], frozenset())
    logits = np.log(probabilities).astype(np.float32)
    walk = Walk(automaton, num_tokens=len(logits))
    guidance = Guidance(Sampler(parameters, index=0, end_tokens=()), walk, lambda: ())
    num_draws = 4000
    counts = Counter(guidance.next(logits) for _ in range(num_draws))

    first, second = reference(logits, parameters, range(len(logits))), reference(logits, parameters, allowed)
    kept = np.where(np.isin(np.arange(len(logits)), allowed), first, 0.0)
    expected = [kept + (1 - kept.sum()) * second, second]  # asked first, or not
    assert set(counts) <= set(allowed.tolist())
    assert min(distance(counts, shares, num_draws) for shares in expected) < 4


def reference(logits: Logits, parameters: SamplingParameters, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Probabilities by definition, of a draw from some tokens."""
    biased = logits.astype(np.float64)
    for token, bias in parameters.logit_bias:
        biased[token] += bias
    weights = np.zeros(len(logits))
    weights[[*ids]] = np.exp(biased[[*ids]])
    order = np.argsort(-weights, kind="stable")
    if parameters.top_k:
        weights[order[parameters.top_k :]] = 0
    if parameters.top_p < 1:
        before = weights[order].cumsum() - weights[order]
        weights[order[before >= parameters.top_p * weights.sum()]] = 0
    weights[weights < parameters.min_p * weights.max()] = 0
    weights = np.where(weights > 0, weights ** (1 / parameters.temperature), 0)
    shares: np.ndarray = weights / weights.sum()
    return shares


def distance(counts: Counter[int], shares: np.ndarray, num_draws: int) -> float:
    """Return the largest deviation of a count, in standard deviations."""
    drawn = np.array([counts[token] for token in range(len(shares))])
    spreads = np.maximum(np.sqrt(num_draws * shares * (1 - shares)), 0.5)
    return float((np.abs(drawn - num_draws * shares) / spreads).max())


def test_a_model_that_is_refused_again_and_again_is_not_asked_first() -> None:
    logits = np.zeros(NUM_LETTERS, dtype=np.float32)
    logits[7] = 1.0
    narrow, wide = {3: 0}, dict.fromkeys(range(NUM_LETTERS), 0)
    walk = Walk(Automaton([narrow], frozenset()), forces=False)
    guidance = Guidance(Sampler(SamplingParameters(seed=1), index=0, end_tokens=()), walk, lambda: ())
    assert {guidance.next(logits) for _ in range(60)} == {3}
    assert len(set(walk.asked[:10])) > 3  # draws from all tokens
    assert set(walk.asked[30:]) == {7}  # the likeliest one, which tells whether it would be refused
    narrow.update(wide)
    drawn = [guidance.next(logits) for _ in range(60)]
    assert walk.asked[-20:] == drawn[-20:]  # it is asked first again
    assert len(set(drawn)) > 10


def test_a_model_that_is_not_asked_first_is_not_taken_for_greedy() -> None:
    logits = np.zeros(NUM_LETTERS, dtype=np.float32)
    logits[7] = 1.0
    firsts = []
    for seed in range(60):
        tokens = {3: 0}
        walk = Walk(Automaton([tokens], frozenset()), forces=False)
        guidance = Guidance(Sampler(SamplingParameters(seed=seed), index=0, end_tokens=()), walk, lambda: ())
        for _ in range(30):
            guidance.next(logits)
        tokens.update(dict.fromkeys(range(NUM_LETTERS), 0))
        firsts.append(guidance.next(logits))
    assert firsts.count(7) < 15  # of 60, with a probability of 0.08


# Tokens that have to come.


def test_forced_tokens_take_no_steps_of_their_own() -> None:
    walks = Walks(Automaton.of(letters("the only answer")))
    bench = bench_of()
    heard = bench.answer("so", max_tokens=40, new_constraint=walks)
    assert heard.text() == "the only answer"
    assert heard.reason() is FinishReason.STOP
    assert heard.finished.usage.completion_tokens == 15
    assert len(bench.runner.batches) == 1


def test_forced_tokens_are_computed_together_with_what_follows_them() -> None:
    walks = Walks(Automaton.of(letters("abcdefgh"), letters("abcdefxyz.")))
    bench = bench_of()
    assert bench.answer("so", max_tokens=40, new_constraint=walks).text() in {"abcdefgh", "abcdefxyz."}
    assert [len(chunk.tokens) for batch in bench.runner.batches for chunk in batch] == [2, 6]
    deltas = [event.text for heard in bench.heard.values() for event in heard.events if isinstance(event, TextDelta)]
    assert len(deltas) == 2, "one event for each step"


def test_many_forced_tokens_are_computed_at_once_where_nobody_waits() -> None:
    bench = bench_of()
    bench.runner.seconds = lambda chunks: 0.02 * sum(len(chunk.tokens) for chunk in chunks)
    bench.answer("on", max_tokens=5, sampling=ENDLESS)
    num_before = len(bench.runner.batches)
    many = letters("a" + "bc" * 15)
    bench.answer("so", max_tokens=70, new_constraint=Walks(Automaton.of((*many, 1), (*many, 2))))
    assert [len(batch[0].tokens) for batch in bench.runner.batches[num_before:]] == [2, 31]


def test_many_forced_tokens_are_computed_like_a_prompt_beside_running_streams() -> None:
    bench = bench_of()
    bench.runner.seconds = lambda chunks: 0.02 * sum(len(chunk.tokens) for chunk in chunks)
    stream = bench.submit("on", max_tokens=60, sampling=ENDLESS)
    bench.step(10)
    many = letters("a" + "bc" * 30)
    walks = Walks(Automaton.of((*many, 1), (*many, 2)))
    forced = bench.submit("so", max_tokens=70, new_constraint=walks)
    bench.run()
    assert bench.heard[forced].text()[:-1] == "a" + "bc" * 30
    widest = max(sum(len(chunk.tokens) for chunk in batch) for batch in bench.runner.batches[12:])
    assert widest <= 9, "a stream waits no longer than for the least part of a prompt"
    assert bench.heard[stream].text() == bench_of().answer("on", max_tokens=60, sampling=ENDLESS).text()


@pytest.mark.parametrize("max_tokens", [1, 3, 5, 6])
def test_forced_tokens_count(max_tokens: int) -> None:
    heard = bench_of().answer("so", max_tokens=max_tokens, new_constraint=Walks(Automaton.of(letters("abcdef"))))
    assert heard.text() == "abcdef"[:max_tokens]
    assert heard.reason() is (FinishReason.STOP if max_tokens == 6 else FinishReason.LENGTH)
    assert heard.finished.usage.completion_tokens == max_tokens


def test_penalties_see_forced_tokens() -> None:
    flat: Logits = np.zeros(NUM_LETTERS, dtype=np.float32)
    flat[1] = 0.5
    once = Walks(Automaton.of(letters("aaa"), letters("aab")))
    sampling = SamplingParameters(temperature=0, frequency_penalty=0.3)
    heard = bench_of(lambda _: flat).answer("x", max_tokens=3, sampling=sampling, new_constraint=once)
    assert heard.text() == "aab"
    pairs = Walks(Automaton([{1: 1, 2: 1}, {1: 0, 2: 0}], frozenset()))
    heard = bench_of(lambda _: flat).answer("x", max_tokens=6, sampling=sampling, new_constraint=pairs)
    assert heard.text() == "aababa"


def test_a_forced_end_token_ends_the_turn() -> None:
    class Ending(Walk):
        def forced(self) -> Sequence[int]:
            return [4, END]

        def allows(self, token: int) -> bool:
            return token in {4, END}

    loop = Automaton([{4: 0}], frozenset({0}))
    bench = bench_of()
    heard = bench.answer("so", new_constraint=lambda: Ending(loop))
    assert (heard.text(), heard.reason(), len(bench.runner.batches)) == ("d", FinishReason.STOP, 1)


def test_log_probabilities_of_forced_tokens_are_those_of_the_model() -> None:
    automaton = Automaton.of(letters("abcde"))
    heard = bench_of().answer("so", top_logprobs=1, new_constraint=Walks(automaton))
    assert heard.text() == "abcde"
    known = PROMPT
    for entry, token in zip(heard.logprobs(), letters("abcde"), strict=True):
        logits = MODEL(known).astype(np.float64)
        assert entry.logprob == pytest.approx(logits[token] - np.log(np.exp(logits).sum()), abs=1e-4)
        known = (*known, token)


# The end.


def test_a_complete_answer_ends_without_asking_the_model() -> None:
    bench = bench_of()
    heard = bench.answer("so", new_constraint=Walks(Automaton.of(letters("a"), letters("b"))))
    assert heard.text() in {"a", "b"}
    assert (heard.reason(), len(bench.runner.batches)) == (FinishReason.STOP, 1)


def test_an_answer_that_has_to_be_empty_is() -> None:
    heard = bench_of().answer("so", new_constraint=Walks(Automaton.of(())))
    assert (heard.text(), heard.reason(), heard.finished.usage.completion_tokens) == ("", FinishReason.STOP, 0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_model_ends_its_turn_where_it_may_and_not_before(temperature: float) -> None:
    wants_to_end = np.full(NUM_LETTERS, -5, dtype=np.float32)
    wants_to_end[END] = 50
    walks = Walks(Automaton([{1: 1, 2: 1}, {1: 2, 2: 2}, {1: 2, 2: 2}], frozenset({2})))
    sampling = SamplingParameters(temperature=temperature, seed=1)
    heard = bench_of(lambda _: wants_to_end).answer("so", sampling=sampling, new_constraint=walks)
    assert (len(heard.text()), heard.reason()) == (2, FinishReason.STOP)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParameters(temperature=0, logit_bias=tuple((i, float("-inf")) for i in range(1, NUM_LETTERS))),
        SamplingParameters(seed=1, logit_bias=tuple((i, float("-inf")) for i in range(1, NUM_LETTERS - 1))),
        SamplingParameters(seed=1, ignore_eos=True, logit_bias=((1, float("-inf")), (2, float("-inf")))),
        SamplingParameters(seed=1, top_k=1, ignore_eos=True, logit_bias=((1, -100.0), (2, -100.0))),
    ],
    ids=["greedy", "all but one", "some and the end", "unlikely"],
)
def test_a_bias_does_not_break_the_grammar(sampling: SamplingParameters) -> None:
    walks = Walks(Automaton([{1: 1, 2: 1}, {1: 2, 2: 2}, {}], frozenset({2})))
    heard = bench_of().answer("so", sampling=sampling, new_constraint=walks)
    assert heard.text() in {"aa", "ab", "ba", "bb"}
    assert heard.reason() is FinishReason.STOP


def test_right_guesses_save_steps_under_a_constraint() -> None:
    automaton = Automaton([dict.fromkeys(range(1, 20), 0)], frozenset())
    said = automaton.greedy(MODEL, PROMPT, 40)
    bench = bench_of(drafter=Knowing([(*PROMPT, *said)]))
    heard = bench.answer(PROMPT, max_tokens=40, new_constraint=Walks(automaton))
    assert heard.text() == text_of(said)
    assert bench.runner.num_computed == len(PROMPT) + 39, "nothing is computed twice"
    assert len(bench.runner.batches) < 15


# Failures, and what a constraint keeps from others.


@pytest.mark.parametrize("num_accepted", [0, 2])
def test_a_constraint_that_fails_ends_its_request_alone(num_accepted: int) -> None:
    bench = bench_of()
    automaton = Automaton([dict.fromkeys(range(1, 20), 0)], frozenset())
    failing = bench.submit("so", n=2, new_constraint=Walks(automaton, fails_after=num_accepted))
    other = bench.submit("so", max_tokens=20, new_constraint=Walks(automaton))
    bench.run()
    assert isinstance(bench.heard[failing].failed.error, TooComplex)
    assert len(bench.heard[other].text()) == 20
    assert bench.answer("so", max_tokens=3, sampling=ENDLESS).finished.usage.completion_tokens == 3


def test_a_constraint_that_cannot_be_made_refuses_the_request() -> None:
    def refuse() -> Walk:
        raise TooComplex("no")

    with pytest.raises(TooComplex):
        bench_of().submit("so", new_constraint=refuse)


def test_a_constraint_that_allows_nothing_ends_its_request() -> None:
    class Stuck(Walk):
        def allows(self, token: int) -> bool:
            return token < 0

        def allowed(self) -> np.ndarray:
            return np.zeros(NUM_LETTERS, dtype=np.bool_)

    bench = bench_of()
    error = bench.answer("so", new_constraint=lambda: Stuck(Automaton([{1: 0, 2: 0}], frozenset()))).failed.error
    assert "no token goes on" in error.message


def test_a_device_draws_the_tokens_of_others_only() -> None:
    bench = bench_of(can_draw=True)
    drawn: list[list[int]] = []
    bench.runner.before_decode = lambda _: drawn.append(bench.runner.drawn().tolist())
    free = bench.submit("on", max_tokens=8, sampling=ENDLESS)
    bound = bench.submit(
        "so", max_tokens=8, new_constraint=Walks(Automaton([dict.fromkeys((1, 2, 3), 0)], frozenset()))
    )
    bench.run()
    assert {*bench.heard[bound].text()} <= {*"abc"}
    assert bench.heard[free].text() == bench_of().answer("on", max_tokens=8, sampling=ENDLESS).text()
    assert all(tokens[0] >= 0 and tokens[1:] == [-1] for tokens in drawn[1:])


@example(0)
@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000))
def test_choices_have_constraints_of_their_own(seed: int) -> None:
    walks = Walks(Automaton.random(seed))
    sampling = SamplingParameters(seed=seed)
    heard = bench_of().answer("so", n=3, max_tokens=12, sampling=sampling, new_constraint=walks)
    assert [heard.text(i) for i in range(3)] == [text_of(walk.accepted) for walk in walks.made]
