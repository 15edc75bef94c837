from __future__ import annotations

import pytest

from server.client.address import server_url, url_of
from server.core.errors import ConfigurationError


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000"),
        (" http://127.0.0.1:8000/v1// ", "http://127.0.0.1:8000"),
        ("https://models.example/llm/v1/", "https://models.example/llm"),
        ("https://models.example", "https://models.example"),
        ("localhost:9000", "http://localhost:9000"),
        ("localhost", "http://localhost:8000"),
        ("localhost/v1", "http://localhost:8000"),
        ("0.0.0.0:8000", "http://127.0.0.1:8000"),
        ("http://[::]:8000", "http://[::1]:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_what_people_write(written: str, meant: str) -> None:
    assert server_url(written, {}) == meant
    assert server_url(None, {"LLMSPELL_SERVER": written}) == meant


@pytest.mark.parametrize(
    "written",
    [
        "",
        "http://",
        "ftp://localhost:8000",
        "http://localhost:port",
        "http://localhost:99999",
        "http://user:secret@localhost:8000",
        "http://localhost:8000/?key=1",
        "http://localhost:8000/#there",
        "http://local host:8000",
        "http://[::1",
        "file:///etc/passwd",
    ],
)
def test_what_is_no_address(written: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is not the address of a server"):
        server_url(written, {})


def test_where_the_address_comes_from() -> None:
    environ = {"LLMSPELL_SERVER": "http://from-variable:1"}
    assert server_url("http://given:1", environ) == "http://given:1"
    assert server_url(None, environ) == "http://from-variable:1"
    assert server_url(None, {"LLMSPELL_SERVER": " "}) == server_url(None, {}) == "http://127.0.0.1:8000"


def test_an_error_names_the_variable() -> None:
    with pytest.raises(ConfigurationError, match=r"^LLMSPELL_SERVER: "):
        server_url(None, {"LLMSPELL_SERVER": "ftp://x"})


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("fe80::1", "http://[fe80::1]:8000"),
        ("box.lan", "http://box.lan:8000"),
    ],
)
def test_where_a_server_listens(host: str, url: str) -> None:
    assert url_of(host, 8000) == url
