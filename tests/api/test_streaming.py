from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from openai.types.chat import ChatCompletionChunk

from api.scripted import ScriptedBackend, fail, finished, play
from api.serving import CHAT, HELLO, Served, serving
from server.api.config import ApiConfig
from server.api.responses import dump_json
from server.core.errors import BackendError, QueueFull
from server.core.events import (
    ChoiceFinished,
    Event,
    Failed,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from server.core.request import ChatRequest

STREAM = {**HELLO, "stream": True}


def chunks_of(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_streams_chunks_as_openai_does(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=STREAM)

    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = chunks_of(response.text)
    parsed = [ChatCompletionChunk.model_validate(chunk) for chunk in chunks]
    assert len({(chunk.id, chunk.created, chunk.model, chunk.system_fingerprint) for chunk in parsed}) == 1
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert all("usage" not in chunk for chunk in chunks)


async def test_include_usage_adds_a_last_chunk(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json={**STREAM, "stream_options": {"include_usage": True}})

    *others, last = chunks_of(response.text)
    ChatCompletionChunk.model_validate(last)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 9
    assert all(chunk["usage"] is None for chunk in others)


async def test_every_choice_is_announced_and_finished(client: httpx.AsyncClient) -> None:
    chunks = chunks_of((await client.post(CHAT, json={**STREAM, "n": 2})).text)

    choices = [chunk["choices"][0] for chunk in chunks]
    for index in range(2):
        own = [choice for choice in choices if choice["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in own) == "Hello"
        assert own[0]["delta"]["role"] == "assistant"
        assert own[-1]["finish_reason"] == "stop"


async def test_streams_log_probabilities(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    token = TokenLogprob("Hi", b"Hi", -0.5)
    backend.script = play([TextDelta(0, "Hi", (token,)), ChoiceFinished(0, FinishReason.STOP), finished()])

    chunks = chunks_of((await client.post(CHAT, json={**STREAM, "logprobs": True})).text)

    ChatCompletionChunk.model_validate(chunks[1])
    assert chunks[1]["choices"][0]["logprobs"]["content"][0]["logprob"] == -0.5


async def test_any_text_survives_framing(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    text = 'line\nline\r\n\r "quoted" \\ \u2028 \x00 😀 data: [DONE]\n\n'
    backend.script = play([TextDelta(0, text), ChoiceFinished(0, FinishReason.STOP), finished()])

    chunks = chunks_of((await client.post(CHAT, json=STREAM)).text)

    assert chunks[1]["choices"][0]["delta"]["content"] == text


LINE_ENDS = [character for character in map(chr, range(sys.maxunicode + 1)) if len(f"x{character}x".splitlines()) > 1]


async def test_no_event_is_cut_by_readers_that_split_decoded_text(
    client: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    text = "".join(f"é{character}" for character in LINE_ENDS)
    token = TokenLogprob(text, text.encode(), -0.5)
    call = ToolCallDelta(0, 0, "call", text, text)
    said: list[Event] = [TextDelta(0, text), TextDelta(0, text, (token,)), ReasoningDelta(0, text), call]
    backend.script = play(said, [Failed(BackendError(text))])

    async with client.stream("POST", CHAT, json=STREAM) as response:
        lines = [line async for line in response.aiter_lines() if line]

    assert len(LINE_ENDS) == 10
    assert all(line.startswith("data: ") for line in lines)
    _, plain, with_logprobs, reasoning, calls, failure = (json.loads(line.removeprefix("data: ")) for line in lines)
    deltas = [chunk["choices"][0]["delta"] for chunk in (plain, with_logprobs, reasoning, calls)]
    assert [delta.get("content") for delta in deltas] == [text, text, None, None]
    assert with_logprobs["choices"][0]["logprobs"]["content"][0]["token"] == text
    assert deltas[2]["reasoning"] == deltas[2]["reasoning_content"] == text
    assert deltas[3]["tool_calls"][0]["function"] == {"name": text, "arguments": text}
    assert failure["error"]["message"] == text


@pytest.mark.parametrize(
    "text", ["", "plain", *(f"a{character}é" for character in LINE_ENDS), "".join(LINE_ENDS), "\u2026 \xc2\u20ac\ue280"]
)
def test_json_is_one_line_whatever_it_holds(text: str) -> None:
    content = {text: [text, text + "\udc80"]}
    for each in (text, {text: [text]}, content):
        (line,) = dump_json(each).decode().splitlines()
        assert json.loads(line) == each


async def test_a_refusal_has_a_status_of_its_own(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.rejection = QueueFull("busy", retry_after=2.5)

    response = await client.post(CHAT, json=STREAM)

    assert response.status_code == 429
    assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("3", "2500")


async def test_a_failure_before_any_output_has_a_status(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.script = fail(BackendError("broken"))

    assert (await client.post(CHAT, json=STREAM)).status_code == 502
    assert backend.held == 0


async def test_a_failure_after_output_is_an_event(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.script = play([TextDelta(0, "Hel")], [Failed(BackendError("broken"))])

    response = await client.post(CHAT, json=STREAM)

    assert response.status_code == 200
    assert "[DONE]" not in response.text
    last = json.loads(response.text.rstrip().rsplit("data: ", 1)[1])
    assert last == {"error": {"message": "broken", "type": "server_error", "param": None, "code": "backend_error"}}


async def test_a_stream_that_just_ends_says_so(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.script = play([TextDelta(0, "Hel")])

    response = await client.post(CHAT, json=STREAM)

    assert "[DONE]" not in response.text
    assert "backend_error" in response.text


async def test_a_bug_in_mid_stream_is_an_event_without_its_text(
    client: httpx.AsyncClient, backend: ScriptedBackend, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(_: ChatRequest) -> AsyncIterator[Sequence[Event]]:
        yield [TextDelta(0, "Hel")]
        raise ZeroDivisionError("secret")

    backend.script = script

    response = await client.post(CHAT, json=STREAM)

    assert "internal_error" in response.text
    assert "secret" not in response.text
    assert "secret" in caplog.text
    assert backend.held == 0


@pytest.mark.parametrize("config", [ApiConfig(keep_alive_comment_seconds=0.02)])
async def test_a_silent_stream_gets_comments(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    go_on = asyncio.Event()

    async def script(_: ChatRequest) -> AsyncIterator[Sequence[Event]]:
        yield [Started()]
        await go_on.wait()
        yield [TextDelta(0, "Hi"), ChoiceFinished(0, FinishReason.STOP), finished()]

    backend.script = script
    asyncio.get_running_loop().call_later(0.2, go_on.set)

    response = await client.post(CHAT, json=STREAM)

    assert response.text.startswith(": keep-alive\n\n")
    assert chunks_of(response.text)[1]["choices"][0]["delta"]["content"] == "Hi"


@pytest.mark.parametrize("config", [ApiConfig(keep_alive_comment_seconds=0.02)])
async def test_a_late_refusal_is_an_event(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.admission = asyncio.Event()
    backend.rejection = QueueFull("busy")
    asyncio.get_running_loop().call_later(0.2, backend.admission.set)

    response = await client.post(CHAT, json=STREAM)

    assert response.status_code == 200
    assert "queue_full" in response.text


async def test_the_official_async_client_streams(served: Served) -> None:
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="local/demo",
            messages=[{"role": "user", "content": "Hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 9


async def test_the_official_sync_client_answers(served: Served) -> None:
    def ask() -> str | None:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            answer = client.chat.completions.create(
                model="gpt-4o-mini", messages=[{"role": "user", "content": "Hi"}], n=2
            )
            return answer.choices[1].message.content

    assert await asyncio.to_thread(ask) == "Hello"


async def test_the_official_client_sees_failures(served: Served, backend: ScriptedBackend) -> None:
    backend.script = play([TextDelta(0, "Hel")], [Failed(BackendError("broken"))])
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="local/demo", messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        with pytest.raises(openai.APIError, match="broken"):
            [chunk async for chunk in stream]
        with pytest.raises(openai.NotFoundError, match="local/demo"):
            await client.chat.completions.create(model="dem", messages=[{"role": "user", "content": "Hi"}])


async def test_streams_finish_when_the_server_is_asked_to_end(served: Served, backend: ScriptedBackend) -> None:
    go_on = asyncio.Event()

    async def script(_: ChatRequest) -> AsyncIterator[Sequence[Event]]:
        yield [TextDelta(0, "Hel")]
        await go_on.wait()
        yield [TextDelta(0, "lo"), ChoiceFinished(0, FinishReason.STOP), finished()]

    backend.script = script
    async with httpx.AsyncClient() as client, client.stream("POST", served.url + CHAT, json=STREAM) as response:
        text = ""
        async for piece in response.aiter_text():
            text += piece
            if not go_on.is_set():
                served.server.should_exit = True
                asyncio.get_running_loop().call_later(0.7, go_on.set)

    assert chunks_of(text)[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [True, False])
async def test_the_end_of_the_servers_patience_is_an_error_like_any_other(
    app: FastAPI, backend: ScriptedBackend, *, stream: bool
) -> None:
    async def script(_: ChatRequest) -> AsyncIterator[Sequence[Event]]:
        yield [TextDelta(0, "Hel")]
        await asyncio.Event().wait()

    backend.script = script
    async with serving(app, patience_seconds=1) as served, httpx.AsyncClient() as client:
        answer = asyncio.create_task(client.post(served.url + CHAT, json={**HELLO, "stream": stream}))
        await backend.until_held(1)
        served.server.should_exit = True
        response = await answer

    assert response.status_code == (200 if stream else 503)
    assert '"code":"draining"' in response.text
    assert backend.held == 0
