"""Whatever is sent, the answer is an answer or a refusal, never a failure of the server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from api.scripted import ScriptedBackend
from api.serving import CHAT
from server.api.application import create_api
from server.api.config import ApiConfig
from server.api.schemas import ChatCompletionBody
from server.router import ModelRouter

TEXT = st.text() | st.text(st.characters(), max_size=3)  # the second has lone surrogates, too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
PART = st.fixed_dictionaries({"type": st.sampled_from(["text", "refusal", "image_url", "?"])}, optional={"text": JSON})
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "robot"])},
    optional={
        "content": TEXT | st.lists(PART, max_size=3) | JSON,
        "name": JSON,
        "tool_call_id": JSON,
        "tool_calls": JSON,
        "refusal": JSON,
    },
)
NUMBERS = st.integers(-2, 3) | st.floats(-3, 3) | JSON
OPTIONAL: dict[Any, st.SearchStrategy[Any]] = {
    name: NUMBERS for name in ChatCompletionBody.model_fields if name not in {"model", "messages"}
}
BODY = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["local/demo", "demo", "nothing", "gpt-4o-mini"]) | JSON,
        "messages": st.lists(MESSAGE, min_size=1, max_size=3) | JSON,
    },
    optional={
        **OPTIONAL,
        "stream": st.booleans() | JSON,
        "logprobs": st.booleans() | JSON,
        "stop": TEXT | st.lists(TEXT, max_size=5) | JSON,
        "logit_bias": st.dictionaries(st.integers(-1, 9).map(str) | st.text(), NUMBERS, max_size=3) | JSON,
        "metadata": st.dictionaries(st.text(), st.text() | JSON, max_size=3) | JSON,
        "stream_options": st.fixed_dictionaries(
            {}, optional=dict.fromkeys(["include_usage", "include_timings"], st.booleans() | JSON)
        )
        | JSON,
        "tools": JSON,
        "surprise": JSON,
    },
)


async def ask(body: bytes, config: ApiConfig) -> tuple[httpx.Response, ScriptedBackend]:
    backend = ScriptedBackend()
    app = create_api(ModelRouter([backend], {"gpt-4o-mini": "local/demo"}), config)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.post(CHAT, content=body), backend


def check(body: bytes, config: ApiConfig) -> None:
    response, backend = asyncio.run(ask(body, config))
    assert response.status_code in {200, 400, 404}, response.text
    assert backend.held == 0
    if response.status_code != 200:
        assert backend.requests == []
        assert response.json()["error"]["message"]
    for request in backend.requests:
        for text in [*(message.content for message in request.messages), *request.stop]:
            text.encode()  # fails on lone surrogates
        assert 0 <= request.sampling.temperature <= 2


CONFIGS = st.sampled_from([ApiConfig(), ApiConfig(unsupported="ignore")])


@given(body=BODY, config=CONFIGS)
@settings(max_examples=200, deadline=None)
def test_generated_requests(body: dict[str, Any], config: ApiConfig) -> None:
    check(json.dumps(body).encode(), config)


@given(body=st.binary() | JSON.map(lambda value: json.dumps(value).encode()), config=CONFIGS)
@settings(max_examples=100, deadline=None)
def test_generated_bodies(body: bytes, config: ApiConfig) -> None:
    check(body, config)
