"""HTTP/1.1 as the stand-in speaks it, and everything it can do wrong on a connection."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from email.utils import formatdate
from http.client import responses
from itertools import cycle
from typing import TypeVar, cast

import httptools

from fakes.lines import encode
from fakes.records import Recorded, Records
from fakes.script import Answer, CloseIdle, Cut, Ending, Garbage, Insert, Pause, Reframe, Rule

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"

_BUFFERED = 2048
"""Go's server counts the length of bodies up to this; longer ones are chunked."""
_END = b"0\r\n\r\n"
_EARLY = 0.001
"""Seconds that a line may come before its time: loops do not count less, and would be asked again and again."""
_BURST = 64
"""Lines that go out at once at most."""

_Act = TypeVar("_Act", Answer, Garbage, Pause, Cut, Insert, Reframe, CloseIdle)


class Over(Exception):
    """The answer has ended early, as a rule wanted."""


class Connection(asyncio.Protocol):
    """One connection: its requests are answered one after the other."""

    def __init__(self, records: Records, answer: Callable[[Exchange], Awaitable[None]], live: set[Connection]) -> None:
        self.can_write = asyncio.Event()
        self.can_write.set()
        self.answering = False
        self.close_when_idle = False
        self._records = records
        self._answer = answer
        self._live = live
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[tuple[Recorded, bool]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._num_requests = 0
        self._url = b""
        self._body: list[bytes] = []
        self._headers: dict[str, str] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.number = self._records.connected()
        self._live.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._live.discard(self)
        self.can_write.set()
        if self._task is not None:
            self._task.cancel()
        self._records.disconnected()

    def pause_writing(self) -> None:
        self.can_write.clear()

    def resume_writing(self) -> None:
        self.can_write.set()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            plain = b"Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request"
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\n" + plain)
            self.transport.close()

    def on_message_begin(self) -> None:
        self._url, self._body, self._headers = b"", [], {}

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._headers.get("expect", "").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode()
        path = self._url.decode("latin-1").partition("?")[0]
        reused = self._num_requests > 0
        self._num_requests += 1
        request = Recorded(method, path, self._headers, b"".join(self._body), self.number, reused)
        self._waiting.append((request, self._parser.should_keep_alive()))
        self._next()

    def end(self, ending: Ending) -> None:
        """Close the connection: in order, or in the way of a machine that crashed."""
        if ending == "fin":
            self.transport.close()
            return
        sock: socket.socket = self.transport.get_extra_info("socket")
        with suppress(OSError):  # the client may be gone already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _next(self) -> None:
        if self._waiting and not self.answering and not self.transport.is_closing():
            self.answering = True
            self._task = asyncio.ensure_future(self._serve(*self._waiting.popleft()))

    async def _serve(self, request: Recorded, keep_alive: bool) -> None:  # noqa: FBT001
        self._records.begin(request)
        try:
            with suppress(Over):
                await self._answer(Exchange(self, request, self._records, keep_alive=keep_alive))
        except asyncio.CancelledError:
            self._records.end(request, disconnected=True)
            raise
        except Exception as error:  # noqa: BLE001 - a mistake in the stand-in or in a test's speaker: stop() raises it
            self._records.failed(error)
            self._records.end(request, disconnected=False)
            self.transport.abort()
            return
        self.answering = False
        self._task = None
        if not keep_alive or self.close_when_idle:
            self.transport.close()
        self._records.end(request, disconnected=False)
        self._next()


class Exchange:
    """One request and its answer; the rules that the request met apply to it."""

    def __init__(self, connection: Connection, request: Recorded, records: Records, *, keep_alive: bool) -> None:
        self.request = request
        self.rules: list[Rule] = []
        self._held: list[bytes] = []
        self._connection = connection
        self._records = records
        self._keep_alive = keep_alive

    async def wait_at(self, where: str | int) -> None:
        """Keep silent if a rule wants it here."""
        for rule in self.rules:
            if isinstance(rule.action, Pause) and rule.action.where == where:
                await self._flush()
                await self._silence(rule, rule.action.seconds)

    async def early(self) -> None:
        """Answer as a rule wants, in place of the daemon."""
        await self.wait_at("request")
        for _ in self._actions(CloseIdle):
            self._connection.close_when_idle = True
        for garbage in self._actions(Garbage):
            self._write(garbage.data.encode("latin-1"))
            self._end(garbage.ending)
        for answer in self._actions(Answer):
            body = answer.body.encode() if answer.error is None else encode({"error": answer.error})
            await self.send(answer.status, body, answer.content_type, answer.headers)
            raise Over

    async def send_json(self, value: object, status: int = 200, *, as_stream: bool = False) -> None:
        """Send one JSON value; ``as_stream`` in the way of a stream that failed before its first line."""
        await self.send(status, encode(value), "application/json" if as_stream else JSON, counted=not as_stream)

    async def send(
        self,
        status: int,
        body: bytes,
        content_type: str,
        headers: Mapping[str, str] | None = None,
        *,
        counted: bool = True,
    ) -> None:
        """Send an answer that is no stream; its length is told if it is ``counted``."""
        whole = counted and len(body) <= _BUFFERED and not self._actions(Reframe)
        more = dict(headers or {}) | ({"Content-Length": str(len(body))} if whole else {})
        head_only = self.request.method == "HEAD"
        self._write(self._head(status, content_type, more, chunked=not whole and not head_only))
        if head_only:
            return
        await self.wait_at(0)
        for cut in self._actions(Cut):
            self._write(body[: len(body) // 2] if whole else _chunk(body[: len(body) // 2]))
            self._finish(cut)
        if whole:
            self._write(body)
            return
        for piece in self._framed([body]):
            self._write(piece)
            await self._flushed()
        self._write(_END)

    async def stream(self, lines: Iterator[bytes], interval: float) -> None:
        """Send the lines, one every ``interval`` seconds, or all at once for 0."""
        self._write(self._head(200, NDJSON, {}, chunked=True))
        if any(isinstance(rule.action, Pause | Cut | Insert | Reframe) for rule in self.rules):
            await self._stream_with_faults(lines, interval)
        else:
            await Pump(self, lines, interval).finished
        self._write(_END)

    def write_lines(self, lines: Iterable[bytes]) -> None:
        """Send lines, a chunk for each."""
        chunks = [_chunk(line) for line in lines]
        self._write(b"".join(chunks))
        for _ in chunks:
            self._records.line(self.request)

    @property
    def can_write(self) -> asyncio.Event:
        return self._connection.can_write

    async def _stream_with_faults(self, lines: Iterator[bytes], interval: float) -> None:
        await self.wait_at(0)
        number = 0
        for number, line in enumerate(lines, 1):
            if number > 1:
                await asyncio.sleep(interval)
            await self._faults_after(number - 1, line)
            await self._say(line)
            await self.wait_at(number)
        await self._faults_after(number, b"")
        await self._flush()

    async def _faults_after(self, number: int, line: bytes) -> None:
        """Do what goes wrong after so many lines, before this one; without one the end has come."""
        for insert in self._actions(Insert):
            if insert.after == number:
                await self._say(insert.line.encode() * insert.repeat + b"\n")
                if insert.last:
                    await self._flush()
                    self._write(_END)
                    raise Over
        for cut in self._actions(Cut):
            if cut.after == number or not line:
                await self._flush()
                if cut.partial and line:
                    self._write(_chunk(line[: len(line) // 2]))
                self._finish(cut)

    async def _say(self, line: bytes) -> None:
        if self._actions(Reframe):
            self._held.append(line)
            self._records.line(self.request)
        else:
            self.write_lines([line])
            await self._flushed()

    async def _flush(self) -> None:
        """Send what is held back to be cut into pieces."""
        for piece in self._framed(self._held):
            self._write(piece)
            await self._flushed()
        self._held.clear()

    def _framed(self, parts: list[bytes]) -> Iterator[bytes]:
        """The body as chunks, of the sizes that a rule wants."""
        body = b"".join(parts)
        frames = self._actions(Reframe)
        sizes = cycle(frames[0].sizes if frames and frames[0].sizes else (len(body),))
        place = 0
        while place < len(body):
            size = next(sizes)
            yield _chunk(body[place : place + size])
            place += size

    def _finish(self, cut: Cut) -> None:
        if cut.ending == "whole":
            self._write(_END)
            raise Over
        self._end(cut.ending)

    def _end(self, ending: Ending) -> None:
        self._connection.end(ending)
        raise Over

    async def _silence(self, rule: Rule, seconds: float | None) -> None:
        if not rule.released:
            with suppress(TimeoutError):
                await asyncio.wait_for(rule.gate.wait(), seconds)

    def _actions(self, kind: type[_Act]) -> list[_Act]:
        return [rule.action for rule in self.rules if isinstance(rule.action, kind)]

    async def _flushed(self) -> None:
        await asyncio.sleep(0)
        await self._connection.can_write.wait()

    def _write(self, data: bytes) -> None:
        if not self._connection.transport.is_closing():
            self._connection.transport.write(data)

    def _head(self, status: int, content_type: str, headers: Mapping[str, str], *, chunked: bool) -> bytes:
        fields = {"Content-Type": content_type} if content_type else {}
        fields |= {"Date": formatdate(usegmt=True)} | dict(headers)
        if chunked:
            fields["Transfer-Encoding"] = "chunked"
        if not self._keep_alive:
            fields["Connection"] = "close"
        phrase = responses.get(status, f"status code {status}")
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"HTTP/1.1 {status} {phrase}\r\n{lines}\r\n".encode("latin-1")


class Pump:
    """Sends the lines of one stream from the loop's timers, which costs much less than a task that sleeps."""

    def __init__(self, exchange: Exchange, lines: Iterator[bytes], interval: float) -> None:
        self._loop = asyncio.get_running_loop()
        self.finished = self._loop.create_future()
        self._exchange = exchange
        self._lines = lines
        self._interval = interval
        self._due = self._loop.time()
        self._tick()

    def _tick(self) -> None:
        if self.finished.done():  # the client is gone
            return
        try:
            self._send()
        except Exception as error:  # noqa: BLE001 - whoever waits for the end gets to know
            self.finished.set_exception(error)

    def _send(self) -> None:
        if not self._exchange.can_write.is_set():
            self._loop.create_task(self._resume()).add_done_callback(lambda _: None)
            return
        ready: list[bytes] = []
        now = self._loop.time() + _EARLY
        while self._due <= now and len(ready) < _BURST:
            line = next(self._lines, None)
            if line is None:
                self._exchange.write_lines(ready)
                self.finished.set_result(None)
                return
            ready.append(line)
            self._due += self._interval
        self._exchange.write_lines(ready)
        self._loop.call_at(self._due, self._tick)

    async def _resume(self) -> None:
        await self._exchange.can_write.wait()
        self._tick()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
