from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.scripted import ScriptedBackend, ScriptedResidency, card
from api.scripted_library import ScriptedDaemon, ScriptedLibrary
from api.serving import HELLO, Served, client_of, error_of, http_request
from server.api.admin_schemas import AdministeredModel, AdministeredModels
from server.api.application import create_api
from server.api.config import ApiConfig
from server.core.errors import BackendError, InsufficientMemory, LlmspellError, ModelLoadingFailed, TimedOut
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
    "backend": "llamacpp",
    "state": "warm",
    "size_bytes": 1234,
    "memory_bytes": None,
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


@pytest.fixture
def phi(backend: ScriptedBackend, residency: ScriptedResidency) -> ResidencyStatus:
    backend.cards.append(card("phi3:3.8b", ModelState.LOADING))
    residency.models[PHI.model] = PHI
    return PHI


# --- what is shown ---


@pytest.mark.usefixtures("phi")
async def test_models_and_devices_are_listed(local: httpx.AsyncClient, residency: ScriptedResidency) -> None:
    residency.memory = [DeviceMemory("CPU", "a processor", 1000, 300), DeviceMemory("CUDA0", "a card", 4000, 4100)]

    response = await local.get(ADMIN)

    AdministeredModels.model_validate_json(response.content)
    listed = response.json()
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
        "backend": "llamacpp",
        "state": "loading",
        "size_bytes": 1234,
        "memory_bytes": 4107,
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
        for name, backend in (("local/demo", "ollama"), ("local/demo@llamacpp", "llamacpp")):
            found = (await local.get(f"{ADMIN}/{name}")).json()
            assert (found["id"], found["backend"]) == (name, backend)


async def test_a_model_whose_file_is_gone_is_listed_while_it_is_in_memory(
    local: httpx.AsyncClient, residency: ScriptedResidency
) -> None:
    residency.models["gone"] = ResidencyStatus("gone", ModelState.WARM, measured={"CPU": 5})

    listed = (await local.get(ADMIN)).json()["data"]

    assert [(each["id"], each["memory_bytes"]) for each in listed] == [
        ("local/demo", None),
        ("local/gone@llamacpp", 5),
    ]


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


# --- models of the daemon ---

OF_DAEMON = ["demo@ollama", "ollama/demo", "of-the-daemon", "local/of-the-daemon", "an-alias"]


@pytest.fixture
def two_backends() -> ModelRouter:
    """A router for which a name without backend is the daemon's, where both have it."""
    cards = [replace(card(model, backend=BackendName.OLLAMA), memory_bytes=77) for model in ("demo", "of-the-daemon")]
    cards.append(card("phi3:3.8b", ModelState.COLD, backend=BackendName.OLLAMA))
    daemon = ScriptedBackend(name=BackendName.OLLAMA, cards=cards)
    return ModelRouter([ScriptedBackend(), daemon], {"an-alias": "local/of-the-daemon"})


@pytest.mark.parametrize("name", OF_DAEMON)
async def test_the_daemon_loads_and_unloads_its_models(
    residency: ScriptedResidency, daemon: ScriptedDaemon, two_backends: ModelRouter, name: str
) -> None:
    model = "demo" if "demo" in name else "of-the-daemon"
    async with client_of(create_api(two_backends, ApiConfig(), residency=residency, daemon=daemon)) as local:
        shown = await local.get(f"{ADMIN}/{name}")
        loaded = await local.post(f"{ADMIN}/{name}/load")
        unloaded = await local.post(f"{ADMIN}/unload", json={"model": name, "force": False})

    for response in (shown, loaded, unloaded):
        assert response.status_code == 200
        AdministeredModel.model_validate_json(response.content)
    assert (shown.json()["id"], shown.json()["backend"]) == (f"local/{model}", "ollama")
    assert [each.json()["state"] for each in (shown, loaded, unloaded)] == ["warm", "warm", "cold"]
    assert (loaded.json()["memory_bytes"], unloaded.json()["memory_bytes"]) == (77, None)
    assert daemon.calls == [("load", model, None), ("unload", model)]
    assert residency.calls == []


async def test_a_model_that_the_daemon_has_just_loaded_is_warm(
    residency: ScriptedResidency, daemon: ScriptedDaemon, two_backends: ModelRouter
) -> None:
    async with client_of(create_api(two_backends, ApiConfig(), residency=residency, daemon=daemon)) as local:
        loaded = (await local.post(f"{ADMIN}/phi3:3.8b/load")).json()

    assert (loaded["id"], loaded["state"]) == ("local/phi3:3.8b", "warm")


