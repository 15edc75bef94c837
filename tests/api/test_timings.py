"""Where the time of a request went: in the last chunk, in a header, in the access log."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from api.scripted import ScriptedBackend, card, fail, finished, play
from api.serving import CHAT, HELLO, Served
from api.test_streaming import chunks_of
from server.api.application import create_api
from server.api.config import ApiConfig
from server.core.errors import BackendError
from server.core.events import Failed, Started, TextDelta, Timings
from server.core.model_spec import BackendName
from server.router import ModelRouter, RoutingConfig

STREAM = {**HELLO, "stream": True}
TIMINGS = {
    "queue_ms": 250.0,
    "load_ms": 1500.0,
    "prompt_ms": 62.5,
    "first_token_ms": 1812.5,
    "decode_ms": 12.346,
    "cached_tokens": 3,
    "prompt_tokens": 7,
    "completion_tokens": 2,
    "backend": "llamacpp",
}
COMMON = {"id", "object", "created", "model", "service_tier", "system_fingerprint", "choices"}


async def chunks_with(client: httpx.AsyncClient, **options: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - JSON
    return chunks_of((await client.post(CHAT, json={**STREAM, "stream_options": options})).text)


async def test_timings_are_a_chunk_of_their_own(client: httpx.AsyncClient) -> None:
    plain = await chunks_with(client)
    *others, last = await chunks_with(client, include_timings=True)

    ChatCompletionChunk.model_validate(last)
    assert last["choices"] == []
    assert last["timings"] == TIMINGS
    assert last.keys() == COMMON | {"timings"}
    assert [chunk["choices"] for chunk in others] == [chunk["choices"] for chunk in plain]
    assert all(chunk.keys() == COMMON for chunk in others)


async def test_timings_follow_the_usage(client: httpx.AsyncClient) -> None:
    *others, usage, last = await chunks_with(client, include_usage=True, include_timings=True)

    assert usage.keys() == COMMON | {"usage"}
    assert usage["usage"]["total_tokens"] == 9
    assert (last["timings"], last["usage"], last["choices"]) == (TIMINGS, None, [])
    assert all(chunk["usage"] is None and "timings" not in chunk for chunk in others)


@pytest.mark.parametrize("options", [{}, {"include_timings": None}, {"include_timings": False}])
async def test_nobody_gets_timings_unasked(client: httpx.AsyncClient, options: dict[str, Any]) -> None:
    assert all("timings" not in chunk for chunk in await chunks_with(client, **options))


async def test_a_failed_answer_has_no_timings(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.script = play([TextDelta(0, "Hel")], [Failed(BackendError("broken"))])

    response = await client.post(CHAT, json={**STREAM, "stream_options": {"include_timings": True}})

    assert "timings" not in response.text


@pytest.mark.parametrize("value", ["yes", 1, []])
async def test_the_option_is_a_boolean(client: httpx.AsyncClient, value: object) -> None:
    response = await client.post(CHAT, json={**STREAM, "stream_options": {"include_timings": value}})

    assert response.status_code == 400
    assert response.json()["error"]["param"] == "stream_options.include_timings"


async def test_the_official_client_finds_them(served: Served) -> None:
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="local/demo",
            messages=[{"role": "user", "content": "Hi"}],
            stream=True,
            extra_body={"stream_options": {"include_usage": True, "include_timings": True}},
        )
        chunks = [chunk async for chunk in stream]

    assert chunks[-1].model_extra == {"timings": TIMINGS}
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == [9]
    assert all(not chunk.model_extra for chunk in chunks[:-1])


async def test_the_backend_is_the_one_that_answered() -> None:
    first = ScriptedBackend(name=BackendName.OLLAMA, script=fail(BackendError("it broke")))
    first.cards = [card(backend=BackendName.OLLAMA)]
    router = ModelRouter([first, ScriptedBackend()], {}, RoutingConfig(fallback=True))
    transport = httpx.ASGITransport(create_api(router, ApiConfig()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        last = (await chunks_with(client, include_timings=True))[-1]

    assert last["timings"]["backend"] == "llamacpp"


async def test_a_whole_answer_has_a_header(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=HELLO)

    assert response.headers["server-timing"] == (
        "queue;dur=250.0, load;dur=1500.0, prompt;dur=62.5, first_token;dur=1812.5, decode;dur=12.346"
    )
    assert "timings" not in response.json()
    assert "server-timing" not in (await client.post(CHAT, json=STREAM)).headers


async def test_a_whole_answer_that_fails_has_no_header(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.script = play([TextDelta(0, "Hel")], [Failed(BackendError("broken"))])

    response = await client.post(CHAT, json=HELLO)

    assert response.status_code == 502
    assert "server-timing" not in response.headers


@pytest.mark.parametrize("stream", [True, False])
async def test_the_access_log_has_them_as_fields(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, *, stream: bool
) -> None:
    caplog.set_level(logging.INFO, logger="server.access")

    await client.post(CHAT, json={**HELLO, "stream": stream})

    (record,) = [record for record in caplog.records if record.name == "server.access"]
    logged = {name: value for name, value in vars(record).items() if name in TIMINGS}
    assert logged == {name: value for name, value in TIMINGS.items() if name != "backend"}


@pytest.mark.parametrize("stream", [True, False])
async def test_what_failed_is_logged_without_them(
    client: httpx.AsyncClient, backend: ScriptedBackend, caplog: pytest.LogCaptureFixture, *, stream: bool
) -> None:
    caplog.set_level(logging.INFO, logger="server.access")
    backend.script = play([Started(), TextDelta(0, "Hel")], [Failed(BackendError("broken"))])

    await client.post(CHAT, json={**HELLO, "stream": stream})

    (record,) = [record for record in caplog.records if record.name == "server.access"]
    assert vars(record).keys().isdisjoint(TIMINGS)
    assert vars(record)["error"] == "backend_error"


async def test_instants_are_zeros(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    done = finished()
    backend.script = play([TextDelta(0, "Hi"), type(done)(done.usage, Timings(decode=4e-7))])

    assert (await client.post(CHAT, json=HELLO)).headers["server-timing"] == (
        "queue;dur=0.0, load;dur=0.0, prompt;dur=0.0, first_token;dur=0.0, decode;dur=0.0"
    )
