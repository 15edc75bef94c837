"""Which requests come from this machine, and were meant."""

from __future__ import annotations

import pytest

from server.api.local_only import refusal

HERE = ("host", "localhost:8000")


@pytest.mark.parametrize(
    ("client", "headers"),
    [
        ("127.0.0.1", []),
        ("127.0.0.1", [HERE]),
        ("127.8.9.10", [HERE]),
        ("::1", [HERE]),
        ("::ffff:127.0.0.1", [HERE]),
        ("127.0.0.1", [("host", "localhost")]),
        ("127.0.0.1", [("host", "LocalHost:80")]),
        ("127.0.0.1", [("host", "127.0.0.1:8000")]),
        ("127.0.0.1", [("host", "127.1.2.3")]),
        ("::1", [("host", "[::1]:8000")]),
        ("::1", [("host", "[::1]")]),
        ("::1", [("host", "[::ffff:127.0.0.1]:8000")]),
        ("127.0.0.1", [HERE, ("origin", "http://localhost:8000")]),
        ("127.0.0.1", [HERE, ("origin", "https://localhost:8000")]),
        ("127.0.0.1", [("host", "127.0.0.1"), ("origin", "http://127.0.0.1")]),
        ("::1", [("host", "[::1]:8000"), ("origin", "http://[::1]:8000")]),
        ("127.0.0.1", [HERE, ("user-agent", "curl"), ("x-request-id", "forwarded")]),
    ],
)
def test_local(client: str, headers: list[tuple[str, str]]) -> None:
    assert refusal(client, headers) is None


@pytest.mark.parametrize(
    "client",
    [
        None,
        "",
        "testclient",
        "localhost",
        "192.168.1.7",
        "10.0.0.1",
        "0.0.0.0",
        "::",
        "128.0.0.1",
        "fe80::1",
        "2001:db8::1",
        "::ffff:192.168.1.7",
        "127.0.0.1, 8.8.8.8",
        "127.1",
    ],
)
def test_a_client_on_another_machine(client: str | None) -> None:
    reason = refusal(client, [HERE])

    assert reason is not None
    assert "another" in reason


@pytest.mark.parametrize(
    "name",
    ["forwarded", "via", "x-real-ip", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-port"],
)
@pytest.mark.parametrize("value", ["", "127.0.0.1", "for=127.0.0.1", "203.0.113.9"])
def test_a_request_that_a_proxy_passed_on(name: str, value: str) -> None:
    reason = refusal("127.0.0.1", [HERE, (name, value)])

    assert reason is not None
    assert name in reason


@pytest.mark.parametrize(
    "hosts",
    [
        ["evil.example"],
        ["evil.example:8000"],
        ["localhost.evil.example"],
        ["evil.localhost"],
        ["127.0.0.1.evil.example"],
        ["localhost@evil.example"],
        ["evil.example#localhost"],
        ["192.168.1.7:8000"],
        ["0.0.0.0:8000"],
        ["[::]:8000"],
        ["[::1"],
        ["::1"],
        ["[localhost]"],
        ["localhost:"],
        ["localhost:80 "],
        ["localhost:80\n"],
        ["localhost:123456"],
        ["2130706433"],
        ["0x7f.1"],
        [""],
        ["localhost", "evil.example"],
        ["evil.example", "localhost"],
    ],
)
def test_a_name_that_was_made_to_lead_here(hosts: list[str]) -> None:
    reason = refusal("127.0.0.1", [("host", host) for host in hosts])

    assert reason is not None
    assert "host" in reason


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://localhost",  # another port is another server
        "http://localhost:3000",
        "http://127.0.0.1:8000",
        "http://localhost:8000.evil.example",
        "http://evil.example/http://localhost:8000",
        "file://localhost:8000",
        "chrome-extension://localhost:8000",
        "localhost:8000",
        "null",
        "",
    ],
)
def test_a_page_of_another_site(origin: str) -> None:
    reason = refusal("127.0.0.1", [HERE, ("origin", origin)])

    assert reason is not None
    assert "origin" in reason


def test_one_foreign_origin_of_two_is_foreign() -> None:
    origins = [("origin", "http://localhost:8000"), ("origin", "https://evil.example")]

    assert refusal("127.0.0.1", [HERE, *origins]) is not None
    assert refusal("127.0.0.1", origins[:1]) is not None  # a browser says which host it asks


def test_long_names_are_not_repeated() -> None:
    reason = refusal("127.0.0.1", [("x-forwarded-" + "x" * 10_000, "")])

    assert reason is not None
    assert len(reason) < 200
