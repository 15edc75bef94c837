"""The wire between a conformance check and a server: requests as clients send them, answers byte by byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

_CONNECT_SECONDS = 10.0
_SILENCE_SECONDS = 300.0
"""A model may have to be loaded first."""
CHAT = "/v1/chat/completions"
DONE = "[DONE]"

Body = Mapping[str, Any]


class Mismatch(Exception):
    """A server did something else than clients rely on; the text says what was expected and what came."""


@dataclass(frozen=True)
class Reply:
    """A whole answer; ``body`` is its JSON, or ``None`` if it is none."""

    status: int
    headers: Mapping[str, str]
    body: Any
    text: str

    @property
    def error(self) -> Mapping[str, Any]:
        """The error object, empty if there is none."""
        found = self.body.get("error") if isinstance(self.body, dict) else None
        return found if isinstance(found, dict) else {}


@dataclass
class Streamed:
    """A stream as it came: the JSON of its events in order, and what ended it.

    Attributes:
        headers: of the answer.
        chunks: events before the end, without the one that ends it.
        is_done: whether ``[DONE]`` came.
        num_late: events after ``[DONE]``.
        flaws: lines that are no server-sent events, and data that is no JSON.

    """

    headers: Mapping[str, str]
    chunks: list[dict[str, Any]] = field(default_factory=list)
    is_done: bool = False
    num_late: int = 0
    flaws: list[str] = field(default_factory=list)

    @property
    def says_something(self) -> bool:
        """Whether the latest event holds words of the model."""
        choices = self.chunks[-1].get("choices") or () if self.chunks else ()
        deltas = [choice.get("delta") or {} for choice in choices if isinstance(choice, dict)]
        return any(delta.get("content") or delta.get("reasoning_content") for delta in deltas)

    def add(self, line: bytes) -> None:
        """Take a line with its end."""
        if not line.endswith(b"\n"):
            self.flaws.append(f"an end without a newline: {_quoted(line)}")
            return
        line = line.rstrip(b"\r\n")
        if not line or line.startswith(b":"):
            return
        name, _, value = line.partition(b":")
        if name in {b"event", b"id", b"retry"}:
            return
        if name != b"data":
            self.flaws.append(f"a line that is no server-sent event: {_quoted(line)}")
            return
        self._add_data(value.removeprefix(b" "))

    def _add_data(self, data: bytes) -> None:
        if self.is_done:
            self.num_late += 1
            return
        if data.strip() == DONE.encode():
            self.is_done = True
            return
        try:
            chunk = json.loads(data.decode("utf-8"))
            # halves of a character are JSON, but no text
            json.dumps(chunk, ensure_ascii=False).encode("utf-8")
        except UnicodeError:
            self.flaws.append(f"an event that is not UTF-8, or holds half a character: {_quoted(data)}")
        except ValueError:
            self.flaws.append(f"an event that is not JSON: {_quoted(data)}")
        else:
            if isinstance(chunk, dict):
                self.chunks.append(chunk)
            else:
                self.flaws.append(f"an event that is no JSON object: {_quoted(data)}")


class Wire:
    """A connection pool to one server; an async context manager."""

    def __init__(self, url: str, *, silence_seconds: float = _SILENCE_SECONDS) -> None:
        """Take the base URL, with or without ``/v1``; nothing is sent yet."""
        self.url = url.rstrip("/").removesuffix("/v1")
        timeout = httpx.Timeout(silence_seconds, connect=_CONNECT_SECONDS)
        # what is checked is near: a proxy for the way to the internet does not lead there
        self._client = httpx.AsyncClient(base_url=self.url, timeout=timeout, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def get(self, path: str) -> Reply:
        """Send a GET request.

        Raises:
            Mismatch: there is no answer.

        """
        return await self._whole("GET", path)

    async def post(self, body: Body | bytes, path: str = CHAT) -> Reply:
        """Send a body, as JSON unless it is bytes, and wait for the whole answer.

        Raises:
            Mismatch: there is no answer.

        """
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self._whole("POST", path, content)

    async def stream(self, body: Body) -> Streamed | Reply:
        """Send a request for a stream and read it to its end; a refusal is a whole answer.

        Raises:
            Mismatch: there is no answer, or it breaks off.

        """
        async with self._streaming(body) as response:
            if response.status_code != 200 or not _is_stream(response):
                return await _read(response)
            return await _all_events(response)

    async def abandon(self, body: Body) -> None:
        """Send a request for a stream and hang up when its first text is there.

        Raises:
            Mismatch: there is no answer, or no text in it.

        """
        async with self._streaming(body) as response:
            if response.status_code != 200:
                reply = await _read(response)
                raise Mismatch(f"expected a stream; got HTTP {reply.status}: {_short(reply.text)}")
            streamed = Streamed(response.headers)
            async for line in _lines(response):
                streamed.add(line)
                if streamed.says_something:
                    return
        raise Mismatch("expected text in the stream; got none")

    async def _whole(self, method: str, path: str, content: bytes | None = None) -> Reply:
        headers = {"content-type": "application/json"} if content is not None else {}
        try:
            response = await self._client.request(method, path, content=content, headers=headers)
        except httpx.HTTPError as error:
            raise _no_answer(error) from error
        return _reply(response)

    @asynccontextmanager
    async def _streaming(self, body: Body) -> AsyncIterator[httpx.Response]:
        try:
            async with self._client.stream("POST", CHAT, json={**body, "stream": True}) as response:
                yield response
        except httpx.HTTPError as error:
            raise _no_answer(error) from error


async def gather(*work: Any) -> list[Any]:  # noqa: ANN401 - what each gives
    """Do several things at the same time; when one fails, the others are ended first."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _all_events(response: httpx.Response) -> Streamed:
    streamed = Streamed(response.headers)
    async for line in _lines(response):
        streamed.add(line)
    return streamed


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """Read lines with their ends; httpx would end them at U+2028 and others, too, which JSON may hold."""
    rest = b""
    async for data in response.aiter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line + b"\n"
    if rest.strip():
        yield rest


async def _read(response: httpx.Response) -> Reply:
    await response.aread()
    return _reply(response)


def _reply(response: httpx.Response) -> Reply:
    try:
        body = json.loads(response.content)
    except ValueError:
        body = None
    return Reply(response.status_code, response.headers, body, response.text)


def _is_stream(response: httpx.Response) -> bool:
    return str(response.headers.get("content-type", "")).startswith("text/event-stream")


def _no_answer(error: httpx.HTTPError) -> Mismatch:
    return Mismatch(f"expected an answer; the connection failed: {str(error) or type(error).__name__}")


def _quoted(data: bytes) -> str:
    return _short(repr(data)[1:])


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"
