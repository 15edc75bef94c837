from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.scripted import ScriptedBackend, ScriptedResidency, card
from api.serving import HELLO, Served, http_request
from server.api.application import create_api
from server.api.config import ApiConfig
from server.core.errors import InsufficientMemory, LlmspellError, ModelLoadingFailed, TimedOut
from server.core.model_spec import BackendName
from server.core.ports import DeviceMemory, FirstTokenRecord, LoadProgress, ModelState, ResidencyStatus
from server.router import ModelRouter, RoutingConfig

ADMIN = "/admin/models"
ACTIONS = ["load", "unload", "pin", "unpin"]
PHI = ResidencyStatus(
    "phi3:3.8b",
    ModelState.LOADING,
    is_pinned=True,
    is_preloaded=True,
    predicted={"CUDA0": 4000, "CPU": 300},
    measured={"CUDA0": 4100, "CUDA1": 7},
    num_leases=2,
    num_waiting=3,
    last_use=1_700_000_000.25,
    keep_alive_until=1_700_000_300.0,
    context_length=8192,
    kv_cells=32768,
    gpu_layers=33,
    num_saved=5,
    saved_bytes=12_000,
    load_seconds=1.2504999,
    progress=LoadProgress(0.42),
    failure="the file is damaged",
    first_token=FirstTokenRecord(count=12, median=0.1234567, target=0.2, attainment=0.75),
)
COLD = {
    "id": "local/demo",
    "object": "model",
    "state": "warm",
    "pinned": False,
    "preload": False,
    "bytes": {},
    "leases": 0,
    "waiting": 0,
    "last_use": None,
    "keep_alive_until": None,
    "context_length": None,
    "kv_cells": None,
    "gpu_layers": None,
    "saved_prompts": {"count": 0, "bytes": 0},
    "load_seconds": None,
    "progress": None,
    "failure": None,
    "ttft": {"count": 0, "median_ms": None, "target_ms": None, "attainment": None},
}


def client_of(app: FastAPI, address: str = "127.0.0.1", url: str = "http://localhost:8000") -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(address, 50_000)), base_url=url)