async def test_a_load_that_the_daemon_refuses(
    residency: ScriptedResidency, daemon: ScriptedDaemon, two_backends: ModelRouter
) -> None:
    daemon.failure = BackendError("Ollama is not there; start it with `ollama serve`.")
    async with client_of(create_api(two_backends, ApiConfig(), residency=residency, daemon=daemon)) as local:
        for action in ("load", "unload"):
            assert error_of(await local.post(f"{ADMIN}/of-the-daemon/{action}")) == (502, "backend_error", None)


async def test_the_daemon_cannot_be_forced(
    residency: ScriptedResidency, daemon: ScriptedDaemon, two_backends: ModelRouter
) -> None:
    async with client_of(create_api(two_backends, ApiConfig(), residency=residency, daemon=daemon)) as local:
        response = await local.post(f"{ADMIN}/of-the-daemon/unload", json={"force": True})

    assert error_of(response) == (400, "unsupported_parameter", "force")
    assert daemon.calls == []


@pytest.mark.parametrize("name", OF_DAEMON)
async def test_the_daemon_has_no_pins(
    residency: ScriptedResidency, daemon: ScriptedDaemon, two_backends: ModelRouter, name: str
) -> None:
    async with client_of(create_api(two_backends, ApiConfig(), residency=residency, daemon=daemon)) as local:
        for action in ("pin", "unpin"):
            response = await local.post(f"{ADMIN}/{name}/{action}")
            assert error_of(response) == (400, "invalid_value", "model")
            assert "keep_alive" in response.json()["error"]["message"]
    assert (daemon.calls, residency.calls) == ([], [])


async def test_without_the_daemons_memory_there_is_no_say_in_it(
    residency: ScriptedResidency, two_backends: ModelRouter
) -> None:
    async with client_of(create_api(two_backends, ApiConfig(), residency=residency)) as local:
        for action in ("load", "unload"):
            response = await local.post(f"{ADMIN}/of-the-daemon/{action}")
            assert error_of(response) == (400, "invalid_value", "model")
            assert "ollama stop" in response.json()["error"]["message"]


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


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", f"{ADMIN}/demo/explode", 404, "unknown_url"),
        ("POST", f"{ADMIN}/explode", 404, "unknown_url"),
        ("POST", ADMIN, 405, "method_not_supported"),
        ("PUT", f"{ADMIN}/demo", 405, "method_not_supported"),
        ("HEAD", f"{ADMIN}/demo", 405, None),
        ("POST", f"{ADMIN}//load", 400, "invalid_model_spec"),
        ("GET", f"{ADMIN}/{'x' * 5000}", 400, "invalid_model_spec"),
        ("GET", f"{ADMIN}/%00", 400, "invalid_model_spec"),
        ("GET", f"{ADMIN}/..%2F..%2Fetc", 400, "invalid_model_spec"),
    ],
)
async def test_strange_urls(local: httpx.AsyncClient, method: str, path: str, status: int, code: str | None) -> None:
    response = await local.request(method, path)

    assert response.status_code == status
    assert code is None or error_of(response)[1] == code


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (ADMIN, "GET"),
        (f"{ADMIN}/local/hf.co/owner/repo:Q4_K_M", "DELETE, GET, POST"),
        (f"{ADMIN}/pull/cancel", "DELETE, GET, POST"),
        ("/admin/library/local/demo", "GET"),
        ("/admin/status", "GET"),
    ],
)
async def test_a_wrong_method_is_told_all_that_are_right(local: httpx.AsyncClient, path: str, allowed: str) -> None:
    response = await local.put(path)

    assert error_of(response)[:2] == (405, "method_not_supported")
    assert response.headers["allow"] == allowed
    assert allowed in response.json()["error"]["message"]


# --- who may ---

URLS = [("GET", ADMIN), ("GET", f"{ADMIN}/demo"), *(("POST", f"{ADMIN}/demo/{action}") for action in ACTIONS)]
URLS += [("POST", f"{ADMIN}/{action}") for action in ACTIONS]
DISK_URLS = [
    ("GET", "/admin/status"),
    ("GET", "/admin/library"),
    ("GET", "/admin/library/local/demo"),
    ("POST", f"{ADMIN}/pull"),
    ("POST", f"{ADMIN}/pull/cancel"),
    ("DELETE", f"{ADMIN}/local/demo"),
]


