"""What clients and operators see of a model's way into memory and out of it."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from conftest import Start
from gguf_shapes import LlamaShape, write_llama
from serving import CHAT, PATIENCE, Server, chat_body, curl, eventually, sse_data

BIG = LlamaShape(
    layers=12, width=1024, heads=8, kv_heads=2, hidden=4096, vocabulary=32_000, context=2048, weights="Q8_0"
)
"""A model of some 200 MB: its load takes long enough to be watched."""


@pytest.fixture(scope="session")
def big_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("big") / "big.gguf"
    write_llama(path, BIG)
    return path


def listed(path: Path, name: str = "big", **keys: object) -> str:
    """A table of the configuration."""
    lines = [f'[models."local/{name}"]', f'path = "{path}"', *(f"{key} = {value}" for key, value in keys.items())]
    return "\n".join(lines) + "\n"


def admin(server: Server, model: str, action: str = "", **body: object) -> dict[str, Any]:
    """Ask or steer as an operator does."""
    url = f"{server.url}/admin/models/local/{model}"
    response = (
        httpx.post(f"{url}/{action}", json=body, timeout=PATIENCE) if action else httpx.get(url, timeout=PATIENCE)
    )
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def lines_of_stream(server: Server, **parameters: Any) -> Iterator[str]:  # noqa: ANN401 (JSON)
    body = chat_body(stream=True, **parameters)
    with httpx.stream("POST", server.url + CHAT, json=body, timeout=PATIENCE) as response:
        assert response.status_code == 200, response.read()
        yield from response.iter_lines()


def test_a_stream_tells_how_far_the_load_is(start: Start, big_model: Path) -> None:
    server = start(config=f"[api]\nloading_comment_seconds = 0.01\n{listed(big_model)}")
    lines = [*lines_of_stream(server, model="local/big", max_tokens=2, ignore_eos=True)]
    progress = [int(found[1]) for line in lines if (found := re.match(r": loading ([0-9]+)%", line))]
    assert progress
    assert progress == sorted(progress)
    assert progress[-1] > 0
    assert sse_data(lines)[-1] == "[DONE]"
    assert not any(line.startswith(":") for line in lines_of_stream(server, model="local/big", max_tokens=2))


def test_where_the_time_went(start: Start, big_model: Path) -> None:
    server = start(config=listed(big_model, context_length=1024, kv_cells=2048))
    asked: dict[str, Any] = {"model": "local/big", "max_tokens": 3, "ignore_eos": True}
    began = time.monotonic()
    options = {"include_usage": True, "include_timings": True}
    cold = sse_data(lines_of_stream(server, **asked, stream_options=options))
    took = (time.monotonic() - began) * 1000
    timings, usage = json.loads(cold[-2])["timings"], json.loads(cold[-3])["usage"]
    assert 0 < timings["load_ms"] < timings["first_token_ms"] <= took
    assert timings["completion_tokens"] == usage["completion_tokens"] == 3
    parts = timings["queue_ms"] + timings["load_ms"] + timings["prompt_ms"]
    assert parts == pytest.approx(timings["first_token_ms"], rel=0.1, abs=20)

    warm = server.ask(**asked)
    header = dict(part.strip().split(";dur=") for part in warm.headers["server-timing"].split(","))
    assert float(header["load"]) == 0
    assert 0 < float(header["prompt"]) <= float(header["first_token"])
    assert float(header["decode"]) > 0

    def line() -> dict[str, Any] | None:
        return next((entry for entry in reversed(server.log) if "first_token_ms" in entry), None)

    eventually(lambda: (line() or {}).get("load_ms") == 0, "the access log has the second request")
    entry = line() or {}
    assert entry["first_token_ms"] == pytest.approx(float(header["first_token"]))
    assert entry["cached_tokens"] > 0
    shown = admin(server, "big")["ttft"]
    assert (shown["count"], shown["target_ms"]) == (2, 200)
    assert shown["attainment"] in {0.0, 0.5, 1.0}


def test_loading_and_unloading_twenty_times_gives_the_memory_back(start: Start, big_model: Path) -> None:
    server = start(config=listed(big_model, context_length=512, kv_cells=512))
    process = psutil.Process(server.process.pid)
    cold, warm = [], []
    for _ in range(20):
        state = admin(server, "big", "load")
        assert state["state"] == "warm"
        warm.append(process.memory_info().rss)
        assert server.ask(model="local/big", max_tokens=1).status_code == 200
        assert admin(server, "big", "unload")["state"] == "cold"
        cold.append(process.memory_info().rss)
    size = big_model.stat().st_size
    assert min(warm) - max(cold) > size / 2
    assert max(cold[5:]) - cold[4] < size / 10
    devices = httpx.get(f"{server.url}/admin/models").json()["devices"]
    assert [device["taken_bytes"] for device in devices] == [0] * len(devices)


def test_what_was_measured_is_remembered_by_the_next_server(start: Start, big_model: Path, tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        server = start(config=listed(big_model, context_length=512, kv_cells=512))
        admin(server, "big", "load")
        found.append(admin(server, "big")["bytes"]["CPU"])
        server.stop()
    assert found[0]["measured"] == pytest.approx(found[0]["predicted"], rel=0.25)
    assert found[1]["predicted"] == found[0]["predicted"]
    assert (tmp_path / ".cache" / "llmspell" / "footprints.json").exists() or found[0]["measured"]


def test_a_model_that_cannot_fit_is_refused_with_the_figures(start: Start, big_model: Path, tiny_model: Path) -> None:
    config = f'[llamacpp]\nmemory_budget = "64MiB"\n{listed(big_model)}{listed(tiny_model, "tiny")}'
    server = start(config=config)
    assert server.ask(model="local/tiny", max_tokens=1).status_code == 200
    refused = server.ask(model="local/big", max_tokens=1)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "insufficient_memory")
    assert re.search(
        r"needed [0-9]+ bytes.*free [0-9]+ bytes.*evictable [0-9]+ bytes", refused.json()["error"]["message"]
    )
    assert admin(server, "tiny")["state"] == "warm"
    streamed = httpx.post(server.url + CHAT, json=chat_body(model="local/big", stream=True), timeout=PATIENCE)
    assert streamed.status_code == 503


@pytest.mark.parametrize("damage", ["gone", "truncated", "garbage"])
def test_a_file_that_changes_between_listing_and_load(
    start: Start, tiny_model: Path, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "model.gguf"
    data = tiny_model.read_bytes()
    path.write_bytes(data)
    server = start(config=listed(path, "model"))
    assert any(model["id"] == "local/model" for model in httpx.get(f"{server.base_url}/models").json()["data"])
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"GGUF" + os.urandom(1000))
    refused = server.ask(model="local/model", max_tokens=1)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_loading_failed")
    assert admin(server, "model")["failure"] == refused.json()["error"]["message"]
    assert httpx.get(f"{server.url}/health/ready").status_code == 200
    path.write_bytes(data)
    eventually(lambda: server.ask(model="local/model", max_tokens=1).status_code == 200, "the file is back")


def test_stopping_in_the_middle_of_a_load(start: Start, big_model: Path) -> None:
    server = start(config=listed(big_model))
    answers: list[httpx.Response | Exception] = []

    def ask() -> None:
        try:
            answers.append(server.ask(model="local/big", max_tokens=1))
        except httpx.TransportError as error:
            answers.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: "is being loaded" in server.log_text, "the load has begun")
    assert server.stop(signal.SIGTERM) == 0
    asking.join(PATIENCE)
    assert len(answers) == 1
    assert server.failures == []


def test_operators_steer_with_curl(start: Start, tiny_model: Path) -> None:
    server = start("--demo", config=f"[aliases]\nsmall = 'local/tiny'\n{listed(tiny_model, 'tiny')}")
    url = f"{server.url}/admin/models"

    def post(action: str, body: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(curl("-X", "POST", f"{url}/{action}", "-d", body))
        return answer

    assert post("load", '{"model": "small"}')["state"] == "warm"
    assert post("pin", '{"model": "local/tiny"}')["pinned"] is True
    assert post("unload", '{"model": "local/tiny", "force": true}')["state"] == "cold"
    assert json.loads(curl("-X", "POST", f"{url}/local/tiny/unpin"))["pinned"] is False
    found = {model["id"]: model for model in json.loads(curl(url))["data"]}
    assert (found["local/demo"]["state"], found["local/tiny"]["state"]) == ("warm", "cold")
    refused = json.loads(curl(url, "-H", "X-Forwarded-For: 203.0.113.7"))
    assert refused["error"]["code"] == "local_only"
    assert server.ask(model="small", max_tokens=1).status_code == 200


def test_keep_alive_of_a_request(start: Start, tiny_model: Path) -> None:
    server = start(config=listed(tiny_model, "tiny"))
    with server.client() as client:
        messages: Any = [{"role": "user", "content": "Hello"}]
        client.chat.completions.create(
            model="local/tiny", messages=messages, max_tokens=1, extra_body={"keep_alive": "5m"}
        )
        assert admin(server, "tiny")["keep_alive_until"] is not None
        client.chat.completions.create(
            model="local/tiny", messages=messages, max_tokens=1, extra_body={"keep_alive": 0}
        )
    eventually(lambda: admin(server, "tiny")["state"] == "cold", "it is unloaded after its last use")


def test_models_by_flag_by_file_and_the_demo(start: Start, tiny_model: Path, tmp_path: Path) -> None:
    config = listed(tiny_model, "listed") + listed(tiny_model, "wanted")
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny_model.read_bytes())
    server = start("--demo", "--model", "wanted", "--model", str(other), config=config)
    states = {model["id"]: model["state"] for model in httpx.get(f"{server.base_url}/models").json()["data"]}
    assert states == {"local/listed": "cold", "local/wanted": "warm", "local/other": "warm", "local/demo": "warm"}
    assert httpx.get(f"{server.url}/health/ready").json()["models"].keys() == states.keys() - {"local/listed"}
    for model in states:
        assert server.ask(model=model, max_tokens=1).status_code == 200
