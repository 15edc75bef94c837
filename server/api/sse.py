"""A streamed answer as server-sent events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Self

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import AppStatus
from starlette.types import Message, Receive, Scope, Send

from server.api.answer import Answer, run_while_connected
from server.api.completion import ChunkEncoder
from server.api.config import ApiConfig
from server.api.errors import draining, internal_error
from server.api.middleware import note_access, request_id_var
from server.core.events import Failed

CUT = "llmspell.cut"
"""ASGI extension of the server process: ``scope["extensions"][CUT]["cut"]`` drops the connection at once."""

_COMMENT = "keep-alive"

_log = logging.getLogger(__name__)


class AnswerStream(EventSourceResponse):
    """Sends the events of an answer as they come.

    The status line waits for the first output, so that a refusal still has an HTTP status of its own; but not longer
    than a silence may be, because then proxies need a sign of life.
    """

    def __init__(
        self, answer: Answer, encoder: ChunkEncoder, config: ApiConfig, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(
            self._frames(),
            headers=headers,
            sep="\n",
            ping=config.keep_alive_comment_seconds,
            ping_message_factory=lambda: ServerSentEvent(comment=_COMMENT, sep="\n"),
        )
        self._send_timeout = config.send_timeout_seconds
        self._answer = answer
        self._encoder = encoder
        self._started = False
        self._longest_silence = config.keep_alive_comment_seconds or None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer to an ASGI server.

        Raises:
            LlmspellError: the backend refuses the request, and nothing has been sent.
            ClientDisconnect: the client went away before anything was sent.

        """
        try:
            async with self._answer:
                await run_while_connected(receive, self._answer.opened(self._longest_silence))
                self.headers.update(self._answer.headers)
                await self._send_events(scope, receive, send)
        except TimeoutError:
            _log.warning("a client stopped reading its stream; gave it up after %s s", self._send_timeout)
            await _cut(scope)
        finally:
            note_access(scope, **self._outcome())

    async def _send_events(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with _StallGuard(send, self._send_timeout) as guard:
                await super().__call__(scope, receive, guard.send)
        except asyncio.CancelledError:  # a disconnect does not surface like this: the server's patience is over
            if self._started and not self._encoder.ended:
                body = self._encoder.encode([Failed(draining())])
                await send({"type": "http.response.body", "body": body, "more_body": False})
            raise

    def _outcome(self) -> dict[str, object]:
        if usage := self._encoder.usage:
            return {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
        return {"error": self._encoder.failure.code} if self._encoder.failure else {"gave_up": True}

    async def _frames(self) -> AsyncIterator[bytes]:
        self._started = True
        try:
            pending = self._encoder.opening()
            async for batch in self._answer.batches():
                pending += self._encoder.encode(batch)
                if pending:
                    yield pending
                pending = b""
            if closing := self._encoder.closing():
                yield closing
        except Exception:  # noqa: BLE001 (logged, and sent: the status line cannot say it any more)
            _log.exception("a stream failed")
            yield self._encoder.encode([Failed(internal_error(request_id_var.get()))])


async def _cut(scope: Scope) -> None:
    """Drop the connection: closing it in an orderly way would wait for the client to read what was sent."""
    extension = (scope.get("extensions") or {}).get(CUT)
    if extension is not None:
        extension["cut"]()
        await asyncio.sleep(0)  # lets the ASGI server notice, which would complain of an answer without an end


class _StallGuard:
    """Cancels the block, which ends with ``TimeoutError``, when one ``send`` takes longer than it may.

    One timer looks after a whole stream: a deadline for each send, sse-starlette's way, costs half as much again as
    all else that this layer does for a token.
    """

    def __init__(self, send: Send, limit: float) -> None:
        self._send = send
        self._limit = limit
        self._sending_since: float | None = None
        self._loop = asyncio.get_running_loop()
        self._deadline = asyncio.timeout(None)

    async def send(self, message: Message) -> None:
        self._sending_since = self._loop.time()
        await self._send(message)
        self._sending_since = None

    async def __aenter__(self) -> Self:
        await self._deadline.__aenter__()
        self._timer = self._loop.call_later(self._limit, self._look)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._deadline.__aexit__(kind, error, traceback)

    def _look(self) -> None:
        now = self._loop.time()
        stalls_at = (self._sending_since or now) + self._limit
        if stalls_at <= now:
            self._deadline.reschedule(now)
        else:
            self._timer = self._loop.call_at(stalls_at, self._look)


def let_streams_finish() -> None:
    """Leave streams alone when the process is asked to end; uvicorn's graceful shutdown timeout bounds them.

    sse-starlette cuts them at once by default. Its switch is global to the process.
    """
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
