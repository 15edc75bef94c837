"""Server-sent events to one client: https://html.spec.whatwg.org/multipage/server-sent-events.html.

When the status line is sent, what breaks a silence, and what becomes of clients that go away or stop reading. What the
events are is the business of subclasses.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.config import ApiConfig
from server.api.errors import draining, internal_error
from server.api.middleware import note_access, request_id_var
from server.core.errors import LlmspellError
from server.core.ports import LoadProgress

CUT = "llmspell.cut"
"""ASGI extension of the server process: ``scope["extensions"][CUT]["cut"]`` drops the connection at once."""

_KEEP_ALIVE = b": keep-alive\n\n"
_SLACK_SECONDS = 0.001
"""A timer may come early by as much as its clock ticks."""
_HEADERS = {
    "cache-control": "no-store",
    "connection": "keep-alive",
    "x-accel-buffering": "no",  # nginx would collect the events
}

_log = logging.getLogger(__name__)


class EventSource(Protocol):
    """Where events come from, as an async context manager: at the end of the block nobody waits for them any more."""

    async def __aenter__(self) -> Self:
        """Begin."""
        ...

    async def __aexit__(self, *_: object) -> None:
        """End, whatever the reason."""
        ...

    async def opened(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 (running out of time is no error)
        """Wait until the first output is there, or for ``timeout`` seconds; say whether it is there.

        Raises:
            LlmspellError: there will be none.

        """
        ...


class EventStreamResponse(Response, ABC):
    """Sends events as they come.

    The status line waits for the first output, so that a refusal still has an HTTP status of its own; but only until
    the first comment is due: proxies need a sign of life, and people want to know how far their model is.
    """

    media_type = "text/event-stream"

    def __init__(
        self, source: EventSource, comments: Comments, config: ApiConfig, headers: Mapping[str, str] | None = None
    ) -> None:
        # Response's own __init__ would count the bytes of a body
        self.status_code = 200
        self.background = None
        self.init_headers({**_HEADERS, **(headers or {})})
        self._send_timeout = config.send_timeout_seconds
        self._comments = comments
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events to an ASGI server.

        Raises:
            LlmspellError: the request is refused, and nothing has been sent.
            ClientDisconnect: the client went away before anything was sent.

        """
        writer = EventWriter(receive, send, self._send_timeout, self._comments)
        try:
            async with self._source, writer:
                comment = await self._hold_back()
                self.headers.update(self.late_headers())
                await writer.start({"status": self.status_code, "headers": self.raw_headers}, comment)
                await self._send_all(writer)
        except ClientDisconnect:
            if not writer.has_started:
                raise
        except TimeoutError:
            _log.warning("a client stopped reading its stream; gave it up after %s s", self._send_timeout)
            await _cut(scope)
        finally:
            if writer.has_started or writer.was_interrupted:  # what was refused is noted where it is answered
                note_access(scope, **self.outcome())

    @abstractmethod
    async def send_events(self, writer: EventWriter) -> None:
        """Send all events; the last one with ``is_last``."""

    @abstractmethod
    def failure_event(self, error: LlmspellError) -> bytes:
        """Build the last event of a stream that fails for a reason that its source does not know."""

    @property
    @abstractmethod
    def has_ended(self) -> bool:
        """Whether the last event has been built."""

    @abstractmethod
    def outcome(self) -> Mapping[str, object]:
        """Return what the access log says of the stream."""

    def late_headers(self) -> Mapping[str, str]:
        """Return headers that are known once the first output is there."""
        return {}

    async def _hold_back(self) -> bytes:
        """Wait for the first output, or until a comment is due; return the comment."""
        loop = asyncio.get_running_loop()
        since, silence = loop.time(), 0.0
        while not await self._source.opened(self._comments.patience(silence)):
            silence = loop.time() - since
            if comment := self._comments.due(silence):
                return comment
        return b""

    async def _send_all(self, writer: EventWriter) -> None:
        try:
            await self.send_events(writer)
        except asyncio.CancelledError:
            if not writer.was_interrupted and not self.has_ended:  # the server's patience is over
                await writer.write(self.failure_event(draining()), is_last=True)
            raise
        except Exception:  # noqa: BLE001 (logged, and sent: the status line cannot say it any more)
            _log.exception("a stream failed")
            await writer.write(self.failure_event(internal_error(request_id_var.get())), is_last=True)


async def _cut(scope: Scope) -> None:
    """Drop the connection: closing it in an orderly way would wait for the client to read what was sent."""
    extension = (scope.get("extensions") or {}).get(CUT)
    if extension is not None:
        extension["cut"]()
        await asyncio.sleep(0)  # lets the ASGI server notice, which would complain of an answer without an end


