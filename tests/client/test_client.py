from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from both_clients import Ask, Pull, ask_sync, pull_sync
from fakes.answering import PATIENCE, Answering, Asked, Reply, envelope, head, sends, stream, stream_head, whole

from server.client import AsyncLocalLLM, LocalLLM
from server.core import errors
from server.core.library import Deleted, InstalledModel, ModelDetails
from server.core.library_json import deleted_json, details_json, installed_json, pull_event_json
from server.core.model_spec import BackendName, parse_model_spec
from server.core.ports import ModelState
from server.core.pulling import PullActivity, PullEvent, PullFinished, PullNotice, PullProgress

MODEL = InstalledModel("phi3:3.8b", BackendName.OLLAMA, "daemon", 5, capabilities=("chat",))
WARM = {"id": "local/phi3:3.8b@ollama", "backend": "ollama", "state": "warm", "size_bytes": 5, "memory_bytes": 7}
STATUS = {"object": "status", "version": "1.0", "started": "2026-01-02T03:04:05Z", "ready": True}
PROGRESS = PullProgress(PullActivity.DOWNLOADING, 5, 10, 1.0, 5.0)
FINISHED = PullFinished("phi3:3.8b", BackendName.OLLAMA)
EVENTS: tuple[PullEvent, ...] = (
    PullProgress(PullActivity.QUEUED, 0, 0, 0.0, None),
    PROGRESS,
    PullNotice("The connection broke; trying again."),
    FINISHED,
)


def frames(*events: PullEvent) -> list[object]:
    return [pull_event_json(event) for event in events]


def wanted(server: Answering) -> tuple[str, str, Any]:
    (asked,) = server.asked
    return asked.method, asked.target, asked.json


