"""``[ollama] autostart``: a daemon that is not there is started, used, and stopped; one that is there is left alone."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import Start
from fakes.process import OllamaProcess
from serving import CHAT, PATIENCE, Server, chat_body, eventually, sse_data, stream_text, using_ollama

TESTS = Path(__file__).resolve().parents[1]
SPELL = "local/spell"

Begin = Callable[..., Server]

STAND_IN = f'exec "{sys.executable}" -m fakes.ollama --port "${{OLLAMA_HOST##*:}}" --model spell --tokens-per-second 50'


@pytest.fixture
def port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number: int = taken.getsockname()[1]
    return number


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """Where the program notes its process ids, one for each time it is called."""
    return tmp_path / "calls"


@pytest.fixture
def begin(start: Start, port: int, tmp_path: Path, calls: Path) -> Begin:
    """Start a server that starts a daemon if need be; ``program`` is what ``ollama serve`` does."""

    def run(program: str | None, *arguments: str, **variables: str) -> Server:
        directory = tmp_path / "bin"
        directory.mkdir()
        if program is not None:
            file = directory / "ollama"
            file.write_text(f'#!/bin/sh\n[ "$*" = serve ] || exit 64\necho $$ >> "{calls}"\n{program}\n', "utf-8")
            file.chmod(0o755)
        environ = {"PATH": f"{directory}{os.pathsep}/usr/bin{os.pathsep}/bin", "PYTHONPATH": str(TESTS)}
        environ |= {"LLMSPELL_OLLAMA__AUTOSTART": "true"} | variables
        return start(*arguments, variables=using_ollama(f"127.0.0.1:{port}", **environ))

    return run


def pids(calls: Path) -> list[int]:
    """The processes that were started; a line that is being written is not read."""
    text = calls.read_text(encoding="utf-8") if calls.exists() else ""
    return [int(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def runs(pid: int) -> bool:
    return bool(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)


def is_used(server: Server) -> bool:
    return server.ask(model=SPELL, max_tokens=1).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_daemon_is_started_used_and_stopped(begin: Begin, calls: Path, port: int, number: signal.Signals) -> None:
    server = begin(STAND_IN)
    eventually(lambda: is_used(server), "the daemon is used")
    listed = httpx.get(f"{server.base_url}/models").json()["data"]
    assert [model["id"] for model in listed] == ["local/spell:latest"]
    (pid,) = pids(calls)
    # a stream that runs is finished, which takes the daemon, before that is stopped
    body = chat_body("Once upon a time there was a llama, and this is its story.", model=SPELL, stream=True)
    with httpx.stream("POST", server.url + CHAT, json=body, timeout=PATIENCE) as response:
        lines = response.iter_lines()
        received = [next(lines)]
        server.process.send_signal(number)
        received += lines
    assert "its story" in stream_text(sse_data(received))
    assert server.exit_code() == 0
    assert not runs(pid)
    with socket.socket() as free, pytest.raises(ConnectionRefusedError):
        free.connect(("127.0.0.1", port))
    assert server.failures == []


def test_a_daemon_that_is_there_is_used_and_left_alone(begin: Begin, calls: Path, port: int) -> None:
    with OllamaProcess("--model", "spell", port=port) as daemon:
        server = begin(STAND_IN)
        eventually(lambda: is_used(server), "the daemon is used")
        assert server.stop() == 0
        assert daemon.ask("state")["num_running"] == 0  # it answers
    assert pids(calls) == []


def assert_pool_is_undisturbed(server: Server) -> None:
    times = []
    for _ in range(3):
        began = time.monotonic()
        assert server.ask(max_tokens=1).status_code == 200
        assert {model["backend"] for model in httpx.get(f"{server.base_url}/models").json()["data"]} == {"llamacpp"}
        times.append(time.monotonic() - began)
    assert min(times) < 1.5


def test_a_program_that_fails(begin: Begin, calls: Path, port: int) -> None:
    server = begin("echo 'Error: the disk is on fire' >&2; exit 3", "--demo")
    eventually(lambda: "the disk is on fire" in server.log_text, "the failure is logged")
    eventually(lambda: "exit code 3" in server.log_text, "the log has it")
    assert_pool_is_undisturbed(server)
    assert server.ask(model=f"{SPELL}@ollama").status_code == 502
    with OllamaProcess("--model", "spell", port=port):  # somebody else starts one
        eventually(lambda: is_used(server), "the daemon is used")
        assert server.stop() == 0
    assert len(pids(calls)) == 1


def test_a_program_that_never_answers(begin: Begin, calls: Path) -> None:
    """Nobody waits for it, also not at shutdown."""
    server = begin("while :; do sleep 1; done", "--demo", LLMSPELL_OLLAMA__AUTOSTART_TIMEOUT_SECONDS="3600")
    eventually(lambda: pids(calls), "the program runs")
    assert_pool_is_undisturbed(server)
    (pid,) = pids(calls)
    assert runs(pid)
    assert server.stop() == 0
    assert not runs(pid)


def test_no_program(begin: Begin) -> None:
    server = begin(None, "--demo", PATH="/nonexistent")
    eventually(lambda: "no program 'ollama' on the PATH" in server.log_text, "the lack is logged")
    assert_pool_is_undisturbed(server)
    assert server.failures == []
