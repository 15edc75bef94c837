"""The surface as browsers, proxies and old clients see it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from serving import CHAT, PATIENCE, Server, chat_body, eventually, sse_data, stream_text


@pytest.mark.parametrize("path", ["/health", "/health/ready", "/health/live"])
def test_health(demo: Server, path: str) -> None:
    response = httpx.get(demo.url + path)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert httpx.head(demo.url + path).status_code == 200


def test_the_root_says_where_things_are(demo: Server) -> None:
    found = httpx.get(demo.url + "/").json()
    for path in (found["models"], found["documentation"], "/openapi.json"):
        assert httpx.get(demo.url + path).status_code == 200


def test_many_requests_on_one_connection(demo: Server) -> None:
    with demo.connect() as connection:
        for number in range(5):
            connection.post(chat_body(max_tokens=1), headers=f"x-request-id: {number}\r\n")
            status, headers, body = connection.read_answer()
            assert status == 200
            assert headers["x-request-id"] == str(number)
            assert json.loads(body)["object"] == "chat.completion"


def test_requests_sent_before_the_answers_came(demo: Server) -> None:
    with demo.connect() as connection:
        for number in range(3):
            connection.post(chat_body(max_tokens=1), headers=f"x-request-id: {number}\r\n")
        assert [connection.read_answer()[1]["x-request-id"] for _ in range(3)] == ["0", "1", "2"]


def test_a_stream_leaves_the_connection_usable(demo: Server) -> None:
    with demo.connect() as connection:
        connection.post(chat_body(max_tokens=2, stream=True))
        head = connection.read_until(b"\r\n\r\n").decode().lower()
        assert "content-type: text/event-stream" in head
        assert "cache-control: no-store" in head
        assert "x-accel-buffering: no" in head
        connection.read_until(b"0\r\n\r\n")
        connection.post(chat_body(max_tokens=1))
        assert connection.read_answer()[0] == 200


def test_http_1_0(demo: Server) -> None:
    with demo.connect() as connection:
        connection.post(chat_body(max_tokens=1), version="1.0")
        status, headers, body = connection.read_answer()
        assert (status, headers["connection"]) == (200, "close")
        assert json.loads(body)["object"] == "chat.completion"
        assert connection.read_to_end() == b""


def test_a_body_that_comes_in_pieces(demo: Server) -> None:
    body = json.dumps(chat_body(max_tokens=1)).encode()
    with demo.connect() as connection:
        connection.send_head("transfer-encoding: chunked\r\nexpect: 100-continue")
        assert connection.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100")
        for byte in body:
            connection.socket.sendall(b"1\r\n%c\r\n" % byte)
        connection.socket.sendall(b"0\r\n\r\n")
        assert connection.read_answer()[0] == 200


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", ""])
def test_any_content_type(demo: Server, content_type: str) -> None:
    content = json.dumps(chat_body(max_tokens=1))
    response = httpx.post(demo.url + CHAT, content=content, headers={"content-type": content_type}, timeout=PATIENCE)
    assert response.status_code == 200


def test_keys_and_proxies_headers_do_not_matter(demo: Server) -> None:
    headers = {
        "authorization": "Bearer sk-x",
        "x-forwarded-for": "1.2.3.4",
        "openai-organization": "org",
        "accept": "*/*",
    }
    assert httpx.post(demo.url + CHAT, json=chat_body(max_tokens=1), headers=headers).status_code == 200
    odd = {"x-request-id": "a\tb" * 100}
    response = httpx.post(demo.url + CHAT, json=chat_body(max_tokens=1), headers=odd)
    assert response.headers["x-request-id"] != odd["x-request-id"]


def test_the_log_has_a_line_for_each_request(demo: Server) -> None:
    response = demo.ask(max_tokens=2)
    wanted = response.headers["x-request-id"]

    def lines() -> list[dict[str, Any]]:
        return [entry for entry in demo.log if entry.get("request_id") == wanted]

    # the line is written after the answer's last byte has gone
    eventually(lines, "the request is in the log")
    (line,) = lines()
    assert (line["logger"], line["status"], line["completion_tokens"]) == ("server.access", 200, 2)


def test_server_sent_events_are_one_line_each(demo: Server) -> None:
    response = httpx.post(demo.url + CHAT, json=chat_body(stream=True, temperature=0), timeout=PATIENCE)
    assert stream_text(sse_data(response.text.split("\n")))
    assert response.text.endswith("data: [DONE]\n\n")
