"""From what was observed of the answers to the figures that are shown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from server.core.errors import BackendError
from server.core.events import Event, Failed, Finished, ReasoningDelta, Started, TextDelta, ToolCallDelta

_LOAD_SHARE = 0.5
_LEAST_LOAD_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; times are seconds on the clock of whoever asked.

    Attributes:
        started: when it was asked for.
        first: when the first output came.
        ended: when it was complete.
        arrivals: when text came: one time for all that came together.
        num_first: tokens that came first, together.
        num_tokens: tokens of the answer, as the backend counts them.
        prompt_len: tokens of the prompt, as the backend counts them.
        num_cached: tokens of the prompt that the backend says it did not have to compute.
        load: seconds that went into loading the model, as the backend says.

    """

    started: float
    first: float
    ended: float
    arrivals: tuple[float, ...]
    num_first: int
    num_tokens: int
    prompt_len: int
    num_cached: int
    load: float


class Recorder:
    """Makes an ``Answer`` of the events of one request."""

    def __init__(self, started: float) -> None:
        """Take the time at which the request was made."""
        self._started = started
        self._first: float | None = None
        self._num_first = 0
        self._arrivals: list[float] = []
        self._finished: tuple[Finished, float] | None = None

    def add(self, events: Sequence[Event], now: float) -> None:
        """Take events that came together.

        Raises:
            LlmspellError: the request failed.

        """
        num_texts = 0
        for event in events:
            match event:
                case Failed(error):
                    raise error
                case TextDelta() | ReasoningDelta() | ToolCallDelta():
                    num_texts += 1
                case Finished():
                    self._finished = event, now
                case _:
                    pass
        if self._first is None and not all(isinstance(event, Started) for event in events):
            self._first, self._num_first = now, max(num_texts, 1)
        if num_texts:
            self._arrivals.append(now)

    def answer(self) -> Answer:
        """Return the answer, which must be complete.

        Raises:
            BackendError: it is not.

        """
        if self._finished is None or self._first is None:
            raise BackendError("The answer ended before it was complete.")
        finished, ended = self._finished
        return Answer(
            self._started,
            self._first,
            ended,
            tuple(self._arrivals),
            self._num_first,
            finished.usage.completion_tokens,
            finished.usage.prompt_tokens,
            finished.usage.cached_tokens,
            finished.timings.load,
        )


