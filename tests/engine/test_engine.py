from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scripted import (
    END,
    GREEDY,
    NUM_LETTERS,
    Harness,
    Heard,
    Model,
    ScriptedRunner,
    ScriptedVocabulary,
    babbling,
    letters,
    reciting,
)

from server.core.errors import ContextLengthExceeded, InvalidRequest, QueueFull
from server.core.events import ChoiceFinished, Finished, FinishReason, Started, TextDelta, Timings, Usage
from server.core.request import SamplingParameters
from server.engine.engine import EngineStatus
from server.engine.runner import Chunk

LONG = "the quick brown fox jumps over the lazy dog. " * 2


def harness(
    model: Model | None = None, *, queue_size: int = 64, inter_token_target: float = 0.05, **shape: int
) -> Harness:
    runner = ScriptedRunner(model or babbling(), **shape)  # type: ignore[arg-type]
    return Harness(runner, queue_size=queue_size, inter_token_target=inter_token_target)


def prompt_tokens(batch: list[Chunk]) -> int:
    return sum(len(chunk.tokens) for chunk in batch if len(chunk.tokens) > 1)


# One request.


def test_an_answer_streams_token_by_token() -> None:
    bench = harness(reciting({"hi": "yo."}))
    one = bench.submit("hi")
    bench.step()
    assert bench.heard[one].events == [Started(), TextDelta(0, "y")]
    bench.step()
    assert bench.heard[one].events[2:] == [TextDelta(0, "o")]
    bench.step(2)
    assert bench.heard[one].events[3:] == [
        TextDelta(0, "."),
        ChoiceFinished(0, FinishReason.STOP),
        Finished(Usage(2, 3), Timings()),
    ]
    assert bench.engine.status == EngineStatus(num_running=0, num_waiting=0, num_reserved_cells=0)


def test_an_idle_step_decodes_and_delivers_nothing() -> None:
    bench = harness()
    bench.step(3)
    assert (bench.runner.batches, bench.num_deliveries) == ([], 0)


@pytest.mark.parametrize("num_tokens", [1, 2, 31, 32, 33, 64, 90])
def test_a_prompt_is_computed_in_chunks_of_a_batch(num_tokens: int) -> None:
    prompt = letters(LONG)[:num_tokens]
    bench = harness(batch_size=32)
    chunked = bench.answer(prompt)
    prefill = [batch[0] for batch in bench.runner.batches if batch[0].start < num_tokens]
    assert [len(chunk.tokens) for chunk in prefill] == [min(32, num_tokens - at) for at in range(0, num_tokens, 32)]
    assert [bool(chunk.num_rows) for chunk in prefill] == [False] * (len(prefill) - 1) + [True]
    assert chunked.text() == harness(batch_size=256).answer(prompt).text() != ""


def test_max_tokens_of_one_takes_one_step() -> None:
    bench = harness(reciting({"hi": "yo"}))
    heard = bench.answer("hi", max_tokens=1)
    assert (heard.text(), heard.reason()) == ("y", FinishReason.LENGTH)
    assert heard.finished.usage == Usage(2, 1)
    assert len(bench.runner.batches) == 1


def test_a_turn_that_ends_at_once_has_no_text() -> None:
    heard = harness(reciting({"hi": ""})).answer("hi")
    assert heard.events == [Started(), ChoiceFinished(0, FinishReason.STOP), Finished(Usage(2, 0), Timings())]


def test_a_turn_that_fills_the_context_ends_by_length() -> None:
    bench = harness(reciting({"hi": "abcdef"}), sequence_len=8, num_cells=8)
    heard = bench.answer("hi", max_tokens=6)
    assert (heard.text(), heard.reason()) == ("abcdef", FinishReason.LENGTH)


def test_a_stop_string_ends_the_turn() -> None:
    bench = harness(reciting({"hi": "one. two. three."}))
    heard = bench.answer("hi", max_tokens=50, stop=("two", "x"))
    assert (heard.text(), heard.reason()) == ("one. ", FinishReason.STOP)
    assert heard.finished.usage == Usage(2, 8)


def test_text_held_back_for_a_stop_string_comes_when_the_turn_ends() -> None:
    bench = harness(reciting({"hi": "one tw"}))
    assert bench.answer("hi", stop=("two",)).text() == "one tw"
    cut = harness(reciting({"hi": "one twin"})).answer("hi", max_tokens=6, stop=("two",))
    assert (cut.text(), cut.reason()) == ("one tw", FinishReason.LENGTH)


def test_ignore_eos_goes_on_to_the_limit() -> None:
    model = babbling(end_bias=50)
    assert harness(model).answer("hi").finished.usage.completion_tokens == 0
    heard = harness(model).answer("hi", sampling=replace(GREEDY, ignore_eos=True))
    assert heard.finished.usage.completion_tokens == 8
    assert heard.reason() is FinishReason.LENGTH


