from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from server.cli.bench_figures import (
    Answer,
    Measurement,
    Memory,
    Recorder,
    Round,
    aggregate_speed,
    figures,
    first_token,
    gaps,
    generation_speed,
    notes,
    round_figures,
)
from server.cli.bench_prompts import TokenScale, text
from server.core.errors import BackendError, ModelNotFound
from server.core.events import (
    ChoiceFinished,
    Event,
    Failed,
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    Timings,
    Usage,
)

END: Sequence[Event] = [ChoiceFinished(0, FinishReason.LENGTH), Finished(Usage(20, 5, 3), Timings(load=0.5))]
ANSWER = Answer(10.0, 10.5, 12.5, (10.5, 11.0, 11.2, 12.5), 1, 9, 256, 3, 0.0)
"""First token after half a second, then eight tokens in two seconds."""


def measured(*answers: Answer) -> Measurement:
    """A round for each answer, which is all that came in it."""
    rounds = [Round(each, each, {1: [each], 2: [each, each]}) for each in answers]
    memory = Memory({"CPU": 90, "CUDA0": 10}, {"CPU": 95, "CUDA0": 10})
    return Measurement("local/a", "llamacpp", loads=[2.0], memory=memory, rounds=rounds)


# --- one answer ---


def test_an_answer_is_made_of_events() -> None:
    recorder = Recorder(1.0)
    recorder.add([Started()], 2.0)
    recorder.add([ReasoningDelta(0, "Hm")], 3.0)
    recorder.add([TextDelta(0, "a"), TextDelta(0, "b")], 4.0)
    recorder.add([TextDelta(0, "c"), *END], 5.0)
    assert recorder.answer() == Answer(1.0, 3.0, 5.0, (3.0, 4.0, 5.0), 1, 5, 20, 3, 0.5)


def test_tokens_that_come_first_together_are_counted() -> None:
    recorder = Recorder(1.0)
    recorder.add([Started(), TextDelta(0, "a"), TextDelta(0, "b"), *END], 3.0)
    assert (recorder.answer().first, recorder.answer().num_first) == (3.0, 2)


def test_a_token_without_text_is_a_first_token() -> None:
    recorder = Recorder(1.0)
    recorder.add([Started(), *END], 3.0)
    assert (recorder.answer().first, recorder.answer().num_first, recorder.answer().arrivals) == (3.0, 1, ())


def test_a_failure_is_raised() -> None:
    recorder = Recorder(1.0)
    with pytest.raises(ModelNotFound):
        recorder.add([Failed(ModelNotFound("gone"))], 2.0)


def test_an_answer_that_is_not_complete() -> None:
    recorder = Recorder(1.0)
    recorder.add([TextDelta(0, "a")], 2.0)
    with pytest.raises(BackendError):
        recorder.answer()


def test_gaps() -> None:
    assert gaps(ANSWER) == pytest.approx([0.5, 0.2, 1.3])
    assert gaps(replace(ANSWER, arrivals=(1.0,))) == []


def test_generation_speed_is_that_after_the_first_token() -> None:
    assert generation_speed(ANSWER) == pytest.approx(4.0)


def test_an_answer_that_comes_at_once_has_no_generation_speed() -> None:
    assert generation_speed(replace(ANSWER, ended=10.5)) is None
    assert generation_speed(replace(ANSWER, num_first=9)) is None


def test_aggregate_speed_is_that_from_the_first_request_on() -> None:
    later = replace(ANSWER, started=10.1, ended=16.0, num_tokens=21)
    assert aggregate_speed([ANSWER, later], None) == pytest.approx(5.0)
    assert aggregate_speed([replace(ANSWER, ended=10.0)], None) is None


@pytest.mark.parametrize(
    ("load", "cold_load", "expected"),
    [
        (0.0, 2.0, 0.5),
        (0.4, 0.7, 0.1),  # about as long as a load
        (0.4, 0.9, 0.5),  # a daemon looked after a model that was there
        (0.1, 0.1, 0.5),
        (0.4, None, 0.5),
    ],
)
def test_loads_are_not_counted_into_the_first_token(load: float, cold_load: float | None, expected: float) -> None:
    assert first_token(replace(ANSWER, load=load), cold_load) == pytest.approx(expected)


