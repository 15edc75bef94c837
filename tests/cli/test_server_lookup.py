from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from fakes.answering import Answering, Reply, envelope, whole

from server.cli.server_lookup import ServerAddress, find_server, listens, named_server, server_address
from server.core.errors import ConfigurationError, LocalOnly, ServerUnreachable

STATUS = {"object": "status", "version": "1.0", "started": "2026-01-02T03:04:05Z", "ready": True}


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port that stays free of servers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        yield taken.getsockname()[1]


class Told(list[str]):
    """What somebody is told."""

    def __call__(self, message: str) -> None:
        self.append(message)


def configured(server: Answering) -> ServerAddress:
    """Where the configuration would have this server listen."""
    return server_address(None, "127.0.0.1", urlsplit(server.url).port or 0, {})


def test_who_names_a_server() -> None:
    environ = {"LLMSPELL_SERVER": "localhost:9000"}
    assert server_address("http://a:1/v1", "h", 2, environ) == ServerAddress("http://a:1", "--server")
    assert server_address(None, "h", 2, environ) == ServerAddress("http://localhost:9000", "LLMSPELL_SERVER")
    assert server_address(None, "0.0.0.0", 2, {}) == ServerAddress("http://127.0.0.1:2", None)
    assert named_server(None, {"LLMSPELL_SERVER": " "}) is None
    with pytest.raises(ConfigurationError):
        named_server("ftp://a", {})


def test_a_server_of_the_configuration() -> None:
    told = Told()
    with Answering(whole(STATUS)) as server:
        found = find_server(configured(server), told)
        assert found is not None
        with found.client as client:
            assert (client.url, found.status.version) == (server.url, "1.0")
    assert told == []


def test_none_where_the_configuration_has_one_listen(free_port: int) -> None:
    told = Told()
    assert find_server(server_address(None, "127.0.0.1", free_port, {}), told) is None
    assert told == []


@pytest.mark.parametrize("reply", [whole("<title>Router</title>"), whole({"detail": "Not Found"}, 404)])
def test_something_else_there(reply: Reply) -> None:
    told = Told()
    with Answering(reply) as server:
        assert find_server(configured(server), told) is None
    (message,) = told
    assert message.startswith(f"going on without a server. What is at {server.url} does not speak")


def test_a_server_that_may_not_be_administered() -> None:
    with (
        Answering(whole(envelope("Only from there.", "local_only"), 403)) as server,
        pytest.raises(LocalOnly, match="Only from there"),
    ):
        find_server(configured(server), Told())


@pytest.mark.parametrize("name", ["--server", "LLMSPELL_SERVER"])
def test_a_named_server_must_be_there(free_port: int, name: str) -> None:
    told = Told()
    with pytest.raises(ServerUnreachable):
        find_server(ServerAddress(f"http://127.0.0.1:{free_port}", name), told)
    with Answering(whole("<html>")) as server, pytest.raises(ServerUnreachable):
        find_server(ServerAddress(server.url, name), told)
    assert told == []


def test_listening(free_port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert listens(f"http://127.0.0.1:{listener.getsockname()[1]}/path")
    assert not listens(f"http://127.0.0.1:{free_port}")
    assert not listens("http://127.0.0.1:0")


def test_looking_where_nobody_listens_imports_nothing_slow(free_port: int) -> None:
    code = (
        "import sys; from server.cli.server_lookup import *; "
        f"assert find_server(server_address(None, '127.0.0.1', {free_port}), print) is None; "
        "print({'httpx', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
