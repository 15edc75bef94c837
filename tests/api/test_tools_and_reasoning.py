"""Tools, reasoning and what else a backend may have: between the wire and the backend, streamed and whole."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from api.scripted import HAS_EVERYTHING, HAS_LITTLE, ScriptedBackend, card, fail, finished, play
from api.serving import CHAT, HELLO, error_of
from server.api.application import create_api
from server.api.config import ApiConfig
from server.core.errors import BackendError, InvalidOutput
from server.core.events import (
    ChoiceFinished,
    Event,
    Failed,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from server.core.model_spec import BackendName
from server.core.parameters import listed, refused
from server.core.request import (
    ImageInput,
    Message,
    ReasoningEffort,
    Role,
    Tool,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
)
from server.router import ModelRouter, RoutingConfig

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Outside", "parameters": SCHEMA}}
TIME = {"type": "function", "function": {"name": "time"}}
NAMED_TIME = {"type": "function", "function": {"name": "time"}}
NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
ANY_ARGUMENTS = {"type": "object", "properties": {}}
PNG = "data:image/png;base64,iVBORw0KGgo="


@pytest.fixture
def backend() -> ScriptedBackend:
    """A backend that has nearly everything."""
    cards = [card(backend=BackendName.OLLAMA)]
    lacking = {"logit_bias": refused(), "ignore_eos": refused(), "messages[].name": listed("no names")}
    return ScriptedBackend(name=BackendName.OLLAMA, parameters={**HAS_EVERYTHING, **lacking}, cards=cards)


@dataclass
class Said:
    """One answer in the form that does not depend on how it was sent."""

    response: httpx.Response
    choices: list[dict[str, Any]]


async def said(client: httpx.AsyncClient, *, stream: bool, **more: object) -> Said:
    response = await client.post(CHAT, json={**HELLO, "stream": stream, **more})
    assert response.status_code == 200, response.text
    if not stream:
        ChatCompletion.model_validate(response.json())
        choices = [each["message"] | {"finish_reason": each["finish_reason"]} for each in response.json()["choices"]]
        return Said(response, choices)
    frames = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert frames[-1] == "[DONE]"
    merged: dict[int, dict[str, Any]] = {}
    for frame in frames[:-1]:
        chunk = json.loads(frame)
        ChatCompletionChunk.model_validate(chunk)
        for choice in chunk["choices"]:
            merge(merged.setdefault(choice["index"], {"content": ""}), choice)
    return Said(response, [message for _, message in sorted(merged.items())])


def merge(message: dict[str, Any], choice: dict[str, Any]) -> None:
    delta = choice["delta"]
    for name in ("content", "reasoning", "reasoning_content"):
        if delta.get(name):
            message[name] = message.get(name, "") + delta[name]
    for call in delta.get("tool_calls", ()):
        calls = message.setdefault("tool_calls", [])
        if call["index"] == len(calls):
            calls.append({"id": call["id"], "type": call["type"], "function": dict(call["function"])})
        else:
            calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    message["finish_reason"] = choice["finish_reason"]


def call_events(index: int = 0) -> list[Event]:
    return [
        ToolCallDelta(index, 0, "call_a", "weather", '{"city":'),
        ToolCallDelta(index, 0, None, None, '"Zürich"}'),
        ToolCallDelta(index, 1, "call_b", "time", "{}"),
        ChoiceFinished(index, FinishReason.TOOL_CALLS),
    ]


CALLS = [
    {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Zürich"}'}},
    {"id": "call_b", "type": "function", "function": {"name": "time", "arguments": "{}"}},
]


@pytest.mark.parametrize("stream", [False, True])
async def test_tool_calls(client: httpx.AsyncClient, backend: ScriptedBackend, stream: bool) -> None:  # noqa: FBT001
    backend.script = play([Started()], *([event] for event in call_events()), [finished()])

    (message,) = (await said(client, stream=stream, tools=[WEATHER, TIME])).choices

    assert message["tool_calls"] == CALLS
    assert message["finish_reason"] == "tool_calls"
    assert not message["content"]


@pytest.mark.parametrize("stream", [False, True])
async def test_text_and_calls_of_several_choices(
    client: httpx.AsyncClient,
    backend: ScriptedBackend,
    stream: bool,  # noqa: FBT001
) -> None:
    text = [TextDelta(1, "Let me see."), *call_events(1), TextDelta(0, "No."), ChoiceFinished(0, FinishReason.STOP)]
    backend.script = play([Started()], text, [finished()])

    first, second = (await said(client, stream=stream, tools=[WEATHER, TIME], n=2)).choices

    assert (first["content"], first["finish_reason"]) == ("No.", "stop")
    assert "tool_calls" not in first
    assert (second["content"], second["tool_calls"]) == ("Let me see.", CALLS)


async def test_content_is_null_beside_calls(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.script = play([Started(), *call_events(), finished()])

    message = (await said(client, stream=False, tools=[WEATHER])).choices[0]

    assert message["content"] is None


@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning_has_both_of_its_names(
    client: httpx.AsyncClient,
    backend: ScriptedBackend,
    stream: bool,  # noqa: FBT001
) -> None:
    thoughts = [ReasoningDelta(0, "Hm"), ReasoningDelta(0, ", well")]
    backend.script = play([Started(), *thoughts, TextDelta(0, "Yes"), ChoiceFinished(0, FinishReason.STOP), finished()])

    (message,) = (await said(client, stream=stream)).choices

    assert (message["reasoning"], message["reasoning_content"], message["content"]) == ("Hm, well", "Hm, well", "Yes")


async def test_tokens_of_reasoning_are_counted(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    usage = Usage(prompt_tokens=5, completion_tokens=9, reasoning_tokens=6)
    backend.script = play([Started(), ReasoningDelta(0, "Hm"), ChoiceFinished(0, FinishReason.STOP), finished(usage)])

    whole = (await said(client, stream=False)).response.json()["usage"]
    stream = (await said(client, stream=True, stream_options={"include_usage": True})).response.text
    (streamed,) = [found for line in stream.splitlines() if "usage" in line and (found := usage_of(line))]

    assert whole == streamed
    counts = CompletionUsage.model_validate(whole)
    assert counts.completion_tokens_details is not None
    assert (counts.completion_tokens, counts.completion_tokens_details.reasoning_tokens) == (9, 6)


def usage_of(line: str) -> dict[str, Any]:
    return dict(json.loads(line.removeprefix("data: "))["usage"] or {})


async def test_deltas_of_a_call(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    """The first one names the call, those that follow have nothing but pieces of its arguments; the role comes once."""
    pieces = [ToolCallDelta(0, 0, "call_a", "weather", ""), ToolCallDelta(0, 0, None, None, '{"city":'), *call_events()]
    backend.script = play([Started(), *pieces[:2], *pieces[3:]], [finished()])

    response = (await said(client, stream=True, tools=[WEATHER, TIME])).response
    frames = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
    first, *deltas = [json.loads(frame)["choices"][0]["delta"] for frame in frames]

    assert first["role"] == "assistant"
    assert not any("role" in delta for delta in deltas)
    assert deltas[0] == {
        "tool_calls": [
            {"index": 0, "id": "call_a", "type": "function", "function": {"name": "weather", "arguments": ""}}
        ]
    }
    assert deltas[1] == {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]}


@pytest.mark.parametrize("content", ["", "Let me see."])
async def test_output_that_is_not_as_demanded_is_a_failure(
    client: httpx.AsyncClient, backend: ScriptedBackend, content: str
) -> None:
    events: list[Event] = [Started(), *([TextDelta(0, content)] if content else [])]
    backend.script = play(events, [Failed(InvalidOutput("it is no JSON"))])

    whole = await client.post(CHAT, json=HELLO)
    streamed = await client.post(CHAT, json={**HELLO, "stream": True})

    assert error_of(whole) == (502, "invalid_output", None)
    assert streamed.status_code == (200 if content else 502)
    last = [line for line in streamed.text.splitlines() if line][-1].removeprefix("data: ")
    assert json.loads(last) == whole.json()


async def test_without_reasoning_there_is_no_field_for_it(client: httpx.AsyncClient) -> None:
    message = (await said(client, stream=False)).choices[0]

    assert not {"reasoning", "reasoning_content", "tool_calls"} & message.keys()


# --- what the backend is told ---


async def request_of(client: httpx.AsyncClient, backend: ScriptedBackend, **more: object) -> Any:  # noqa: ANN401
    response = await client.post(CHAT, json={**HELLO, **more})
    assert response.status_code == 200, response.text
    return backend.requests[-1]


async def test_tools_reach_the_backend(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    strict = {"type": "function", "function": {"name": "mcp.dot-and_more", "strict": True, "parameters": {}}}
    request = await request_of(client, backend, tools=[WEATHER, TIME, strict], parallel_tool_calls=False)

    assert request.tools == (
        Tool("weather", "Outside", SCHEMA),
        Tool("time", None, NO_ARGUMENTS),
        Tool("mcp.dot-and_more", None, NO_ARGUMENTS, strict=True),
    )
    assert request.tool_choice == ToolChoice()
    assert request.parallel_tool_calls is False


@pytest.mark.parametrize(
    ("given", "known"),
    [
        (None, NO_ARGUMENTS),
        ({}, NO_ARGUMENTS),
        ({"type": "object"}, ANY_ARGUMENTS),
        ({"properties": {"a": {}}}, {"type": "object", "properties": {"a": {}}}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {}}}, {**ANY_ARGUMENTS, "$ref": "#/$defs/a", "$defs": {"a": {}}}),
        ({"type": "object", "properties": {}, "required": ["a"]}, {**ANY_ARGUMENTS, "required": ["a"]}),
    ],
)
async def test_arguments_are_an_object_whether_the_schema_says_so_or_not(
    client: httpx.AsyncClient, backend: ScriptedBackend, given: object, known: object
) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": given}}
    request = await request_of(client, backend, tools=[tool])
    assert request.tools[0].parameters == known


@pytest.mark.parametrize(("mode", "found"), [("auto", ToolChoiceMode.AUTO), ("required", ToolChoiceMode.REQUIRED)])
async def test_only_some_tools_are_allowed(
    client: httpx.AsyncClient, backend: ScriptedBackend, mode: str, found: ToolChoiceMode
) -> None:
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [NAMED_TIME]}}

    request = await request_of(client, backend, tools=[WEATHER, TIME], tool_choice=choice)

    assert [tool.name for tool in request.tools] == ["time"]
    assert request.tool_choice == ToolChoice(found)


async def test_128_tools(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    tools = [{"type": "function", "function": {"name": f"f{index}"}} for index in range(128)]
    assert len((await request_of(client, backend, tools=tools)).tools) == 128
    response = await client.post(CHAT, json={**HELLO, "tools": [*tools, TIME]})
    assert error_of(response) == (400, "invalid_value", "tools")
    assert "129 tools, at most 128" in response.text


async def test_a_result_of_a_megabyte(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    answer = {"role": "assistant", "content": None, "tool_calls": CALLS[:1]}
    messages = [*HELLO["messages"], answer, result("call_a", "rain " * 200_000)]
    request = await request_of(client, backend, messages=messages)
    assert len(request.messages[-1].content) == 1_000_000


@pytest.mark.parametrize(
    ("wire", "choice"),
    [
        ("auto", ToolChoice()),
        ("none", ToolChoice(ToolChoiceMode.NONE)),
        ("required", ToolChoice(ToolChoiceMode.REQUIRED)),
        (NAMED_TIME, ToolChoice(ToolChoiceMode.REQUIRED, "time")),
    ],
)
async def test_tool_choices(client: httpx.AsyncClient, backend: ScriptedBackend, wire: object, choice: object) -> None:
    assert (await request_of(client, backend, tools=[WEATHER, TIME], tool_choice=wire)).tool_choice == choice


def result(call_id: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


async def test_a_history_of_tools(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    answer = {"role": "assistant", "content": None, "tool_calls": CALLS, "reasoning_content": "Hm"}
    results = [result("call_b", "noon"), result("call_a", "rain")]
    request = await request_of(client, backend, messages=[*HELLO["messages"], answer, *results])

    calls = (ToolCall("call_a", "weather", '{"city":"Zürich"}'), ToolCall("call_b", "time", "{}"))
    assert request.messages[1:] == (
        Message(Role.ASSISTANT, "", tool_calls=calls, reasoning="Hm"),
        Message(Role.TOOL, "noon", tool_call_id="call_b"),
        Message(Role.TOOL, "rain", tool_call_id="call_a"),
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_can_be_sent_back(
    client: httpx.AsyncClient,
    backend: ScriptedBackend,
    stream: bool,  # noqa: FBT001
) -> None:
    backend.script = play([Started(), ReasoningDelta(0, "Hm"), *call_events(), finished()])
    message = {"role": "assistant"} | (await said(client, stream=stream, tools=[WEATHER])).choices[0]
    message.pop("finish_reason")

    results = [result(call["id"], "5") for call in message["tool_calls"]]
    await request_of(client, backend, messages=[*HELLO["messages"], message, *results])

    assert backend.requests[-1].messages[1].reasoning == "Hm"
    assert [call.id for call in backend.requests[-1].messages[1].tool_calls] == ["call_a", "call_b"]


@pytest.mark.parametrize("effort", ReasoningEffort)
async def test_reasoning_efforts(client: httpx.AsyncClient, backend: ScriptedBackend, effort: ReasoningEffort) -> None:
    assert (await request_of(client, backend, reasoning_effort=effort.value)).reasoning_effort is effort


@pytest.mark.parametrize("value", ["5m", "1h30m", "0", "-1s", "1.5h", ".5s", "100ms", 0, -1, 300, 0.5])
async def test_keep_alive(client: httpx.AsyncClient, backend: ScriptedBackend, value: object) -> None:
    assert (await request_of(client, backend, keep_alive=value)).keep_alive == value


async def test_template_options_and_a_budget(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    options = {"enable_thinking": False, "documents": [{"a": 1.5}]}
    request = await request_of(client, backend, chat_template_kwargs=options, thinking_budget=0)
    assert (request.template_options, request.thinking_budget) == (options, 0)
    request = await request_of(client, backend)
    assert (request.template_options, request.thinking_budget) == ({}, None)


async def test_num_ctx(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    assert (await request_of(client, backend, num_ctx=8192)).num_ctx == 8192


async def test_images(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    parts = [
        {"type": "text", "text": "What are these?"},
        {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}},
        {"type": "text", "text": "Well?"},
        {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}},
    ]
    request = await request_of(client, backend, messages=[{"role": "user", "content": parts}])

    images = (
        ImageInput(PNG, "messages[0].content[1].image_url.url"),
        ImageInput("https://a.example/b.png", "messages[0].content[3].image_url.url"),
    )
    assert request.messages == (Message(Role.USER, "What are these?\nWell?", images=images),)


# --- what is refused ---


def function(name: str = "f", **more: object) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def called(arguments: str = "{}") -> dict[str, Any]:
    calls = [{"id": "a", "type": "function", "function": {"name": "time", "arguments": arguments}}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"keep_alive": "300"}, "keep_alive"),
    ({"keep_alive": ""}, "keep_alive"),
    ({"keep_alive": "abc"}, "keep_alive"),
    ({"keep_alive": "5 m"}, "keep_alive"),
    ({"keep_alive": "600000h"}, "keep_alive"),
    ({"keep_alive": "-600000h"}, "keep_alive"),
    ({"keep_alive": "9" * 500 + "h"}, "keep_alive"),
    ({"keep_alive": "5m\n"}, "keep_alive"),
    ({"keep_alive": True}, "keep_alive"),
    ({"keep_alive": []}, "keep_alive"),
    ({"keep_alive": 1e30}, "keep_alive"),
    ({"num_ctx": 0}, "num_ctx"),
    ({"num_ctx": 2**24 + 1}, "num_ctx"),
    ({"num_ctx": 1.5}, "num_ctx"),
    ({"num_ctx": "4096"}, "num_ctx"),
    ({"reasoning_effort": "max"}, "reasoning_effort"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "x" * 65}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools[0].type"),
    ({"tools": [function(name="")]}, "tools[0].function.name"),
    ({"tools": [function(name="a\n")]}, "tools[0].function.name"),
    ({"tools": [function(name="ä")]}, "tools[0].function.name"),
    ({"tools": [function(parameters=[])]}, "tools[0].function.parameters"),
    ({"tools": [function(parameters={"type": "string"})]}, "tools[0].function.parameters.type"),
    ({"tools": [function(parameters={"type": ["object"]})]}, "tools[0].function.parameters.type"),
    ({"tools": [function(parameters={"title": "x" * 2**18})]}, "tools[0].function.parameters"),
    ({"tools": [function(strict="yes")]}, "tools[0].function.strict"),
    ({"tools": [function(output={})]}, "tools[0].function.output"),
    ({"tools": [WEATHER, TIME, TIME]}, "tools[2]"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "any"}, "tool_choice"),
    ({"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "weather"}}}, "tool_choice"),
    ({"tools": [TIME], "tool_choice": {"type": "custom", "custom": {"name": "time"}}}, "tool_choice.type"),
    ({"tools": [TIME], "tool_choice": {**NAMED_TIME, "name": "time"}}, "tool_choice.name"),
    ({"tools": [TIME], "tool_choice": allowed("auto", "weather")}, "tool_choice"),
    ({"tools": [TIME], "tool_choice": allowed("none", "time")}, "tool_choice.allowed_tools.mode"),
    ({"tools": [TIME], "tool_choice": allowed("auto")}, "tool_choice.allowed_tools.tools"),
    ({"tool_choice": allowed("auto", "time")}, "tool_choice"),
    ({"tools": [], "tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": NAMED_TIME}, "tool_choice"),
    ({"thinking_budget": -1}, "thinking_budget"),
    ({"thinking_budget": 1.5}, "thinking_budget"),
    ({"thinking_budget": "many"}, "thinking_budget"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"a": math.inf}}, "chat_template_kwargs"),
    ({"messages": [{"role": "user", "content": "a", "tool_calls": CALLS}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].tool_call_id"),
    ({"messages": [result("call_a", "rain")]}, "messages[0].tool_call_id"),
    ({"messages": [*HELLO["messages"], called(), *HELLO["messages"]]}, "messages[2]"),
    (
        {"messages": [called(arguments='{"city": "Par'), result("a", "")]},
        "messages[0].tool_calls[0].function.arguments",
    ),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"ignore_eos": True}, "ignore_eos"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("more", "param"), BAD)
async def test_refusals(
    client: httpx.AsyncClient,
    backend: ScriptedBackend,
    more: dict[str, Any],
    param: str,
    stream: bool,  # noqa: FBT001
) -> None:
    content = json.dumps({**HELLO, "stream": stream, **more}).encode()  # also numbers that are not finite
    response = await client.post(CHAT, content=content)

    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["param"] == param
    assert backend.requests == []


async def test_what_the_official_client_adds_to_an_answer_can_be_sent_back(
    client: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    arguments = {"name": "weather", "arguments": '{"city":"Rome"}', "parsed_arguments": {"city": "Rome"}}
    calls = [{"id": "call_a", "type": "function", "function": arguments}]
    answer = {"role": "assistant", "content": None, "parsed": {"a": 1}, "annotations": [], "tool_calls": calls}

    request = await request_of(client, backend, messages=[*HELLO["messages"], answer, result("call_a", "rain")])

    assert request.messages[1].tool_calls == (ToolCall("call_a", "weather", '{"city":"Rome"}'),)


@pytest.mark.parametrize(
    ("message", "param", "instead"),
    [
        ({"role": "function", "name": "f", "content": "5"}, "messages[0].role", "'tool'"),
        (
            {"role": "assistant", "content": None, "refusal": "", "function_call": {"name": "f", "arguments": "{}"}},
            "messages[0].function_call",
            "'tool_calls'",
        ),
    ],
)
async def test_messages_about_functions_are_older_than_tools(
    client: httpx.AsyncClient, message: dict[str, Any], param: str, instead: str
) -> None:
    response = await client.post(CHAT, json={**HELLO, "messages": [message]})
    assert error_of(response) == (400, "unsupported_parameter", param)
    assert instead in response.json()["error"]["message"]


@pytest.mark.parametrize("role", ["system", "assistant", "tool"])
async def test_only_users_show_images(client: httpx.AsyncClient, role: str) -> None:
    part = {"type": "image_url", "image_url": {"url": PNG}}
    message = {"role": role, "content": [part], "tool_call_id": "a" if role == "tool" else None}

    response = await client.post(CHAT, json={**HELLO, "messages": [message]})

    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages[0].content[0].image_url"


# --- headers ---


@pytest.mark.parametrize("stream", [False, True])
async def test_who_answered_and_what_had_no_effect(client: httpx.AsyncClient, stream: bool) -> None:  # noqa: FBT001
    messages = [{"role": "user", "content": "Hi", "name": "Ann"}, {"role": "user", "content": "Ho"}]

    response = (await said(client, stream=stream, messages=messages)).response

    assert response.headers["x-llmspell-backend"] == "ollama"
    assert response.headers["x-llmspell-ignored"] == "messages[0].name"
    assert "x-llmspell-fallback" not in response.headers


@pytest.fixture
def second() -> ScriptedBackend:
    return ScriptedBackend(parameters=HAS_LITTLE)


@pytest.fixture
async def both(backend: ScriptedBackend, second: ScriptedBackend) -> AsyncIterator[httpx.AsyncClient]:
    router = ModelRouter([backend, second], {}, RoutingConfig(fallback=True))
    app: FastAPI = create_api(router, ApiConfig())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


@pytest.mark.parametrize("stream", [False, True])
async def test_fallback_is_told(both: httpx.AsyncClient, backend: ScriptedBackend, stream: bool) -> None:  # noqa: FBT001
    backend.script = fail(BackendError("it broke"))

    found = await said(both, stream=stream)

    assert found.response.headers["x-llmspell-backend"] == "llamacpp"
    assert found.response.headers["x-llmspell-fallback"] == "ollama"
    assert found.choices[0]["content"] == "Hello"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("more", [{"tools": [TIME]}, {"num_ctx": 4096}, {"reasoning_effort": "low"}])
async def test_no_fallback_to_a_backend_that_lacks_a_parameter(
    both: httpx.AsyncClient,
    backend: ScriptedBackend,
    second: ScriptedBackend,
    more: dict[str, Any],
    stream: bool,  # noqa: FBT001
) -> None:
    backend.script = fail(BackendError("it broke"))

    response = await both.post(CHAT, json={**HELLO, "stream": stream, **more})

    assert (response.status_code, response.json()["error"]["code"]) == (502, "backend_error")
    assert second.requests == []
