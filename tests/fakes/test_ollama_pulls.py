"""How the stand-in pulls and deletes: as ``PullModel`` and ``DeleteHandler`` of the real daemon do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fakes.ollama import FakeModel, FakeOllama, Pause


@pytest.fixture
def daemon() -> Iterator[FakeOllama]:
    with FakeOllama(FakeModel("demo"), offered=[FakeModel("new:1b", size=1000)], pull_lines=4) as fake:
        yield fake


@pytest.fixture
def http(daemon: FakeOllama) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=daemon.url, trust_env=False) as client:
        yield client


def pull(http: httpx.Client, model: str) -> list[dict[str, Any]]:
    response = http.post("/api/pull", json={"model": model})
    assert (response.status_code, response.headers["content-type"]) == (200, "application/x-ndjson")
    return [json.loads(line) for line in response.text.splitlines()]


def delete(http: httpx.Client, model: str) -> httpx.Response:
    return http.request("DELETE", "/api/delete", json={"model": model})


def names(http: httpx.Client) -> list[str]:
    return [model["name"] for model in http.get("/api/tags").json()["models"]]


def test_a_pull_says_what_comes_of_each_blob(http: httpx.Client) -> None:
    first, *blobs, verifying, writing, success = pull(http, "new:1b")
    assert first == {"status": "pulling manifest"}
    assert [each["status"] for each in (verifying, writing, success)] == [
        "verifying sha256 digest",
        "writing manifest",
        "success",
    ]
    weights = [each for each in blobs if each["total"] == 1000]
    assert [each.get("completed") for each in weights] == [None, 250, 500, 750, 1000]
    assert weights[0]["status"] == f"pulling {weights[0]['digest'].removeprefix('sha256:')[:12]}"
    assert "new:1b" in names(http)
    again = [each for each in pull(http, "new:1b") if each.get("total") == 1000]
    assert [each["completed"] for each in again] == [1000]


def test_a_pull_that_is_left_goes_on_later(daemon: FakeOllama, http: httpx.Client) -> None:
    daemon.on(Pause(where=4), path="/api/pull")
    with http.stream("POST", "/api/pull", json={"model": "new:1b"}) as response:
        lines = response.iter_lines()
        seen = [json.loads(next(lines)) for _ in range(4)]
    daemon.wait_for(lambda: daemon.requests[-1].was_cut_off)
    assert seen[-1]["completed"] == 500
    assert "new:1b" not in names(http)
    weights = [each for each in pull(http, "new:1b") if each.get("total") == 1000]
    assert weights[0]["completed"] >= 500


def test_what_nobody_offers_fails_in_the_stream_or_by_its_status(http: httpx.Client) -> None:
    error = {"error": "pull model manifest: file does not exist"}
    assert pull(http, "nothing") == [{"status": "pulling manifest"}, error]
    response = http.post("/api/pull", json={"model": "nothing", "stream": False})
    assert (response.status_code, response.json()) == (500, error)
    assert http.post("/api/pull", json={"model": ""}).status_code == 400


def test_a_deleted_model_has_to_come_again(http: httpx.Client) -> None:
    pull(http, "new:1b")
    response = delete(http, "new:1b")
    assert (response.status_code, response.content) == (200, b"")
    assert names(http) == ["demo:latest"]
    missing = delete(http, "new:1b")
    assert (missing.status_code, missing.json()) == (404, {"error": "model 'new:1b' not found"})
    weights = [each for each in pull(http, "new:1b") if each.get("total") == 1000]
    assert len(weights) > 1


def test_deleting_does_not_unload(daemon: FakeOllama, http: httpx.Client) -> None:
    http.post("/api/generate", json={"model": "demo"})
    delete(http, "demo")
    assert daemon.loaded == ["demo:latest"]