@dataclass(frozen=True, slots=True)
class Round:
    """What was asked of one model in one round.

    Attributes:
        new: the answer to a prompt that the model had not seen before, alone.
        seen: the first token of an answer to the same prompt, right after it.
        together: by number of streams, the answers to as many new prompts at the same time.

    """

    new: Answer
    seen: Answer
    together: Mapping[int, Sequence[Answer]]


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a model takes, by device; ``None`` where that is not known."""

    predicted: Mapping[str, int] | None = None
    measured: Mapping[str, int] | None = None


@dataclass(slots=True)
class Measurement:
    """What was measured of one spec.

    Attributes:
        spec: as the user wrote it.
        backend: the backend that it was routed to; ``None`` when there was none.
        was_in_memory: whether the model was in memory before anything was asked of it.
        loads: seconds of each load that a round began with; none of a model that was in memory before.
        memory: what it takes.
        rounds: those that are complete.
        error: why there are no more of them; ``None`` when all are there.

    """

    spec: str
    backend: str | None = None
    was_in_memory: bool = False
    loads: list[float] = field(default_factory=list)
    memory: Memory = field(default_factory=Memory)
    rounds: list[Round] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """What one round says of a model; ``None`` for what is not available.

    Attributes:
        first_token_seconds: from the request to the first token, prompt not seen before.
        seen_first_token_seconds: the same, prompt seen before.
        gap_seconds: between the tokens of one stream, the median.
        tokens_per_second: of one stream, from its first token on.
        together: tokens per second by number of streams, from the requests to the last token of all.

    """

    first_token_seconds: float
    seen_first_token_seconds: float
    gap_seconds: float | None
    tokens_per_second: float | None
    together: Mapping[int, float | None]


@dataclass(frozen=True, slots=True)
class Figures:
    """What is shown of one spec; medians over the rounds, and ``None`` for what is not available.

    Attributes:
        load_seconds: the first load.
        memory_bytes: what the model takes on all devices, as measured.
        predicted_memory_bytes: the same as predicted before the load.
        first_token_seconds: see ``RoundFigures``, as for the next four.
        seen_first_token_seconds: the same, prompt seen before.
        gap_seconds: between the tokens of one stream.
        tokens_per_second: of one stream, from its first token on.
        together: tokens per second by number of streams.
        prompt_tokens: of a measured prompt.
        cached_tokens: of a prompt seen before, those that the backend says it did not compute again.
        completion_tokens: of an answer.

    """

    load_seconds: float | None
    memory_bytes: int | None
    predicted_memory_bytes: int | None
    first_token_seconds: float | None
    seen_first_token_seconds: float | None
    gap_seconds: float | None
    tokens_per_second: float | None
    together: Mapping[int, float | None]
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None


def figures(measurement: Measurement, streams: Sequence[int]) -> Figures:
    """Sum up what was measured."""
    rounds = round_figures(measurement)
    answers = [each.new for each in measurement.rounds]
    return Figures(
        load_seconds=cold_load_of(measurement),
        memory_bytes=_total(measurement.memory.measured),
        predicted_memory_bytes=_total(measurement.memory.predicted),
        first_token_seconds=_median(each.first_token_seconds for each in rounds),
        seen_first_token_seconds=_median(each.seen_first_token_seconds for each in rounds),
        gap_seconds=_median(each.gap_seconds for each in rounds),
        tokens_per_second=_median(each.tokens_per_second for each in rounds),
        together={num: _median(each.together[num] for each in rounds) for num in streams},
        prompt_tokens=_whole_median(answer.prompt_len for answer in answers),
        cached_tokens=_whole_median(each.seen.num_cached for each in measurement.rounds),
        completion_tokens=_whole_median(answer.num_tokens for answer in answers),
    )


def round_figures(measurement: Measurement) -> list[RoundFigures]:
    """Return the figures of each round, without the time of loads."""
    cold_load = cold_load_of(measurement)
    return [
        RoundFigures(
            first_token_seconds=first_token(each.new, cold_load),
            seen_first_token_seconds=first_token(each.seen, cold_load),
            gap_seconds=_median(gaps(each.new)),
            tokens_per_second=generation_speed(each.new),
            together={num: aggregate_speed(answers, cold_load) for num, answers in each.together.items()},
        )
        for each in measurement.rounds
    ]


def cold_load_of(measurement: Measurement) -> float | None:
    """Return the seconds of the load that began with nothing in memory; ``None`` if there was none."""
    return measurement.loads[0] if measurement.loads else None


def is_load(seconds: float, cold_load: float | None) -> bool:
    """Whether a model was loaded in these seconds, knowing what its first load took.

    A daemon also counts the looking after a model that is there: only what is about as long as a load is one.
    """
    return cold_load is not None and seconds >= max(_LOAD_SHARE * cold_load, _LEAST_LOAD_SECONDS)


def reload_seconds(answer: Answer, cold_load: float | None) -> float:
    """Return the seconds in which an answer waited for its model to be loaded anew."""
    return answer.load if is_load(answer.load, cold_load) else 0.0


def first_token(answer: Answer, cold_load: float | None) -> float:
    """Return the seconds from the request to the first output, without those of a load."""
    return answer.first - answer.started - reload_seconds(answer, cold_load)


def gaps(answer: Answer) -> list[float]:
    """Return the seconds between neighbouring texts."""
    return [later - earlier for earlier, later in zip(answer.arrivals, answer.arrivals[1:], strict=False)]


def generation_speed(answer: Answer) -> float | None:
    """Return the tokens per second after those that came first; ``None`` if nothing came after them."""
    seconds, num_tokens = answer.ended - answer.first, answer.num_tokens - answer.num_first
    return num_tokens / seconds if seconds > 0 and num_tokens > 0 else None


def aggregate_speed(answers: Sequence[Answer], cold_load: float | None) -> float | None:
    """Return the tokens per second of answers at the same time, from the first request on, without a load."""
    seconds = max(answer.ended for answer in answers) - min(answer.started for answer in answers)
    seconds -= max(reload_seconds(answer, cold_load) for answer in answers)
    return sum(answer.num_tokens for answer in answers) / seconds if seconds > 0 else None


def notes(measurement: Measurement, shown: Figures, max_tokens: int) -> list[str]:
    """Say what is not available, and why, and what else makes figures differ from what was asked for."""
    if measurement.error is not None:
        return [f"failed: {measurement.error}"]
    said = [*_notes_on_load(measurement), *_notes_on_memory(shown)]
    if shown.tokens_per_second is None or shown.gap_seconds is None:
        said.append("generation: the answers came at once, or have only one token.")
    if shown.completion_tokens is not None and shown.completion_tokens < max_tokens:
        said.append(
            f"answers: they ended by themselves, after {shown.completion_tokens} of {max_tokens} tokens (median); "
            "the figures are over what came, and prompts weigh more in those of streams."
        )
    return said


def _notes_on_load(measurement: Measurement) -> list[str]:
    if measurement.was_in_memory:
        return ["load: not measured, the model was in memory before."]
    cold_load = cold_load_of(measurement)
    answers = [answer for each in measurement.rounds for answer in (each.new, each.seen)]
    if any(reload_seconds(answer, cold_load) for answer in answers):
        return ["load: the model did not stay in memory between requests; the loads are not counted elsewhere."]
    return []


def _notes_on_memory(shown: Figures) -> list[str]:
    if shown.memory_bytes is None:
        return ["memory: the backend does not say."]
    if shown.predicted_memory_bytes is None:
        return ["memory, predicted: the backend predicts nothing."]
    return []


def _median(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return median(found) if found else None


def _whole_median(values: Iterable[int]) -> int | None:
    middle = _median(values)
    return None if middle is None else round(middle)


def _total(by_device: Mapping[str, int] | None) -> int | None:
    return sum(by_device.values()) if by_device else None