def test_log_probabilities_are_those_of_the_model() -> None:
    model = babbling(end_bias=-50)
    sampling = SamplingParameters(temperature=0.3, top_k=5, seed=4, logit_bias=((3, 2.0),))
    heard = harness(model).answer("hi", sampling=sampling, top_logprobs=3)
    held = letters("hi")
    assert len(heard.logprobs()) == 8
    for entry in heard.logprobs():
        row = model(held).astype(np.float64)
        logprobs = row - np.log(np.exp(row).sum())
        (token,) = np.flatnonzero(np.isclose(logprobs, entry.logprob, atol=1e-5))
        best = np.argsort(-logprobs)[:3]
        assert [top.logprob for top in entry.top] == pytest.approx(logprobs[best], abs=1e-5)
        assert all(top.top == () for top in entry.top)
        held = (*held, int(token))


def test_log_probabilities_without_alternatives() -> None:
    runner = ScriptedRunner(babbling(1000, end_bias=-50), vocabulary_size=1000)
    bench = Harness(runner, vocabulary=ScriptedVocabulary([b"", *(b"%d " % i for i in range(1, 1000))]))
    heard = bench.answer([1, 2, 3], top_logprobs=0)
    assert [entry.top for entry in heard.logprobs()] == [()] * 8
    assert "".join(entry.token for entry in heard.logprobs()) == heard.text()


# Together as alone.

STYLES = [
    GREEDY,
    SamplingParameters(seed=1),
    SamplingParameters(seed=2, temperature=0.6, top_p=0.9),
    SamplingParameters(seed=3, top_k=4, frequency_penalty=1.0),
    SamplingParameters(seed=4, min_p=0.1, presence_penalty=-1.0),
    SamplingParameters(seed=5, repeat_penalty=1.3, temperature=1.5),
    SamplingParameters(seed=6, logit_bias=((5, 4.0), (6, -100.0))),
    SamplingParameters(seed=7, ignore_eos=True),
]
REQUESTS: list[dict[str, Any]] = [
    {
        "prompt": letters(LONG)[i * 3 : i * 3 + 1 + (i * 37) % 50],
        "sampling": STYLES[i % len(STYLES)],
        "max_tokens": 3 + (i * 5) % 17,
        "stop": ("a", "xy") if i % 3 == 0 else (),
        "top_logprobs": 2 if i % 4 == 0 else None,
    }
    for i in range(16)
]


def content(heard: Heard) -> list[object]:
    return [event for event in heard.events if isinstance(event, TextDelta | ChoiceFinished)]


@pytest.mark.parametrize("can_share", [True, False])
@pytest.mark.parametrize("stagger", [0, 1])
def test_sixteen_different_streams_get_what_each_gets_alone(stagger: int, *, can_share: bool) -> None:
    def bench() -> Harness:
        return Harness(ScriptedRunner(babbling(), num_sequences=16, num_cells=2048, batch_size=24, can_share=can_share))

    alone = [bench().answer(**request) for request in REQUESTS]
    together = bench()
    ids = []
    for request in REQUESTS:
        ids.append(together.submit(**request))
        together.step(stagger)
    together.run()
    assert max(len(batch) for batch in together.runner.batches) > 4
    assert [content(together.heard[i]) for i in ids] == [content(heard) for heard in alone]


def test_streams_share_a_batch() -> None:
    bench = harness()
    for prompt in ("abc", "bcd", "cde"):
        bench.submit(prompt)
    bench.run()
    assert len(bench.runner.batches) == 8


def test_what_happens_in_a_step_is_delivered_in_one_call() -> None:
    bench = harness()
    ids = [bench.submit(prompt) for prompt in ("abc", "bcd", "cde")]
    bench.step()
    assert bench.num_deliveries == 1
    assert set(bench.heard) == set(ids)


def test_prompts_beside_running_streams_keep_to_the_target() -> None:
    bench = harness(num_cells=2048, batch_size=64, inter_token_target=0.05)
    bench.runner.seconds = lambda batch: 0.010 + 0.002 * sum(len(chunk.tokens) for chunk in batch if chunk.start < 90)
    stream = bench.submit("abc", max_tokens=100, sampling=replace(GREEDY, ignore_eos=True))
    bench.step(3)
    prompts = [bench.submit(letters(LONG)[i:90], max_tokens=1) for i in range(3)]
    times = []
    while not all(i in bench.heard and bench.heard[i].is_over for i in prompts):
        bench.step()
        times.append(bench.clock.now)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert max(gaps[1:]) <= 0.05 + 1e-9
    assert len(bench.heard[stream].text()) >= len(times)
    assert len(times) < 25


