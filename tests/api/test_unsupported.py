from __future__ import annotations

from typing import Any

import httpx
import pytest

from api.scripted import HAS_LITTLE, ScriptedBackend
from api.serving import CHAT, HELLO
from server.api.config import ApiConfig

TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}
UNSUPPORTED: list[dict[str, Any]] = [
    {"tools": [TOOL]},
    {"tool_choice": "required"},
    {"tool_choice": {"type": "function", "function": {"name": "f"}}},
    {"parallel_tool_calls": False},
    {"response_format": {"type": "json_object"}},
    {"functions": [{"name": "f"}]},
    {"function_call": {"name": "f"}},
    {"modalities": ["text", "audio"]},
    {"audio": {"voice": "alloy", "format": "wav"}},
    {"prediction": {"type": "content", "content": "x"}},
    {"reasoning_effort": "low"},
    {"verbosity": "high"},
    {"web_search_options": {}},
    {"service_tier": "cheap"},
    {"store": 0},
    {"temprature": 1},
    {"grammar": "root ::= [a-z]"},
    {"guided_regex": "[a-z]+"},
    {"guided_choice": ["yes", "no"]},
    {"guided_json": {"type": "object"}},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"enable_thinking": False},
    {"thinking_budget": 5},
]
INSTEAD = {
    "functions": "'tools'",
    "function_call": "'tool_choice'",
    "guided_json": "'response_format'",
    "enable_thinking": "'chat_template_kwargs'",
}


@pytest.fixture
def backend() -> ScriptedBackend:
    """A backend that lacks most parameters."""
    return ScriptedBackend(parameters=HAS_LITTLE)


@pytest.mark.parametrize("extra", UNSUPPORTED)
async def test_is_refused_by_name(client: httpx.AsyncClient, backend: ScriptedBackend, extra: dict[str, Any]) -> None:
    response = await client.post(CHAT, json={**HELLO, **extra})

    (name,) = extra
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "unsupported_parameter"
    assert response.json()["error"]["param"] == name
    assert f"'{name}'" in response.json()["error"]["message"]
    assert INSTEAD.get(name, "") in response.json()["error"]["message"]
    assert backend.requests == []


@pytest.mark.parametrize("config", [ApiConfig(unsupported="ignore")])
@pytest.mark.parametrize("extra", UNSUPPORTED)
async def test_is_listed_when_ignored(client: httpx.AsyncClient, extra: dict[str, Any]) -> None:
    response = await client.post(CHAT, json={**HELLO, **extra})

    assert response.status_code == 200
    assert response.headers["x-llmspell-ignored"] == next(iter(extra))


@pytest.mark.parametrize("config", [ApiConfig(unsupported="ignore")])
async def test_is_listed_with_a_stream_too(client: httpx.AsyncClient) -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {}}], "mood": "good"}
    body = {**HELLO, "stream": True, "messages": [message], "tools": [TOOL], "stream_options": {"obfuscate": True}}

    response = await client.post(CHAT, json=body)

    assert response.headers["x-llmspell-ignored"] == (
        "tools, stream_options.obfuscate, messages[0].mood, messages[0].content[0].cache_control"
    )


@pytest.mark.parametrize("config", [ApiConfig(unsupported="ignore")])
async def test_names_cannot_break_out_of_the_header(client: httpx.AsyncClient) -> None:
    hostile = {"a\r\nset-cookie: x": 1, "ключ": 1, "y" * 100_000: 1, **{f"k{index}": 1 for index in range(100)}}

    response = await client.post(CHAT, json={**HELLO, **hostile})

    assert response.status_code == 200
    assert "set-cookie" not in response.headers
    header = response.headers["x-llmspell-ignored"]
    assert header.startswith("a%0D%0Aset-cookie%3A%20x, %D0%BA")
    assert header.endswith("and 71 more")
    assert len(header) < 1000


@pytest.mark.parametrize(
    "extra",
    [
        {"tools": []},
        {"tool_choice": "none"},
        {"tool_choice": "auto"},
        {"parallel_tool_calls": True},
        {"response_format": {"type": "text"}},
        {"modalities": ["text"]},
        {"service_tier": "default"},
        {"store": False},
        {"tools": None, "audio": None, "prediction": None},
        {"top_logprobs": 0},
        {"verbosity": "medium"},
        {"chat_template_kwargs": {}},
        {"functions": [], "function_call": "auto"},
        {"grammar": None, "guided_regex": None, "guided_choice": None, "thinking_budget": None},
    ],
)
async def test_asking_for_nothing_is_fine(client: httpx.AsyncClient, extra: dict[str, Any]) -> None:
    response = await client.post(CHAT, json={**HELLO, **extra})

    assert response.status_code == 200
    assert "x-llmspell-ignored" not in response.headers


@pytest.mark.parametrize("extra", [{"store": True}, {"service_tier": "flex"}])
async def test_what_no_answer_depends_on_is_listed_instead_of_refused(
    client: httpx.AsyncClient, extra: dict[str, Any]
) -> None:
    response = await client.post(CHAT, json={**HELLO, **extra})

    assert response.status_code == 200
    assert response.headers["x-llmspell-ignored"] == next(iter(extra))
    assert response.json()["service_tier"] == "default"


async def test_a_misspelled_parameter_is_corrected(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json={**HELLO, "max_token": 1})

    assert "Did you mean 'max_tokens'" in response.json()["error"]["message"]


@pytest.mark.parametrize("config", [ApiConfig(), ApiConfig(unsupported="ignore")])
@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
async def test_content_other_than_text_is_always_refused(client: httpx.AsyncClient, kind: str) -> None:
    parts = [{"type": "text", "text": "Look:"}, {"type": kind, kind: {"url": "data:,"} if kind == "image_url" else {}}]

    response = await client.post(CHAT, json={**HELLO, "messages": [{"role": "user", "content": parts}]})

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "unsupported_parameter"
    assert response.json()["error"]["param"] == "messages[0].content[1]"
