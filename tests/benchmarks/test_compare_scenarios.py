from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import pytest
from compare.load import Answer, BadAnswer, Message
from compare.prompts import Prompts, TokenScale
from compare.scenarios import MIXED_SAMPLING, NEUTRAL, RUNNING_PIECES, Lengths, all_scenarios

SCENARIOS = {scenario.key: scenario for scenario in all_scenarios(Lengths())}
PROMPTS = Prompts(TokenScale(0.0, 1.0), 1, 0)


class FakeChat:
    """Answers at once, with two texts, and remembers what was asked."""

    def __init__(self, *, fails: bool = False) -> None:
        self.asked: list[tuple[list[Message], int, Mapping[str, object]]] = []
        self._fails = fails

    async def __call__(
        self,
        messages: list[Message],
        max_tokens: int,
        parameters: Mapping[str, object],
        on_piece: Callable[[], None] = lambda: None,
    ) -> Answer:
        if self._fails:
            raise BadAnswer("no slot")
        self.asked.append((list(messages), max_tokens, parameters))
        started = time.perf_counter()
        for _ in range(RUNNING_PIECES):
            on_piece()
        await asyncio.sleep(0)
        return Answer(started, (started + 0.1, started + 0.2), "answer", max_tokens, 0, 0)

    @property
    def first_texts(self) -> list[str]:
        return [messages[0]["content"] for messages, _, _ in self.asked]


@pytest.mark.parametrize("key", SCENARIOS)
async def test_every_scenario_yields_all_its_measures(key: str) -> None:
    scenario = SCENARIOS[key]
    figures = await scenario.run(FakeChat(), PROMPTS)
    assert set(figures) == {measure.name for measure in scenario.measures}


@pytest.mark.parametrize("key", SCENARIOS)
async def test_a_server_that_fails_ends_the_scenario(key: str) -> None:
    with pytest.raises((BadAnswer, ExceptionGroup)):
        await SCENARIOS[key].run(FakeChat(fails=True), PROMPTS)


@pytest.mark.parametrize(("key", "num_users"), [("distinct-8", 8), ("distinct-16", 16)])
async def test_distinct_streams_share_nothing(key: str, num_users: int) -> None:
    chat = FakeChat()
    await SCENARIOS[key].run(chat, PROMPTS)
    assert len(set(chat.first_texts)) == num_users


@pytest.mark.parametrize(("key", "num_requests"), [("shared-430-seen", 9), ("shared-1000-new", 8)])
async def test_users_of_a_shared_prompt_differ_in_their_questions_only(key: str, num_requests: int) -> None:
    chat = FakeChat()
    await SCENARIOS[key].run(chat, PROMPTS)
    assert len(set(chat.first_texts)) == 1
    assert len({messages[1]["content"] for messages, _, _ in chat.asked}) == num_requests


async def test_prompts_that_were_seen_and_those_that_were_not_are_different_ones() -> None:
    seen, new = FakeChat(), FakeChat()
    await SCENARIOS["shared-430-seen"].run(seen, PROMPTS)
    await SCENARIOS["shared-430-new"].run(new, PROMPTS)
    assert not set(seen.first_texts) & set(new.first_texts)


async def test_conversations_grow_by_what_was_answered() -> None:
    chat = FakeChat()
    await SCENARIOS["growing"].run(chat, PROMPTS)
    assert sorted(len(messages) for messages, _, _ in chat.asked) == sorted([1, 3, 5, 7, 9] * 4)
    assert all(message["content"] == "answer" for messages, _, _ in chat.asked for message in messages[1::2])


async def test_long_prompts_come_when_all_streams_run() -> None:
    chat = FakeChat()
    await SCENARIOS["intrusion"].run(chat, PROMPTS)
    assert [len(text.split()) for text in chat.first_texts] == [32] * 8 + [1500] * 2


def test_all_sampling_settings_are_said_and_differ() -> None:
    assert all(set(sampling) == set(NEUTRAL) for sampling in MIXED_SAMPLING)
    assert len({tuple(sampling.values()) for sampling in MIXED_SAMPLING}) == len(MIXED_SAMPLING)
