"""One suite for all backends: a client cannot tell them apart by what answers look like."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessage
from serving import CHAT, PATIENCE, Server, Site, curl, eventually, sse_data, stream_text, streamed_text, text_of

PARIS = "What is the capital of France?"
STORY = "Tell me a story"
WEATHER = "What is the weather in Paris?"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
SCHEMA = {"type": "object", "properties": {"answer": {"type": "string", "maxLength": 30}}, "required": ["answer"]}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "length": {"max_tokens": 3},
    "stop": {"stop": ["Paris"]},
    "n": {"n": 3, "max_tokens": 5},
    "logprobs": {"logprobs": True},
    "top_logprobs": {"logprobs": True, "top_logprobs": 2},
    "seed": {"seed": 5},
}
WITH_USAGE = {"stream_options": {"include_usage": True}}

WRONG: dict[str, dict[str, Any]] = {
    "no such model": {"model": "local/nothing-like-that"},
    "no messages": {"messages": []},
    "too many choices": {"n": 1000},
    "not a number": {"temperature": "hot"},
    "too many tokens": {"messages": [{"role": "user", "content": "word " * 20_000}]},
    "an unknown parameter": {"temprature": 1},
    "conflicting halves": {"model": "ollama/demo@llamacpp"},
    "logprobs missing": {"top_logprobs": 2},
}


def leaves(value: object, path: str = "") -> Iterator[str]:
    """The paths to all values in JSON, with the types of the values."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from leaves(child, f"{path}.{key}")
    elif isinstance(value, list):
        yield f"{path}: list"
        for child in value:
            yield from leaves(child, f"{path}[]")
    else:
        yield f"{path}: {'number' if isinstance(value, int | float) else type(value).__name__}"


def form(value: object) -> frozenset[str]:
    """What JSON looks like; the bytes of a token are left out, because one that ends a turn has none."""
    return frozenset(leaf for leaf in leaves(value) if not leaf.endswith("bytes[]: number"))


def chunks_of(site: Site, content: str, **parameters: object) -> list[dict[str, Any]]:
    """A stream as it comes over the wire, without the ``[DONE]`` that ends it."""
    response = site.post(content, stream=True, **parameters)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *data, end = sse_data(response.text.split("\n"))
    assert end == "[DONE]"
    return [json.loads(each) for each in data]


@pytest.mark.parametrize("kind", KINDS)
def test_whole_answers_have_the_same_fields(pool_site: Site, daemon_site: Site, kind: str) -> None:
    ours, theirs = (site.post(PARIS, **KINDS[kind]) for site in (pool_site, daemon_site))
    assert ours.status_code == theirs.status_code == 200, theirs.text
    assert form(theirs.json()) == form(ours.json())
    assert theirs.headers.keys() == ours.headers.keys()
    assert (ours.headers["x-llmspell-backend"], theirs.headers["x-llmspell-backend"]) == ("llamacpp", "ollama")


@pytest.mark.parametrize("options", [{}, WITH_USAGE], ids=["without usage", "with usage"])
@pytest.mark.parametrize("kind", KINDS)
def test_streams_have_the_same_kinds_of_chunks(
    pool_site: Site, daemon_site: Site, kind: str, options: dict[str, Any]
) -> None:
    ours, theirs = (chunks_of(site, PARIS, **KINDS[kind], **options) for site in (pool_site, daemon_site))
    assert {form(chunk) for chunk in theirs} == {form(chunk) for chunk in ours}
    n = KINDS[kind].get("n", 1)
    for part in (slice(0, n), slice(-2, None)):  # how a stream begins, and how it ends
        assert [form(chunk) for chunk in theirs[part]] == [form(chunk) for chunk in ours[part]]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", WRONG)
def test_errors_are_the_same(pool_site: Site, daemon_site: Site, kind: str, *, stream: bool) -> None:
    ours, theirs = (site.post(PARIS, **({"stream": stream} | WRONG[kind])) for site in (pool_site, daemon_site))
    assert ours.status_code == theirs.status_code >= 400
    assert form(theirs.json()) == form(ours.json())
    for key in ("type", "param", "code"):
        assert theirs.json()["error"][key] == ours.json()["error"][key]
    assert theirs.headers.keys() == ours.headers.keys()


