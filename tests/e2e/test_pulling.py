"""Models that are downloaded while the server runs: by an operator, and for a request."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Start
from fakes.hub import FakeHub, Rule, Stall, Status
from fakes.ollama import FakeModel, FakeOllama
from serving import CHAT, PATIENCE, Server, chat_body, eventually, sse_data, using_ollama

DEMO_FILE = Path(__file__).parents[2] / "server" / "assets" / "demo.gguf"
REPOSITORY = "me/Spell-GGUF"
SPEC = f"hf.co/{REPOSITORY}:Q4_K_M"
MISTRAL = "bartowski/Mistral-7B-Instruct-v0.3-GGUF"
AUTO_PULL = "[store]\nauto_pull = true\n[api]\nloading_comment_seconds = 0.02\n"
GRACE_SECONDS = 30
"""What running requests get by default."""
SLOW = 8e6
"""Bytes a second: a second for the demo model."""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        hub.add(REPOSITORY, {"spell-Q4_K_M.gguf": DEMO_FILE.read_bytes()})
        hub.add(MISTRAL, {"Mistral-7B-Instruct-v0.3-Q4_K_M.gguf": DEMO_FILE.read_bytes()})
        yield hub


def at(hub: FakeHub, **variables: str) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1"} | variables


def own_files(home: Path) -> list[Path]:
    return sorted((home / ".local" / "share" / "llmspell" / "models").rglob("*.gguf"))


def pull(server: Server, model: str, **body: object) -> Iterator[dict[str, Any]]:
    url = f"{server.url}/admin/models/pull"
    with httpx.stream("POST", url, json={"model": model} | body, timeout=PATIENCE) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


def streamed(server: Server, model: str) -> tuple[int, list[str]]:
    body = chat_body(stream=True, max_tokens=3) | {"model": model}
    with httpx.stream("POST", server.url + CHAT, json=body, timeout=PATIENCE) as response:
        return response.status_code, [*response.iter_lines()]


def test_a_model_is_pulled_used_and_deleted(start: Start, hub: FakeHub, tmp_path: Path) -> None:
    server = start(variables=at(hub))
    *_, last = pull(server, SPEC)
    assert (last["status"], last["id"]) == ("success", f"local/{SPEC}@llamacpp")
    assert [str(path) for path in own_files(tmp_path)] == last["paths"]

    status, lines = streamed(server, SPEC)
    assert (status, sse_data(lines)[-1]) == (200, "[DONE]")
    deleted = httpx.delete(f"{server.url}/admin/models/{SPEC}", timeout=PATIENCE)
    assert deleted.json()["deleted"], deleted.text
    assert own_files(tmp_path) == []
    assert streamed(server, SPEC)[0] == 404
    assert server.failures == []


def test_a_request_has_its_model_downloaded_and_hears_how_far_it_is(start: Start, hub: FakeHub, tmp_path: Path) -> None:
    hub.bytes_per_second = SLOW
    server = start(config=AUTO_PULL, variables=at(hub))
    status, lines = streamed(server, "llamacpp/mistral:7b")
    assert (status, sse_data(lines)[-1]) == (200, "[DONE]")
    told = [int(found[1]) for line in lines if (found := re.match(r": downloading ([0-9]+)%", line))]
    assert told == sorted(told)
    assert 0 < told[-1] <= 100
    assert len(own_files(tmp_path)) == 1
    again = server.ask(model="mistral:7b", max_tokens=1)
    assert again.status_code == 200
    assert len([each for each in hub.requests if "/resolve/" in each.path and each.at_hub]) == 1


def test_many_who_ask_for_it_share_one_download(start: Start, hub: FakeHub) -> None:
    hub.bytes_per_second = SLOW
    server = start(config=AUTO_PULL, variables=at(hub))
    outcomes: list[int] = []

    def ask() -> None:
        outcomes.append(server.ask(model=SPEC, max_tokens=1).status_code)

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(PATIENCE)
    assert outcomes == [200] * 4
    assert len([each for each in hub.requests if "/resolve/" in each.path and each.at_hub]) == 1


def test_nothing_is_downloaded_unless_it_may_be(start: Start, hub: FakeHub) -> None:
    server = start(variables=at(hub))
    refused = server.ask(model=SPEC)
    assert refused.status_code == 404
    assert f"`llmspell model pull local/{SPEC}`" in refused.json()["error"]["message"]
    assert hub.requests == []


def test_names_that_nobody_vouches_for_are_not_looked_for(start: Start, hub: FakeHub) -> None:
    server = start(config=AUTO_PULL, variables=at(hub))
    assert server.ask(model="nothing:7b").status_code == 404
    assert server.ask(model="demo/../../etc").status_code == 400
    assert hub.requests == []
    hub.rules.append(Rule("/api/models/", Status(401, "GatedRepo", "Access to it is restricted")))
    assert server.ask(model=SPEC).status_code == 403


def test_who_goes_away_ends_the_download_which_goes_on_later(start: Start, hub: FakeHub, tmp_path: Path) -> None:
    hub.rules.append(Rule("/", Stall(after=1_000_000), times=1, at_hub=False))
    server = start(config=AUTO_PULL, variables=at(hub))
    body = chat_body(stream=True, max_tokens=1) | {"model": SPEC}
    with httpx.stream("POST", server.url + CHAT, json=body, timeout=PATIENCE) as response:
        assert next(line for line in response.iter_lines() if re.match(r": downloading [1-9]", line))

    def pulls() -> list[Any]:
        found: list[Any] = httpx.get(f"{server.url}/admin/status", timeout=PATIENCE).json()["pulls"]
        return found

    eventually(lambda: pulls() == [], "nobody waits for the download any more")
    assert own_files(tmp_path) == []
    assert server.ask(model=SPEC, max_tokens=1).status_code == 200
    ranges = [each.headers.get("range") for each in hub.requests if not each.at_hub]
    assert ranges[-1] is not None, "it went on where it had stopped"


def test_a_shutdown_does_not_wait_for_a_download(start: Start, hub: FakeHub) -> None:
    hub.rules.append(Rule("/", Stall(after=1_000_000), times=1, at_hub=False))
    server = start(variables=at(hub))
    events = pull(server, SPEC)
    assert any(event["done_bytes"] for event in events)
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    *_, last = events
    assert "shutting down" in last["error"]["message"]
    assert server.exit_code() == 0
    assert time.monotonic() - began < GRACE_SECONDS


def test_the_daemon_pulls_what_is_asked_of_it(start: Start, hub: FakeHub) -> None:
    with FakeOllama(FakeModel("other"), offered=[FakeModel("mistral:7b")]) as daemon:
        server = start(config=AUTO_PULL, variables=using_ollama(daemon.url) | at(hub))
        answer = server.ask(model="ollama/mistral:7b")
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-llmspell-backend"] == "ollama"
        assert hub.requests == []