@pytest.fixture
async def local(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


@pytest.fixture
def phi(backend: ScriptedBackend, residency: ScriptedResidency) -> ResidencyStatus:
    backend.cards.append(card("phi3:3.8b", ModelState.LOADING))
    residency.models[PHI.model] = PHI
    return PHI


def error_of(response: httpx.Response) -> tuple[int, str, str | None]:
    error = response.json()["error"]
    assert error["message"]
    return response.status_code, error["code"], error["param"]


# --- what is shown ---


@pytest.mark.usefixtures("phi")
async def test_models_and_devices_are_listed(local: httpx.AsyncClient, residency: ScriptedResidency) -> None:
    residency.memory = [DeviceMemory("CPU", "a processor", 1000, 300), DeviceMemory("CUDA0", "a card", 4000, 4100)]

    listed = (await local.get(ADMIN)).json()

    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["local/demo", "local/phi3:3.8b"]
    assert listed["data"][0] == COLD
    assert listed["devices"] == [
        {"name": "CPU", "description": "a processor", "budget_bytes": 1000, "taken_bytes": 300, "free_bytes": 700},
        {"name": "CUDA0", "description": "a card", "budget_bytes": 4000, "taken_bytes": 4100, "free_bytes": 0},
    ]


@pytest.mark.usefixtures("phi")
async def test_all_there_is_to_know_of_a_model(local: httpx.AsyncClient) -> None:
    assert (await local.get(f"{ADMIN}/local/phi3:3.8b")).json() == {
        "id": "local/phi3:3.8b",
        "object": "model",
        "state": "loading",
        "pinned": True,
        "preload": True,
        "bytes": {
            "CUDA0": {"predicted": 4000, "measured": 4100},
            "CPU": {"predicted": 300, "measured": 0},
            "CUDA1": {"predicted": 0, "measured": 7},
        },
        "leases": 2,
        "waiting": 3,
        "last_use": "2023-11-14T22:13:20.250Z",
        "keep_alive_until": "2023-11-14T22:18:20.000Z",
        "context_length": 8192,
        "kv_cells": 32768,
        "gpu_layers": 33,
        "saved_prompts": {"count": 5, "bytes": 12_000},
        "load_seconds": 1.25,
        "progress": 0.42,
        "failure": "the file is damaged",
        "ttft": {"count": 12, "median_ms": 123.457, "target_ms": 200.0, "attainment": 0.75},
    }


async def test_bytes_are_not_measured_before_the_first_load(
    local: httpx.AsyncClient, residency: ScriptedResidency
) -> None:
    residency.models["demo"] = ResidencyStatus("demo", ModelState.COLD, predicted={"CPU": 300})

    assert (await local.get(f"{ADMIN}/demo")).json()["bytes"] == {"CPU": {"predicted": 300, "measured": None}}


@pytest.mark.parametrize("moment", [1e12, 1e300, float("inf")])
async def test_beyond_the_calendar_is_never(
    local: httpx.AsyncClient, residency: ScriptedResidency, moment: float
) -> None:
    residency.models["demo"] = ResidencyStatus("demo", ModelState.WARM, keep_alive_until=moment)

    assert (await local.get(f"{ADMIN}/demo")).json()["keep_alive_until"] is None


@pytest.mark.parametrize(
    "name", ["local/demo", "local%2Fdemo", "demo", "demo:latest", "local/demo@llamacpp", "llamacpp/demo", "gpt-4o-mini"]
)
async def test_a_model_goes_by_any_of_its_names(
    local: httpx.AsyncClient, residency: ScriptedResidency, name: str
) -> None:
    assert (await local.get(f"{ADMIN}/{name}")).json() == COLD
    assert (await local.post(f"{ADMIN}/{name}/pin")).json() == {**COLD, "pinned": True}
    assert residency.calls == [("pin", "demo", True)]


async def test_ids_are_those_of_the_list_of_models(residency: ScriptedResidency) -> None:
    daemon = ScriptedBackend(name=BackendName.OLLAMA, cards=[card(backend=BackendName.OLLAMA)])
    router = ModelRouter([daemon, ScriptedBackend()], {}, RoutingConfig(prefer=BackendName.OLLAMA))
    async with client_of(create_api(router, ApiConfig(), residency=residency)) as local:
        of_router = [model["id"] for model in (await local.get("/v1/models")).json()["data"]]
        listed = [model["id"] for model in (await local.get(ADMIN)).json()["data"]]

        assert (of_router, listed) == (["local/demo", "local/demo@llamacpp"], ["local/demo@llamacpp"])
        for name in ("local/demo", "local/demo@llamacpp"):
            assert (await local.get(f"{ADMIN}/{name}")).json()["id"] == "local/demo@llamacpp"


async def test_the_official_error_for_a_model_that_nobody_has(local: httpx.AsyncClient) -> None:
    usual = (await local.get("/v1/models/local/dem")).json()

    for response in (
        await local.get(f"{ADMIN}/local/dem"),
        await local.post(f"{ADMIN}/local/dem/load"),
        await local.post(f"{ADMIN}/load", json={"model": "local/dem"}),
    ):
        assert error_of(response) == (404, "model_not_found", "model")
        assert response.json() == usual
        assert "Did you mean local/demo?" in usual["error"]["message"]


# --- what is done ---


@pytest.mark.parametrize(
    ("action", "body", "call", "changes"),
    [
        ("load", {}, ("load", "demo"), {"state": "warm"}),
        ("unload", {}, ("unload", "demo", False), {"state": "cold"}),
        ("unload", {"force": False}, ("unload", "demo", False), {"state": "cold"}),
        ("unload", {"force": True}, ("unload", "demo", True), {"state": "cold"}),
        ("pin", {}, ("pin", "demo", True), {"pinned": True}),
        ("unpin", {}, ("pin", "demo", False), {"pinned": False}),
    ],
)
async def test_actions(
    local: httpx.AsyncClient,
    residency: ScriptedResidency,
    action: str,
    body: dict[str, Any],
    call: tuple[object, ...],
    changes: dict[str, Any],
) -> None:
    for response in (
        await local.post(f"{ADMIN}/{action}", json={"model": "gpt-4o-mini", **body}),
        await local.post(f"{ADMIN}/local/demo/{action}", json=body),
    ):
        assert (response.status_code, response.json()) == (200, {**COLD, **changes})
    assert residency.calls == [call, call]


@pytest.mark.parametrize(
    ("query", "force"),
    [("", False), ("?force=true", True), ("?force=1", True), ("?force=false", False), ("?force=0", False)],
)
async def test_force_can_be_in_the_query(
    local: httpx.AsyncClient, residency: ScriptedResidency, query: str, *, force: bool
) -> None:
    await local.post(f"{ADMIN}/local/demo/unload{query}")
    await local.post(f"{ADMIN}/unload{query}", json={"model": "demo"})

    assert residency.calls == [("unload", "demo", force)] * 2


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InsufficientMemory("full"), 503),
        (ModelLoadingFailed("damaged"), 503),
        (TimedOut("slow", retry_after=1), 504),
    ],
)
async def test_a_load_that_fails(
    local: httpx.AsyncClient, residency: ScriptedResidency, error: LlmspellError, status: int
) -> None:
    residency.failure = error

    response = await local.post(f"{ADMIN}/demo/load")

    assert error_of(response) == (status, error.code, None)


