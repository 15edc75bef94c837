"""The end: running answers are finished, new ones are refused, and the exit code is 0."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import httpx
import pytest
from conftest import Start
from serving import CHAT, PATIENCE, chat_body, eventually, sse_data, stream_text

STORY = chat_body("Tell me a story", temperature=0, stream=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_running_streams_finish(start: Start, number: signal.Signals) -> None:
    server = start("--demo")
    expected = server.ask("Tell me a story", temperature=0).json()["choices"][0]["message"]["content"]
    with httpx.stream("POST", server.url + CHAT, json=STORY, timeout=PATIENCE) as response:
        lines = response.iter_lines()
        received = [next(lines)]
        server.process.send_signal(number)
        received += lines
    assert stream_text(sse_data(received)) == expected
    assert server.exit_code() == 0
    assert server.failures == []
    with pytest.raises(httpx.ConnectError):
        server.ask()


def test_a_whole_answer_is_finished(start: Start) -> None:
    server = start("--demo")
    with server.connect() as running, server.connect() as idle:
        idle.socket.sendall(b"GET /he")  # a connection without a request holds nobody up
        running.post(chat_body("Tell me a story", temperature=0))
        with server.connect() as probe:  # answered, so the one before has been read
            probe.post(chat_body(max_tokens=1))
            probe.read_answer()
        server.process.terminate()
        status, _, body = running.read_answer()
    assert status == 200
    assert json.loads(body)["choices"][0]["finish_reason"] == "stop"
    assert server.exit_code() == 0


def test_what_takes_too_long_is_told_so(start: Start, slow_model: Path) -> None:
    server = start("--model", str(slow_model), config="[server]\ngraceful_shutdown_seconds = 1\n")
    endless = chat_body(model="local/slow", ignore_eos=True, stream=True)
    with (
        server.connect() as whole,
        httpx.stream("POST", server.url + CHAT, json=endless, timeout=PATIENCE) as response,
    ):
        whole.post(endless | {"stream": False})
        lines = response.iter_lines()
        received = [next(lines)]
        server.process.terminate()
        received += lines
        status, headers, body = whole.read_answer()
    last = json.loads(sse_data(received)[-1])
    assert last["error"]["code"] == json.loads(body)["error"]["code"] == "draining"
    assert status == 503
    assert int(headers["retry-after"]) >= 1
    assert server.exit_code() == 0


def test_a_second_signal_ends_it_at_once(start: Start, slow_model: Path) -> None:
    server = start("--model", str(slow_model))
    endless = chat_body(model="local/slow", ignore_eos=True, stream=True)
    with httpx.stream("POST", server.url + CHAT, json=endless, timeout=PATIENCE) as response:
        lines = response.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGINT)
        eventually(lambda: not server.listens(), "the first signal is seen")
        next(lines)
        server.process.send_signal(signal.SIGINT)
        assert server.exit_code() == 0
