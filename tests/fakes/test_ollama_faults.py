"""What the stand-in does wrong when told to, what it records, and what it does over time."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from fakes.ollama import (
    Action,
    Answer,
    Call,
    CloseIdle,
    Cut,
    FakeModel,
    FakeOllama,
    Garbage,
    Insert,
    Pause,
    Reframe,
    Reply,
    error_line,
)
from fakes.process import OllamaProcess

CHAT = "/api/chat"
LINES = 5
REPLY = Reply(tokens=["a", "ü", "c", "d"])


def body(model: str = "demo", **more: object) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}]} | more


@pytest.fixture
def daemon() -> Iterator[FakeOllama]:
    with FakeOllama(reply=REPLY) as running:
        yield running


@pytest.fixture
def client(daemon: FakeOllama) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=daemon.url, timeout=60) as http:
        yield http


@pytest.fixture
def elsewhere() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def received(client: httpx.Client) -> tuple[bytes, type[Exception] | None]:
    """All that comes of a stream, and how it fails."""
    parts: list[bytes] = []
    try:
        with client.stream("POST", CHAT, json=body()) as response:
            parts.extend(response.iter_raw())
    except httpx.TransportError as error:
        return b"".join(parts), type(error)
    return b"".join(parts), None


# Faults.


@pytest.mark.parametrize("status", [404, 500, 503])
def test_an_error_before_the_stream(daemon: FakeOllama, client: httpx.Client, status: int) -> None:
    daemon.on(Answer(status, error="no"), path=CHAT)
    response = client.post(CHAT, json=body())
    assert (response.status_code, response.json()) == (status, {"error": "no"})
    assert client.post(CHAT, json=body()).status_code == 200  # once


def test_answers_of_another_kind(daemon: FakeOllama, client: httpx.Client) -> None:
    daemon.on(Answer(502, body="<html>", content_type="text/html"))
    daemon.on(Answer(200, error="odd"), skip=1)
    daemon.on(Answer(307, headers={"Location": "/elsewhere"}), skip=2)
    assert client.get("/").headers["content-type"] == "text/html"
    assert client.get("/").json() == {"error": "odd"}
    assert client.get("/").headers["location"] == "/elsewhere"


def test_no_http(daemon: FakeOllama, client: httpx.Client) -> None:
    daemon.on(Garbage("SSH-2.0-x\r\n"))
    with pytest.raises(httpx.RemoteProtocolError):
        client.get("/")


@pytest.mark.parametrize(
    ("action", "num_lines", "rest", "failure"),
    [
        (Cut(after=2), 2, b"", httpx.RemoteProtocolError),
        (Cut(after=2, ending="rst"), 2, b"", httpx.ReadError),
        (Cut(after=2, ending="whole"), 2, b"", None),
        (Cut(after=LINES - 1, ending="whole"), LINES - 1, b"", None),
        (Cut(after=0, partial=True), 0, b'{"model":"demo","created_at":', httpx.RemoteProtocolError),
        (Cut(after=1, partial=True, ending="whole"), 1, b'{"model":"demo","created_at":', None),
        (error_line("sorry", after=3), 4, b"", None),
        (Insert("nonsense", after=0), LINES + 1, b"", None),
        (Insert("x", repeat=3_000_000), LINES + 1, b"", None),
        (Insert("more", after=LINES), LINES + 1, b"", None),
        (Cut(after=LINES), LINES, b"", httpx.RemoteProtocolError),
    ],
)
def test_streams_that_go_wrong(
    daemon: FakeOllama,
    client: httpx.Client,
    action: Action,
    num_lines: int,
    rest: bytes,
    failure: type[Exception] | None,
) -> None:
    daemon.on(action, path=CHAT, model="DEMO:latest")
    data, failed = received(client)
    *lines, last = data.split(b"\n")
    assert (len(lines), failed) == (num_lines, failure)
    assert last.startswith(rest)
    assert bool(last) == bool(rest)
    if isinstance(action, Insert):
        assert lines[action.after] == action.line.encode() * action.repeat


def test_an_answer_that_ends_in_its_middle(daemon: FakeOllama, client: httpx.Client) -> None:
    daemon.on(Cut(), path="/api/tags")
    with pytest.raises(httpx.RemoteProtocolError):
        client.get("/api/tags")


@pytest.mark.parametrize("sizes", [(1,), (3, 1, 200), ()])
def test_lines_cut_anywhere(daemon: FakeOllama, client: httpx.Client, sizes: tuple[int, ...]) -> None:
    daemon.on(Reframe(sizes))
    data, failed = received(client)
    assert failed is None
    contents = [json.loads(line)["message"]["content"] for line in data.splitlines()]
    assert contents == [*(REPLY.tokens or ()), ""]


def test_pieces_and_an_early_end(daemon: FakeOllama, client: httpx.Client) -> None:
    daemon.on(Reframe((10,)))
    daemon.on(Cut(after=3, partial=True))
    data, failed = received(client)
    assert (data.count(b"\n"), failed) == (3, httpx.RemoteProtocolError)
    assert not data.endswith(b"\n")


def test_frames_are_as_told(daemon: FakeOllama) -> None:
    daemon.on(Reframe((7, 300)), times=None)
    host, port = "127.0.0.1", daemon.port
    raw = json.dumps(body()).encode()
    request = b"POST /api/chat HTTP/1.1\r\nhost: x.local\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(raw)
    with socket.create_connection((host, port)) as sock:
        sock.sendall(request + raw)
        data = b"".join(iter(lambda: sock.recv(65536), b""))
    assert [int(size, 16) for size in data.partition(b"\r\n\r\n")[2].split(b"\r\n")[0:4:2]] == [7, 300]


@pytest.mark.parametrize("where", ["request", "load", 0, 2])
def test_silence(daemon: FakeOllama, elsewhere: ThreadPoolExecutor, where: str | int) -> None:
    rule = daemon.on(Pause(where))  # type: ignore[arg-type]
    with httpx.Client(base_url=daemon.url) as http:
        pending = elsewhere.submit(http.post, CHAT, json=body())
        daemon.wait_for(lambda: rule.hits and daemon.num_running, "the request is there")
        if where == "load":
            daemon.wait_for(lambda: daemon.loaded == ["demo:latest"], "the model is listed")
        if isinstance(where, int):
            daemon.wait_for(lambda: daemon.chats[-1].num_lines == where, "lines are out")
        assert not pending.done()
        rule.release()
        assert len(pending.result().text.splitlines()) == LINES


def test_a_pause_of_a_time(daemon: FakeOllama, client: httpx.Client) -> None:
    daemon.on(Pause(1, seconds=0.05))
    assert client.post(CHAT, json=body()).elapsed.total_seconds() >= 0.05


def test_a_connection_that_is_stale(daemon: FakeOllama, client: httpx.Client) -> None:
    daemon.on(Garbage(), reused=True)
    assert client.get("/").status_code == 200
    with pytest.raises(httpx.RemoteProtocolError):
        client.get("/")
    assert daemon.records.num_accepted == 1
    assert client.get("/").status_code == 200


def test_connections_closed_while_idle(daemon: FakeOllama, client: httpx.Client) -> None:
    rule = daemon.on(CloseIdle())
    client.get("/")
    daemon.wait_for(lambda: daemon.records.num_open == 0, "the connection is closed")
    client.get("/")
    daemon.close_connections()
    daemon.wait_for(lambda: daemon.records.num_open == 0, "the connections are closed")
    assert rule.hits == 1


def test_rules_apply_until_removed(daemon: FakeOllama, client: httpx.Client) -> None:
    rule = daemon.on(Answer(500, error="no"), times=None, model="demo")
    assert [client.post(CHAT, json=body()).status_code for _ in range(3)] == [500] * 3
    assert client.post(CHAT, json=body("demo-tools")).status_code == 200
    daemon.remove(rule)
    assert client.post(CHAT, json=body()).status_code == 200


# Records.


def test_records_requests(daemon: FakeOllama, client: httpx.Client) -> None:
    client.get("/api/tags?x=1", headers={"X-Name": "value"})
    client.post(CHAT, json=body(options={"seed": 7}))
    daemon.wait_for(lambda: daemon.num_running == 0)
    tags, chat = daemon.requests
    assert (tags.method, tags.path, tags.headers["x-name"]) == ("GET", "/api/tags", "value")
    assert (chat.body["options"], chat.num_lines, chat.was_cut_off) == ({"seed": 7}, LINES, False)
    assert [tags.reused, chat.reused] == [False, True]
    assert daemon.chats == [chat]


@pytest.mark.parametrize("where", ["request", "load", 0, 3])
def test_notices_that_the_client_left(daemon: FakeOllama, where: str | int) -> None:
    daemon.on(Pause(where))  # type: ignore[arg-type]
    with httpx.Client(base_url=daemon.url, timeout=0.2) as http, pytest.raises(httpx.ReadTimeout):
        http.post(CHAT, json=body())
    daemon.wait_for(lambda: daemon.num_running == 0, "the chat has ended")
    (chat,) = daemon.chats
    assert chat.was_cut_off
    assert chat.num_lines == (where if isinstance(where, int) else 0)


def test_a_client_that_leaves_a_stream(daemon: FakeOllama) -> None:
    daemon.say(Reply(tokens=["x"] * 1_000_000))
    with httpx.Client(base_url=daemon.url) as http, http.stream("POST", CHAT, json=body()) as response:
        next(response.iter_lines())
    daemon.wait_for(lambda: daemon.num_running == 0, "the chat has ended")
    assert daemon.chats[0].was_cut_off


def test_many_at_once(daemon: FakeOllama, elsewhere: ThreadPoolExecutor) -> None:
    rule = daemon.on(Pause(1), times=None)
    pending = [elsewhere.submit(httpx.post, daemon.url + CHAT, json=body()) for _ in range(5)]
    daemon.wait_for(lambda: daemon.num_running == 5, "all run")
    rule.release()
    assert all(len(one.result().text.splitlines()) == LINES for one in pending)
    assert daemon.records.peak_running == 5


def test_a_mistake_in_a_test_is_told() -> None:
    def speaker(_: object) -> Reply:
        raise LookupError("a mistake")

    daemon = FakeOllama(reply=speaker)
    daemon.start()
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.post(daemon.url + CHAT, json=body())
    with pytest.raises(LookupError, match="a mistake"):
        daemon.stop()


# Models.


def test_thinks_before_it_speaks(client: httpx.Client) -> None:
    lines = [json.loads(line)["message"] for line in client.post(CHAT, json=body("demo-think")).text.splitlines()]
    assert lines[0] == {"role": "assistant", "content": "", "thinking": "Let"}
    assert "".join(line["content"] for line in lines) == "aücd"
    message = client.post(CHAT, json=body("demo-think", think=False, stream=False)).json()["message"]
    assert message == {"role": "assistant", "content": "aücd"}


@pytest.mark.parametrize(("native", "identifier"), [(True, r"\w{32}"), (False, r"call_\w{8}")])
def test_calls_tools(native: bool, identifier: str) -> None:  # noqa: FBT001
    model = FakeModel("m", ("completion", "tools"), native=native)
    calls = [Call("f", {"a": 1}), Call("g")]
    with FakeOllama(model, reply=Reply(calls=calls)) as daemon:
        tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
        response = httpx.post(daemon.url + CHAT, json=body("m", tools=tools))
    *lines, last = [json.loads(line) for line in response.text.splitlines()]
    with_calls = [last] if native else lines
    told = [call for line in with_calls for call in line["message"]["tool_calls"]]
    functions = [{"index": 0, "name": "f", "arguments": {"a": 1}}, {"index": 1, "name": "g", "arguments": {}}]
    assert [call["function"] for call in told] == functions
    assert all(re.fullmatch(identifier, call["id"]) for call in told)
    assert last["done_reason"] == "stop"


def test_calls_tools_and_then_speaks(client: httpx.Client, daemon: FakeOllama) -> None:
    daemon.say(Reply(text="Sunny.", calls=[Call("f")], before="Let me see."))
    wanted = body("demo-tools", stream=False, tools=[{"type": "function", "function": {"name": "f"}}])
    message = client.post(CHAT, json=wanted).json()["message"]
    assert (message["content"], len(message["tool_calls"])) == ("Let me see.", 1)
    wanted["messages"] += [message, {"role": "tool", "content": "sun"}]
    assert client.post(CHAT, json=wanted).json()["message"] == {"role": "assistant", "content": "Sunny."}


def test_text_that_may_become_a_stop_string_is_held_back(client: httpx.Client) -> None:
    options = {"stop": ["üx", "cd"]}
    response = client.post(CHAT, json=body(options=options, logprobs=True))
    *lines, last = [json.loads(line) for line in response.text.splitlines()]
    assert [line["message"]["content"] for line in lines] == ["a", "ü"]
    assert (last["done_reason"], last["eval_count"]) == ("stop", 4)
    response = client.post(CHAT, json=body(options={"stop": ["üx"]}))
    contents = [json.loads(line)["message"]["content"] for line in response.text.splitlines()]
    assert contents == ["a", "üc", "d", ""]


@pytest.mark.parametrize(
    ("more", "status", "text"),
    [
        ({"tools": [{"type": "function"}]}, 400, "registry.ollama.ai/library/m:latest does not support tools"),
        (
            {"messages": [{"role": "user", "content": "", "images": ["AAAA"]}]},
            400,
            "Multimodal data provided, but model does not support multimodal requests.",
        ),
        ({"options": {"num_ctx": 8}, "shift": False}, 400, "the prompt is longer than the context length currently"),
        ({"options": {"num_ctx": 8}, "truncate": False}, 400, "request (9 tokens) exceeds the available context size"),
    ],
)
def test_refusals_of_models_that_the_daemon_renders(more: dict[str, Any], status: int, text: str) -> None:
    with FakeOllama(FakeModel("m", native=False)) as daemon:
        wanted = body("m", messages=[{"role": "user", "content": "Is it?"}])
        response = httpx.post(daemon.url + CHAT, json=wanted | more)
    assert response.status_code == status
    assert text in response.json()["error"]


def test_a_model_that_cannot_chat(client: httpx.Client) -> None:
    response = client.post(CHAT, json=body("demo-embed"))
    assert (response.status_code, response.json()) == (400, {"error": '"demo-embed" does not support chat'})


def test_remote_models() -> None:
    remote = FakeModel("big:120b-cloud", remote_host="https://ollama.com:443", remote_model="big:120b", size=384)
    with FakeOllama(remote, cloud="enabled") as daemon:
        (row,) = httpx.get(daemon.url + "/api/tags").json()["models"]
        assert (row["remote_model"], row["remote_host"]) == ("big:120b", "https://ollama.com:443")
        assert httpx.post(daemon.url + CHAT, json=body("big:120b-cloud")).status_code == 200
    with FakeOllama(remote, cloud="disabled") as daemon:
        refused = httpx.post(daemon.url + CHAT, json=body("big:120b-cloud"))
        assert (refused.status_code, refused.json()) == (
            403,
            {"error": "ollama cloud is disabled: remote model is unavailable"},
        )


def test_many_models_and_older_daemons() -> None:
    with FakeOllama(num_models=2000, older=True) as daemon:
        rows = httpx.get(daemon.url + "/api/tags").json()["models"]
        assert len({row["name"] for row in rows}) == 2005
        assert not any("capabilities" in row or "context_length" in row["details"] for row in rows)


def test_models_leave_memory_when_their_time_is_up(daemon: FakeOllama, client: httpx.Client) -> None:
    client.post(CHAT, json=body(keep_alive="20ms"))
    daemon.wait_for(lambda: daemon.loaded == [], "it is unloaded")
    assert daemon.records.num_loads == 1


def test_other_options_load_the_model_anew(daemon: FakeOllama, client: httpx.Client) -> None:
    loads = []
    for more in ({}, {}, {"options": {"num_ctx": 512}}, {"options": {"num_ctx": 512}, "shift": False}, {"shift": True}):
        client.post(CHAT, json=body(**more))
        loads.append(daemon.records.num_loads)
    assert loads == [1, 1, 2, 3, 4]


def test_a_reload_waits_for_the_requests_that_run(daemon: FakeOllama, elsewhere: ThreadPoolExecutor) -> None:
    rule = daemon.on(Pause(1))
    first = elsewhere.submit(httpx.post, daemon.url + CHAT, json=body())
    daemon.wait_for(lambda: daemon.chats and daemon.chats[0].num_lines == 1, "the first runs")
    second = elsewhere.submit(httpx.post, daemon.url + CHAT, json=body(options={"num_ctx": 512}))
    daemon.wait_for(lambda: daemon.num_running == 2, "the second waits")
    assert daemon.records.num_loads == 1
    rule.release()
    assert first.result().status_code == second.result().status_code == 200
    assert daemon.records.num_loads == 2


def test_only_so_many_at_once_and_only_so_many_wait(elsewhere: ThreadPoolExecutor) -> None:
    with FakeOllama(parallel=1, max_queue=1) as daemon:

        def chat() -> Future[httpx.Response]:
            return elsewhere.submit(httpx.post, daemon.url + CHAT, json=body())

        rule = daemon.on(Pause(1))
        first = chat()
        daemon.wait_for(lambda: daemon.chats and daemon.chats[0].num_lines == 1, "the first runs")
        waiting = chat()
        daemon.wait_for(lambda: daemon.num_running == 2, "the second waits")
        refused = chat().result()
        assert refused.status_code == 503
        assert refused.json() == {"error": "server busy, please try again.  maximum pending requests exceeded"}
        rule.release()
        assert first.result().status_code == waiting.result().status_code == 200


def test_models_come_and_go(daemon: FakeOllama, client: httpx.Client) -> None:
    daemon.add_model(FakeModel("me/New:8b"))
    assert client.post(CHAT, json=body("ME/new:8B")).status_code == 200
    daemon.remove_model("me/new:8b")
    assert (client.post(CHAT, json=body("me/new:8b")).status_code, daemon.loaded) == (404, [])


# Its life.


def test_stops_and_starts_on_its_port(daemon: FakeOllama, client: httpx.Client) -> None:
    client.post(CHAT, json=body())
    daemon.on(Pause(2), times=None)
    reader = threading.Thread(target=lambda: received(client))
    reader.start()
    daemon.wait_for(lambda: daemon.num_running == 1 and daemon.chats[-1].num_lines == 2, "it streams")
    port = daemon.port
    daemon.stop()
    reader.join(60)
    with pytest.raises(httpx.ConnectError):
        httpx.get(daemon.url)
    daemon.clear_rules()
    daemon.start()
    assert (daemon.port, daemon.loaded) == (port, [])
    assert httpx.post(daemon.url + CHAT, json=body()).status_code == 200


def test_as_a_process() -> None:
    with OllamaProcess("--tokens", "3", "--model", "m=completion,tools", "--tokens-per-second", "1000") as daemon:
        response = httpx.post(daemon.url + CHAT, json=body("m"))
        assert len(response.text.splitlines()) == 4
        daemon.tell("rules", do="cut", after=1, ending="whole", path=CHAT)
        assert len(httpx.post(daemon.url + CHAT, json=body("m")).text.splitlines()) == 1
        daemon.tell("rules", do="cut", after=1, ending="rst", path=CHAT)
        with pytest.raises(httpx.ReadError):
            httpx.post(daemon.url + CHAT, json=body("m"))
        daemon.tell("reply", text="New.")
        daemon.tell("models", name="other")
        assert httpx.post(daemon.url + CHAT, json=body("other", stream=False)).json()["message"]["content"] == "New."
        assert [request["num_lines"] for request in daemon.ask("requests")["requests"]] == [4, 1, 1, 0]
        assert daemon.ask("state")["loaded"] == ["m:latest", "other:latest"]
        port = daemon.port
        daemon.kill()
        with pytest.raises(httpx.ConnectError):
            httpx.get(daemon.url)
        daemon.start()
        assert daemon.port == port
        assert httpx.get(daemon.url).text == "Ollama is running"