@pytest.mark.parametrize("action", ["load", "unload"])
async def test_the_answer_waits_until_it_is_done(
    local: httpx.AsyncClient, residency: ScriptedResidency, action: str
) -> None:
    residency.gate = asyncio.Event()
    answer = asyncio.create_task(local.post(f"{ADMIN}/demo/{action}"))
    await residency.waiting.wait()
    assert (await local.get(ADMIN)).status_code == 200  # meanwhile
    assert not answer.done()
    residency.gate.set()

    assert (await answer).json()["state"] == ("warm" if action == "load" else "cold")


@pytest.mark.parametrize("action", ["load", "unload"])
async def test_who_goes_away_no_longer_waits(
    served: Served, residency: ScriptedResidency, caplog: pytest.LogCaptureFixture, action: str
) -> None:
    caplog.set_level(logging.INFO, logger="server.access")
    residency.gate = asyncio.Event()
    async with asyncio.timeout(10):
        async with served.connect() as connection:
            await connection.send(http_request(b"", path=f"{ADMIN}/demo/{action}", host="localhost"))
            await residency.waiting.wait()
        await residency.cancelled.wait()
        async with served.connect() as connection:
            assert (await connection.ask(json.dumps(HELLO).encode())).status == 200
    lines = [record.getMessage() for record in caplog.records if record.name == "server.access"]
    assert lines[0].startswith(f"POST {ADMIN}/demo/{action} 499 ")


async def test_the_access_log_names_the_model(local: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="server.access")

    await local.post(f"{ADMIN}/load", json={"model": "local/demo"})

    (line,) = [record.getMessage() for record in caplog.records if record.name == "server.access"]
    assert line.startswith(f"POST {ADMIN}/load 200 ")
    assert line.endswith(" model='local/demo'")


# --- what is refused ---


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_value", None),
        (b"[]", "invalid_value", None),
        (b"null", "invalid_value", None),
        (b'{"model"', "invalid_value", None),
        (b"{}", "invalid_value", "model"),
        (b'{"model": 5}', "invalid_value", "model"),
        (b'{"model": null}', "invalid_value", "model"),
        (b'{"model": ""}', "invalid_model_spec", "model"),
        (b'{"model": "!"}', "invalid_model_spec", "model"),
        (b'{"model": "demo", "modle": "demo"}', "unsupported_parameter", "modle"),
        (b'{"model": "demo", "force": 1}', "invalid_value", "force"),
        (b'{"model": "demo", "force": "true"}', "invalid_value", "force"),
        (b'{"model": "demo", "force": null}', "invalid_value", "force"),
    ],
)
async def test_bad_bodies(
    local: httpx.AsyncClient, residency: ScriptedResidency, action: str, body: bytes, code: str, param: str | None
) -> None:
    assert error_of(await local.post(f"{ADMIN}/{action}", content=body)) == (400, code, param)
    assert residency.calls == []


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"no JSON", "invalid_value", None),
        (b"[]", "invalid_value", None),
        (b'{"model": "demo"}', "unsupported_parameter", "model"),
        (b'{"force": []}', "invalid_value", "force"),
    ],
)
async def test_bad_options(
    local: httpx.AsyncClient, residency: ScriptedResidency, action: str, body: bytes, code: str, param: str | None
) -> None:
    assert error_of(await local.post(f"{ADMIN}/demo/{action}", content=body)) == (400, code, param)
    assert residency.calls == []


@pytest.mark.parametrize("action", ["load", "pin", "unpin"])
async def test_only_unload_can_be_forced(local: httpx.AsyncClient, residency: ScriptedResidency, action: str) -> None:
    for response in (
        await local.post(f"{ADMIN}/{action}", json={"model": "demo", "force": True}),
        await local.post(f"{ADMIN}/demo/{action}", json={"force": False}),
        await local.post(f"{ADMIN}/demo/{action}?force=true"),
    ):
        assert error_of(response) == (400, "unsupported_parameter", "force")
    assert residency.calls == []


@pytest.mark.parametrize("value", ["", "yes", "True", "true&force=maybe"])
async def test_a_bad_flag(local: httpx.AsyncClient, residency: ScriptedResidency, value: str) -> None:
    assert error_of(await local.post(f"{ADMIN}/demo/unload?force={value}")) == (400, "invalid_value", "force")
    assert residency.calls == []