# Admission.


def test_a_request_waits_until_cells_are_free_and_nobody_overtakes() -> None:
    bench = harness(num_cells=40)
    first = bench.submit("abcdefghij", max_tokens=10, sampling=replace(GREEDY, ignore_eos=True))
    big = bench.submit(letters("bcdefghijk"), max_tokens=25)
    last = bench.submit("cd", max_tokens=2)
    bench.step(9)
    assert bench.engine.status == EngineStatus(num_running=1, num_waiting=2, num_reserved_cells=20)
    assert set(bench.heard) == {first}
    bench.step(2)
    assert bench.heard[first].is_over
    assert bench.engine.status == EngineStatus(num_running=2, num_waiting=0, num_reserved_cells=39)
    bench.run()
    assert bench.heard[big].is_over
    assert bench.heard[last].is_over


def test_a_request_waits_until_a_sequence_is_free() -> None:
    bench = harness(num_sequences=2)
    ids = [bench.submit(prompt) for prompt in ("abc", "bcd", "cde", "def")]
    bench.step()
    assert set(bench.heard) == set(ids[:2])
    bench.run()
    assert all(bench.heard[i].finished for i in ids)


def test_idle_prefixes_make_room_for_what_runs() -> None:
    bench = harness(num_cells=64, num_sequences=4)
    for start in range(10):
        bench.answer(letters(LONG)[start : start + 20], max_tokens=12)
        bench.answer(letters(LONG)[start : start + 40], max_tokens=24)
    assert bench.runner.most_cells <= 64


def test_a_full_queue_refuses_and_recovers() -> None:
    bench = harness(num_sequences=2, queue_size=1)
    ids = [bench.submit(prompt) for prompt in ("abc", "bcd", "cde")]
    with pytest.raises(QueueFull) as refusal:
        bench.submit("xyz")
    assert refusal.value.retry_after is not None
    assert refusal.value.retry_after >= 1
    bench.engine.abort(ids[1])
    bench.step()
    bench.submit("def")
    with pytest.raises(QueueFull):
        bench.submit("xyz")
    bench.run()
    for prompt in ("abc", "bcd", "cde"):
        bench.submit(prompt)
    with pytest.raises(QueueFull):
        bench.submit("xyz")


def test_what_can_never_run_is_refused() -> None:
    bench = harness(num_sequences=2, sequence_len=32, num_cells=48)
    with pytest.raises(InvalidRequest) as too_many:
        bench.submit("abc", n=3)
    assert too_many.value.param == "n"
    with pytest.raises(InvalidRequest, match="empty"):
        bench.submit("")
    with pytest.raises(ContextLengthExceeded):
        bench.submit("abc", max_tokens=30)
    with pytest.raises(ContextLengthExceeded):
        bench.submit(letters(LONG)[:40], max_tokens=1)
    bench.submit("abc", max_tokens=29)
    bench.run()


def test_more_than_the_cells_is_refused_even_if_the_context_is_longer() -> None:
    bench = harness(sequence_len=64, num_cells=32)
    with pytest.raises(ContextLengthExceeded):
        bench.submit("abc", max_tokens=30)


# What was computed before.


def test_continuing_a_conversation_computes_only_what_is_new() -> None:
    bench = harness(reciting({"hi": "yo.", "hi" + "yo." + "more": "ok"}))
    assert bench.answer("hi").finished.usage == Usage(2, 3, 0)
    before = bench.runner.num_computed
    heard = bench.answer("hiyo.more")
    assert heard.text() == "ok"
    assert heard.finished.usage == Usage(9, 2, 5)
    assert bench.runner.num_computed - before == 4 + 2


def test_the_same_prompt_again_computes_its_last_token() -> None:
    bench = harness()
    first = bench.answer(LONG)
    second = bench.answer(LONG)
    assert second.text() == first.text()
    assert second.finished.usage.cached_tokens == len(LONG) - 1


def test_a_conversation_survives_strangers_while_there_is_room() -> None:
    bench = harness(num_sequences=3)
    bench.answer("abcabcabc")
    bench.answer("bcdbcdbcd")
    assert bench.answer("cdecdecde").finished.usage.cached_tokens == 0
    assert bench.answer("abcabcabcx").finished.usage.cached_tokens == 9


def test_a_running_sequence_lends_its_prompt_undisturbed() -> None:
    alone = harness().answer(LONG, max_tokens=20).text()
    bench = harness()
    first = bench.submit(LONG, max_tokens=20)
    bench.step(6)
    second = bench.submit(LONG + "abc", max_tokens=20)
    bench.run()
    assert bench.heard[first].text() == alone
    assert bench.heard[second].finished.usage.cached_tokens == len(LONG)
    assert bench.heard[second].text() == harness().answer(LONG + "abc", max_tokens=20).text()


