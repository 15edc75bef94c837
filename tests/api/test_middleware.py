from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI

from api.scripted import ScriptedBackend
from api.serving import CHAT, HELLO, serving
from server.api.application import create_api
from server.api.config import ApiConfig
from server.router import ModelRouter


async def test_a_request_id_is_given_and_echoed(client: httpx.AsyncClient) -> None:
    given = (await client.get("/health/live")).headers["x-request-id"]
    assert len(given) == 32

    response = await client.get("/health/live", headers={"x-request-id": "abc-123"})
    assert response.headers["x-request-id"] == "abc-123"


@pytest.mark.parametrize("sent", [b"", b"x" * 129, b"a b", b"\xff"])
async def test_a_strange_request_id_is_replaced(client: httpx.AsyncClient, sent: bytes) -> None:
    response = await client.get("/health/live", headers=[(b"x-request-id", sent)])

    assert len(response.headers["x-request-id"]) == 32


async def test_errors_carry_the_request_id(client: httpx.AsyncClient) -> None:
    response = await client.get("/nowhere", headers={"x-request-id": "abc"})

    assert response.status_code == 404
    assert response.headers["x-request-id"] == "abc"


async def test_a_bug_is_a_500_with_the_request_id_and_without_a_traceback(
    client: httpx.AsyncClient, backend: ScriptedBackend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.rejection = ZeroDivisionError("secret")
    for stream in (False, True):
        response = await client.post(CHAT, json={**HELLO, "stream": stream}, headers={"x-request-id": "abc"})

        assert response.status_code == 500
        error = response.json()["error"]
        assert error["code"] == "internal_error"
        assert "abc" in error["message"]
        assert "secret" not in response.text
        assert "Traceback" not in response.text
    assert caplog.text.count("ZeroDivisionError: secret") >= 2
    backend.rejection = None
    assert (await client.post(CHAT, json=HELLO)).status_code == 200


async def test_the_access_log_has_one_line_for_each_request(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="server.access")

    for stream in (False, True):
        await client.post(CHAT, json={**HELLO, "stream": stream})
    await client.get("/a%0Ab")

    first, second, third = [record.getMessage() for record in caplog.records if record.name == "server.access"]
    for line in (first, second):
        assert line.startswith("POST /v1/chat/completions 200 ")
        assert line.endswith(
            "ms model='local/demo' prompt_tokens=7 completion_tokens=2 cached_tokens=3 queue_ms=250.0 load_ms=1500.0 "
            "prompt_ms=62.5 first_token_ms=1812.5 decode_ms=12.346"
        )
    assert third.startswith("GET /a%0Ab 404 ")


async def test_health_checks_do_not_fill_the_log(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    await client.get("/health/ready")

    assert [record for record in caplog.records if record.name == "server.access"] == []


async def test_the_api_describes_itself(client: httpx.AsyncClient, app: FastAPI) -> None:
    for _ in range(2):
        document = (await client.get("/openapi.json")).json()
    chat = document["paths"]["/v1/chat/completions"]["post"]
    schema = chat["requestBody"]["content"]["application/json"]["schema"]

    assert schema == {"$ref": "#/components/schemas/ChatCompletionBody"}
    body = document["components"]["schemas"]["ChatCompletionBody"]
    assert {"model", "messages", "temperature", "stop"} <= body["properties"].keys()
    assert "WireMessage" in document["components"]["schemas"]
    assert (await client.get("/docs")).status_code == 200
    assert app.title == "llmspell-server"


async def test_the_lifespan_surrounds_the_application(backend: ScriptedBackend) -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        seen.append("started")
        yield
        seen.append("stopped")

    async with serving(create_api(ModelRouter([backend], {}), ApiConfig(), lifespan)) as served:
        async with served.connect() as connection:
            assert (await connection.ask(b"", path="/health/live", method="GET")).status == 200
        assert seen == ["started"]
    assert seen == ["started", "stopped"]