def test_loads_are_not_counted_into_the_aggregate_speed() -> None:
    assert aggregate_speed([replace(ANSWER, load=0.7)], 0.7) == pytest.approx(9 / 1.8)


# --- one spec ---


def test_figures_are_medians_over_the_rounds() -> None:
    answers = [replace(ANSWER, first=10.0 + wait, ended=12.0 + wait) for wait in (0.9, 0.1, 0.2)]
    shown = figures(measured(*answers), [1, 2])
    assert shown.first_token_seconds == pytest.approx(0.2)
    assert shown.seen_first_token_seconds == pytest.approx(0.2)
    assert shown.gap_seconds == pytest.approx(0.5)
    assert shown.tokens_per_second == pytest.approx(4.0)
    assert shown.together == {1: pytest.approx(9 / 2.2), 2: pytest.approx(18 / 2.2)}
    assert (shown.load_seconds, shown.memory_bytes, shown.predicted_memory_bytes) == (2.0, 105, 100)
    assert (shown.prompt_tokens, shown.cached_tokens, shown.completion_tokens) == (256, 3, 9)
    firsts = [each.first_token_seconds for each in round_figures(measured(*answers))]
    assert firsts == pytest.approx([0.9, 0.1, 0.2])


def test_without_rounds_there_are_no_figures() -> None:
    shown = figures(Measurement("local/a", error="It is not there."), [1, 4])
    assert (shown.load_seconds, shown.memory_bytes, shown.first_token_seconds, shown.prompt_tokens) == (None,) * 4
    assert shown.together == {1: None, 4: None}
    assert notes(Measurement("local/a", error="It is not there."), shown, 9) == ["failed: It is not there."]


def test_rounds_without_a_figure_do_not_count() -> None:
    shown = figures(measured(ANSWER, replace(ANSWER, ended=10.5), replace(ANSWER, arrivals=())), [1])
    assert shown.tokens_per_second == pytest.approx(4.0)
    assert shown.gap_seconds == pytest.approx(0.5)


def told(measurement: Measurement, max_tokens: int = 9) -> list[str]:
    return [note.partition(":")[0] for note in notes(measurement, figures(measurement, [1]), max_tokens)]


def test_nothing_is_said_where_all_is_there() -> None:
    assert told(measured(ANSWER)) == []


def test_what_is_not_available_is_said() -> None:
    there = measured(ANSWER)
    there.was_in_memory = True
    there.loads = []
    there.memory = Memory(measured={"ollama": 100})
    assert figures(there, [1]).load_seconds is None
    assert told(there) == ["load", "memory, predicted"]
    there.memory = Memory()
    assert told(there) == ["load", "memory"]
    assert told(measured(replace(ANSWER, ended=10.5, arrivals=(10.5,)))) == ["generation"]


def test_loads_between_requests_are_said() -> None:
    assert told(measured(ANSWER, replace(ANSWER, load=1.9))) == ["load"]


def test_answers_that_end_early_are_said() -> None:
    (note,) = notes(measured(ANSWER), figures(measured(ANSWER), [1]), 64)
    assert "after 9 of 64 tokens" in note


# --- prompts ---


def test_a_scale_gives_the_number_of_words() -> None:
    scale = TokenScale.through((8, 30), (64, 198))
    assert (scale.per_word, scale.overhead) == (3.0, 6.0)
    assert [scale.num_words(num) for num in (306, 8, 1)] == [100, 1, 1]


def test_tokens_that_make_no_sense_are_taken_for_words() -> None:
    assert TokenScale.through((8, 30), (64, 30)) == TokenScale(0.0, 1.0)


def test_texts_differ_by_seed_and_purpose_only() -> None:
    texts = [text(seed, f"{number}/alone", 40) for seed in (0, 1) for number in range(20)]
    assert len(set(texts)) == 40
    assert {len(each.partition("\n")[0].split()) for each in texts} == {40}
    assert len({each.split()[0] for each in texts}) > 20
    assert text(0, "3/alone", 40) == texts[3]
