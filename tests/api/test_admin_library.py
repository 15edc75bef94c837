"""``/admin/library``, ``DELETE /admin/models/…`` and ``/admin/status``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.scripted import ScriptedBackend, ScriptedResidency, card
from api.scripted_library import ScriptedLibrary, finished, installed, play
from api.serving import client_of, error_of
from server import __version__
from server.api.admin_schemas import DeletedModel, LibraryDetails, LibraryEntries, ServerStatus
from server.api.application import create_api
from server.api.config import ApiConfig
from server.core.errors import CannotStore, LlmspellError, ModelInUse
from server.core.model_spec import BackendName
from server.core.ports import DeviceMemory, LoadProgress, ModelState, PreloadedModel, ResidencyStatus
from server.library import ModelLibrary
from server.router import ModelRouter

LIBRARY = "/admin/library"
MODELS = "/admin/models"
STATUS = "/admin/status"
REPOSITORY = "hf.co/owner/repo:Q4_K_M"


# --- lists ---


async def test_models_on_disk_are_listed(
    local: httpx.AsyncClient, disk: ScriptedLibrary, daemon_disk: ScriptedLibrary
) -> None:
    disk.present.append(replace(installed("broken"), problem="it is truncated"))
    daemon_disk.present.append(replace(installed("phi3:3.8b", BackendName.OLLAMA, "daemon"), state=ModelState.WARM))

    response = await local.get(LIBRARY)

    LibraryEntries.model_validate_json(response.content)
    listed = response.json()
    assert listed["object"] == "list"
    assert [(each["id"], each["state"], each["problem"]) for each in listed["data"]] == [
        ("local/phi3:3.8b@ollama", "warm", None),
        ("local/demo@llamacpp", "warm", None),
        ("local/broken@llamacpp", "cold", "it is truncated"),
    ]


@pytest.mark.parametrize(("side", "names"), [("ollama", ["phi3:3.8b"]), ("llamacpp", ["demo"])])
async def test_models_of_one_backend(
    local: httpx.AsyncClient, daemon_disk: ScriptedLibrary, side: str, names: list[str]
) -> None:
    daemon_disk.present.append(installed("phi3:3.8b", BackendName.OLLAMA, "daemon"))

    listed = (await local.get(LIBRARY, params={"backend": side})).json()["data"]

    assert [each["name"] for each in listed] == names


@pytest.mark.parametrize(
    ("known_as", "name", "other_names"),
    [
        ("other", "demo", ("other",)),
        ("DEMO", "demo", ()),
        ("demo", "demo:latest", ()),
        ("demo:latest", "demo", ()),
        ("demo", "Demo", ()),
    ],
)
async def test_the_state_of_a_model_that_goes_by_several_names(
    local: httpx.AsyncClient,
    disk: ScriptedLibrary,
    residency: ScriptedResidency,
    known_as: str,
    name: str,
    other_names: tuple[str, ...],
) -> None:
    disk.present = [replace(installed(name), other_names=other_names)]
    residency.models = {known_as: ResidencyStatus(known_as, ModelState.DRAINING)}

    assert (await local.get(LIBRARY)).json()["data"][0]["state"] == "draining"


@pytest.mark.parametrize(
    ("states", "shown"),
    [
        ([ModelState.COLD, ModelState.WARM], "warm"),
        ([ModelState.DRAINING, ModelState.LOADING], "loading"),
        ([ModelState.COLD, ModelState.FAILED], "failed"),
    ],
)
async def test_the_state_of_a_model_with_copies_is_that_of_the_most_present(
    local: httpx.AsyncClient,
    disk: ScriptedLibrary,
    residency: ScriptedResidency,
    states: list[ModelState],
    shown: str,
) -> None:
    disk.present = [replace(installed("demo"), other_names=("copy",))]
    residency.models = {
        name: ResidencyStatus(name, state) for name, state in zip(("demo", "copy"), states, strict=True)
    }

    assert (await local.get(LIBRARY)).json()["data"][0]["state"] == shown


async def test_what_is_not_known_to_the_pool_is_cold(local: httpx.AsyncClient, residency: ScriptedResidency) -> None:
    residency.models = {}

    assert (await local.get(LIBRARY)).json()["data"][0]["state"] == "cold"


async def test_a_daemon_that_is_down_has_no_models(local: httpx.AsyncClient, daemon_disk: ScriptedLibrary) -> None:
    daemon_disk.present.append(installed("phi3:3.8b", BackendName.OLLAMA, "daemon"))
    daemon_disk.reason = "the connection is refused"

    assert [each["name"] for each in (await local.get(LIBRARY)).json()["data"]] == ["demo"]
    assert (await local.get(LIBRARY, params={"backend": "ollama"})).json()["data"] == []


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("backend=cuda", "invalid_value", "backend"),
        ("backend=", "invalid_value", "backend"),
        ("backnd=ollama", "unsupported_parameter", "backnd"),
    ],
)
async def test_bad_filters(local: httpx.AsyncClient, query: str, code: str, param: str) -> None:
    assert error_of(await local.get(f"{LIBRARY}?{query}")) == (400, code, param)


# --- details ---


@pytest.mark.parametrize(
    "name", ["demo", "local/demo", "local%2Fdemo", "demo:latest", "llamacpp/demo", "demo@llama.cpp", "gpt-4o-mini"]
)
async def test_details_go_by_any_name(local: httpx.AsyncClient, name: str) -> None:
    response = await local.get(f"{LIBRARY}/{name}")

    LibraryDetails.model_validate_json(response.content)
    details = response.json()
    assert (details["id"], details["state"], details["architecture"]) == ("local/demo@llamacpp", "warm", "llama")
    assert details["memory"] == [{"context_length": 2048, "bytes": 3000}]
    assert details["defaults"] == {"temperature": 0.5, "stop": ["<|end|>"]}


async def test_details_of_a_repository(local: httpx.AsyncClient, disk: ScriptedLibrary) -> None:
    disk.present.append(installed(REPOSITORY))

    assert (await local.get(f"{LIBRARY}/{REPOSITORY}")).json()["name"] == REPOSITORY


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("dem", 404, "model_not_found"),
        ("demo@ollama", 404, "model_not_found"),
        ("!", 400, "invalid_model_spec"),
        ("ollama/demo@llamacpp", 400, "invalid_model_spec"),
        ("..%2F..%2Fetc%2Fpasswd", 400, "invalid_model_spec"),
        ("", 400, "invalid_model_spec"),
    ],
)
async def test_details_of_nothing(local: httpx.AsyncClient, name: str, status: int, code: str) -> None:
    for response in (await local.get(f"{LIBRARY}/{name}"), await local.delete(f"{MODELS}/{name}")):
        assert error_of(response) == (status, code, "model")


async def test_details_take_no_options(local: httpx.AsyncClient) -> None:
    assert error_of(await local.get(f"{LIBRARY}/demo?verbose=1")) == (400, "unsupported_parameter", "verbose")


# --- deletion ---


def become(residency: ScriptedResidency, **changes: Any) -> Callable[[], None]:  # noqa: ANN401 - fields of a status
    """Change what the pool says of the model, when called."""

    def change() -> None:
        residency.models["demo"] = replace(residency.models["demo"], **changes)

    return change


@pytest.mark.parametrize("name", ["demo", "local%2Fdemo", "demo@llamacpp", "gpt-4o-mini"])
async def test_an_idle_model_leaves_the_memory_before_the_disk(
    local: httpx.AsyncClient, disk: ScriptedLibrary, residency: ScriptedResidency, name: str
) -> None:
    states = []
    disk.on_delete = lambda: states.append(residency.models["demo"].state)

    response = await local.delete(f"{MODELS}/{name}")

    assert response.status_code == 200
    DeletedModel.model_validate_json(response.content)
    assert response.json() == {
        "id": "local/demo@llamacpp",
        "object": "model",
        "deleted": True,
        "paths": [str(Path("/models/demo.gguf"))],
        "freed_bytes": 1234,
    }
    assert (residency.calls, states, disk.deleted) == ([("unload", "demo", False)], [ModelState.COLD], ["demo"])


async def test_a_model_that_is_in_memory_by_another_name(
    local: httpx.AsyncClient, disk: ScriptedLibrary, residency: ScriptedResidency
) -> None:
    disk.present = [replace(installed("first"), other_names=("demo",))]

    assert (await local.delete(f"{MODELS}/first")).status_code == 200
    assert residency.calls == [("unload", "demo", False)]


async def test_a_model_of_which_a_copy_is_in_use_is_not_deleted(
    local: httpx.AsyncClient, disk: ScriptedLibrary, residency: ScriptedResidency
) -> None:
    disk.present = [replace(installed("demo"), other_names=("copy",))]
    residency.models["copy"] = ResidencyStatus("copy", ModelState.WARM, num_leases=1)
    assert error_of(await local.delete(f"{MODELS}/demo")) == (409, "model_in_use", "model")
    assert residency.calls == []
    residency.models["copy"] = ResidencyStatus("copy", ModelState.WARM)

    assert (await local.delete(f"{MODELS}/demo")).status_code == 200
    assert residency.calls == [("unload", "demo", False), ("unload", "copy", False)]


async def test_a_cold_model_is_deleted(
    local: httpx.AsyncClient, disk: ScriptedLibrary, residency: ScriptedResidency
) -> None:
    become(residency, state=ModelState.COLD)()

    assert (await local.delete(f"{MODELS}/demo")).status_code == 200
    assert (residency.calls, disk.deleted) == ([], ["demo"])


async def test_a_model_that_could_not_be_loaded_is_deleted(
    local: httpx.AsyncClient, disk: ScriptedLibrary, residency: ScriptedResidency
) -> None:
    become(residency, state=ModelState.FAILED, failure="the file is damaged")()
    residency.after_unload = become(residency, state=ModelState.FAILED)

    assert (await local.delete(f"{MODELS}/demo")).status_code == 200
    assert disk.deleted == ["demo"]


async def test_a_repository_is_deleted(local: httpx.AsyncClient, disk: ScriptedLibrary) -> None:
    disk.present.append(installed(REPOSITORY))

    assert (await local.delete(f"{MODELS}/{REPOSITORY}")).json()["id"] == f"local/{REPOSITORY}@llamacpp"
    assert disk.deleted == [REPOSITORY]


async def test_what_an_unfinished_download_left_is_deleted(local: httpx.AsyncClient, disk: ScriptedLibrary) -> None:
    disk.unfinished = [REPOSITORY]

    assert (await local.delete(f"{MODELS}/{REPOSITORY}@llamacpp")).json()["freed_bytes"] == 500
    assert error_of(await local.delete(f"{MODELS}/{REPOSITORY}@llamacpp"))[:2] == (404, "model_not_found")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_leases": 1},
        {"num_waiting": 1},
        {"state": ModelState.LOADING},
        {"state": ModelState.DRAINING},
        {"state": ModelState.COLD, "num_waiting": 1},
    ],
)
async def test_a_model_in_use_is_not_deleted(
    local: httpx.AsyncClient, disk: ScriptedLibrary, residency: ScriptedResidency, changes: dict[str, Any]
) -> None:
    become(residency, **changes)()

    response = await local.delete(f"{MODELS}/demo")

    assert error_of(response) == (409, "model_in_use", "model")
    assert "unload" in response.json()["error"]["message"]
    assert (residency.calls, disk.deleted) == ([], [])


@pytest.mark.parametrize(
    "changes",
    [
        {"state": ModelState.LOADING, "num_waiting": 1},
        {"state": ModelState.WARM, "num_leases": 1},
        {"state": ModelState.WARM},
    ],
)
async def test_a_request_that_comes_while_the_model_leaves_wins(
    local: httpx.AsyncClient, disk: ScriptedLibrary, residency: ScriptedResidency, changes: dict[str, Any]
) -> None:
    residency.after_unload = become(residency, **changes)

    assert error_of(await local.delete(f"{MODELS}/demo")) == (409, "model_in_use", "model")
    assert (residency.calls, disk.deleted) == ([("unload", "demo", False)], [])


async def test_a_model_of_the_daemon_is_deleted_there(
    local: httpx.AsyncClient, disk: ScriptedLibrary, daemon_disk: ScriptedLibrary, residency: ScriptedResidency
) -> None:
    daemon_disk.present = [installed("demo", BackendName.OLLAMA, "daemon")]

    response = await local.delete(f"{MODELS}/ollama/demo")

    assert response.json() | {"freed_bytes": 0} == {
        "id": "local/demo@ollama",
        "object": "model",
        "deleted": True,
        "paths": [],
        "freed_bytes": 0,
    }
    assert (daemon_disk.deleted, disk.deleted, residency.calls) == (["demo"], [], [])


@pytest.mark.parametrize("name", ["demo", "ollama/demo"])
async def test_files_of_the_daemon_leave_the_memory_of_this_process(
    local: httpx.AsyncClient,
    disk: ScriptedLibrary,
    daemon_disk: ScriptedLibrary,
    residency: ScriptedResidency,
    name: str,
) -> None:
    disk.present = [installed("demo", source="ollama")]
    daemon_disk.present = [installed("demo", BackendName.OLLAMA, "daemon")]
    become(residency, num_leases=1)()
    assert error_of(await local.delete(f"{MODELS}/{name}")) == (409, "model_in_use", "model")
    become(residency, num_leases=0)()

    assert (await local.delete(f"{MODELS}/{name}")).json()["id"] == "local/demo@ollama"
    assert (residency.calls, daemon_disk.deleted) == ([("unload", "demo", False)], ["demo"])


async def test_deleting_is_never_a_guess(
    local: httpx.AsyncClient, disk: ScriptedLibrary, daemon_disk: ScriptedLibrary, residency: ScriptedResidency
) -> None:
    daemon_disk.present = [installed("demo", BackendName.OLLAMA, "daemon")]

    response = await local.delete(f"{MODELS}/demo")

    assert error_of(response) == (400, "invalid_value", "model")
    assert "local/demo@ollama and local/demo@llamacpp" in response.json()["error"]["message"]
    assert (disk.deleted, daemon_disk.deleted, residency.calls) == ([], [], [])


async def test_the_second_of_two_deletions_finds_nothing(local: httpx.AsyncClient, disk: ScriptedLibrary) -> None:
    first, second = await asyncio.gather(local.delete(f"{MODELS}/demo"), local.delete(f"{MODELS}/demo"))

    assert {first.status_code, second.status_code} == {200, 404}
    assert disk.deleted == ["demo"]


@pytest.mark.parametrize(
    ("error", "status"), [(CannotStore("it may not be changed"), 507), (ModelInUse("it is being pulled"), 409)]
)
async def test_a_deletion_that_fails(
    local: httpx.AsyncClient, disk: ScriptedLibrary, error: LlmspellError, status: int
) -> None:
    disk.failure = error

    assert error_of(await local.delete(f"{MODELS}/demo")) == (status, error.code, None)


async def test_a_deletion_cannot_be_forced(
    local: httpx.AsyncClient, disk: ScriptedLibrary, residency: ScriptedResidency
) -> None:
    assert error_of(await local.delete(f"{MODELS}/demo?force=true")) == (400, "unsupported_parameter", "force")
    assert (residency.calls, disk.deleted) == ([], [])


# --- status ---


async def test_the_server_at_a_glance(
    local: httpx.AsyncClient,
    backend: ScriptedBackend,
    residency: ScriptedResidency,
    daemon_disk: ScriptedLibrary,
) -> None:
    daemon_disk.reason = "the connection is refused"
    residency.memory = [DeviceMemory("CPU", "a processor", 1000, 300)]
    backend.cards += [card("busy"), card("coming"), card("cold", ModelState.COLD)]
    residency.models |= {
        "busy": ResidencyStatus(
            "busy",
            ModelState.WARM,
            predicted={"CPU": 1, "CUDA0": 2},
            measured={"CPU": 10, "CUDA0": 20},
            num_leases=2,
            num_waiting=1,
            keep_alive_until=1_700_000_300.0,
        ),
        "coming": ResidencyStatus(
            "coming", ModelState.LOADING, predicted={"CPU": 5}, num_waiting=3, progress=LoadProgress(0.42)
        ),
        "cold": ResidencyStatus("cold", ModelState.COLD, predicted={"CPU": 5}),
        "failed": ResidencyStatus("failed", ModelState.FAILED, measured={"CPU": 5}),
    }

    response = await local.get(STATUS)

    ServerStatus.model_validate_json(response.content)
    status = response.json()
    assert (status["version"], status["ready"], status["pulls"]) == (__version__, True, [])
    assert status["started"].endswith("Z")
    assert status["backends"] == [
        {
            "name": "ollama",
            "up": False,
            "version": "1.2.3",
            "url": "http://127.0.0.1:11434",
            "reason": "the connection is refused",
        },
        {"name": "llamacpp", "up": True, "version": "1.2.3", "url": "http://127.0.0.1:11434", "reason": None},
    ]
    assert [device["name"] for device in status["devices"]] == ["CPU"]
    assert [model["id"] for model in status["models"]] == ["local/demo", "local/busy", "local/coming"]
    assert status["models"][1:] == [
        {
            "id": "local/busy",
            "backend": "llamacpp",
            "state": "warm",
            "size_bytes": 1234,
            "memory_bytes": 30,
            "leases": 2,
            "waiting": 1,
            "keep_alive_until": "2023-11-14T22:18:20.000Z",
            "progress": None,
        },
        {
            "id": "local/coming",
            "backend": "llamacpp",
            "state": "loading",
            "size_bytes": 1234,
            "memory_bytes": 5,
            "leases": 0,
            "waiting": 3,
            "keep_alive_until": None,
            "progress": 0.42,
        },
    ]
    assert residency.calls == []


async def test_models_in_the_daemons_memory(residency: ScriptedResidency, library: ModelLibrary) -> None:
    cards = [replace(card("phi3:3.8b", backend=BackendName.OLLAMA), memory_bytes=77)]
    cards.append(card("cold", ModelState.COLD, backend=BackendName.OLLAMA))
    router = ModelRouter([ScriptedBackend(cards=[]), ScriptedBackend(name=BackendName.OLLAMA, cards=cards)], {})
    residency.models = {}
    async with client_of(create_api(router, ApiConfig(), residency=residency, library=library)) as local:
        response = await local.get(STATUS)

    ServerStatus.model_validate_json(response.content)
    assert response.json()["models"] == [
        {
            "id": "local/phi3:3.8b",
            "backend": "ollama",
            "state": "warm",
            "size_bytes": 1234,
            "memory_bytes": 77,
            "leases": None,
            "waiting": None,
            "keep_alive_until": None,
            "progress": None,
        }
    ]


async def test_a_server_that_still_loads_is_not_ready(local: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.preloads = [PreloadedModel(card(state=ModelState.LOADING), is_ready=False)]
    assert (await local.get(STATUS)).json()["ready"] is False
    backend.preloads = [PreloadedModel(card(), is_ready=True)]
    assert (await local.get(STATUS)).json()["ready"] is True


async def test_pulls_that_go_on(local: httpx.AsyncClient, disk: ScriptedLibrary) -> None:
    go_on = asyncio.Event()

    disk.script = play(go_on, finished())
    pulling = asyncio.create_task(local.post(f"{MODELS}/pull", json={"model": REPOSITORY, "quantization": "Q8_0"}))
    await disk.until_held(1)

    response = await local.get(STATUS)
    go_on.set()
    await pulling

    ServerStatus.model_validate_json(response.content)
    assert response.json()["pulls"] == [
        {"model": f"local/{REPOSITORY}", "quantization": "Q8_0", "backend": "llamacpp", "status": "queued"}
    ]
    assert (await local.get(STATUS)).json()["pulls"] == []
