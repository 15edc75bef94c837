"""The stand-in against the published description of the API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes.client import CITY, PIXEL, WEATHER, Client
from fakes.described import complaints, resolved
from fakes.ollama import Call, FakeModel, FakeOllama, Reply

DESCRIPTION = Path(__file__).resolve().parents[3] / "shared" / "ollama-openapi.yaml"
ABLE = FakeModel("able", ("completion", "tools", "thinking", "vision", "insert"), native=False)


@pytest.fixture(scope="session")
def description() -> dict[str, Any]:
    if not DESCRIPTION.exists():
        pytest.skip("the published description is not here")
    yaml = pytest.importorskip("yaml")
    whole: dict[str, Any] = yaml.safe_load(DESCRIPTION.read_text(encoding="utf-8"))
    return whole


@pytest.fixture
def able() -> Iterator[Client]:
    """A model that can do everything, and uses its tools when it gets any."""
    reply = Reply(calls=[Call("weather", {"city": "Paris"})])
    with (
        FakeOllama(ABLE, reply=reply, offered=[FakeModel("new"), ABLE]) as daemon,
        httpx.Client(base_url=daemon.url) as http,
    ):
        yield Client(http, ABLE.name)


def check(response: httpx.Response, operation: dict[str, Any], whole: dict[str, Any]) -> None:
    """The answer is one that the operation describes."""
    content = operation["responses"][str(response.status_code)]["content"]
    kind = response.headers["content-type"].partition(";")[0]
    lines = response.text.splitlines() if kind == "application/x-ndjson" else [response.text]
    for line in lines:
        assert not list(complaints(json.loads(line), content[kind]["schema"], whole))


ANSWERS: list[tuple[str, str, dict[str, object] | None]] = [
    ("GET", "/api/version", None),
    ("GET", "/api/tags", None),
    ("GET", "/api/ps", None),
    ("POST", "/api/show", {"model": "able"}),
    ("POST", "/api/pull", {"model": "new"}),
    ("POST", "/api/pull", {"model": "new", "stream": False}),
    ("POST", "/api/chat", {"messages": []}),
    ("POST", "/api/chat", {"stream": False}),
    ("POST", "/api/chat", {"stream": False, "logprobs": True, "top_logprobs": 3}),
    ("POST", "/api/chat", {"stream": True, "logprobs": True, "top_logprobs": 3}),
    ("POST", "/api/chat", {"stream": True}),
    ("POST", "/api/chat", {"stream": True, "tools": [WEATHER]}),
    ("POST", "/api/chat", {"stream": False, "tools": [WEATHER]}),
    ("POST", "/api/generate", {}),
    ("POST", "/api/generate", {"prompt": "Hi"}),
    ("POST", "/api/generate", {"prompt": "Hi", "stream": False, "logprobs": True, "top_logprobs": 2}),
]


@pytest.mark.parametrize(("method", "path", "more"), ANSWERS)
def test_answers_as_described(
    able: Client, description: dict[str, Any], method: str, path: str, more: dict[str, object] | None
) -> None:
    able.chat()  # something runs
    body = None if more is None else able.body() | more
    response = able.http.request(method, path, json=body)
    check(response, description["paths"][path][method.lower()], description)


VALUES: dict[str, object] = {
    "model": "able",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi", "images": [PIXEL]},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {}}}]},
        {"role": "tool", "content": "sunny"},
    ],
    "tools": [WEATHER],
    "format": CITY,
    "options": {
        "seed": 1,
        "temperature": 0.5,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.1,
        "num_ctx": 1024,
        "num_predict": 9,
    }
    | {"stop": ["x"]},
    "stream": False,
    "think": "high",
    "keep_alive": "5m",
    "logprobs": True,
    "top_logprobs": 2,
    "prompt": "Hi",
    "suffix": "!",
    "images": [PIXEL],
    "system": "Be brief.",
    "raw": False,
    "verbose": True,
    "insecure": True,
}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("chat", "ChatRequest"),
        ("generate", "GenerateRequest"),
        ("show", "ShowRequest"),
        ("pull", "PullRequest"),
    ],
)
def test_takes_every_field_described(able: Client, description: dict[str, Any], path: str, name: str) -> None:
    schema = description["components"]["schemas"][name]
    body = {field: VALUES[field] for field in schema["properties"]}
    assert not list(complaints(body, schema, description))
    assert able.post(f"/api/{path}", body).status_code == 200


def test_every_option_described_is_tried(description: dict[str, Any]) -> None:
    options = VALUES["options"]
    assert isinstance(options, dict)
    assert set(description["components"]["schemas"]["ModelOptions"]["properties"]) == set(options)


def test_every_field_of_an_answer_described_is_given(able: Client, description: dict[str, Any]) -> None:
    schema = resolved({"$ref": "#/components/schemas/ChatResponse"}, description)
    answer = able.chat(logprobs=True)
    assert set(schema["properties"]) <= set(answer)
    message = able.chat(tools=[WEATHER])["message"]
    assert set(schema["properties"]["message"]["properties"]) - {"images"} <= set(message)  # models draw no images
