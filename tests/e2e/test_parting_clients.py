"""Clients that go away, or wait, or read slowly: their work stops, and nobody else notices."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from shutil import which
from typing import Any

import httpx
import openai
import pytest
from conftest import Start
from gguf_shapes import LlamaShape, write_llama
from serving import CHAT, Connection, Server, chat_body, eventually

SLOW = "local/slow"
LONG_PROMPT = "a b c d e f " * 550
ENDLESS: dict[str, Any] = chat_body(model=SLOW, stream=True, ignore_eos=True)


@pytest.fixture(scope="module")
def single(slow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that computes one request and refuses all others meanwhile."""
    home = tmp_path_factory.mktemp("single")
    config = home / "config.toml"
    config.write_text("[llamacpp]\nmax_sequences = 1\nqueue_size = 0\nbatch_size = 32\n", encoding="utf-8")
    with Server("--config", str(config), "--model", str(slow_model), home=home) as server:
        yield server
        assert server.failures == []


def is_free(server: Server) -> bool:
    return server.is_free(model=SLOW)


def assert_work_stops(server: Server) -> None:
    eventually(server.works_no_more, "the server has stopped computing")
    eventually(lambda: is_free(server), "the sequence is free again")


def is_leased(server: Server) -> bool:
    """Whether a request has the model; unlike ``is_free`` it takes nobody's place to find out."""
    leases: int = httpx.get(f"{server.url}/admin/models/{SLOW}").json()["leases"]
    return leases > 0


def cached_and_prompt_tokens(server: Server, prompt: str) -> tuple[int, int]:
    answers: list[httpx.Response] = []

    def is_answered() -> bool:
        answers.append(server.ask(prompt, model=SLOW, max_tokens=1))
        return answers[-1].status_code == 200

    eventually(is_answered, "the step in which the client left is over")
    usage = answers[-1].json()["usage"]
    return usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]