@pytest.mark.parametrize("name", ["demo@ollama", "ollama/demo", "of-the-daemon", "local/of-the-daemon"])
async def test_the_daemon_manages_its_own_models(residency: ScriptedResidency, name: str) -> None:
    daemon = ScriptedBackend(name=BackendName.OLLAMA)
    daemon.cards = [card(model, backend=BackendName.OLLAMA) for model in ("demo", "of-the-daemon")]
    router = ModelRouter([daemon, ScriptedBackend()], {})
    async with client_of(create_api(router, ApiConfig(), residency=residency)) as local:
        for response in (await local.get(f"{ADMIN}/{name}"), await local.post(f"{ADMIN}/{name}/unload")):
            assert error_of(response) == (400, "invalid_value", "model")
            assert "manages its own models" in response.json()["error"]["message"]
    assert residency.calls == []


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", f"{ADMIN}/demo/explode", 404, "unknown_url"),
        ("POST", f"{ADMIN}/explode", 404, "unknown_url"),
        ("POST", ADMIN, 405, "method_not_supported"),
        ("DELETE", f"{ADMIN}/demo", 405, "method_not_supported"),
        ("POST", f"{ADMIN}//load", 400, "invalid_model_spec"),
        ("GET", f"{ADMIN}/{'x' * 5000}", 400, "invalid_model_spec"),
        ("GET", f"{ADMIN}/%00", 400, "invalid_model_spec"),
        ("GET", f"{ADMIN}/..%2F..%2Fetc", 400, "invalid_model_spec"),
    ],
)
async def test_strange_urls(local: httpx.AsyncClient, method: str, path: str, status: int, code: str) -> None:
    assert error_of(await local.request(method, path))[:2] == (status, code)


# --- who may ---

URLS = [("GET", ADMIN), ("GET", f"{ADMIN}/demo"), *(("POST", f"{ADMIN}/demo/{action}") for action in ACTIONS)]
URLS += [("POST", f"{ADMIN}/{action}") for action in ACTIONS]


@pytest.mark.parametrize(("method", "path"), URLS)
@pytest.mark.parametrize(
    ("address", "url", "headers"),
    [
        ("192.168.1.7", "http://localhost", {}),
        ("192.168.1.7", "http://localhost", {"x-forwarded-for": "127.0.0.1"}),
        ("127.0.0.1", "http://localhost", {"x-forwarded-for": "127.0.0.1"}),
        ("127.0.0.1", "http://evil.example", {}),
        ("127.0.0.1", "http://localhost", {"origin": "https://evil.example"}),
    ],
)
async def test_only_from_this_machine(
    app: FastAPI,
    residency: ScriptedResidency,
    method: str,
    path: str,
    address: str,
    url: str,
    headers: dict[str, str],
) -> None:
    async with client_of(app, address, url) as client:
        response = await client.request(method, path, headers=headers)

    assert error_of(response) == (403, "local_only", None)
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert residency.calls == []


@pytest.mark.parametrize(("method", "path"), URLS)
async def test_without_a_residency_there_is_no_administration(backend: ScriptedBackend, method: str, path: str) -> None:
    async with client_of(create_api(ModelRouter([backend], {}), ApiConfig())) as local:
        assert error_of(await local.request(method, path)) == (404, "unknown_url", None)


@pytest.mark.parametrize(
    ("host", "headers", "status"),
    [
        ("localhost", "", 200),
        ("[::1]:8000", "origin: http://[::1]:8000\r\n", 200),
        ("test", "", 403),
        ("localhost", "x-forwarded-for: 127.0.0.1\r\n", 403),  # what uvicorn takes for the client's address
        ("localhost", "x-forwarded-for: 203.0.113.9\r\n", 403),
        ("localhost", "forwarded: for=127.0.0.1\r\n", 403),
        ("localhost", "host: evil.example\r\n", 403),
        ("localhost", "origin: null\r\n", 403),
    ],
)
async def test_who_may_as_the_server_sees_it(served: Served, host: str, headers: str, status: int) -> None:
    async with served.connect() as connection:
        reply = await connection.ask(b"", path=ADMIN, method="GET", headers=headers, host=host)

    assert reply.status == status


async def test_the_actions_are_described(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]

    bodies = {}
    for path in (f"{ADMIN}/{{action}}", f"{ADMIN}/{{spec}}/{{action}}"):
        operation = paths[path]["post"]
        (action,) = [each for each in operation["parameters"] if each["name"] == "action"]
        assert action["schema"]["enum"] == ACTIONS
        body = operation["requestBody"]
        bodies[body["content"]["application/json"]["schema"]["$ref"].rsplit("/")[-1]] = body["required"]
    assert bodies == {"ModelActionBody": True, "ModelActionOptions": False}
