"""Clients that leave, lose patience, or come many at a time: the same on all backends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from itertools import islice
from shutil import which
from typing import Any

import httpx
import openai
import pytest
from conftest import Start
from fakes.ollama import FakeOllama
from serving import CHAT, PATIENCE, Server, Site, chat_body, eventually, sse_data, streamed_text, text_of, using_ollama

PARIS = "What is the capital of France?"
AT_ONCE = 10.0
"""Seconds within which a request must be given up: more than any machine needs, less than anything that times out."""

Leave = Callable[[Site, dict[str, Any]], None]


@pytest.fixture
def endless(site: Site) -> dict[str, Any]:
    """The body of a stream that goes on for ever."""
    if site.endless is None:
        pytest.skip("this daemon has no model that goes on for ever")
    eventually(site.is_idle, "tests before this one have ended")
    return site.body("Hello", stream=True) | dict(site.endless)


def assert_given_up(site: Site, left: float, num_requests: int = 1) -> None:
    """The work stops, the daemon hears of it at once, and the next client is served."""
    eventually(site.is_idle, "nothing is computed any more")
    if site.fake is not None:
        requests = site.fake.chats[-num_requests:]
        assert all(request.was_cut_off for request in requests)
        assert max(request.disconnected or 0 for request in requests) - left < AT_ONCE
    assert "Paris" in text_of(site.ask(PARIS))


def by_closing_the_stream(site: Site, body: dict[str, Any]) -> None:
    with httpx.stream("POST", site.server.url + CHAT, json=body, timeout=PATIENCE) as response:
        assert [*islice(response.iter_lines(), 5)]


def by_crashing(site: Site, body: dict[str, Any]) -> None:
    with site.server.connect() as connection:
        connection.post(body)
        connection.read_until(b"data: ")
        connection.reset()


def by_being_killed(site: Site, body: dict[str, Any]) -> None:
    if which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "-sN", site.server.url + CHAT, "-d", json.dumps(body)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, process_group=0, bufsize=0) as curl:
        assert curl.stdout is not None
        assert curl.stdout.read(10)
        os.killpg(curl.pid, signal.SIGKILL)


@pytest.mark.parametrize("leave", [by_closing_the_stream, by_crashing, by_being_killed])
def test_a_client_that_leaves_in_mid_stream(site: Site, endless: dict[str, Any], leave: Leave) -> None:
    leave(site, endless)
    assert_given_up(site, time.monotonic())


def test_a_client_that_leaves_several_choices(site: Site, endless: dict[str, Any]) -> None:
    by_closing_the_stream(site, endless | {"n": 3})
    assert_given_up(site, time.monotonic(), num_requests=3)


def test_a_client_that_leaves_while_it_waits_for_a_whole_answer(site: Site, endless: dict[str, Any]) -> None:
    with site.server.connect() as connection, site.begins():
        connection.post(endless | {"stream": False})
    assert_given_up(site, time.monotonic())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_a_client_that_leaves_before_the_first_token(site: Site, n: int, *, stream: bool) -> None:
    if site.stuck is None:
        pytest.skip("this daemon has no model that loads for ever")
    prompt = f"{stream} {n} " + "a b c d e f " * 600  # of its own: what is in the pool's cache is not computed again
    with site.server.connect() as connection, site.begins():
        connection.post(site.body(prompt, stream=stream, n=n) | dict(site.stuck))
    assert_given_up(site, time.monotonic(), num_requests=n)


def test_the_timeout_of_the_client(site: Site, endless: dict[str, Any]) -> None:
    parameters = {name: value for name, value in endless.items() if name not in {"stream", "ignore_eos"}}
    extra = {"ignore_eos": True} if "ignore_eos" in endless else {}
    with site.server.client(timeout=1) as client, pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(**parameters, extra_body=extra)
    assert_given_up(site, time.monotonic())


async def test_an_asynchronous_client_that_is_cancelled(site: Site, endless: dict[str, Any]) -> None:
    extra = {"ignore_eos": endless.pop("ignore_eos")} if "ignore_eos" in endless else {}
    begun = asyncio.Event()
    async with site.server.async_client() as client:

        async def read() -> None:
            async with await client.chat.completions.create(**endless, extra_body=extra) as stream:
                async for _ in stream:
                    begun.set()

        reader = asyncio.create_task(read())
        await asyncio.wait({reader, waiting := asyncio.create_task(begun.wait())}, return_when="FIRST_COMPLETED")
        assert waiting.done(), reader
        reader.cancel()
        await asyncio.wait({reader})
    assert_given_up(site, time.monotonic())


def test_a_server_that_has_to_stop_gives_up_what_the_daemon_works_on(start: Start, fake: FakeOllama) -> None:
    server = start(config="[server]\ngraceful_shutdown_seconds = 1\n", variables=using_ollama(fake.url))
    endless = chat_body(model="local/spell-endless", stream=True)
    with server.connect() as whole, server.connect() as stream:
        stream.post(endless, headers="connection: close\r\n")
        stream.read_until(b"data: ")
        whole.post(endless | {"stream": False})
        fake.wait_for(lambda: fake.num_running == 2)
        assert server.stop() == 0
        *_, last = sse_data(line for line in stream.read_to_end().decode().split("\n") if line.startswith("data: "))
        status, _, body = whole.read_answer()
    assert json.loads(last)["error"]["code"] == json.loads(body)["error"]["code"] == "draining"
    assert status == 503
    fake.wait_for(lambda: fake.num_running == 0)
    assert [request.was_cut_off for request in fake.chats[-2:]] == [True, True]


async def test_many_streams_at_once(site: Site) -> None:
    expected = text_of(site.ask(PARIS))

    async with site.server.async_client() as client:

        async def read() -> str:
            async with await client.chat.completions.create(**site.body(PARIS, stream=True)) as stream:
                return streamed_text([chunk async for chunk in stream])

        assert await asyncio.gather(*(read() for _ in range(32))) == [expected] * 32


async def test_both_backends_at_once(between: Server, pool_site: Site, fake_site: Site) -> None:
    """Streams and whole answers of both, with clients among them that leave."""
    sites = (pool_site, fake_site)
    expected = {site.backend: text_of(site.ask(PARIS)) for site in sites}

    async with between.async_client() as client:

        async def whole(site: Site) -> None:
            assert text_of(await client.chat.completions.create(**site.body(PARIS))) == expected[site.backend]

        async def streamed(site: Site, *, leaves: bool) -> None:
            async with await client.chat.completions.create(**site.body(PARIS, stream=True)) as stream:
                chunks = []
                async for chunk in stream:
                    chunks.append(chunk)
                    if leaves:
                        return
            assert streamed_text(chunks) == expected[site.backend]

        kinds = [*(whole(site) for site in sites * 5), *(streamed(site, leaves=True) for site in sites * 5)]
        await asyncio.gather(*kinds, *(streamed(site, leaves=False) for site in sites * 5))
    for site in sites:
        eventually(site.is_idle, "nothing is computed any more")
