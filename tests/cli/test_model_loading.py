"""``llmspell model load`` while a load takes its time: a scripted server that says how far it is."""

from __future__ import annotations

import http.server
import json
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from program import PATIENCE, Program


class ScriptedServer(http.server.ThreadingHTTPServer):
    """Has one model, which is loaded once somebody has looked often enough."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.looks_until_loaded = 3
        self.num_looks = 0
        self.is_asked = threading.Event()
        self.is_loaded = threading.Event()

    def look(self) -> None:
        self.num_looks += self.is_asked.is_set()
        if self.num_looks >= self.looks_until_loaded:
            self.is_loaded.set()

    def model(self) -> dict[str, Any]:
        is_loaded = self.is_loaded.is_set()
        return {
            "id": "local/x:latest",
            "backend": "llamacpp",
            "state": "warm" if is_loaded else "loading",
            "size_bytes": 5,
            "memory_bytes": 7_000_000,
            "progress": None if is_loaded else 0.42,
        }


class _Handler(http.server.BaseHTTPRequestHandler):
    server: ScriptedServer

    def do_GET(self) -> None:
        self.server.look()
        status = {"object": "status", "version": "1", "started": None, "ready": True, "models": [self.server.model()]}
        self._answer(200, status)

    def do_POST(self) -> None:
        self.server.is_asked.set()
        if not self.server.is_loaded.wait(PATIENCE):
            raise TimeoutError
        error = {"message": "No room.", "code": "insufficient_memory", "type": "server_error", "param": None}
        is_refused = "refused" in self.path
        self._answer(503 if is_refused else 200, {"error": error} if is_refused else self.server.model())

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def scripted(program: Program) -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        program.variables["LLMSPELL_SERVER__PORT"] = str(server.server_port)
        yield server
        server.is_loaded.set()
        server.shutdown()


def test_a_log_gets_a_line_where_something_changes(program: Program, scripted: ScriptedServer) -> None:
    assert not scripted.is_loaded.is_set()
    result = program.run("model", "load", "x")
    assert (result.code, result.output) == (0, "local/x:latest warm, 7.0 MB\n")
    assert result.errors == "x: loading 42 %\n"


def test_a_terminal_gets_a_bar(program: Program, scripted: ScriptedServer) -> None:
    assert not scripted.is_loaded.is_set()
    result = program.on_terminal("model", "load", "x")
    assert result.code == 0
    assert "loading 42 %" in result.output
    assert result.output.rstrip().endswith("local/x:latest warm, 7.0 MB")


def test_a_refusal_after_a_while_is_one_line(program: Program, scripted: ScriptedServer) -> None:
    assert not scripted.is_loaded.is_set()
    result = program.run("model", "load", "refused")
    assert (result.code, result.output) == (1, "")
    assert result.errors.splitlines()[-1] == "llmspell: error: No room."


def test_ctrl_c_ends_the_wait(program: Program, scripted: ScriptedServer) -> None:
    scripted.looks_until_loaded = 10**9
    with program.started("model", "load", "x") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "x: loading 42 %\n"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output) == (130, "")
    assert errors == "Interrupted; a load that has begun goes on.\n"


def test_status_shows_how_far_a_load_is(program: Program, scripted: ScriptedServer) -> None:
    assert not scripted.is_loaded.is_set()
    assert "loading 42 %" in program.run("model", "status").output
