"""Chats through the backend, with a stand-in for the daemon."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any, Literal

import pytest
from asking import CITY, PATIENCE, TIME, WEATHER, answer_of, asked, backend_at, hear, paths_of, until
from fakes.ollama import Answer, Call, Cut, FakeModel, FakeOllama, Pause, Reply, error_line

from server.backends.ollama.backend import OllamaBackend
from server.core.errors import (
    BackendError,
    ContextLengthExceeded,
    InvalidOutput,
    InvalidRequest,
    ModelNotFound,
    QueueFull,
    TimedOut,
    UnsupportedParameter,
)
from server.core.events import ChoiceFinished, FinishReason, Started, TextDelta, ToolCallDelta, Usage
from server.core.model_spec import ModelSpec
from server.core.request import (
    ChatRequest,
    ChoiceFormat,
    ImageInput,
    JsonSchemaFormat,
    Message,
    ReasoningEffort,
    ReasoningOutput,
    RegexFormat,
    Role,
    SamplingParameters,
    Tool,
    ToolChoice,
    ToolChoiceMode,
)

CHAT = "/api/chat"
TOKENS = ["Hel", "lo", " ü", "!"]
PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
PNG_URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


@pytest.fixture
def daemon() -> Iterator[FakeOllama]:
    with FakeOllama(reply=Reply(tokens=TOKENS)) as running:
        yield running


@pytest.fixture
async def backend(daemon: FakeOllama) -> AsyncIterator[OllamaBackend]:
    async with backend_at(daemon.url) as backend:
        yield backend


def shown(*urls: str) -> tuple[Message, ...]:
    images = tuple(ImageInput(url, f"messages[0].content[{index}].image_url.url") for index, url in enumerate(urls))
    return (Message(Role.USER, "What is this?", images=images),)


# --- one answer ---


async def test_an_answer(daemon: FakeOllama, backend: OllamaBackend) -> None:
    heard = await answer_of(backend, asked(max_tokens=50))

    assert heard.events.count(Started()) == 1
    assert heard.text == "".join(TOKENS)
    assert ChoiceFinished(0, FinishReason.STOP) in heard.events
    assert heard.finished.usage.completion_tokens == len(TOKENS) + 1
    assert heard.finished.usage.prompt_tokens > 0
    assert daemon.chats[0].body == {
        "model": "demo:latest",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "truncate": False,
        "shift": False,
        "options": {"num_predict": 50},
    }


async def test_answers_share_connections(daemon: FakeOllama, backend: OllamaBackend) -> None:
    for _ in range(5):
        await answer_of(backend)

    assert any(chat.reused for chat in daemon.chats)
    assert paths_of(daemon).count("/api/tags") == 1


@pytest.mark.parametrize("name", ["demo", "demo:latest", "DEMO", "Demo:Latest"])
async def test_names_of_a_model(daemon: FakeOllama, backend: OllamaBackend, name: str) -> None:
    base, _, variant = name.partition(":")
    request = asked()
    request = replace(request, spec=replace(request.spec, name=base, variant=variant or None))

    assert (await answer_of(backend, request)).failure is None
    assert daemon.chats[0].model == "demo:latest"


async def test_thinking(backend: OllamaBackend) -> None:
    heard = await answer_of(backend, asked("demo-think", reasoning_effort=ReasoningEffort.LOW))

    assert heard.reasoning == "Let me think about that."
    assert heard.text == "".join(TOKENS)


async def test_tool_calls(daemon: FakeOllama, backend: OllamaBackend) -> None:
    daemon.say(Reply(calls=[Call("weather", {"city": "Zürich"}), Call("time")]))

    heard = await answer_of(backend, asked("demo-tools", tools=(WEATHER, TIME)))

    calls = [event for event in heard.events if isinstance(event, ToolCallDelta)]
    assert [(call.call, call.name, call.arguments) for call in calls] == [
        (0, "weather", '{"city":"Zürich"}'),
        (1, "time", "{}"),
    ]
    assert ChoiceFinished(0, FinishReason.TOOL_CALLS) in heard.events


@pytest.mark.parametrize("name", [None, "time"])
async def test_forced_calls(daemon: FakeOllama, backend: OllamaBackend, name: str | None) -> None:
    daemon.say(Reply())  # makes what the format asks for
    request = asked(tools=(WEATHER, TIME), tool_choice=ToolChoice(ToolChoiceMode.REQUIRED, name))

    heard = await answer_of(backend, request)

    (call,) = [event for event in heard.events if isinstance(event, ToolCallDelta)]
    assert call.name == (name or "weather")
    assert heard.text == ""
    assert "tools" not in daemon.chats[0].body


async def test_a_schema_for_the_answer(daemon: FakeOllama, backend: OllamaBackend) -> None:
    daemon.say(Reply())
    schema = {"type": "object", "properties": {"a": {"const": 5}}}

    heard = await answer_of(backend, asked(response_format=JsonSchemaFormat(schema)))

    assert json.loads(heard.text) == {"a": 5}


DEMANDED = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("text", ["I would rather not.", '{"a": "b"}', ""])
async def test_an_answer_that_is_not_as_demanded(daemon: FakeOllama, backend: OllamaBackend, text: str, n: int) -> None:
    daemon.say(Reply(text=text))

    heard = await answer_of(backend, asked(n=n, response_format=JsonSchemaFormat(DEMANDED)))

    assert type(heard.failure) is InvalidOutput
    assert text in {heard.text_of(index) for index in range(n)}
    assert not (n == 1 and any(isinstance(event, ChoiceFinished) for event in heard.events))
    await until(daemon, lambda: daemon.num_running == 0)


async def test_an_answer_that_is_cut_is_not_wrong(daemon: FakeOllama, backend: OllamaBackend) -> None:
    daemon.say(Reply(text='{"a": 123456}'))

    heard = await answer_of(backend, asked(max_tokens=3, response_format=JsonSchemaFormat(DEMANDED)))

    assert heard.text == '{"a'
    assert ChoiceFinished(0, FinishReason.LENGTH) in heard.events
    assert heard.failure is None


async def test_one_of_several_texts(daemon: FakeOllama, backend: OllamaBackend) -> None:
    daemon.say(Reply())

    heard = await answer_of(backend, asked(response_format=ChoiceFormat(("no", "yes"))))

    assert heard.text == "no"
    assert daemon.chats[0].body["format"] == {"type": "string", "enum": ["no", "yes"]}


@pytest.mark.parametrize("tools", [(), (WEATHER,)])
async def test_tools_do_not_keep_an_answer_from_its_form(
    daemon: FakeOllama, backend: OllamaBackend, tools: tuple[Tool, ...]
) -> None:
    daemon.say(Reply(text='{"answer": {"a": 1}}' if tools else '{"a":1}'))

    heard = await answer_of(backend, asked(tools=tools, response_format=JsonSchemaFormat(DEMANDED)))

    assert heard.text == '{"a":1}'
    assert heard.failure is None


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"response_format": JsonSchemaFormat({"type": "odd"})}, "response_format.json_schema.schema"),
        ({"tools": (replace(WEATHER, parameters={"type": 5}, strict=True),)}, "tools[0].function.parameters"),
        ({"response_format": RegexFormat("a")}, "guided_regex"),
        ({"template_options": {"odd": 1}}, "chat_template_kwargs.odd"),
    ],
)
async def test_what_cannot_be_demanded_is_not_asked_for(
    daemon: FakeOllama, backend: OllamaBackend, more: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await backend.chat(asked("demo-tools", **more))

    assert caught.value.param == param
    assert daemon.chats == []


async def test_what_becomes_of_thinking_is_said_by_model(daemon: FakeOllama) -> None:
    wanted = {"demo-think:latest": ReasoningOutput.RAW}
    async with backend_at(daemon.url, reasoning=lambda model: wanted.get(model, ReasoningOutput.SPLIT)) as backend:
        heard = await answer_of(backend, asked("demo-think"))

    assert heard.reasoning == ""
    assert heard.text == "<think>Let me think about that.</think>" + "".join(TOKENS)
    assert heard.finished.usage.reasoning_tokens > 0
    assert heard.finished.usage.completion_tokens == heard.finished.usage.reasoning_tokens + len(TOKENS) + 1


async def test_log_probabilities(backend: OllamaBackend) -> None:
    heard = await answer_of(backend, asked(top_logprobs=2))

    deltas = [event for event in heard.events if isinstance(event, TextDelta)]
    assert b"".join(token.token_bytes for delta in deltas for token in delta.logprobs) == "".join(TOKENS).encode()
    assert all(len(token.top) == 2 for delta in deltas for token in delta.logprobs)


async def test_the_operators_keep_alive(daemon: FakeOllama) -> None:
    async with backend_at(daemon.url, keep_alive="30m") as backend:
        await answer_of(backend)
        await answer_of(backend, asked(keep_alive=0))

    assert [chat.body["keep_alive"] for chat in daemon.chats] == ["30m", 0]


async def test_integers_beyond_64_bits(daemon: FakeOllama, backend: OllamaBackend) -> None:
    parameters = {"type": "object", "properties": {"a": {"const": 2**70}}}
    await answer_of(backend, asked("demo-tools", tools=(Tool("count", None, parameters),)))

    assert daemon.chats[0].body["tools"][0]["function"]["parameters"] == parameters


async def test_text_that_is_no_unicode(daemon: FakeOllama, backend: OllamaBackend) -> None:
    await answer_of(backend, asked(messages=(Message(Role.USER, "half a pair: \ud83d"),)))

    assert daemon.chats[0].body["messages"][0]["content"].startswith("half a pair")


# --- images ---


async def test_images_are_passed_on(daemon: FakeOllama, backend: OllamaBackend) -> None:
    await answer_of(backend, asked("demo-vision", messages=shown(PNG_URL, PNG_URL)))

    assert [base64.b64decode(image) for image in daemon.chats[0].body["messages"][0]["images"]] == [PNG, PNG]


@pytest.mark.parametrize(
    "urls", [("data:,x",), (PNG_URL, "http://127.0.0.1:9/a.png"), ("ftp://a/", "data:,x", "file:///etc/passwd")]
)
async def test_an_image_that_cannot_be_had(daemon: FakeOllama, backend: OllamaBackend, urls: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await answer_of(backend, asked("demo-vision", messages=shown(*urls)))

    assert caught.value.param is not None
    assert caught.value.param.startswith("messages[0].content[")
    assert daemon.chats == []


async def test_a_model_that_does_not_see(backend: OllamaBackend) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        await answer_of(backend, asked(messages=shown(PNG_URL)))

    assert caught.value.param == "messages"


# --- refusals ---


@pytest.mark.parametrize(
    ("request_", "kind", "param"),
    [
        (asked("missing"), ModelNotFound, "model"),
        (asked(reasoning_effort=ReasoningEffort.HIGH), UnsupportedParameter, "reasoning_effort"),
        (asked(tools=(WEATHER,)), UnsupportedParameter, "tools"),
        (asked("demo-tools", tools=(WEATHER,), top_logprobs=0), UnsupportedParameter, "logprobs"),
        (asked("demo-embed"), InvalidRequest, "model"),
        (asked(messages=(Message(Role.USER, "word " * 5000),)), ContextLengthExceeded, "messages"),
    ],
)
@pytest.mark.parametrize("n", [1, 3])
async def test_what_the_daemon_refuses(
    daemon: FakeOllama,
    backend: OllamaBackend,
    request_: ChatRequest,
    kind: type[Exception],
    param: str,
    n: int,
) -> None:
    with pytest.raises(kind) as caught:
        await answer_of(backend, replace(request_, n=n))

    assert type(caught.value) is kind
    assert getattr(caught.value, "param", None) == param
    await until(daemon, lambda: daemon.num_running == 0)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"response_format": JsonSchemaFormat(CITY)}, "response_format"),
        ({"response_format": ChoiceFormat(("a",))}, "guided_choice"),
        ({"tools": (WEATHER,), "tool_choice": ToolChoice(ToolChoiceMode.REQUIRED)}, "tools"),
    ],
)
async def test_a_schema_that_the_daemon_cannot_use(
    daemon: FakeOllama, backend: OllamaBackend, more: dict[str, Any], param: str
) -> None:
    daemon.on(Answer(400, "JSON schema conversion failed:\nJSON schema error at #: odd"), path=CHAT)

    with pytest.raises(InvalidRequest) as caught:
        await answer_of(backend, asked(**more))

    assert caught.value.param == param


async def test_thinking_that_a_model_cannot(backend: OllamaBackend) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        await answer_of(backend, asked(template_options={"enable_thinking": True}))

    assert caught.value.param == "chat_template_kwargs"


async def test_a_full_queue() -> None:
    with FakeOllama(reply=Reply(tokens=TOKENS), parallel=1, max_queue=0) as daemon:
        holding = daemon.on(Pause(1), path=CHAT)
        async with backend_at(daemon.url) as backend:
            first = await backend.chat(asked())
            with pytest.raises(QueueFull) as caught:
                await backend.chat(asked())
            assert caught.value.retry_after is not None
            holding.release()
            assert (await hear(first)).text == "".join(TOKENS)


async def test_a_model_deleted_between_listing_and_use(daemon: FakeOllama, backend: OllamaBackend) -> None:
    assert await backend.has_model(ModelSpec("demo-tools"))
    daemon.remove_model("demo-tools")

    with pytest.raises(ModelNotFound, match="llmspell model pull local/demo-tools:latest@ollama") as caught:
        await backend.chat(asked("demo-tools"))

    assert caught.value.param == "model"
    assert not await backend.has_model(ModelSpec("demo-tools"))
    assert (await answer_of(backend)).failure is None


async def test_cloud_models_have_to_be_allowed() -> None:
    cloud = FakeModel("big", remote_model="big:671b", remote_host="https://ollama.com:443")
    with FakeOllama(FakeModel("demo"), cloud, reply=Reply(tokens=TOKENS)) as daemon:
        async with backend_at(daemon.url) as backend:
            assert not await backend.has_model(ModelSpec("big"))
            assert [card.model for card in await backend.models()] == ["demo:latest"]
            assert await backend.model("big") is None
            refusal = backend.refusal(ModelSpec("big"))
            assert isinstance(refusal, ModelNotFound)
            assert "allow_cloud_models" in refusal.message
            with pytest.raises(ModelNotFound, match=r"ollama\.com"):
                await backend.chat(asked("big"))
        async with backend_at(daemon.url, allow_cloud_models=True) as backend:
            assert await backend.has_model(ModelSpec("big"))
            assert {card.model for card in await backend.models()} == {"demo:latest", "big:latest"}
            assert (await answer_of(backend, asked("big"))).failure is None


# --- leaving ---


async def test_cancelling_while_waiting_for_the_head(daemon: FakeOllama, backend: OllamaBackend) -> None:
    daemon.on(Pause("load"), path=CHAT)
    chatting = asyncio.create_task(backend.chat(asked()))
    await until(daemon, lambda: daemon.chats)

    chatting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await chatting

    await until(daemon, lambda: daemon.chats[0].was_cut_off)


async def test_closing_in_mid_stream(daemon: FakeOllama, backend: OllamaBackend) -> None:
    daemon.on(Pause(1), path=CHAT)
    stream = await backend.chat(asked())
    assert await anext(stream)

    await stream.aclose()
    await stream.aclose()

    await until(daemon, lambda: daemon.chats[0].was_cut_off)


async def test_closing_before_the_first_event(daemon: FakeOllama, backend: OllamaBackend) -> None:
    daemon.on(Pause(1), path=CHAT)
    stream = await backend.chat(asked())

    await stream.aclose()

    await until(daemon, lambda: daemon.chats[0].was_cut_off)


async def test_closing_while_somebody_waits(daemon: FakeOllama, backend: OllamaBackend) -> None:
    daemon.on(Pause(2), path=CHAT)
    stream = await backend.chat(asked())
    hearing = asyncio.create_task(hear(stream))
    await until(daemon, lambda: daemon.chats[0].num_lines == 2)

    await stream.aclose()

    async with asyncio.timeout(PATIENCE):
        await hearing
    await until(daemon, lambda: daemon.chats[0].was_cut_off)


# --- the daemon dies ---


@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize("ending", ["fin", "rst", "whole"])
async def test_a_stream_that_breaks_ends_with_an_event(
    daemon: FakeOllama,
    backend: OllamaBackend,
    ending: Literal["fin", "rst", "whole"],
    after: int,
) -> None:
    daemon.on(Cut(after, ending, partial=ending == "fin"), path=CHAT)

    heard = await answer_of(backend)

    assert isinstance(heard.failure, BackendError)
    assert (await answer_of(backend)).text == "".join(TOKENS)


async def test_the_daemon_is_killed_in_mid_stream(daemon: FakeOllama, backend: OllamaBackend) -> None:
    daemon.on(Pause(2), path=CHAT)
    stream = await backend.chat(asked())
    await until(daemon, lambda: daemon.chats[0].num_lines == 2)

    await asyncio.to_thread(daemon.stop)

    assert isinstance((await hear(stream)).failure, BackendError)
    with pytest.raises(BackendError, match="does not answer") as caught:
        await backend.chat(asked())
    assert caught.value.retry_after is not None
    assert isinstance(backend.refusal(ModelSpec("demo")), BackendError)
    assert await backend.models() == []


async def test_an_error_in_mid_stream(daemon: FakeOllama, backend: OllamaBackend) -> None:
    daemon.on(error_line("an error was encountered while running the model: unexpected EOF", after=2), path=CHAT)

    heard = await answer_of(backend)

    assert heard.text == "Hello"
    assert heard.failure is not None
    assert "unexpected EOF" in heard.failure.message


@pytest.mark.parametrize("where", ["request", 0, 2])
async def test_silence(daemon: FakeOllama, where: Any) -> None:  # noqa: ANN401
    daemon.on(Pause(where), path=CHAT)
    async with backend_at(daemon.url, silence_timeout_seconds=0.2) as backend:
        if where == "request":
            with pytest.raises(TimedOut, match=r"0\.2 s"):
                await backend.chat(asked())
        else:
            assert isinstance((await answer_of(backend)).failure, TimedOut)
        await until(daemon, lambda: daemon.chats[0].was_cut_off)


async def test_seeds(daemon: FakeOllama, backend: OllamaBackend) -> None:
    sampling = SamplingParameters(seed=-3)
    heard = await answer_of(backend, asked(n=3, sampling=sampling, given_sampling=frozenset({"seed"})))

    assert heard.finished.usage == Usage(heard.finished.usage.prompt_tokens, 3 * (len(TOKENS) + 1))
    seeds = {chat.body["options"]["seed"] for chat in daemon.chats}
    assert seeds == {2**31 - 4, 2**31 - 3, 2**31 - 2}