@pytest.fixture
def untouched(residency: ScriptedResidency, disk: ScriptedLibrary) -> Iterator[None]:
    """See that nothing has been done."""
    yield
    assert (residency.calls, disk.pulls, disk.deleted) == ([], [], [])


@pytest.mark.parametrize(("method", "path"), URLS + DISK_URLS)
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
@pytest.mark.usefixtures("untouched")
async def test_only_from_this_machine(
    app: FastAPI, method: str, path: str, address: str, url: str, headers: dict[str, str]
) -> None:
    async with client_of(app, address, url) as client:
        response = await client.request(method, path, headers=headers)

    assert error_of(response) == (403, "local_only", None)
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(("method", "path"), URLS + DISK_URLS)
async def test_without_a_residency_there_is_no_administration(backend: ScriptedBackend, method: str, path: str) -> None:
    async with client_of(create_api(ModelRouter([backend], {}), ApiConfig())) as local:
        assert error_of(await local.request(method, path)) == (404, "unknown_url", None)


@pytest.mark.parametrize(("method", "path"), DISK_URLS)
async def test_without_a_library_there_are_no_models_on_disk(
    backend: ScriptedBackend, residency: ScriptedResidency, method: str, path: str
) -> None:
    async with client_of(create_api(ModelRouter([backend], {}), ApiConfig(), residency=residency)) as local:
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


async def test_everything_is_described(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    described = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if path.startswith("/admin"):
                body = operation.get("requestBody")
                described[method, path] = (
                    body and (name_of(body["content"]["application/json"]["schema"]), body["required"]),
                    name_of(operation["responses"]["200"]["content"]["application/json"]["schema"]),
                )

    assert described == {
        ("get", "/admin/status"): (None, "ServerStatus"),
        ("get", "/admin/library"): (None, "LibraryEntries"),
        ("get", "/admin/library/{spec}"): (None, "LibraryDetails"),
        ("get", ADMIN): (None, "AdministeredModels"),
        ("get", f"{ADMIN}/{{spec}}"): (None, "AdministeredModel"),
        ("delete", f"{ADMIN}/{{spec}}"): (None, "DeletedModel"),
        ("post", f"{ADMIN}/pull"): (("PullBody", True), "PullSuccessEvent"),
        ("post", f"{ADMIN}/pull/cancel"): (("PullName", True), "CancelledPulls"),
        ("post", f"{ADMIN}/{{action}}"): (("ModelActionBody", True), "AdministeredModel"),
        ("post", f"{ADMIN}/{{spec}}/{{action}}"): (("ModelActionOptions", False), "AdministeredModel"),
    }
    stream = document["paths"][f"{ADMIN}/pull"]["post"]["responses"]["200"]["content"]["text/event-stream"]
    assert {name_of(each) for each in stream["schema"]["oneOf"]} == {
        "PullProgressEvent",
        "PullNoticeEvent",
        "PullSuccessEvent",
        "ErrorEnvelope",
    }
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["responses"].keys() == {"200", "default"}
            assert (
                name_of(operation["responses"]["default"]["content"]["application/json"]["schema"]) == "ErrorEnvelope"
            )
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert named <= schemas.keys()


async def test_every_endpoint_is_documented(client: httpx.AsyncClient) -> None:
    text = (Path(__file__).parents[2] / "docs" / "administration.md").read_text(encoding="utf-8")
    paths = (await client.get("/openapi.json")).json()["paths"]

    endpoints = [f"`{method.upper()} {path}" for path, each in paths.items() for method in each if "/admin" in path]
    assert [endpoint for endpoint in endpoints if endpoint not in text] == []


def name_of(schema: dict[str, str]) -> str:
    return schema["$ref"].rsplit("/")[-1]


@pytest.mark.parametrize("path", [f"{ADMIN}/{{action}}", f"{ADMIN}/{{spec}}/{{action}}"])
async def test_the_actions_are_named(client: httpx.AsyncClient, path: str) -> None:
    operation = (await client.get("/openapi.json")).json()["paths"][path]["post"]

    (action,) = [each for each in operation["parameters"] if each["name"] == "action"]
    assert action["schema"]["enum"] == ACTIONS
