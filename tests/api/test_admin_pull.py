"""``POST /admin/models/pull``: progress as server-sent events, and who comes and goes meanwhile."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import TypeAdapter

from api.scripted_library import ScriptedLibrary, finished, play, progress
from api.serving import Connection, Served, error_of, http_request, serving
from server.api.admin_schemas import (
    CancelledPulls,
    ErrorEnvelope,
    PullNoticeEvent,
    PullProgressEvent,
    PullSuccessEvent,
)
from server.api.config import ApiConfig
from server.api.pull_stream import PullListener
from server.core.errors import (
    ChecksumMismatch,
    DiskFull,
    HubBusy,
    HubDenied,
    HubUnreachable,
    InvalidRequest,
    LlmspellError,
    ModelNotFound,
    PullFailed,
)
from server.core.model_spec import ModelSpec
from server.core.pulling import PullEvent, PullNotice
from server.library import ModelLibrary

PULL = "/admin/models/pull"
CANCEL = f"{PULL}/cancel"
REPOSITORY = "hf.co/owner/repo"
BODY = {"model": REPOSITORY}
EVENT = TypeAdapter[Any](PullProgressEvent | PullNoticeEvent | PullSuccessEvent | ErrorEnvelope)
SUCCESS = {"status": "success", "id": "local/demo@llamacpp", "paths": ["/models/demo.gguf"]}


def data_of(text: str) -> list[str]:
    """The data of server-sent events, each of which is one line between empty ones."""
    pieces = [piece for piece in text.split("\n\n") if not piece.startswith(":")]
    assert pieces.pop() == ""
    assert all(piece.startswith("data: ") and "\n" not in piece for piece in pieces), text
    return [piece.removeprefix("data: ") for piece in pieces]


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream that succeeded."""
    *events, end = data_of(text)
    assert end == "[DONE]"
    for event in events:
        EVENT.validate_json(event)
    return [json.loads(event) for event in events]