def test_a_model_that_cannot_share_computes_again_and_says_the_same() -> None:
    shares, cannot = harness(), Harness(ScriptedRunner(babbling(), can_share=False))
    for prompt in ("abc", "abcd", LONG, LONG, LONG + "abc"):
        expected, heard = shares.answer(prompt), cannot.answer(prompt)
        assert heard.text() == expected.text()
        assert heard.finished.usage == replace(expected.finished.usage, cached_tokens=0)


def test_recurrent_memory_continues_a_conversation_but_is_never_cut() -> None:
    model = reciting({"hi": "yo.", "hiyo.more": "ok"})
    bench = Harness(ScriptedRunner(model, can_cut=False))
    assert bench.answer("hi").text() == "yo."
    assert bench.answer("hiyo.more").finished.usage == Usage(9, 2, 5)
    again = bench.answer("hiyo.more")
    assert again.text() == "ok"
    assert again.finished.usage.cached_tokens == 0


# Several choices.


@pytest.mark.parametrize("can_share", [True, False])
def test_choices_share_their_prompt_and_differ_by_seed(*, can_share: bool) -> None:
    sampling = SamplingParameters(seed=9, ignore_eos=True)
    bench = Harness(ScriptedRunner(babbling(), can_share=can_share))
    heard = bench.answer(LONG, n=3, sampling=sampling)
    texts = [heard.text(index) for index in range(3)]
    assert len(set(texts)) == 3
    assert heard.finished.usage == Usage(len(LONG), 24, 0)
    assert [type(event) for event in heard.events].count(Started) == 1
    prompts_computed = len(LONG) + 2 if can_share else 3 * len(LONG)
    assert bench.runner.num_computed == prompts_computed + 3 * 7
    again = harness(num_sequences=3, num_cells=400).answer(LONG, n=3, sampling=sampling)
    assert [again.text(index) for index in range(3)] == texts
    assert harness().answer(LONG, sampling=sampling).text() == texts[0]


def test_choices_that_do_not_fit_together_run_one_after_the_other() -> None:
    sampling = SamplingParameters(seed=9)
    bench = harness(num_cells=30)
    heard = bench.answer("abcdefghij", n=3, max_tokens=15, sampling=sampling)
    expected = harness().answer("abcdefghij", n=3, max_tokens=15, sampling=sampling)
    assert [heard.text(index) for index in range(3)] == [expected.text(index) for index in range(3)]


def test_a_choice_that_waits_for_its_sibling_lets_others_pass() -> None:
    bench = harness(batch_size=16)
    bench.submit(LONG, n=2)
    other = bench.submit("abc")
    bench.step(2)
    assert bench.engine.status.num_running == 2
    assert bench.engine.status.num_waiting == 1
    bench.run()
    assert bench.heard[other].finished


# Accounts.


def test_timings_tell_where_the_time_went() -> None:
    bench = harness(reciting({"a" * 40: "yes", "b": "no"}), num_sequences=1, batch_size=20)
    bench.runner.seconds = lambda _: 1.0
    first = bench.submit("a" * 40)
    second = bench.submit("b")
    bench.run()
    # prompt 2 s, "y" with it, "e", "s" and the end a second each
    assert bench.heard[first].finished.timings == Timings(queued=0.0, prompt=2.0, first_token=2.0, decode=3.0)
    assert bench.heard[second].finished.timings == Timings(queued=5.0, prompt=1.0, first_token=6.0, decode=2.0)


def test_the_retry_hint_follows_how_long_requests_take() -> None:
    bench = harness(num_sequences=1, queue_size=0)
    bench.runner.seconds = lambda _: 4.0
    for _ in range(60):
        bench.answer("abc", max_tokens=3, sampling=replace(GREEDY, ignore_eos=True))
    bench.submit("abc")
    with pytest.raises(QueueFull) as refusal:
        bench.submit("abc")
    assert refusal.value.retry_after == pytest.approx(12, rel=0.01)


def test_split_characters_arrive_whole() -> None:
    def says_e_acute(tokens: tuple[int, ...]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        row = np.zeros(NUM_LETTERS, dtype=np.float32)
        row[{1: 32, 2: 33}.get(len(tokens), END)] = 9
        return row

    heard = harness(says_e_acute).answer("a", top_logprobs=0)
    assert [event.text for event in heard.events if isinstance(event, TextDelta)] == ["é"]
    assert [entry.token_bytes for entry in heard.logprobs()] == [b"\xc3", b"\xa9"]
