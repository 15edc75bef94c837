"""Streaming chat clients that cost little: bytes are read with their time of arrival and understood afterwards."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import httptools

Message = dict[str, str]
Piece = tuple[float, bytes]

HOST = "127.0.0.1"
READ_BYTES = 1 << 16
SILENCE_TIMEOUT_SECONDS = 300.0


class BadAnswer(Exception):
    """A server answered with an error, with no tokens, or with something that is not a stream of chunks."""


@dataclass(frozen=True)
class Answer:
    """One streamed answer; times are seconds on the clock of ``time.perf_counter``.

    ``arrivals`` has one entry for each chunk with text. ``num_tokens`` is what the server's ``usage`` says, or the
    number of those chunks if it says nothing; ``prompt_len`` and ``num_cached_tokens`` are 0 then.
    """

    started: float
    arrivals: tuple[float, ...]
    text: str
    num_tokens: int
    prompt_len: int
    num_cached_tokens: int

    @property
    def first_token_seconds(self) -> float:
        """Time from before connecting to the first text."""
        return self.arrivals[0] - self.started

    @property
    def ended(self) -> float:
        """When the last text arrived."""
        return self.arrivals[-1]


def gaps(answers: Iterable[Answer], since: float = 0.0) -> list[float]:
    """Return the seconds between neighbouring texts of each answer; only gaps that end after ``since`` count."""
    return [
        later - earlier
        for answer in answers
        for earlier, later in zip(answer.arrivals, answer.arrivals[1:], strict=False)
        if later > since
    ]


def aggregate_speed(answers: Iterable[Answer]) -> float:
    """Return the tokens per second of all answers together, from the first request to the last text."""
    answers = list(answers)
    seconds = max(answer.ended for answer in answers) - min(answer.started for answer in answers)
    return sum(answer.num_tokens for answer in answers) / seconds


def median_gap(answers: Iterable[Answer]) -> float:
    """Return the median of all gaps, in seconds; 0 where nobody got two texts."""
    found = gaps(answers)
    return statistics.median(found) if found else 0.0


class Chat(Protocol):
    """What a scenario may do with a server."""

    def __call__(
        self,
        messages: list[Message],
        max_tokens: int,
        parameters: Mapping[str, object],
        on_piece: Callable[[], None] = lambda: None,
    ) -> Coroutine[None, None, Answer]:
        """Stream one answer to its end; ``on_piece`` is called whenever bytes arrive. Raises ``BadAnswer``."""
        ...


class ChatClient:
    """A ``Chat`` over plain sockets, a connection for each request."""

    def __init__(self, port: int, model: str) -> None:
        """Take the port of a server on this machine and the model's name there."""
        self._port = port
        self._model = model

    async def __call__(
        self,
        messages: list[Message],
        max_tokens: int,
        parameters: Mapping[str, object],
        on_piece: Callable[[], None] = lambda: None,
    ) -> Answer:
        """Stream one answer, see ``Chat``."""
        body = {
            "model": self._model,
            "messages": messages,
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,  # without it, answers have different lengths
            **parameters,
        }
        request = http_request("POST", "/v1/chat/completions", json.dumps(body).encode())
        started = time.perf_counter()
        try:
            return read_answer(started, await self._pieces(request, on_piece))
        except OSError as error:  # a TimeoutError, too
            raise BadAnswer(f"the connection broke: {error}") from error

    async def _pieces(self, request: bytes, on_piece: Callable[[], None]) -> list[Piece]:
        reader, writer = await asyncio.open_connection(HOST, self._port)
        try:
            writer.write(request)
            pieces: list[Piece] = []
            while True:
                async with asyncio.timeout(SILENCE_TIMEOUT_SECONDS):
                    received = await reader.read(READ_BYTES)
                if not received:
                    return pieces
                pieces.append((time.perf_counter(), received))
                on_piece()
        finally:
            writer.close()


def http_request(method: str, path: str, body: bytes = b"") -> bytes:
    """Build a request after which the server closes the connection."""
    head = (
        f"{method} {path} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class HttpBody:
    """The status and the timed body of an HTTP response, whatever its transfer encoding."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        """Parse what arrived; raises ``BadAnswer`` if it is not HTTP."""
        self.pieces: list[Piece] = []
        self._now = 0.0
        parser = httptools.HttpResponseParser(self)
        try:
            for arrived, received in pieces:
                self._now = arrived
                parser.feed_data(received)
        except httptools.HttpParserError as error:
            raise BadAnswer(f"not HTTP: {error}") from error
        self.status = parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self.pieces.append((self._now, body))

    @property
    def content(self) -> bytes:
        """The whole body."""
        return b"".join(body for _, body in self.pieces)


def read_answer(started: float, pieces: Iterable[Piece]) -> Answer:
    """Understand a streamed response; a chunk arrived when its last byte did. Raises ``BadAnswer``."""
    body = HttpBody(pieces)
    if body.status != 200:
        raise BadAnswer(f"status {body.status}: {body.content[:500].decode(errors='replace')}")
    arrivals: list[float] = []
    texts: list[str] = []
    usage: dict[str, Any] = {}
    for arrived, chunk in _chunks(body.pieces):
        if "error" in chunk:
            raise BadAnswer(f"an error in the stream: {chunk['error']}")
        usage = chunk.get("usage") or usage
        if text := _text(chunk):
            arrivals.append(arrived)
            texts.append(text)
    if not arrivals:
        raise BadAnswer("no text arrived")
    return Answer(
        started,
        tuple(arrivals),
        "".join(texts),
        usage.get("completion_tokens", len(arrivals)),
        usage.get("prompt_tokens", 0),
        (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
    )


def _chunks(pieces: Iterable[Piece]) -> Iterator[tuple[float, dict[str, Any]]]:
    rest = b""
    for arrived, body in pieces:
        *lines, rest = (rest + body).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and data != b"[DONE]":
                try:
                    yield arrived, json.loads(data)
                except ValueError as error:
                    raise BadAnswer(f"not JSON: {data[:200]!r}") from error


def _text(chunk: dict[str, Any]) -> str:
    return "".join(
        choice["delta"].get("content") or choice["delta"].get("reasoning_content") or ""
        for choice in chunk.get("choices") or []
    )
