"""Each bad request gets its line of the error table, and the same connection then serves a good one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from api.scripted import ScriptedBackend
from api.serving import HELLO, Connection, Reply, Served, http_request, serving
from server.api.application import create_api
from server.api.config import ApiConfig
from server.router import ModelRouter

# one server for the whole module: what a bad request leaves behind would show in the tests that follow
pytestmark = pytest.mark.asyncio(loop_scope="module")

USER = {"role": "user", "content": "Hi"}
GOOD = json.dumps(HELLO).encode()


@pytest.fixture(scope="module")
def shared_backend() -> ScriptedBackend:
    return ScriptedBackend()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(shared_backend: ScriptedBackend) -> AsyncIterator[Served]:
    async with serving(create_api(ModelRouter([shared_backend], {}), ApiConfig())) as served:
        yield served


@pytest.fixture
def backend(shared_backend: ScriptedBackend) -> ScriptedBackend:
    shared_backend.requests.clear()
    return shared_backend


def hello(**changes: object) -> bytes:
    return json.dumps({**HELLO, **changes}).encode()


def spoken(message: dict[str, Any]) -> bytes:
    return hello(messages=[message])


async def serves_on(connection: Connection) -> bool:
    reply = await connection.ask(GOOD)
    return reply.status == 200 and json.loads(reply.body)["choices"][0]["message"]["content"] == "Hello"


def code_and_param(reply: Reply) -> tuple[int, str, str | None]:
    assert reply.headers["content-type"] == "application/json"
    assert reply.error["message"]
    assert reply.error["type"] == "invalid_request_error"
    return reply.status, reply.error["code"], reply.error["param"]


INVALID_BODIES = {
    "empty": b"",
    "cut short": GOOD[:-1],
    "no JSON": b"model=local/demo",
    "array": b"[]",
    "null": b"null",
    "string": b'"hello"',
    "invalid UTF-8": GOOD.replace(b"Hi", b"\xff\xfe"),
    "UTF-16": GOOD.decode().encode("utf-16"),
    "lone surrogate": GOOD.replace(b"Hi", b"\\ud800"),
    "lone surrogate in a key": GOOD.replace(b"content", b"\\udfff"),
    "reversed surrogates": GOOD.replace(b"Hi", b"\\udc00\\ud800"),
    "deep arrays": GOOD[:-1] + b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": GOOD[:-1] + b', "x": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001,
    "number of 5000 digits": GOOD[:-1] + b', "seed": ' + b"9" * 5000 + b"}",
    "trailing comma": GOOD[:-1] + b",}",
    "two documents": GOOD + GOOD,
}


@pytest.mark.parametrize("body", INVALID_BODIES.values(), ids=INVALID_BODIES.keys())
async def test_a_body_that_is_not_a_json_object(served: Served, backend: ScriptedBackend, body: bytes) -> None:
    async with served.connect() as connection:
        reply = await connection.ask(body)
        assert code_and_param(reply) == (400, "invalid_value", None)
        assert backend.requests == []
        assert await serves_on(connection)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model": "local/demo"}', "messages"),
        (b'{"messages": []}', "model"),
        (hello(model=5), "model"),
        (hello(model=None), "model"),
        (hello(messages=None), "messages"),
        (hello(messages=[]), "messages"),
        (hello(messages="Hi"), "messages"),
        (hello(messages={}), "messages"),
        (hello(messages=[USER, "Hi"]), "messages[1]"),
        (hello(messages=[USER, None]), "messages[1]"),
        (hello(messages=[USER] * 2049), "messages"),
        (spoken({"content": "Hi"}), "messages[0].role"),
        (spoken({"role": "robot", "content": "Hi"}), "messages[0].role"),
        (spoken({"role": 1, "content": "Hi"}), "messages[0].role"),
        (spoken({"role": "user"}), "messages[0].content"),
        (spoken({"role": "user", "content": None}), "messages[0].content"),
        (spoken({"role": "user", "content": 5}), "messages[0].content"),
        (spoken({"role": "user", "content": []}), "messages[0].content"),
        (spoken({"role": "user", "content": ["Hi"]}), "messages[0].content[0]"),
        (spoken({"role": "user", "content": [{"text": "Hi"}]}), "messages[0].content[0].type"),
        (spoken({"role": "user", "content": [{"type": "text"}]}), "messages[0].content[0].text"),
        (spoken({"role": "user", "content": [{"type": "smell", "text": "?"}]}), "messages[0].content[0].type"),
        (spoken({"role": "user", "content": [{"type": "refusal", "refusal": "?"}]}), "messages[0].content[0].type"),
        (spoken({"role": "user", "content": [{"type": "text", "text": 1}]}), "messages[0].content[0].text"),
        (spoken({"role": "assistant"}), "messages[0].content"),
        (spoken({"role": "assistant", "tool_calls": [{}]}), "messages[0].tool_calls[0].id"),
        (spoken({"role": "user", "content": "Hi", "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ]}), "messages[0].tool_calls"),
        (spoken({"role": "tool", "content": "sunny"}), "messages[0].tool_call_id"),
        (spoken({"role": "user", "content": "Hi", "name": 5}), "messages[0].name"),
        (hello(stream="yes"), "stream"),
        (hello(stream=1), "stream"),
        (hello(stream_options={"include_usage": True}), "stream_options"),
        (hello(stream=True, stream_options={"include_usage": "yes"}), "stream_options.include_usage"),
        (hello(stream=True, stream_options=True), "stream_options"),
        (hello(max_tokens=-1), "max_tokens"),
        (hello(max_tokens=0), "max_tokens"),
        (hello(max_tokens=2**31), "max_tokens"),
        (hello(max_tokens=10**400), "max_tokens"),
        (hello(max_tokens=5.0), "max_tokens"),
        (hello(max_tokens="5"), "max_tokens"),
        (hello(max_tokens=True), "max_tokens"),
        (hello(max_completion_tokens=0), "max_completion_tokens"),
        (hello(max_tokens=1, max_completion_tokens=2), "max_tokens"),
        (hello(temperature=float("nan")), "temperature"),
        (hello(temperature=float("inf")), "temperature"),
        (hello(temperature=-0.1), "temperature"),
        (hello(temperature=2.1), "temperature"),
        (hello(temperature="hot"), "temperature"),
        (hello(temperature=True), "temperature"),
        (hello(temperature=10**400), "temperature"),
        (hello(top_p=1.1), "top_p"),
        (hello(top_p=-1), "top_p"),
        (hello(seed=2**63), "seed"),
        (hello(seed=-(10**400)), "seed"),
        (hello(seed=1.5), "seed"),
        (hello(stop=["a", "b", "c", "d", "e"]), "stop"),
        (hello(stop=""), "stop"),
        (hello(stop=["a", ""]), "stop[1]"),
        (hello(stop=["a", 1]), "stop[1]"),
        (hello(stop=5), "stop"),
        (hello(stop="x" * 1025), "stop"),
        (hello(n=0), "n"),
        (hello(n=-1), "n"),
        (hello(n=10000), "n"),
        (hello(n=1.0), "n"),
        (hello(logprobs=1), "logprobs"),
        (hello(logprobs=True, top_logprobs=99), "top_logprobs"),
        (hello(logprobs=True, top_logprobs=-1), "top_logprobs"),
        (hello(top_logprobs=2), "top_logprobs"),
        (hello(logit_bias=[1]), "logit_bias"),
        (hello(logit_bias={"hello": 1}), "logit_bias"),
        (hello(logit_bias={"-1": 1}), "logit_bias"),
        (hello(logit_bias={"٣": 1}), "logit_bias"),
        (hello(logit_bias={"9" * 5000: 1}), "logit_bias"),
        (hello(logit_bias={"4294967296": 1}), "logit_bias"),
        (hello(logit_bias={"1": 101}), "logit_bias.1"),
        (hello(logit_bias={"1": float("nan")}), "logit_bias.1"),
        (hello(logit_bias={"1": True}), "logit_bias.1"),
        (hello(logit_bias={"1": "1"}), "logit_bias.1"),
        (hello(logit_bias={"1": 10**400}), "logit_bias.1"),
        (hello(logit_bias={str(token): 1 for token in range(1025)}), "logit_bias"),
        (hello(frequency_penalty=2.5), "frequency_penalty"),
        (hello(presence_penalty=-2.5), "presence_penalty"),
        (hello(top_k=-1), "top_k"),
        (hello(min_p=2), "min_p"),
        (hello(repeat_penalty=0), "repeat_penalty"),
        (hello(ignore_eos="no"), "ignore_eos"),
        (hello(user=5), "user"),
        (hello(metadata={"k": 1}), "metadata.k"),
        (hello(metadata={"k": "v" * 513}), "metadata.k"),
        (hello(metadata={"k" * 65: "v"}), "metadata"),
        (hello(metadata={str(key): "v" for key in range(17)}), "metadata"),
        (hello(metadata="k=v"), "metadata"),
    ],
)  # fmt: skip
async def test_a_wrong_value_names_its_field(served: Served, backend: ScriptedBackend, body: bytes, param: str) -> None:
    async with served.connect() as connection:
        reply = await connection.ask(body)
        assert code_and_param(reply) == (400, "invalid_value", param)
        assert f"'{param}" in reply.error["message"] or param in {"logit_bias", "metadata"}
        assert backend.requests == []
        assert await serves_on(connection)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (hello(model="local/nothing"), 404, "model_not_found"),
        (hello(model="local/demo@ollama"), 404, "model_not_found"),
        (hello(model="ollama/demo@llamacpp"), 400, "invalid_model_spec"),
        (hello(model=""), 400, "invalid_model_spec"),
        (hello(model="../../etc/passwd"), 400, "invalid_model_spec"),
        (hello(model="x" * 10_000), 400, "invalid_model_spec"),
        (hello(model="a\r\nb: c"), 400, "invalid_model_spec"),
    ],
)
async def test_a_wrong_model(served: Served, body: bytes, status: int, code: str) -> None:
    async with served.connect() as connection:
        assert code_and_param(await connection.ask(body)) == (status, code, "model")
        assert await serves_on(connection)


async def test_duplicate_keys_mean_the_last(served: Served, backend: ScriptedBackend) -> None:
    async with served.connect() as connection:
        reply = await connection.ask(GOOD[:-1] + b', "max_tokens": 5, "max_tokens": 6}')
        assert reply.status == 200
        assert backend.requests[0].max_tokens == 6


async def test_a_declared_body_over_the_limit_is_refused_unread(served: Served) -> None:
    size = 100 * 1024 * 1024
    async with served.connect() as connection:
        await connection.send(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n\r\n".encode()
        )
        assert code_and_param(await connection.reply()) == (413, "request_too_large", None)  # not a byte is sent yet
        for _ in range(100):
            await connection.send(b" " * (1024 * 1024))
        assert await serves_on(connection)


async def test_a_chunked_body_is_refused_once_it_passes_the_limit(served: Served) -> None:
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    async with served.connect() as connection:
        await connection.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(33):  # MiB; the limit is 32
            await connection.send(chunk)
        assert code_and_param(await connection.reply()) == (413, "request_too_large", None)
        await connection.send(chunk + b"0\r\n\r\n")
        assert await serves_on(connection)


async def test_a_body_of_exactly_the_limit_is_fine(backend: ScriptedBackend) -> None:
    app = create_api(ModelRouter([backend], {}), ApiConfig(max_body_bytes=len(GOOD)))
    async with serving(app) as served, served.connect() as connection:
        assert await serves_on(connection)
        assert (await connection.ask(GOOD + b" ")).status == 413


@pytest.mark.parametrize(
    ("path", "method", "status", "code"),
    [
        ("/v1/chat/completion", "POST", 404, "unknown_url"),
        ("/v1/chat/completions/", "POST", 404, "unknown_url"),
        ("/v1/chat/completions", "GET", 405, "method_not_supported"),
        ("/v1/chat/completions", "DELETE", 405, "method_not_supported"),
        ("/%00%0d%0a", "GET", 404, "unknown_url"),
        ("/v1/models/%ED%A0%80", "GET", 400, "invalid_model_spec"),
    ],
)
async def test_unknown_paths_and_methods(served: Served, path: str, method: str, status: int, code: str) -> None:
    async with served.connect() as connection:
        reply = await connection.ask(GOOD, path=path, method=method)
        assert (reply.status, reply.error["code"]) == (status, code)
        assert await serves_on(connection)


async def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    async with served.connect() as connection:
        await connection.send(http_request(b"{") + http_request(GOOD) + http_request(hello(n=0)) + http_request(GOOD))
        assert [(await connection.reply()).status for _ in range(4)] == [400, 200, 400, 200]


async def test_bad_http_does_not_disturb_others(served: Served) -> None:
    async with served.connect() as bad, served.connect() as good:
        await bad.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        assert (await bad.head())[0] == 400
        assert await serves_on(good)


async def test_a_huge_list_of_wrong_messages_is_refused_quickly(served: Served) -> None:
    async with served.connect() as connection:
        async with asyncio.timeout(5):
            reply = await connection.ask(hello(messages=[1] * 1_000_000))
        assert code_and_param(reply) == (400, "invalid_value", "messages[0]")
