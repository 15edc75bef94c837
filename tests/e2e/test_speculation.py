"""Guessing ahead changes how fast an answer comes, and nothing in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI
from serving import Server, chat_body

LIST = "apples, pears, plums, cherries, apples, pears, plums, cherries, apples, pears, plums, cherries, "

GREEDY: dict[str, dict[str, Any]] = {
    "greedy": chat_body("Tell me a story", temperature=0, max_tokens=120),
    "repetitive": chat_body(f"Please go on: {LIST * 3}", temperature=0, max_tokens=100),
    "penalties": chat_body(f"Repeat: {LIST}", temperature=0, max_tokens=60, frequency_penalty=0.4),
    "repeat penalty": chat_body(f"Repeat: {LIST}", temperature=0, max_tokens=60, extra_body={"repeat_penalty": 1.2}),
    "greedy choices": chat_body("Count from 1 to 10", temperature=0, n=2, max_tokens=60),
    "stop": chat_body("Count from 1 to 10, and then again from 1 to 10", temperature=0, stop=["7", "ten"]),
    "stop in a story": chat_body("Tell me a story", temperature=0, stop=[" and", "the "], max_tokens=120),
    "logprobs": chat_body("Tell me a story", temperature=0, logprobs=True, top_logprobs=2, max_tokens=80),
    "few tokens": chat_body(f"Please go on: {LIST * 2}", temperature=0, max_tokens=3),
}
SAMPLED: list[dict[str, Any]] = [
    chat_body("Tell me a story", temperature=0.7, seed=3, max_tokens=100),
    chat_body(f"Please go on: {LIST}", temperature=0.9, top_p=0.8, seed=5, max_tokens=80),
    chat_body("Tell me a story", temperature=0.6, seed=7, n=2, max_tokens=60),
    chat_body("Count from 1 to 10, and then again from 1 to 10", temperature=0.5, seed=9, stop=["7"], max_tokens=60),
    chat_body(f"Repeat: {LIST}", temperature=0.8, seed=11, presence_penalty=0.3, max_tokens=60),
    chat_body("Write a poem", temperature=0.8, seed=13, extra_body={"top_k": 10}, max_tokens=80),
]


def started(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("speculation")
    # two servers on one thread each do not wait for each other's threads on a busy machine
    variables = {"LLMSPELL_LLAMACPP__SPECULATION": kind, "LLMSPELL_LLAMACPP__THREADS": "1"}
    with Server("--demo", home=home, variables=variables) as server:
        yield server
        assert server.failures == []


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from started("off", tmp_path_factory)


@pytest.fixture(scope="module")
def guessing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from started("prompt-lookup", tmp_path_factory)


def whole(client: OpenAI, body: dict[str, Any]) -> tuple[list[object], list[float]]:
    """What is said in an answer, and how likely it was."""
    answer = client.chat.completions.create(**body)
    said: list[object] = [answer.usage.completion_tokens]
    logprobs = []
    for choice in answer.choices:
        said += [choice.message.content, choice.finish_reason]
        for entry in (choice.logprobs.content or []) if choice.logprobs else []:
            said += [entry.token, [top.token for top in entry.top_logprobs]]
            logprobs += [entry.logprob, *(top.logprob for top in entry.top_logprobs)]
    return said, logprobs


def streamed(client: OpenAI, body: dict[str, Any]) -> tuple[list[object], list[float]]:
    """The same of a stream."""
    texts: dict[int, str] = {}
    ends: dict[int, str] = {}
    entries: dict[int, list[object]] = {}
    logprobs = []
    num_tokens = 0
    with client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}) as stream:
        for chunk in stream:
            num_tokens = chunk.usage.completion_tokens if chunk.usage else num_tokens
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
                ends[choice.index] = choice.finish_reason or ends.get(choice.index, "")
                for entry in (choice.logprobs.content or []) if choice.logprobs else []:
                    found = entries.setdefault(choice.index, [])
                    found += [entry.token, [top.token for top in entry.top_logprobs]]
                    logprobs += [entry.logprob, *(top.logprob for top in entry.top_logprobs)]
    said: list[object] = [num_tokens]
    for index in sorted(texts):
        said += [texts[index], ends[index], *entries.get(index, [])]
    return said, logprobs


@pytest.mark.parametrize("name", GREEDY)
def test_the_same_is_said_with_and_without_guessing_streamed_or_not(
    without: Server, guessing: Server, name: str
) -> None:
    with without.client() as plain, guessing.client() as fast:
        expected, logprobs = whole(plain, GREEDY[name])
        for found, found_logprobs in [whole(fast, GREEDY[name]), streamed(fast, GREEDY[name])] * 2:
            assert found == expected
            assert found_logprobs == pytest.approx(logprobs, abs=0.02)
        assert streamed(plain, GREEDY[name])[0] == expected


def test_a_seed_says_the_same_with_and_without_guessing_streamed_or_not(without: Server, guessing: Server) -> None:
    """Logits differ in their last bits with the width of a step, so a draw may once fall on the other side."""
    with without.client() as plain, guessing.client() as fast:
        expected = [whole(plain, body)[0] for body in SAMPLED]
        for answer in (whole, streamed, whole):
            found = [answer(fast, body)[0] for body in SAMPLED]
            assert sum(one == other for one, other in zip(found, expected, strict=True)) >= len(SAMPLED) - 1


def test_a_conversation_goes_on_alike_with_and_without_guessing(without: Server, guessing: Server) -> None:
    """Stop strings end turns in the middle of a guess; what is cached of such a turn has to be what was said."""
    conversations: list[list[dict[str, str]]] = []
    for server in (without, guessing):
        messages = [{"role": "user", "content": f"Please go on: {LIST * 2}"}]
        with server.client() as client:
            for stop in (" and", "s,", "."):
                body: dict[str, Any] = {"model": "local/demo", "messages": messages, "temperature": 0}
                answer = client.chat.completions.create(**body, max_tokens=60, stop=[stop])
                said = answer.choices[0].message.content or ""
                messages = [
                    *messages,
                    {"role": "assistant", "content": said + stop},
                    {"role": "user", "content": "And then?"},
                ]
        conversations.append(messages)
    assert json.dumps(conversations[0], indent=1) == json.dumps(conversations[1], indent=1)
