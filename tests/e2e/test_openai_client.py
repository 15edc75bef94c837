"""The official client against ``--demo``: what it asks for it gets, in its own types."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from shutil import which
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageParam
from serving import CHAT, DEMO, PATIENCE, Server, chat_body, sse_data, stream_text

PARIS = "What is the capital of France?"
STORY = "Tell me a story"

DICE = [str(token) for token in range(300, 1000, 7)]
"""Tokens among which every model is undecided when they are all favoured alike."""

Messages = list[ChatCompletionMessageParam]


def user(content: str) -> Messages:
    return [{"role": "user", "content": content}]


def ask(client: OpenAI, content: str = PARIS, **parameters: object) -> ChatCompletion:
    body: dict[str, Any] = {"model": DEMO, "messages": user(content), "temperature": 0} | parameters
    answer: ChatCompletion = client.chat.completions.create(**body)
    return answer


def text_of(answer: ChatCompletion) -> str:
    content = answer.choices[0].message.content
    assert content is not None
    return content


def streamed_text(chunks: Sequence[ChatCompletionChunk], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


def throws(max_tokens: int, bias: dict[str, int] | None = None, seed: int | None = 1) -> dict[str, Any]:
    """Parameters for an answer that is a row of ``DICE`` and different for each seed."""
    logit_bias = dict.fromkeys(DICE, 80) | (bias or {})
    return {"logit_bias": logit_bias, "temperature": 2, "max_tokens": max_tokens, "seed": seed}


def curl(*arguments: str) -> str:
    if which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "--silent", "--show-error", "--max-time", str(PATIENCE), *arguments]
    return subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout


def test_curl_gets_the_answer_of_the_readme(demo: Server) -> None:
    answer = json.loads(curl(demo.url + CHAT, "-d", json.dumps(chat_body(PARIS, temperature=0))))
    assert "Paris" in answer["choices"][0]["message"]["content"]


def test_curl_gets_a_stream(demo: Server) -> None:
    output = curl("-N", "-i", demo.url + CHAT, "-d", json.dumps(chat_body(PARIS, temperature=0, stream=True)))
    head, _, body = output.replace("\r\n", "\n").partition("\n\n")
    assert "content-type: text/event-stream" in head.lower()
    assert "Paris" in stream_text(sse_data(body.split("\n")))


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Hello", "help you"),
        (PARIS, "Paris"),
        ("What is 2 + 2?", "4"),
        ("Count from 1 to 10", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"),
        (STORY, "Once upon a time"),
    ],
)
def test_the_demo_model_makes_sense(client: OpenAI, question: str, expected: str) -> None:
    answer = ask(client, question)
    assert expected in text_of(answer)
    assert answer.choices[0].finish_reason == "stop"


def test_the_demo_model_remembers_a_name(client: OpenAI) -> None:
    messages: Messages = [*user("My name is Anna"), {"role": "assistant", "content": "Nice to meet you, Anna!"}]
    assert "Anna" in text_of(ask(client, messages=[*messages, *user("What is my name?")]))


def test_an_answer_has_everything_that_an_openai_answer_has(client: OpenAI) -> None:
    before = int(time.time())
    answer, other = ask(client), ask(client)
    assert answer.object == "chat.completion"
    assert answer.model == DEMO
    assert answer.id.startswith("chatcmpl-")
    assert answer.id != other.id
    assert before <= answer.created <= time.time()
    assert answer.system_fingerprint
    assert answer.system_fingerprint == other.system_fingerprint
    (choice,) = answer.choices
    assert (choice.index, choice.message.role, choice.message.refusal, choice.logprobs) == (0, "assistant", None, None)
    usage = answer.usage
    assert usage is not None
    assert usage.prompt_tokens > 5
    assert usage.completion_tokens > 2
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stream_says_what_a_whole_answer_says(client: OpenAI) -> None:
    whole = ask(client)
    with client.chat.completions.create(
        model=DEMO, messages=user(PARIS), temperature=0, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert streamed_text(chunks) == text_of(whole)
    assert len({(chunk.id, chunk.created, chunk.system_fingerprint, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert [*filter(None, reasons)] == ["stop"]


def test_a_stream_without_options_has_no_usage(client: OpenAI) -> None:
    with client.chat.completions.create(model=DEMO, messages=user(PARIS), stream=True, max_tokens=3) as stream:
        chunks = list(stream)
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)


def test_a_stream_comes_in_pieces(client: OpenAI) -> None:
    with client.chat.completions.create(model=DEMO, messages=user(STORY), temperature=0, stream=True) as stream:
        pieces = [chunk for chunk in stream if chunk.choices and chunk.choices[0].delta.content]
    assert len(pieces) > 50


async def test_the_asynchronous_client(demo: Server, client: OpenAI) -> None:
    expected = text_of(ask(client))
    async with demo.async_client() as asynchronous:
        answer = await asynchronous.chat.completions.create(model=DEMO, messages=user(PARIS), temperature=0)
        assert text_of(answer) == expected
        async with await asynchronous.chat.completions.create(
            model=DEMO, messages=user(PARIS), temperature=0, stream=True
        ) as stream:
            assert streamed_text([chunk async for chunk in stream]) == expected
        assert [model.id async for model in asynchronous.models.list()] == [DEMO]


def test_raw_responses(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=DEMO, messages=user(PARIS), temperature=0, extra_headers={"x-request-id": "mine"}
    )
    assert raw.headers["content-type"] == "application/json"
    assert raw.headers["x-request-id"] == raw.request_id == "mine"
    assert "Paris" in text_of(raw.parse())


def test_the_streaming_helper_of_the_client(client: OpenAI) -> None:
    with client.chat.completions.stream(model=DEMO, messages=user(PARIS), temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert "Paris" in str(final.choices[0].message.content)
    assert events[-1].type == "content.done"


def test_several_choices(client: OpenAI) -> None:
    answer = ask(client, n=3, **throws(30))
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in answer.choices]
    assert len(set(texts)) == 3
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 90
    with client.chat.completions.create(model=DEMO, messages=user(PARIS), n=3, stream=True, **throws(30)) as stream:
        chunks = list(stream)
    assert len({streamed_text(chunks, index) for index in range(3)}) == 3


def test_log_probabilities(client: OpenAI) -> None:
    answer = ask(client, logprobs=True, top_logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    assert answer.usage is not None
    assert len(logprobs.content) in {answer.usage.completion_tokens, answer.usage.completion_tokens - 1}
    assert b"".join(bytes(token.bytes or []) for token in logprobs.content).decode() == text_of(answer)
    for token in logprobs.content:
        best = token.top_logprobs
        assert len(best) == 3
        assert [entry.logprob for entry in best] == sorted((entry.logprob for entry in best), reverse=True)
        assert best[0].token == token.token  # greedy
        assert best[0].logprob == token.logprob <= 0


def test_streamed_log_probabilities(client: OpenAI) -> None:
    whole = ask(client, logprobs=True, top_logprobs=2).choices[0].logprobs
    with client.chat.completions.create(
        model=DEMO, messages=user(PARIS), temperature=0, stream=True, logprobs=True, top_logprobs=2
    ) as stream:
        choices = [choice for chunk in stream for choice in chunk.choices]
    entries = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content or []]
    assert whole is not None
    assert [entry.token for entry in entries] == [entry.token for entry in whole.content or []]


@pytest.mark.parametrize("stop", ["Paris", ["nothing", "Paris", "France is Paris"]])
def test_stop_strings(client: OpenAI, stop: str | list[str]) -> None:
    whole = text_of(ask(client))
    answer = ask(client, stop=stop)
    cut = min(whole.find(string) for string in ([stop] if isinstance(stop, str) else stop) if string in whole)
    assert text_of(answer) == whole[:cut]
    assert answer.choices[0].finish_reason == "stop"
    with client.chat.completions.create(
        model=DEMO, messages=user(PARIS), temperature=0, stop=stop, stream=True
    ) as stream:
        assert streamed_text(list(stream)) == whole[:cut]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_length_limits(client: OpenAI, name: str) -> None:
    answer = ask(client, STORY, **{name: 7})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 7


def test_a_seed_makes_an_answer_reproducible(client: OpenAI) -> None:
    def sampled(seed: int) -> str:
        return text_of(ask(client, **throws(30, seed=seed)))

    # Logits depend in their last bits on what else is in the batch and on how the prompt came into the cache: another
    # test's stream that is just ending may turn one draw. Without the seed no two of these answers would be the same.
    ((_, most),) = Counter(sampled(7) for _ in range(5)).most_common(1)
    assert most >= 3
    assert len({sampled(seed) for seed in (-1, 0, 7, 8, 2**40)}) == 5


def test_an_answer_without_a_seed_varies(client: OpenAI) -> None:
    assert len({text_of(ask(client, **throws(30, seed=None))) for _ in range(3)}) == 3


def tokens_of(answer: ChatCompletion) -> list[str]:
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    return [entry.token for entry in logprobs.content or []]


def test_logit_bias_forces_and_forbids(client: OpenAI) -> None:
    forced, *_ = DICE
    (piece,) = {*tokens_of(ask(client, logit_bias={forced: 100}, max_tokens=5, logprobs=True))}
    thrown = tokens_of(ask(client, **throws(60), logprobs=True))
    assert len({*thrown}) > 2
    assert piece in tokens_of(ask(client, **throws(60, {forced: 100}), logprobs=True))
    assert piece not in tokens_of(ask(client, **throws(60, {forced: -100}), logprobs=True))


def test_penalties_stop_repetition(client: OpenAI) -> None:
    def thrown(**parameters: object) -> list[str]:
        return tokens_of(ask(client, **(throws(60) | {"logprobs": True} | parameters)))

    plain = thrown()
    assert len({*thrown(frequency_penalty=2)}) > len({*plain})
    assert len({*thrown(extra_body={"repeat_penalty": 1.1})}) > len({*plain})
    # taken off once only, which may be too little for another winner, but not to change no throw at all
    assert thrown(presence_penalty=2) != plain


def test_filters_of_llama_cpp(client: OpenAI) -> None:
    greedy = text_of(ask(client))
    for extra in ({"top_k": 1}, {"min_p": 1.0}):
        assert text_of(ask(client, temperature=2, extra_body=extra)) == greedy
    assert text_of(ask(client, temperature=2, top_p=0)) == greedy


def test_ignore_eos_goes_on(client: OpenAI) -> None:
    answer = ask(client, max_tokens=50, extra_body={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 50


def test_every_role_and_content_parts(client: OpenAI) -> None:
    call: Messages = [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city":"Oslo"}'},
                }
            ],
        }
    ]
    messages: Messages = [
        {"role": "system", "content": "You are kind."},
        {"role": "developer", "content": [{"type": "text", "text": "You are brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "Weather"}, {"type": "text", "text": "in Oslo?"}]},
        *call,
        {"role": "tool", "tool_call_id": "call_1", "content": "It rains."},
        {"role": "assistant", "content": [{"type": "text", "text": "It rains."}]},
        *user(PARIS),
    ]
    answer = ask(client, messages=messages, max_tokens=20)
    assert text_of(answer)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 50


def test_an_answer_can_be_sent_back_as_it_came(client: OpenAI) -> None:
    first = ask(client).choices[0].message
    messages: list[Any] = [*user(PARIS), first, *user("Thank you")]
    assert text_of(ask(client, messages=messages, max_tokens=5))
    as_json: list[Any] = [*user(PARIS), first.model_dump(), *user("Thank you")]
    assert text_of(ask(client, messages=as_json, max_tokens=5))


def test_a_conversation_reuses_its_prefix(client: OpenAI) -> None:
    question = "What is 3 + 4? My number is 271."
    first = ask(client, question)
    messages: Messages = [*user(question), {"role": "assistant", "content": text_of(first)}, *user("And 5 + 1?")]
    second = ask(client, messages=messages)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert second.usage.prompt_tokens_details.cached_tokens is not None
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens


def test_unicode_comes_and_goes(client: OpenAI) -> None:
    text = "Grüße, 世界! 🦙🧙\u200d♀️ \u202e \x00\x7f \ufeff é"
    answer = ask(client, f"Say {text}", max_tokens=40)
    assert answer.choices[0].finish_reason in {"stop", "length"}
    # each part of an emoji is a token of its own in a vocabulary with byte tokens
    streamed = client.chat.completions.create(
        model=DEMO, messages=user("Say 🦙"), temperature=2, seed=1, max_tokens=100, stream=True, logprobs=True
    )
    with streamed as stream:
        chunks = list(stream)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    entries = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content or []]
    whole = b"".join(bytes(entry.bytes or []) for entry in entries).decode("utf-8", "replace")
    assert streamed_text(chunks) == whole


def test_models_are_listed_and_found(client: OpenAI, demo: Server) -> None:
    listed = client.models.list()
    assert listed.object == "list"
    (model,) = listed.data
    assert (model.id, model.object, model.owned_by) == (DEMO, "model", "llmspell")
    extra = model.model_extra or {}
    assert extra["state"] == "warm"
    assert extra["backend"] == "llamacpp"
    assert extra["context_length"] > 500
    assert extra["size_bytes"] > 1000
    assert client.models.retrieve(DEMO) == model  # the client encodes the slash
    for path in ("local/demo", "local%2Fdemo", "demo", "demo@llamacpp", "local/demo@llama.cpp", "llamacpp/demo"):
        assert client.get(f"/models/{path}", cast_to=openai.types.Model) == model
    assert demo.process.poll() is None


def test_errors_are_the_classes_of_the_client(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        ask(client, model="gpt-5")
    assert missing.value.code == "model_not_found"
    assert missing.value.param == "model"
    assert missing.value.request_id
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("local/nothing")
    with pytest.raises(openai.BadRequestError) as bad:
        ask(client, n=10_000)
    assert (bad.value.param, bad.value.type) == ("n", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as unsupported:
        ask(client, functions=[{"name": "f"}])
    assert (unsupported.value.code, unsupported.value.param) == ("unsupported_parameter", "functions")
    with pytest.raises(openai.BadRequestError) as long:
        ask(client, "word " * 20_000, stream=True)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as conflict:
        ask(client, model="ollama/demo@llamacpp")
    assert conflict.value.code == "invalid_model_spec"


def test_what_cannot_be_honoured_but_does_not_matter_is_named(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=DEMO,
        messages=user("Hello"),
        max_tokens=1,
        user="someone",
        metadata={"purpose": "test"},
        store=True,
        service_tier="flex",
    )
    assert {*raw.headers["x-llmspell-ignored"].split(", ")} == {"store", "service_tier"}
    assert raw.parse().service_tier == "default"