def test_status(ask: Ask) -> None:
    with Answering(whole(STATUS | {"models": [WARM]})) as server:
        status = ask(server.url, "status")
    assert wanted(server) == ("GET", "/admin/status", None)
    assert (status.version, status.started) == ("1.0", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert [(model.id, model.state, model.memory_bytes) for model in status.models] == [
        (WARM["id"], ModelState.WARM, 7)
    ]


@pytest.mark.parametrize(
    ("arguments", "target"),
    [
        ((), "/admin/library"),
        (("ollama",), "/admin/library?backend=ollama"),
        ((BackendName.LLAMACPP,), "/admin/library?backend=llamacpp"),
    ],
)
def test_list(ask: Ask, arguments: tuple[str, ...], target: str) -> None:
    with Answering(whole({"object": "list", "data": [installed_json(MODEL)]})) as server:
        assert ask(server.url, "list", *arguments) == (MODEL,)
    assert wanted(server) == ("GET", target, None)


@pytest.mark.parametrize(
    ("spec", "segment"),
    [
        ("phi3:3.8b", "phi3:3.8b"),
        (parse_model_spec("phi3:3.8b@ollama"), "local%2Fphi3:3.8b@ollama"),
        ("hf.co/owner/repo:Q4_K_M", "hf.co%2Fowner%2Frepo:Q4_K_M"),
        ("../../etc/passwd", "..%2F..%2Fetc%2Fpasswd"),
        ("a b?c#d%e&f", "a%20b%3Fc%23d%25e%26f"),
        ("modèle", "mod%C3%A8le"),
    ],
)
def test_show_says_the_spec_as_it_is(ask: Ask, spec: object, segment: str) -> None:
    details = ModelDetails(MODEL, architecture="phi3", files=(Path("/m/a.gguf"),))
    with Answering(whole(details_json(details))) as server:
        assert ask(server.url, "show", spec) == details
    assert wanted(server) == ("GET", f"/admin/library/{segment}", None)


@pytest.mark.parametrize("spec", ["", ".", ".."])
@pytest.mark.parametrize("method", ["show", "load", "unload", "delete"])
def test_what_would_be_another_url(ask: Ask, method: str, spec: str) -> None:
    with pytest.raises(errors.InvalidModelSpec):
        ask("http://127.0.0.1:1", method, spec)


def test_load(ask: Ask) -> None:
    with Answering(whole(WARM)) as server:
        assert ask(server.url, "load", "phi3:3.8b").state is ModelState.WARM
    assert wanted(server) == ("POST", "/admin/models/phi3:3.8b/load", None)


@pytest.mark.parametrize(("options", "body"), [({}, None), ({"force": True}, {"force": True})])
def test_unload(ask: Ask, options: dict[str, bool], body: object) -> None:
    with Answering(whole(WARM | {"state": "cold"})) as server:
        assert ask(server.url, "unload", "phi3:3.8b", **options).state is ModelState.COLD
    assert wanted(server) == ("POST", "/admin/models/phi3:3.8b/unload", body)


def test_delete(ask: Ask) -> None:
    gone = Deleted("phi3:3.8b", BackendName.OLLAMA, freed_bytes=5)
    with Answering(whole(deleted_json(gone))) as server:
        assert ask(server.url, "delete", "phi3:3.8b") == gone
    assert wanted(server) == ("DELETE", "/admin/models/phi3:3.8b", None)


def test_cancel_pull(ask: Ask) -> None:
    with Answering(whole({"cancelled": 2})) as server:
        assert ask(server.url, "cancel_pull", "hf.co/a/b", "Q8_0") == 2
    assert wanted(server) == ("POST", "/admin/models/pull/cancel", {"model": "hf.co/a/b", "quantization": "Q8_0"})


def test_pull(pull: Pull) -> None:
    with Answering(stream(*frames(*EVENTS), "[DONE]", comments=["keep-alive"])) as server:
        assert pull(server.url, "phi3:3.8b", "Q4_0") == list(EVENTS)
    body = {"model": "phi3:3.8b", "quantization": "Q4_0", "stream": True}
    assert wanted(server) == ("POST", "/admin/models/pull", body)


def test_a_pull_that_is_refused(pull: Pull) -> None:
    with (
        Answering(whole(envelope("There is no such model.", "model_not_found"), 404)) as server,
        pytest.raises(errors.ModelNotFound, match=r"^There is no such model\.$"),
    ):
        pull(server.url, "nothing")


def test_a_pull_that_fails_on_the_way(pull: Pull) -> None:
    seen: list[PullEvent] = []

    def note(event: PullEvent) -> bool:
        seen.append(event)
        return False

    with (
        Answering(stream(*frames(PROGRESS), envelope("The disk is full.", "disk_full"))) as server,
        pytest.raises(errors.DiskFull, match=r"^The disk is full\.$"),
    ):
        pull(server.url, "phi3", enough=note)
    assert seen == [PROGRESS]


@pytest.mark.parametrize(
    "reply",
    [
        stream(*frames(PROGRESS)),
        stream(),
        stream(*frames(*EVENTS)),
        stream(*frames(PROGRESS), "[DONE]"),
        sends(head(200, content_type="text/event-stream", content_length="1000") + b": x\n\n"),
        sends(head(200, content_type="text/event-stream", transfer_encoding="chunked") + b"5\r\n: x\n\n\r\n9"),
    ],
    ids=["cut", "empty", "without [DONE]", "without success", "too short", "within a chunk"],
)
def test_a_stream_without_an_end(pull: Pull, reply: Reply) -> None:
    with Answering(reply) as server, pytest.raises(errors.ServerUnreachable, match="goes on from where it was"):
        pull(server.url, "phi3")


def test_a_pull_is_left_when_the_iterator_is_closed(pull: Pull) -> None:
    def endless(connection: socket.socket) -> None:
        connection.sendall(stream_head())
        while True:
            connection.sendall(b'data: {"status": "notice", "message": "still here"}\n\n')

    with Answering(endless) as server:
        assert pull(server.url, "phi3", enough=lambda _: True) == [PullNotice("still here")]
        assert server.left.wait(PATIENCE), "the connection is still open"


def test_a_loop_that_is_left_leaves_the_pull() -> None:
    def endless(connection: socket.socket) -> None:
        connection.sendall(stream_head())
        while True:
            connection.sendall(b'data: {"status": "notice", "message": "still here"}\n\n')

    with Answering(endless) as server:
        with LocalLLM(server.url) as llm:
            for _ in llm.pull("phi3"):
                break
        assert server.left.wait(PATIENCE), "the connection is still open"

    async def leave(url: str) -> None:
        async with AsyncLocalLLM(url) as llm:
            async for _ in llm.pull("phi3"):
                break

    with Answering(endless) as server:
        asyncio.run(leave(server.url))
        assert server.left.wait(PATIENCE), "the connection is still open"


def test_a_pull_that_is_not_asked_for_is_not_begun() -> None:
    with Answering(whole(STATUS)) as server, LocalLLM(server.url) as llm:
        llm.pull("phi3").close()
        llm.status()
    assert wanted(server)[1] == "/admin/status"


REFUSALS = [
    ("model_in_use", 409, errors.ModelInUse),
    ("model_not_found", 404, errors.ModelNotFound),
    ("local_only", 403, errors.LocalOnly),
    ("draining", 503, errors.Draining),
    ("unknown_url", 404, errors.LlmspellError),
    (None, 500, errors.LlmspellError),
]


@pytest.mark.parametrize(("code", "status", "kind"), REFUSALS)
def test_refusals(ask: Ask, code: str | None, status: int, kind: type[Exception]) -> None:
    with (
        Answering(whole(envelope("Not now.", code, "model"), status, retry_after="7")) as server,
        pytest.raises(kind, match=r"^Not now\.$") as caught,
    ):
        ask(server.url, "delete", "phi3")
    assert isinstance(caught.value, errors.LlmspellError)
    assert type(caught.value) is kind
    assert (caught.value.param, caught.value.retry_after) == ("model", 7)


LOGIN = "<!doctype html><html><head><title>Sign\n in</title></head><body>password</body></html>"
GARBAGE: dict[str, tuple[Reply, str]] = {
    "login page": (whole(LOGIN, content_type="text/html"), "Sign in"),
    "not found page": (whole("<h1>404</h1>", 404), "404"),
    "redirect": (whole("", 302, location="https://login.example/"), "sends on to https://login.example/"),
    "empty": (whole(""), "no JSON"),
    "colours": (whole("\x1b[31mred", 500), "500 .\ufffd.31mred"),
    "a list": (whole([]), "no JSON object"),
    "something else's JSON": (whole({"detail": "Not Found"}, 404), "Not Found"),
    "something else's error": (whole({"error": "model not found"}, 404), "model not found"),
    "something else's error with our form": (whole({"error": {"code": 404, "message": "x"}}, 404), "404"),
    "an error that is no error": (whole({"error": "Unexpected endpoint"}), "Unexpected endpoint"),
    "deep JSON": (whole("[" * 100_000), "no JSON"),
    "bytes": (sends(head(200, content_length="4") + b"\xff\xfe\x00\x01"), "no JSON"),
    "no HTTP": (sends(b"SSH-2.0-OpenSSH_9.6\r\n"), "broke"),
    "nothing": (sends(), "broke"),
    "a body that is too short": (sends(head(200, content_length="100") + b"{}"), "broke"),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage(ask: Ask, kind: str) -> None:
    reply, told = GARBAGE[kind]
    with Answering(reply) as server, pytest.raises(errors.ServerUnreachable, match=told) as caught:
        ask(server.url, "status")
    assert server.url in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_for_a_pull(pull: Pull, kind: str) -> None:
    with Answering(GARBAGE[kind][0]) as server, pytest.raises(errors.ServerUnreachable):
        pull(server.url, "phi3")


@pytest.mark.parametrize("data", ["<html>", "[]", '{"status": "dancing"}', '{"error": 1}', '{"done_bytes": 1}'])
def test_garbage_in_a_stream(pull: Pull, data: str) -> None:
    with Answering(stream(data)) as server, pytest.raises(errors.ServerUnreachable, match="does not speak"):
        pull(server.url, "phi3")


def test_a_list_of_garbage(ask: Ask) -> None:
    with (
        Answering(whole({"data": [{"name": 5}]})) as server,
        pytest.raises(errors.ServerUnreachable, match=r"data\.name"),
    ):
        ask(server.url, "list")


def test_nobody_there(ask: Ask, pull: Pull) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(errors.ServerUnreachable, match="llmspell serve"):
            ask(url, "status")
        with pytest.raises(errors.ServerUnreachable, match="llmspell serve"):
            pull(url, "phi3")


def test_no_such_host(ask: Ask) -> None:
    with pytest.raises(errors.ServerUnreachable, match="No server answers"):
        ask("http://nothing.invalid:8000", "status")


class Silence:
    """Says something and then nothing, until it is over."""

    def __init__(self, *pieces: bytes) -> None:
        self.over = threading.Event()
        self._pieces = pieces

    def __call__(self, connection: socket.socket) -> None:
        for piece in self._pieces:
            connection.sendall(piece)
        assert self.over.wait(PATIENCE)


@pytest.mark.parametrize("begun", [(), (stream_head() + b": here\n\n",)], ids=["at once", "in the stream"])
def test_silence(pull: Pull, begun: tuple[bytes, ...]) -> None:
    silence = Silence(*begun)
    with Answering(silence) as server:
        try:
            with pytest.raises(errors.TimedOut, match="timeout"):
                pull(server.url, "phi3", timeout=0.05)
        finally:
            silence.over.set()


def test_a_load_that_is_waited_for_no_longer() -> None:
    silence = Silence()
    with Answering(silence) as server, LocalLLM(server.url) as llm:
        try:
            with pytest.raises(errors.TimedOut):
                llm.load("phi3", timeout=0.05)
        finally:
            silence.over.set()


def test_a_load_is_waited_for_whatever_the_timeout() -> None:
    """The timeout of the client is for those who are silent though they have nothing to wait for."""
    silence = Silence()

    def slow(connection: socket.socket) -> None:
        assert not silence.over.wait(0.3), "it was given up"  # the silence that is tested
        whole(WARM)(connection)

    with Answering(slow) as server, LocalLLM(server.url, timeout=0.05) as llm:
        assert llm.load("phi3").state is ModelState.WARM


def test_proxies_are_for_the_internet(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    with Answering(whole(STATUS)) as server:
        assert ask(server.url, "status").version == "1.0"


def test_the_variable_says_where(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    with Answering(whole(STATUS)) as server:
        monkeypatch.setenv("LLMSPELL_SERVER", f"{server.url}/v1/")
        assert ask(None, "status").version == "1.0"


def test_a_path_before_ours(ask: Ask) -> None:
    with Answering(whole(STATUS)) as server:
        ask(f"{server.url}/llm/v1", "status")
    assert wanted(server)[1] == "/llm/admin/status"


def test_a_closed_client_opens_again() -> None:
    with Answering(whole(STATUS), whole(STATUS)) as server:
        llm = LocalLLM(server.url)
        llm.status()
        llm.close()
        llm.close()
        llm.status()
        llm.close()
    assert len(server.asked) == 2


def test_several_threads() -> None:
    replies = [whole(STATUS | {"version": str(number)}) for number in range(8)]
    versions: list[str] = []
    with Answering(*replies) as server, LocalLLM(server.url) as llm:
        threads = [threading.Thread(target=lambda: versions.append(llm.status().version)) for _ in replies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert sorted(versions) == [str(number) for number in range(8)]


def test_what_both_clients_offer() -> None:
    def methods(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert methods(LocalLLM) == methods(AsyncLocalLLM) >= {"status", "list", "show", "pull", "load", "unload", "delete"}


def test_importing_it_costs_little() -> None:
    slow = {"httpx", "asyncio", "pydantic"}
    code = f"import sys, server.client as c; c.LocalLLM(); print({slow} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_headers_are_ours() -> None:
    with Answering(whole(STATUS)) as server:
        ask_sync(server.url, "status")
    (asked,) = server.asked
    assert isinstance(asked, Asked)
    assert "authorization" not in asked.headers


def test_an_alias_may_be_pulled() -> None:
    with Answering(stream(*frames(FINISHED), "[DONE]")) as server:
        assert pull_sync(server.url, "my favourite") == [FINISHED]
    assert server.asked[0].json["model"] == "my favourite"


def test_certificates_that_cannot_be_read_matter_to_https_only(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/at/all.pem")
    with Answering(whole(STATUS)) as server:
        assert ask(server.url, "status").version == "1.0"
        with pytest.raises(errors.ConfigurationError, match="SSL_CERT_FILE"):
            ask(server.url.replace("http:", "https:"), "status")