@dataclass(slots=True)
class Comments:
    """What breaks a silence: how far the load is that the first output waits for, or else a sign of life.

    ``loading_interval`` is unset once there is output.
    """

    longest_silence: float | None
    loading_interval: float | None
    progress: Callable[[], LoadProgress | None]

    def patience(self, silence: float) -> float | None:
        """Return the seconds until a comment may be due, or the one after it; ``None`` if none ever is."""
        longest = self.longest_silence
        rest = longest - silence if longest is not None and silence < longest else longest
        return min((each for each in (rest, self.loading_interval) if each is not None), default=None)

    def due(self, silence: float) -> bytes:
        """Return the comment that is due after so many seconds of silence; empty if none is."""
        silence += _SLACK_SECONDS
        if self.loading_interval is not None and silence >= self.loading_interval:
            progress = self.progress()
            if progress is not None:
                return _loading(progress)
        return _KEEP_ALIVE if self.longest_silence is not None and silence >= self.longest_silence else b""


def _loading(progress: LoadProgress) -> bytes:
    doing = "downloading" if progress.is_download else "loading"
    waiting = " (waiting for memory)" if progress.is_queued else ""
    return f": {doing} {progress.fraction:.0%}{waiting}\n\n".encode()


class EventWriter:
    """The way to one client, as an async context manager.

    The block is cancelled when the client goes away (it ends with ``ClientDisconnect``) or when one ``send`` takes
    longer than it may (``TimeoutError``). A silence is broken by comments. One task and one timer look after a whole
    stream, so that an event costs little more than its ``send``; a library that was measured costs half a millisecond
    a stream (``docs/decisions/0011``).
    """

    def __init__(self, receive: Receive, send: Send, send_timeout: float, comments: Comments) -> None:
        self._receive = receive
        self._send = send
        self._send_timeout = send_timeout
        self._comments = comments
        self._loop = asyncio.get_running_loop()
        self._sending_since: float | None = None
        self._last_sent = self._loop.time()
        self._commenting: asyncio.Task[None] | None = None
        self._is_over = False
        self._interruption: Exception | None = None
        self.has_started = False

    @property
    def was_interrupted(self) -> bool:
        """Whether the block was cancelled from here."""
        return self._interruption is not None

    async def start(self, response: Mapping[str, object], comment: bytes) -> None:
        """Send status and headers, and a comment if there is one."""
        self.has_started = True
        self._sending_since = self._last_sent = self._loop.time()
        await self._send({"type": "http.response.start", **response})
        self._sending_since = None
        if comment:
            await self._write(comment, is_last=False)

    async def write(self, data: bytes, *, is_last: bool) -> None:
        """Send events; after the last ones comes the end of the response."""
        if self._commenting is not None:
            await self._commenting
        self._is_over = is_last
        self._comments.loading_interval = None
        await self._write(data, is_last=is_last)

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        self._num_cancelling = self._task.cancelling() if self._task is not None else 0
        self._watcher = self._loop.create_task(self._watch())
        self._timer = self._loop.call_later(self._patience(), self._look)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over = True
        self._timer.cancel()
        self._watcher.cancel()
        if self._commenting is not None:
            self._commenting.cancel()
        if self._interruption is None or self._task is None:
            return
        # who else cancelled the task meanwhile has precedence
        if self._task.uncancel() <= self._num_cancelling and kind is asyncio.CancelledError:
            raise self._interruption from None

    def _patience(self, silence: float = 0.0) -> float:
        return min(self._send_timeout, self._comments.patience(silence) or self._send_timeout)

    async def _write(self, data: bytes, *, is_last: bool) -> None:
        self._sending_since = self._last_sent = self._loop.time()
        await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})
        self._sending_since = None

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._interrupt(ClientDisconnect())

    def _interrupt(self, reason: Exception) -> None:
        if not self._is_over and self._interruption is None and self._task is not None:
            self._interruption = reason
            self._task.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        if self._sending_since is not None:
            next_look = self._sending_since + self._send_timeout
            if next_look <= now:
                # even a last event that is stuck is given up
                self._is_over = False
                self._interrupt(TimeoutError())
                return
            next_look = min(next_look, now + self._patience())
        else:
            next_look = self._last_sent + self._patience()
            if next_look <= now:
                next_look = now + self._patience(now - self._last_sent)
                self._break_silence(now)
        self._timer = self._loop.call_at(next_look, self._look)

    def _break_silence(self, now: float) -> None:
        if not self.has_started or self._is_over or self._commenting is not None:
            return
        if comment := self._comments.due(now - self._last_sent):
            self._commenting = self._loop.create_task(self._comment(comment))

    async def _comment(self, comment: bytes) -> None:
        try:
            await self._write(comment, is_last=False)
        finally:
            self._commenting = None