def test_an_answer(site: Site) -> None:
    answer = site.ask(PARIS)
    assert (answer.object, answer.model) == ("chat.completion", site.model)
    (choice,) = answer.choices
    assert "Paris" in text_of(answer)
    assert (choice.index, choice.message.role, choice.finish_reason, choice.logprobs) == (0, "assistant", "stop", None)
    usage = answer.usage
    assert usage is not None
    assert usage.prompt_tokens > 5
    assert usage.completion_tokens > 2
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stream_says_what_a_whole_answer_says(site: Site) -> None:
    whole = site.ask(PARIS)
    chunks = site.stream(PARIS, **WITH_USAGE)
    assert streamed_text(chunks) == text_of(whole)
    assert len({(chunk.id, chunk.created, chunk.model, chunk.system_fingerprint) for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    *others, last = chunks
    assert last.choices == []
    assert whole.usage is not None
    assert last.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens
    assert all(chunk.usage is None for chunk in others)
    assert [choice.finish_reason for chunk in others for choice in chunk.choices if choice.finish_reason] == ["stop"]


def test_a_stream_comes_in_pieces(site: Site) -> None:
    pieces = [chunk for chunk in site.stream(STORY) if chunk.choices and chunk.choices[0].delta.content]
    assert len(pieces) > 20


async def test_the_asynchronous_client(site: Site) -> None:
    expected = text_of(site.ask(PARIS))
    parameters: dict[str, Any] = site.body(PARIS)
    async with site.server.async_client() as client:
        answer = await client.chat.completions.create(**parameters)
        assert text_of(answer) == expected
        async with await client.chat.completions.create(**parameters, stream=True) as stream:
            assert streamed_text([chunk async for chunk in stream]) == expected


def test_several_choices(site: Site) -> None:
    one, answer = site.ask(PARIS, max_tokens=5), site.ask(PARIS, max_tokens=5, n=3, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * 3
    assert [choice.message.content for choice in answer.choices] == [text_of(one)] * 3  # temperature 0
    assert answer.usage is not None
    assert one.usage is not None
    assert answer.usage.completion_tokens == 15
    assert answer.usage.prompt_tokens == one.usage.prompt_tokens
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 15


def test_several_choices_in_one_stream(site: Site) -> None:
    chunks = site.stream(PARIS, max_tokens=5, n=3, **WITH_USAGE)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert [choice.index for choice in choices[:3]] == [0, 1, 2]  # they are announced in order
    for index in range(3):
        mine = [choice for choice in choices if choice.index == index]
        assert [choice.finish_reason for choice in mine] == [None] * (len(mine) - 1) + ["length"]
        assert [choice.delta.role for choice in mine] == ["assistant"] + [None] * (len(mine) - 1)
    assert len({streamed_text(chunks, index) for index in range(3)}) == 1
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 15


@pytest.mark.parametrize("stop", ["Paris", ["nothing", "Paris", "France is Paris"]])
def test_stop_strings(site: Site, stop: str | list[str]) -> None:
    whole = text_of(site.ask(PARIS))
    cut = min(whole.find(string) for string in ([stop] if isinstance(stop, str) else stop) if string in whole)
    answer = site.ask(PARIS, stop=stop)
    assert text_of(answer) == whole[:cut]
    assert answer.choices[0].finish_reason == "stop"
    assert streamed_text(site.stream(PARIS, stop=stop)) == whole[:cut]


def test_log_probabilities(site: Site) -> None:
    answer = site.ask(PARIS, logprobs=True, top_logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    assert b"".join(bytes(token.bytes or []) for token in logprobs.content).decode() == text_of(answer)
    for token in logprobs.content:
        best = token.top_logprobs
        assert [entry.logprob for entry in best] == sorted((entry.logprob for entry in best), reverse=True)
        assert len(best) == 3
        assert best[0].token == token.token  # greedy
        assert best[0].logprob == token.logprob <= 0
    choices = [choice for chunk in site.stream(PARIS, logprobs=True, top_logprobs=3) for choice in chunk.choices]
    streamed = [token for choice in choices if choice.logprobs for token in choice.logprobs.content or []]
    assert [token.token for token in streamed] == [token.token for token in logprobs.content]


def test_log_probabilities_without_alternatives(site: Site) -> None:
    logprobs = site.ask(PARIS, logprobs=True).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    assert all(token.top_logprobs == [] for token in logprobs.content)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_length_limits(site: Site, name: str) -> None:
    answer = site.ask(STORY, **{name: 7})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 7


def test_a_seed_makes_an_answer_reproducible(site: Site) -> None:
    for seed in (0, 7, -1, 2**40):
        first, second = (site.ask(STORY, temperature=1, seed=seed, max_tokens=12) for _ in range(2))
        assert text_of(first)
        if site.backend == "ollama":  # in the pool, what else is in the batch may turn the last bit of a logit
            assert text_of(first) == text_of(second)


def assert_calls_for_weather(message: ChatCompletionMessage, finish_reason: str | None) -> None:
    assert finish_reason == "tool_calls"
    (call,) = message.tool_calls or []
    assert call.type == "function"
    assert call.id
    assert call.function.name == "get_weather"
    assert isinstance(json.loads(call.function.arguments)["city"], str)


@pytest.mark.parametrize("choice", ["auto", "required", NAMED], ids=["auto", "required", "named"])
def test_tool_calls(site: Site, choice: object) -> None:
    asked: dict[str, Any] = {"tools": TOOLS, "tool_choice": choice}
    if site.with_tools is None:
        assert_unsupported(site, "tools", **asked)
        return
    answer = site.ask(WEATHER, model=site.with_tools, **asked).choices[0]
    assert_calls_for_weather(answer.message, answer.finish_reason)
    assert answer.message.content is None
    with (
        site.server.client() as client,
        client.chat.completions.stream(**site.body(WEATHER, model=site.with_tools, **asked)) as stream,
    ):
        final = stream.get_final_completion().choices[0]
    assert_calls_for_weather(final.message, final.finish_reason)


def test_tools_that_must_not_be_called(site: Site) -> None:
    if site.with_tools is None:
        assert_unsupported(site, "tools", tools=TOOLS, tool_choice="none")
        return
    answer = site.ask(WEATHER, model=site.with_tools, tools=TOOLS, tool_choice="none")
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"
    assert text_of(answer)


def test_results_of_tools(site: Site) -> None:
    """Also in the pool, whose chat template takes them; the SDK's own message goes back as it came."""
    call: Any = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}
    message: Any = {"role": "assistant", "content": None, "tool_calls": [call]}
    asked: dict[str, Any] = {}
    if site.with_tools is not None:
        asked = {"model": site.with_tools, "tools": TOOLS}
        message = site.ask(WEATHER, **asked, tool_choice=NAMED).choices[0].message
        call = message.tool_calls[0].model_dump()
    with site.server.client() as client:
        result = {"role": "tool", "tool_call_id": call["id"], "content": "It rains cats."}
        messages = [{"role": "user", "content": WEATHER}, message, result]
        answer = client.chat.completions.create(**site.body(**(asked | {"messages": messages, "max_tokens": 40})))
    assert text_of(answer)
    assert answer.choices[0].finish_reason in {"stop", "length"}
    if site.fake is not None:
        *_, said, told = site.fake.chats[-1].body["messages"]
        assert said["tool_calls"][0]["function"]["name"] == told["tool_name"] == "get_weather"
        assert isinstance(said["tool_calls"][0]["function"]["arguments"], dict)


def test_reasoning(site: Site) -> None:
    if site.thinking is None:
        if site.backend == "llamacpp":  # a template that knows of no effort makes nothing of it
            assert text_of(site.ask(PARIS, reasoning_effort="low")) == text_of(site.ask(PARIS))
        return
    said = site.ask(PARIS, model=site.thinking).choices[0].message
    extra = said.model_extra or {}
    assert extra.get("reasoning") == extra.get("reasoning_content")
    assert extra.get("reasoning") or site.fake is None  # a model may think and need not
    deltas = [chunk.choices[0].delta for chunk in site.stream(PARIS, model=site.thinking)]
    assert "".join(delta.content or "" for delta in deltas) == said.content
    for name in ("reasoning", "reasoning_content"):
        assert "".join((delta.model_extra or {}).get(name, "") for delta in deltas) == extra.get(name, "")
    silent = site.ask(PARIS, model=site.thinking, reasoning_effort="none").choices[0].message
    assert not {"reasoning", "reasoning_content"} & (silent.model_extra or {}).keys()


def test_a_model_that_does_not_think_says_so(daemon_site: Site) -> None:
    assert_unsupported(daemon_site, "reasoning_effort", reasoning_effort="high")


@pytest.mark.parametrize("wanted", [{"type": "json_object"}, JSON_SCHEMA], ids=["object", "schema"])
def test_json_answers(site: Site, wanted: dict[str, Any]) -> None:
    content = text_of(site.ask("Say hello in JSON", response_format=wanted, max_tokens=200))
    if wanted is JSON_SCHEMA or site.fake is not None:  # a small model may go on for ever otherwise
        assert isinstance(json.loads(content)["answer"], str)


def assert_unsupported(site: Site, param: str, **parameters: object) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            (site.stream if stream else site.ask)(WEATHER, **parameters)
        assert (refused.value.code, refused.value.param) == ("unsupported_parameter", param)


def test_logit_bias(site: Site) -> None:
    if site.backend == "ollama":
        assert_unsupported(site, "logit_bias", logit_bias={"300": 5})
    else:
        assert text_of(site.ask(PARIS, logit_bias={"300": -100}))


def test_a_model_that_does_not_exist(site: Site) -> None:
    name = site.model.removeprefix("local/").partition("@")[0].partition(":")[0]
    asked = f"local/{name}x@{site.backend}"
    with pytest.raises(openai.NotFoundError) as missing:
        site.ask(PARIS, model=asked)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert f"local/{name}" in missing.value.message.replace(asked, "")  # a close match
    assert f"`llmspell model pull {asked}`" in missing.value.message
    with site.server.client() as client, pytest.raises(openai.NotFoundError):
        client.models.retrieve(asked)


def test_a_prompt_that_does_not_fit(site: Site) -> None:
    for ask in (site.ask, site.stream):
        with pytest.raises(openai.BadRequestError) as long:
            ask("word " * 20_000)
        assert long.value.code == "context_length_exceeded"
        assert text_of(site.ask(PARIS, max_tokens=3))


def test_models_are_listed_and_found(site: Site) -> None:
    with site.server.client() as client:
        assert text_of(site.ask("Hello", max_tokens=1))
        eventually(lambda: (client.models.retrieve(site.model).model_extra or {})["state"] == "warm", "it is in memory")
        listed = {model.id: model for model in client.models.list()}
        found = client.models.retrieve(site.model)
        assert listed[found.id] == found
        extra = found.model_extra or {}
        assert extra["backend"] == site.backend
        assert extra["context_length"] > 500
        assert extra["size_bytes"] > 1000
        assert "chat" in extra["capabilities"]
        for model in listed:
            assert client.models.retrieve(model).id == model


def test_curl(site: Site) -> None:
    url = site.server.url + CHAT
    answer = json.loads(curl(url, "-d", json.dumps(site.body(PARIS))))
    assert "Paris" in answer["choices"][0]["message"]["content"]
    output = curl("-N", "-i", url, "-d", json.dumps(site.body(PARIS, stream=True)))
    head, _, body = output.replace("\r\n", "\n").partition("\n\n")
    assert f"x-llmspell-backend: {site.backend}" in head.lower()
    assert "Paris" in stream_text(sse_data(body.split("\n")))


def test_both_backends_at_one_url(between: Server) -> None:
    with between.client(timeout=PATIENCE) as client:
        backends = {(model.model_extra or {})["backend"] for model in client.models.list()}
    assert backends == {"llamacpp", "ollama"}