def test_a_client_that_leaves_in_mid_stream(single: Server) -> None:
    with single.client() as client:
        for _ in range(3):
            with client.chat.completions.create(
                model=SLOW,
                messages=[{"role": "user", "content": "Hi"}],
                stream=True,
                extra_body={"ignore_eos": True},
            ) as stream:
                assert len([*islice(stream, 4)]) == 4
                assert not is_free(single)
            eventually(lambda: is_free(single), "the sequence is free again")
    assert_work_stops(single)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_in_mid_prompt(single: Server, *, stream: bool) -> None:
    prompt = f"{stream} {LONG_PROMPT}"
    with single.connect() as connection:
        connection.post(chat_body(prompt, model=SLOW, max_tokens=1, stream=stream))
        eventually(lambda: is_leased(single), "the request is admitted")
        before = single.cpu_seconds()
        eventually(lambda: single.cpu_seconds() > before + 0.3, "the prompt is being computed")
    eventually(single.works_no_more, "the server has stopped computing")
    # what another prompt finds in the cache is what was computed until the client left
    cached, asked = cached_and_prompt_tokens(single, prompt[: len(prompt) // 4])
    assert 0 < cached < asked - 100


def test_a_client_that_leaves_while_it_waits_for_a_whole_answer(single: Server) -> None:
    with single.connect() as connection:
        connection.post(ENDLESS | {"stream": False})
        eventually(lambda: is_leased(single), "the request is admitted")
    assert_work_stops(single)


def test_a_client_that_is_killed(single: Server) -> None:
    if which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "-sN", single.url + CHAT, "-d", json.dumps(ENDLESS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, process_group=0, bufsize=0) as curl:
        assert curl.stdout is not None
        assert curl.stdout.read(10)
        assert not is_free(single)
        os.killpg(curl.pid, signal.SIGKILL)
    assert_work_stops(single)


def test_a_reset_connection(single: Server) -> None:
    with single.connect() as connection:
        connection.post(ENDLESS)
        connection.read_until(b"data: ")
        connection.reset()
    assert_work_stops(single)


def status_of(connection: Connection) -> int:
    return int(connection.read_until(b"\r\n\r\n").split()[1])


def test_the_queue(start: Start, slow_model: Path) -> None:
    """Who waits is told so by comments; who finds the queue full is refused; who leaves it makes room."""
    server = start(
        "--model",
        str(slow_model),
        config="[llamacpp]\nmax_sequences = 1\nqueue_size = 1\n[api]\nkeep_alive_comment_seconds = 1\n",
    )
    with ExitStack() as stack:

        def stream() -> Connection:
            connection = stack.enter_context(server.connect())
            connection.post(ENDLESS)
            return connection

        running = stream()
        running.read_until(b"data: ")
        waiting = stream()
        assert status_of(waiting) == 200
        waiting.read_until(b": keep-alive\n\n")

        with server.client() as client, pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(model=SLOW, messages=[{"role": "user", "content": "Hi"}])
        assert refused.value.code == "queue_full"
        assert refused.value.type == "rate_limit_error"
        assert int(refused.value.response.headers["retry-after"]) >= 1
        assert status_of(stream()) == 429

        waiting.socket.close()
        others: list[Connection] = []

        def enters() -> bool:
            others.append(stream())
            return status_of(others[-1]) == 200

        eventually(enters, "the place in the queue is free again")
        assert b"data: " not in others[-1].received_so_far()
        running.read_until(b"data: ")  # has gone on all the time
        running.socket.close()
        others[-1].read_until(b"data: ")
    eventually(lambda: is_free(server), "everything is accepted again")
    eventually(server.works_no_more, "the server has stopped computing")
    assert server.failures == []


def test_a_client_that_retries_gets_its_answer_in_the_end(single: Server) -> None:
    with single.connect() as running, single.client(max_retries=60) as client:
        running.post(ENDLESS | {"max_tokens": 90})
        running.read_until(b"data: ")
        answer = client.chat.completions.create(model=SLOW, messages=[{"role": "user", "content": "Hi"}], max_tokens=1)
        assert answer.choices[0].finish_reason == "length"
        assert b"[DONE]" in running.read_until(b"data: [DONE]\n\n")


def test_a_client_that_does_not_read_is_given_up(start: Start, tmp_path: Path) -> None:
    # log probabilities make chunks of kilobytes, which a quick model soon fills the buffers between the processes with
    model = tmp_path / "quick.gguf"
    write_llama(model, LlamaShape(context=8192))
    server = start(
        "--model",
        str(model),
        config="[llamacpp]\nmax_sequences = 2\nqueue_size = 0\n[api]\nsend_timeout_seconds = 1\n",
    )
    quick: dict[str, Any] = {"model": "local/quick", "ignore_eos": True}
    with server.connect(receive_buffer=2048) as sleeper:
        sleeper.post(chat_body(**quick, stream=True, logprobs=True, top_logprobs=20))
        sleeper.read_until(b"data: ")
        for _ in range(3):  # nobody else waits for that one
            answer = server.ask(**quick, max_tokens=5)
            assert answer.json()["usage"]["completion_tokens"] == 5
        eventually(lambda: "stopped reading" in server.log_text, "the client is given up")
        eventually(lambda: server.ask(**quick, n=2, max_tokens=1).status_code == 200, "both sequences are free")
        eventually(server.works_no_more, "the server has stopped computing")
        eventually(lambda: server.num_connections() == 0, "the connection is cut")
        assert server.failures == []


def test_a_client_that_reads_slowly_gets_everything(demo: Server) -> None:
    with demo.connect(receive_buffer=2048) as slow:
        slow.post(
            chat_body("Tell me a story", temperature=0, stream=True), version="1.1", headers="connection: close\r\n"
        )
        head = slow.read_until(b"\r\n\r\n")
        pieces = [slow.socket.recv(1)]
        for _ in range(10):
            pieces.append(slow.socket.recv(1))
            assert demo.ask(max_tokens=3).status_code == 200
        rest = slow.read_to_end()
    assert b"200" in head
    body = (b"".join(pieces) + rest).decode()
    assert body.rstrip("\r\n0").endswith("data: [DONE]")
