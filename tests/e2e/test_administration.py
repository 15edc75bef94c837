"""Models pulled, watched, used and deleted over HTTP, with the real program and a stand-in for the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Start
from fakes.hub import FakeHub, Rule, Stall, Status
from fakes.ollama import FakeModel, FakeOllama
from serving import CHAT, PATIENCE, Server, chat_body, eventually, using_ollama

from server.api.admin_schemas import (
    AdministeredModel,
    DeletedModel,
    LibraryDetails,
    LibraryEntries,
    PullSuccessEvent,
    ServerStatus,
)

DEMO_FILE = Path(__file__).parents[2] / "server" / "assets" / "demo.gguf"
REPOSITORY = "owner/spell-GGUF"
MODEL = f"hf.co/{REPOSITORY}:Q8_0"
FILE = "spell-Q8_0.gguf"
HALF = DEMO_FILE.stat().st_size // 2


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        hub.add(REPOSITORY, {FILE: DEMO_FILE.read_bytes()})
        yield hub


@pytest.fixture
def server(start: Start, hub: FakeHub) -> Iterator[Server]:
    """A server on a machine without a model."""
    server = start(variables={"HF_ENDPOINT": hub.url})
    yield server
    assert server.failures == []


class Admin:
    """What an operator does."""

    def __init__(self, server: Server) -> None:
        self.client = httpx.Client(base_url=f"{server.url}/admin", timeout=PATIENCE)

    def status(self) -> dict[str, Any]:
        response = self.client.get("/status")
        ServerStatus.model_validate_json(response.content)
        return dict(response.json())

    def library(self) -> list[dict[str, Any]]:
        response = self.client.get("/library")
        LibraryEntries.model_validate_json(response.content)
        return list(response.json()["data"])

    def pull(self, **body: object) -> list[dict[str, Any]]:
        """All events of a pull, the last of which is its end."""
        with self.pulling(**body) as lines:
            return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]

    @contextmanager
    def pulling(self, **body: object) -> Iterator[Iterator[str]]:
        """The lines of a pull, as they come; whoever leaves the block has gone away."""
        with self.client.stream("POST", "/models/pull", json={"model": f"hf.co/{REPOSITORY}"} | body) as response:
            assert response.status_code == 200, response.read()
            yield response.iter_lines()


@pytest.fixture
def admin(server: Server) -> Iterator[Admin]:
    admin = Admin(server)
    with admin.client:
        yield admin


def error_code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def read_half(lines: Iterator[str]) -> None:
    """Read until half of the file has come."""
    for line in lines:
        if line.startswith("data: ") and json.loads(line[6:]).get("done_bytes", 0) >= HALF:
            return
    pytest.fail("the pull ended")


def test_a_model_comes_is_used_and_goes(server: Server, admin: Admin) -> None:
    assert (admin.library(), admin.status()["models"]) == ([], [])

    *progress, last = admin.pull()

    PullSuccessEvent.model_validate(last)
    assert last["id"] == f"local/{MODEL}@llamacpp"
    assert progress[-1]["done_bytes"] == DEMO_FILE.stat().st_size
    (path,) = (Path(each) for each in last["paths"])
    assert path.read_bytes() == DEMO_FILE.read_bytes()
    (listed,) = admin.library()
    assert (listed["id"], listed["state"], listed["source"]) == (last["id"], "cold", "own")
    details = admin.client.get(f"/library/{MODEL}")
    LibraryDetails.model_validate_json(details.content)
    assert (details.json()["architecture"], details.json()["files"]) == ("llama", [str(path)])

    assert server.ask("The capital of France?", model=MODEL).status_code == 200
    (loaded,) = admin.status()["models"]
    assert (loaded["state"], loaded["leases"]) == ("warm", 0)
    assert loaded["memory_bytes"] > 0
    assert admin.library()[0]["state"] == "warm"

    deleted = admin.client.delete(f"/models/{MODEL}")
    DeletedModel.model_validate_json(deleted.content)
    assert (deleted.json()["id"], deleted.json()["paths"]) == (last["id"], [str(path)])
    assert not path.exists()
    assert (admin.library(), admin.status()["models"]) == ([], [])
    assert error_code(server.ask("Hello", model=MODEL)) == (404, "model_not_found")
    assert error_code(admin.client.delete(f"/models/{MODEL}")) == (404, "model_not_found")


def test_a_model_in_use_stays(hub: FakeHub, server: Server, admin: Admin, slow_model: Path) -> None:
    hub.add(REPOSITORY, {FILE: slow_model})
    admin.pull()
    body = chat_body("Hi", model=MODEL, stream=True, ignore_eos=True, max_tokens=4000)
    with httpx.stream("POST", f"{server.url}{CHAT}", json=body, timeout=PATIENCE) as stream:
        assert stream.status_code == 200, stream.read()
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        refused = admin.client.delete(f"/models/{MODEL}")
    assert error_code(refused) == (409, "model_in_use")
    eventually(lambda: admin.status()["models"][0]["leases"] == 0, "the request has ended")

    assert admin.client.delete(f"/models/{MODEL}").status_code == 200


def test_a_pull_that_was_left_goes_on_where_it_stopped(hub: FakeHub, admin: Admin) -> None:
    hub.rules.append(Rule(FILE, Stall(after=HALF), times=1, at_hub=False))
    with admin.pulling() as lines:
        read_half(lines)
        (pull,) = admin.status()["pulls"]
        assert (pull["model"], pull["status"]) == (f"local/hf.co/{REPOSITORY}", "downloading")
    eventually(lambda: admin.status()["pulls"] == [], "the pull has ended")
    assert admin.library() == []

    assert admin.pull()[-1]["status"] == "success"
    assert hub.asked(FILE, at_hub=False)[-1].headers["range"] == f"bytes={HALF}-"


def test_a_pull_can_be_cancelled(hub: FakeHub, admin: Admin) -> None:
    hub.rules.append(Rule(FILE, Stall(after=HALF), times=1, at_hub=False))
    with admin.pulling() as lines:
        read_half(lines)
        cancelled = admin.client.post("/models/pull/cancel", json={"model": f"hf.co/{REPOSITORY}"})
        assert cancelled.json() == {"cancelled": 1}
        *_, last = (line for line in lines if line.startswith("data: "))
    assert json.loads(last[6:])["error"]["code"] == "pull_failed"

    assert admin.pull(stream=True)[-1]["status"] == "success"


@pytest.mark.parametrize(
    ("rule", "status", "code"),
    [
        (Rule("/api/models/", Status(404)), 404, "model_not_found"),
        (Rule("/api/models/", Status(403, "GatedRepo")), 403, "hub_denied"),
        (Rule("/api/models/", Status(500)), 502, "hub_unreachable"),
    ],
)
def test_what_the_hub_refuses_has_a_status(hub: FakeHub, admin: Admin, rule: Rule, status: int, code: str) -> None:
    hub.rules.append(rule)

    response = admin.client.post("/models/pull", json={"model": f"hf.co/{REPOSITORY}"})

    assert error_code(response) == (status, code)
    assert admin.status()["pulls"] == []


def test_models_of_the_daemon(start: Start) -> None:
    with FakeOllama(FakeModel("phi3:3.8b", ("completion",))) as daemon:
        admin = Admin(start(variables=using_ollama(daemon.url)))
        with admin.client:
            assert [each["id"] for each in admin.library()] == ["local/phi3:3.8b@ollama"]
            assert admin.client.get("/library/phi3:3.8b").status_code == 200
            for action, state, in_memory in (("load", "warm", ["phi3:3.8b"]), ("unload", "cold", [])):
                response = admin.client.post(f"/models/phi3:3.8b/{action}")
                AdministeredModel.model_validate_json(response.content)
                assert (response.json()["id"], response.json()["state"]) == ("local/phi3:3.8b", state)
                assert daemon.loaded == in_memory
            assert admin.client.delete("/models/phi3:3.8b").json()["id"] == "local/phi3:3.8b@ollama"
            assert admin.library() == []


def test_a_daemon_that_is_down_is_said_to_be(start: Start) -> None:
    with FakeOllama() as daemon:
        url = daemon.url
    admin = Admin(start(variables=using_ollama(url)))
    with admin.client:
        backends = {each["name"]: each for each in admin.status()["backends"]}
        assert (backends["ollama"]["up"], backends["llamacpp"]["up"]) == (False, True)
        assert backends["ollama"]["reason"]
        assert admin.client.get("/library", params={"backend": "ollama"}).json()["data"] == []