def failure_of(text: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The events of a stream that failed, and the error."""
    *events, last = data_of(text)
    ErrorEnvelope.model_validate_json(last)
    return [json.loads(event) for event in events], json.loads(last)["error"]


def asking(path: str = PULL, **body: object) -> bytes:
    """A request as it is sent from this machine."""
    return http_request(json.dumps(BODY | body).encode(), path=path, host="localhost")


async def read_until(connection: Connection, text: bytes) -> None:
    async with asyncio.timeout(10):
        await connection.reader.readuntil(text)


# --- what is told ---


async def test_progress_is_streamed(local: httpx.AsyncClient, disk: ScriptedLibrary) -> None:
    disk.script = play(progress(0), PullNotice("the connection broke"), progress(400), finished())

    response = await local.post(PULL, json=BODY)

    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-store", "no")
    *others, last = events_of(response.text)
    assert last == SUCCESS
    assert {"status": "notice", "message": "the connection broke"} in others
    assert others[-1] == {
        "status": "downloading",
        "done_bytes": 400,
        "total_bytes": 1000,
        "bytes_per_second": 250,
        "seconds_left": 2.4,
    }


async def test_each_event_comes_when_it_happens(served: Served, disk: ScriptedLibrary) -> None:
    first, second = asyncio.Event(), asyncio.Event()
    disk.script = play(progress(100), first, PullNotice("retrying"), second, finished())
    async with served.connect() as connection:
        await connection.send(asking())
        await read_until(connection, b'"done_bytes":100')
        first.set()
        await read_until(connection, b"retrying")
        second.set()
        await read_until(connection, b"data: [DONE]\n\n")
    await disk.until_held(0)


@pytest.mark.parametrize(
    ("body", "pulled"),
    [
        ({"model": REPOSITORY}, (REPOSITORY, None)),
        ({"model": REPOSITORY, "quantization": None, "stream": True}, (REPOSITORY, None)),
        ({"model": REPOSITORY, "quantization": "Q8_0"}, (REPOSITORY, "Q8_0")),
        ({"model": f"{REPOSITORY}:Q8_0"}, (f"{REPOSITORY}:Q8_0", None)),
        ({"model": "llamacpp/mistral:7b"}, ("mistral:7b", None)),
        ({"model": "gpt-4o-mini@llamacpp"}, ("gpt-4o-mini", None)),
    ],
)
async def test_what_is_pulled(
    local: httpx.AsyncClient, disk: ScriptedLibrary, body: dict[str, Any], pulled: tuple[str, str | None]
) -> None:
    assert (await local.post(PULL, json=body)).status_code == 200
    assert disk.pulls == [pulled]


async def test_an_alias_is_pulled_as_what_it_stands_for(local: httpx.AsyncClient, daemon_disk: ScriptedLibrary) -> None:
    assert (await local.post(PULL, json={"model": "gpt-4o-mini"})).status_code == 200
    assert daemon_disk.pulls == [("demo", None)]  # the daemon is up, and preferred


async def test_without_a_stream_the_answer_is_the_last_event(local: httpx.AsyncClient, disk: ScriptedLibrary) -> None:
    response = await local.post(PULL, json=BODY | {"stream": False})

    assert (response.status_code, response.json()) == (200, SUCCESS)
    assert response.headers["content-type"] == "application/json"
    PullSuccessEvent.model_validate_json(response.content)
    assert disk.held == 0


@pytest.mark.parametrize("config", [ApiConfig(keep_alive_comment_seconds=0.02)])
@pytest.mark.parametrize("before", [[], [progress(100)]], ids=["first", "later"])
async def test_a_silent_pull_gets_comments(served: Served, disk: ScriptedLibrary, before: list[PullEvent]) -> None:
    go_on = asyncio.Event()
    disk.script = play(*before, go_on, finished())
    async with served.connect() as connection:
        await connection.send(asking())
        assert (await connection.head())[0] == 200
        await read_until(connection, b": keep-alive\n\n")
        await read_until(connection, b": keep-alive\n\n")
        go_on.set()
        await read_until(connection, b"data: [DONE]\n\n")


# --- failures ---


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("the daemon's tags are its quantizations", param="quantization"), 400, "invalid_request_error"),
        (ModelNotFound("no such repository", param="model"), 404, "invalid_request_error"),
        (HubDenied("accept the conditions"), 403, "invalid_request_error"),
        (HubUnreachable("no network"), 502, "server_error"),
        (HubBusy("later", retry_after=7), 503, "server_error"),
        (ChecksumMismatch("deleted"), 502, "server_error"),
        (DiskFull("no room"), 507, "server_error"),
        (PullFailed("odd"), 502, "server_error"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_failure_before_the_first_event_has_a_status(
    local: httpx.AsyncClient, disk: ScriptedLibrary, error: LlmspellError, status: int, kind: str, *, stream: bool
) -> None:
    disk.script = play(error)

    response = await local.post(PULL, json=BODY | {"stream": stream})

    assert error_of(response) == (status, error.code, error.param)
    assert response.json()["error"]["type"] == kind
    assert response.headers.get("retry-after") == ("7" if error.retry_after else response.headers.get("retry-after"))
    assert disk.held == 0


async def test_a_failure_later_is_an_event(local: httpx.AsyncClient, disk: ScriptedLibrary) -> None:
    disk.script = play(progress(100), DiskFull("The disk is full."))

    response = await local.post(PULL, json=BODY)

    assert response.status_code == 200
    events, error = failure_of(response.text)
    assert [event["done_bytes"] for event in events] == [100]
    assert error == {"message": "The disk is full.", "type": "server_error", "param": None, "code": "disk_full"}
    assert disk.held == 0


async def test_a_failure_later_without_a_stream_has_a_status(local: httpx.AsyncClient, disk: ScriptedLibrary) -> None:
    disk.script = play(progress(100), DiskFull("The disk is full."))

    assert error_of(await local.post(PULL, json=BODY | {"stream": False})) == (507, "disk_full", None)


async def test_a_pull_that_just_ends_has_failed(local: httpx.AsyncClient, disk: ScriptedLibrary) -> None:
    disk.script = play(progress(100))

    assert failure_of((await local.post(PULL, json=BODY)).text)[1]["code"] == "pull_failed"
    assert error_of(await local.post(PULL, json=BODY | {"stream": False}))[:2] == (502, "pull_failed")


async def test_a_bug_is_an_event_without_its_text(
    local: httpx.AsyncClient, disk: ScriptedLibrary, caplog: pytest.LogCaptureFixture
) -> None:
    disk.script = play(progress(100), ZeroDivisionError("secret"))

    response = await local.post(PULL, json=BODY)

    assert failure_of(response.text)[1]["code"] == "internal_error"
    assert "secret" not in response.text
    assert "secret" in caplog.text
    assert disk.held == 0


async def test_a_bug_before_the_first_event_is_a_500(
    local: httpx.AsyncClient, disk: ScriptedLibrary, caplog: pytest.LogCaptureFixture
) -> None:
    disk.script = play(ZeroDivisionError("secret"))

    response = await local.post(PULL, json=BODY)

    assert error_of(response)[:2] == (500, "internal_error")
    assert "secret" not in response.text
    assert "secret" in caplog.text


@pytest.mark.parametrize("config", [ApiConfig(keep_alive_comment_seconds=0.02)])
async def test_a_failure_after_a_comment_is_an_event(served: Served, disk: ScriptedLibrary) -> None:
    go_on = asyncio.Event()
    disk.script = play(go_on, ModelNotFound("no such repository"))
    async with served.connect() as connection:
        await connection.send(asking())
        assert (await connection.head())[0] == 200
        await read_until(connection, b": keep-alive\n\n")
        go_on.set()
        await read_until(connection, b'"code":"model_not_found"')


@pytest.mark.parametrize("path", [PULL, CANCEL])
@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_value", None),
        (b"[]", "invalid_value", None),
        (b'{"model"', "invalid_value", None),
        (b"{}", "invalid_value", "model"),
        (b'{"model": 5}', "invalid_value", "model"),
        (b'{"model": ""}', "invalid_model_spec", "model"),
        (b'{"model": "../../etc/passwd"}', "invalid_model_spec", "model"),
        (b'{"model": "hf.co/owner"}', "invalid_model_spec", "model"),
        (b'{"model": "a@ollama", "modle": 1}', "unsupported_parameter", "modle"),
        (b'{"model": "a", "quantization": 8}', "invalid_value", "quantization"),
        (b'{"model": "a", "quantization": ""}', "invalid_value", "quantization"),
        (b'{"model": "a", "quantization": "%s"}' % (b"Q" * 65), "invalid_value", "quantization"),
    ],
)
async def test_bad_bodies(
    local: httpx.AsyncClient, disk: ScriptedLibrary, path: str, body: bytes, code: str, param: str | None
) -> None:
    assert error_of(await local.post(path, content=body)) == (400, code, param)
    assert disk.pulls == []


@pytest.mark.parametrize("stream", [b"1", b'"true"', b"null"])
async def test_a_bad_stream(local: httpx.AsyncClient, stream: bytes) -> None:
    body = b'{"model": "a", "stream": %s}' % stream

    assert error_of(await local.post(PULL, content=body)) == (400, "invalid_value", "stream")


# --- who comes and goes ---


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("before", [[], [progress(100)]], ids=["first", "later"])
async def test_who_goes_away_leaves_the_pull(
    served: Served, disk: ScriptedLibrary, caplog: pytest.LogCaptureFixture, before: list[PullEvent], *, stream: bool
) -> None:
    caplog.set_level(logging.INFO, logger="server.access")
    disk.script = play(*before, asyncio.Event())
    async with served.connect() as connection:
        await connection.send(asking(stream=stream))
        await disk.until_held(1)
        if before and stream:
            await read_until(connection, b'"done_bytes":100')
    await disk.until_held(0)
    disk.script = play(progress(200), finished())
    async with served.connect() as connection:  # the same request goes on
        await connection.send(asking())
        await read_until(connection, b"data: [DONE]\n\n")
    assert [record.levelname for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_the_last_to_leave_ends_the_pull(served: Served, disk: ScriptedLibrary, library: ModelLibrary) -> None:
    disk.script = play(progress(100), asyncio.Event())
    async with served.connect() as first:
        await first.send(asking())
        async with served.connect() as second:
            await second.send(asking())
            await disk.until_held(2)
            assert len(library.active()) == 1
        await disk.until_held(1)
        assert len(library.active()) == 1
    await disk.until_held(0)


@pytest.mark.parametrize("body", [BODY, {"model": f"{REPOSITORY}@llamacpp"}])
async def test_a_cancelled_pull_ends_for_everybody(
    served: Served, local: httpx.AsyncClient, disk: ScriptedLibrary, body: dict[str, str]
) -> None:
    disk.script = play(progress(100), asyncio.Event())
    async with served.connect() as streamed, served.connect() as whole:
        await streamed.send(asking())
        await whole.send(asking(stream=False))
        await read_until(streamed, b'"done_bytes":100')
        await disk.until_held(2)

        response = await local.post(CANCEL, json=body)

        assert (response.status_code, response.json()) == (200, {"cancelled": 1})
        CancelledPulls.model_validate_json(response.content)
        await read_until(streamed, b'"code":"pull_failed"')
        reply = await whole.reply()
        assert (reply.status, reply.error["code"]) == (502, "pull_failed")
        assert "cancelled" in reply.error["message"]
    assert disk.held == 0


@pytest.mark.parametrize("body", [{"model": "hf.co/owner/other"}, BODY | {"quantization": "Q8_0"}])
async def test_other_pulls_go_on(
    served: Served, local: httpx.AsyncClient, disk: ScriptedLibrary, body: dict[str, str]
) -> None:
    go_on = asyncio.Event()
    disk.script = play(progress(100), go_on, finished())
    async with served.connect() as connection:
        await connection.send(asking())
        await disk.until_held(1)
        assert (await local.post(CANCEL, json=body)).json() == {"cancelled": 0}
        go_on.set()
        await read_until(connection, b"data: [DONE]\n\n")


async def test_a_model_may_be_called_pull(local: httpx.AsyncClient) -> None:
    for response in (
        await local.get(PULL),
        await local.get(CANCEL),
        await local.post(f"{PULL}/load"),
        await local.delete(PULL),
    ):
        assert error_of(response) == (404, "model_not_found", "model")


async def test_who_reads_nothing_holds_nobody_up(served: Served, disk: ScriptedLibrary) -> None:
    told = asyncio.Event()

    async def script(_: ModelSpec, __: str | None) -> AsyncGenerator[PullEvent]:
        for done in range(2000):  # more than sockets and buffers hold
            yield progress(done, 2000)
            yield PullNotice("x" * 10_000)
            await asyncio.sleep(0)
        told.set()
        yield finished()

    disk.script = script
    async with (
        asyncio.timeout(60),
        httpx.AsyncClient(base_url=served.url) as client,
        client.stream("POST", PULL, json=BODY, headers={"host": "localhost"}) as response,
    ):
        await told.wait()
        events = events_of((await response.aread()).decode())
    assert len(events) < 4000
    figures = [event["done_bytes"] for event in events if event["status"] == "downloading"]
    assert figures == sorted(figures)
    assert (figures[-1], events[-1]) == (1999, SUCCESS)


@pytest.mark.parametrize("config", [ApiConfig(send_timeout_seconds=0.1)])
async def test_who_reads_nothing_for_long_is_given_up(served: Served, disk: ScriptedLibrary) -> None:
    async def script(_: ModelSpec, __: str | None) -> AsyncGenerator[PullEvent]:
        while True:
            yield PullNotice("x" * 10_000)
            await asyncio.sleep(0)

    disk.script = script
    async with served.connect() as connection:
        await connection.send(asking())
        await disk.until_held(1)
        await disk.until_held(0)


async def test_a_server_that_stops_says_so(app: FastAPI, disk: ScriptedLibrary) -> None:
    disk.script = play(progress(100), asyncio.Event())
    async with serving(app, patience_seconds=1) as served, served.connect() as connection:
        await connection.send(asking())
        await read_until(connection, b'"done_bytes":100')
        served.server.should_exit = True
        await read_until(connection, b'"code":"draining"')
    assert disk.held == 0


@pytest.mark.parametrize(
    ("events", "end"),
    [
        ([finished()], " 200 "),
        ([progress(100), DiskFull("full")], " error=disk_full"),
        ([DiskFull("full")], " error=disk_full"),
    ],
)
async def test_the_access_log(
    local: httpx.AsyncClient,
    disk: ScriptedLibrary,
    caplog: pytest.LogCaptureFixture,
    events: list[PullEvent | Exception],
    end: str,
) -> None:
    caplog.set_level(logging.INFO, logger="server.access")
    disk.script = play(*events)

    await local.post(PULL, json=BODY)

    (line,) = [record.getMessage() for record in caplog.records if record.name == "server.access"]
    assert f" model='{REPOSITORY}'" in line
    assert end in line


# --- a listener ---


async def test_a_listener_that_does_not_ask_misses_old_progress() -> None:
    told = asyncio.Event()

    async def events() -> AsyncGenerator[PullEvent]:
        for done in range(500):
            yield progress(done)
            yield PullNotice(str(done))
        told.set()
        yield finished()

    async with PullListener(events()) as listener:
        await told.wait()
        batches = [batch async for batch in listener.batches()]

    assert [event for batch in batches for event in batch] == [
        *(PullNotice(str(done)) for done in range(400, 500)),
        progress(499),
        finished(),
    ]


async def test_a_listener_that_asks_gets_everything() -> None:
    heard = asyncio.Semaphore(0)
    script: list[PullEvent] = [progress(0), progress(1), PullNotice("a"), progress(2), finished()]

    async def events() -> AsyncGenerator[PullEvent]:
        for event in script:
            yield event
            await heard.acquire()

    got: list[PullEvent] = []
    async with PullListener(events()) as listener:
        async for batch in listener.batches():
            got += batch
            heard.release()

    assert got == script


async def test_a_listener_tells_of_progress_before_a_failure() -> None:
    async def events() -> AsyncGenerator[PullEvent]:
        yield progress(0)
        raise DiskFull("full")

    got: list[PullEvent] = []

    async def listen() -> None:
        async with PullListener(events()) as listener:
            async for batch in listener.batches():
                got.extend(batch)

    with pytest.raises(DiskFull):
        await listen()
    assert got == [progress(0)]


async def test_leaving_cannot_be_interrupted() -> None:
    opened, leaving, left = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def events() -> AsyncGenerator[PullEvent]:
        try:
            yield progress(0)
            await asyncio.Event().wait()
        finally:
            leaving.set()
            await asyncio.sleep(0)
            left.set()

    async def listen() -> None:
        async with PullListener(events()) as listener:
            assert await listener.opened()
            opened.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(listen())
    async with asyncio.timeout(10):
        await opened.wait()
        task.cancel()
        await leaving.wait()
        task.cancel()
        await left.wait()
        await asyncio.wait([task])
    assert task.cancelled()
