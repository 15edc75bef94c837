"""What is asked of every server: each scenario takes a ``Chat`` and a round's prompts and returns its figures.

Answers are greedy except where sampling is what is measured, and all have the length that was asked for.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from compare.load import SILENCE_TIMEOUT_SECONDS, Answer, Chat, Message, aggregate_speed, gaps, median_gap
from compare.measures import Better, Figures, Measure
from compare.prompts import Prompts, assistant, system, user

T = TypeVar("T")

# Every server has defaults of its own, so all values are always said.
NEUTRAL: Mapping[str, object] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
GREEDY: Mapping[str, object] = {**NEUTRAL, "temperature": 0.0}
MIXED_SAMPLING: tuple[Mapping[str, object], ...] = (
    GREEDY,
    {**NEUTRAL, "temperature": 0.7, "top_p": 0.9},
    {**NEUTRAL, "top_k": 40},
    {**NEUTRAL, "temperature": 0.8, "min_p": 0.05},
    NEUTRAL,
    {**NEUTRAL, "temperature": 0.8, "top_k": 40, "top_p": 0.95, "repeat_penalty": 1.1},
    {**NEUTRAL, "top_p": 0.9, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    {**NEUTRAL, "temperature": 1.2, "top_k": 20, "min_p": 0.1},
)

SPEED = Measure("tokens/s", "tokens/s", Better.HIGHER)
MEDIAN_GAP = Measure("median gap", "ms", Better.LOWER)
FIRST_TOKEN = Measure("first token p50", "ms", Better.LOWER)
LAST_FIRST_TOKEN = Measure("first token max", "ms", Better.LOWER)
WORST_GAP = Measure("worst gap of the running", "ms", Better.LOWER)
LONG_FIRST_TOKEN = Measure("first token of the last long prompt", "ms", Better.LOWER)

# A stream counts as running when this many pieces have come: the first ones are the head and the role.
RUNNING_PIECES = 4


@dataclass(frozen=True)
class Lengths:
    """Sizes in tokens that all scenarios share; prompts include what the template adds."""

    question: int = 32
    answer: int = 32
    short_answer: int = 8
    long_prompt: int = 1500
    long_answers: int = 64
    turn: int = 40
    repetition: int = 192


@dataclass(frozen=True)
class Scenario:
    """A way to use a server; ``run`` returns one figure for each measure, of which the plot shows the first ones."""

    key: str
    title: str
    measures: tuple[Measure, ...]
    run: Callable[[Chat, Prompts], Awaitable[Figures]]
    num_plotted: int = 1


def single_stream(lengths: Lengths) -> Scenario:
    """One user."""

    async def run(chat: Chat, prompts: Prompts) -> Figures:
        answer = await chat(prompts.ask("single", lengths.question), lengths.answer, GREEDY)
        return {**_flow([answer]), FIRST_TOKEN.name: answer.first_token_seconds * 1e3}

    return Scenario("single", "single stream", (SPEED, MEDIAN_GAP, FIRST_TOKEN), run)


def distinct_streams(lengths: Lengths, num_users: int) -> Scenario:
    """Users who share nothing."""

    async def run(chat: Chat, prompts: Prompts) -> Figures:
        return _flow(
            await _together(
                chat(prompts.ask(f"distinct/{num_users}/{number}", lengths.question), lengths.answer, GREEDY)
                for number in range(num_users)
            )
        )

    return Scenario(f"distinct-{num_users}", f"{num_users} distinct streams", (SPEED, MEDIAN_GAP), run)


def shared_prefix(lengths: Lengths, prefix_len: int, num_users: int = 8, *, seen: bool) -> Scenario:
    """Users who arrive together with one system prompt, which an earlier request has brought (or has not)."""
    key = f"shared-{prefix_len}-{'seen' if seen else 'new'}"

    async def run(chat: Chat, prompts: Prompts) -> Figures:
        shared = system(prompts.text(key, prefix_len))

        def conversation(name: str) -> list[Message]:
            return [shared, user(prompts.text(f"{key}/{name}", lengths.question))]

        if seen:
            await chat(conversation("before"), lengths.short_answer, GREEDY)
        answers = await _together(
            chat(conversation(str(number)), lengths.short_answer, GREEDY) for number in range(num_users)
        )
        return _first_tokens(answers)

    title = f"{num_users} users, shared prompt of {prefix_len} tokens, {'seen before' if seen else 'all at once'}"
    return Scenario(key, title, (FIRST_TOKEN, LAST_FIRST_TOKEN), run)


def growing_conversation(lengths: Lengths, num_users: int = 4, num_turns: int = 5) -> Scenario:
    """Users who talk on: every question comes with all that was said before."""

    async def run(chat: Chat, prompts: Prompts) -> Figures:
        async def talk(number: int) -> list[Answer]:
            said: list[Message] = []
            answers: list[Answer] = []
            for turn in range(num_turns):
                said.append(user(prompts.text(f"growing/{number}/{turn}", lengths.turn)))
                answers.append(await chat(said, lengths.answer, GREEDY))
                said.append(assistant(answers[-1].text))
            return answers[1:]

        conversations = await _together(talk(number) for number in range(num_users))
        return _first_tokens([answer for answers in conversations for answer in answers])

    title = f"{num_users} growing conversations of {num_turns} turns, from the second turn on"
    return Scenario("growing", title, (FIRST_TOKEN, LAST_FIRST_TOKEN), run)


def intrusion(lengths: Lengths, num_users: int = 8, num_long: int = 2) -> Scenario:
    """Long prompts that arrive while others read their streams."""

    async def run(chat: Chat, prompts: Prompts) -> Figures:
        running = _AllRunning(num_users)
        async with asyncio.TaskGroup() as group:
            streams = [
                group.create_task(
                    chat(
                        prompts.ask(f"intrusion/{number}", lengths.question),
                        lengths.long_answers,
                        GREEDY,
                        running.counter(),
                    )
                )
                for number in range(num_users)
            ]
            await running.wait()
            intruded = time.perf_counter()
            long = [
                group.create_task(
                    chat(prompts.ask(f"intrusion/long/{number}", lengths.long_prompt), lengths.short_answer, GREEDY)
                )
                for number in range(num_long)
            ]
        return {
            WORST_GAP.name: max(gaps((task.result() for task in streams), since=intruded), default=0.0) * 1e3,
            LONG_FIRST_TOKEN.name: max(task.result().first_token_seconds for task in long) * 1e3,
        }

    title = f"{num_long} prompts of {lengths.long_prompt} tokens arrive at {num_users} running streams"
    return Scenario("intrusion", title, (WORST_GAP, LONG_FIRST_TOKEN), run, num_plotted=2)


class _AllRunning:
    """Waits until each of several streams has brought its first tokens."""

    def __init__(self, num_streams: int) -> None:
        self._num_missing = num_streams
        self._event = asyncio.Event()

    def counter(self) -> Callable[[], None]:
        """Return what one stream calls for each piece."""
        num_pieces = 0

        def count() -> None:
            nonlocal num_pieces
            num_pieces += 1
            if num_pieces == RUNNING_PIECES:
                self._num_missing -= 1
                if not self._num_missing:
                    self._event.set()

        return count

    async def wait(self) -> None:
        """Return when all are running; raises ``TimeoutError`` when that takes as long as no answer may."""
        async with asyncio.timeout(SILENCE_TIMEOUT_SECONDS):
            await self._event.wait()


def mixed_sampling(lengths: Lengths) -> Scenario:
    """Users with different sampling settings, each with a fixed seed."""

    async def run(chat: Chat, prompts: Prompts) -> Figures:
        return _flow(
            await _together(
                chat(prompts.ask(f"mixed/{seed}", lengths.question), lengths.answer, {**sampling, "seed": seed})
                for seed, sampling in enumerate(MIXED_SAMPLING)
            )
        )

    title = f"{len(MIXED_SAMPLING)} streams with different sampling settings"
    return Scenario("mixed", title, (SPEED, MEDIAN_GAP), run)


def repetition(lengths: Lengths) -> Scenario:
    """One user who asks for the last answer once more: what speculation from the prompt is for.

    It takes a model that does repeat it, as ``write_model.py --reciting`` writes one.
    """

    async def run(chat: Chat, prompts: Prompts) -> Figures:
        question = prompts.text("repetition", lengths.question)
        first = await chat([user(question)], lengths.repetition, GREEDY)
        conversation = [user(question), assistant(first.text), user("Once more.")]
        return _flow([await chat(conversation, lengths.repetition, GREEDY)])

    return Scenario("repetition", "single stream that repeats its prompt", (SPEED, MEDIAN_GAP), run)


def all_scenarios(lengths: Lengths, prefix_lens: tuple[int, ...] = (430, 1000)) -> tuple[Scenario, ...]:
    """Return all of them, in the order of the table."""
    return (
        single_stream(lengths),
        distinct_streams(lengths, 8),
        distinct_streams(lengths, 16),
        *(shared_prefix(lengths, prefix_len, seen=seen) for prefix_len in prefix_lens for seen in (True, False)),
        growing_conversation(lengths),
        intrusion(lengths),
        mixed_sampling(lengths),
        repetition(lengths),
    )


async def _together(work: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """Run all at the same time; if one fails, the others are cancelled, and an ``ExceptionGroup`` is raised."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one) for one in work]
    return [task.result() for task in tasks]


def _flow(answers: list[Answer]) -> Figures:
    return {SPEED.name: aggregate_speed(answers), MEDIAN_GAP.name: median_gap(answers) * 1e3}


def _first_tokens(answers: list[Answer]) -> Figures:
    waits = [answer.first_token_seconds * 1e3 for answer in answers]
    return {FIRST_TOKEN.name: statistics.median(waits), LAST_FIRST_TOKEN.name: max(waits)}
