"""What happens around every request: an id, one access log line, the body limit, and a last resort for bugs.

Plain ASGI, because a wrapper that buffers or spawns tasks has no place around a stream.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from contextvars import ContextVar
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import draining, error_response, internal_error
from server.core.errors import RequestTooLarge

request_id_var: ContextVar[str] = ContextVar("request_id", default="-")
"""Id of the request that the current task serves; for log formatters."""

_ACCESS_FIELDS = "llmspell.access"
_QUIET_PATHS = ("/health", "/metrics")
_REQUEST_ID = re.compile(r"[!-~]{1,128}\Z")

_access_log = logging.getLogger("server.access")
_log = logging.getLogger(__name__)


def note_access(scope: Scope, **fields: object) -> None:
    """Add fields to the access log line of the request."""
    scope.setdefault(_ACCESS_FIELDS, {}).update(fields)


class RequestContext:
    """Give each request an id, log it when it ends, and answer 500 for an exception that nobody foresaw."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the ASGI server."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope).get("x-request-id"))
        token = request_id_var.set(request_id)
        started, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            # Only the server cancels requests, at the end of its patience when it shuts down; the task ends here. A
            # stream has told its client already.
            if not status:
                await error_response(draining())(scope, receive, send_with_id)
        except Exception:  # noqa: BLE001 (logged, and answered as 500)
            _log.exception("%s %s failed", scope["method"], quote(scope["path"]))
            if not status:
                await error_response(internal_error(request_id))(scope, receive, send_with_id)
        finally:
            _log_access(scope, status, time.perf_counter() - started)
            request_id_var.reset(token)


class BodyLimit:
    """Refuse request bodies over a limit: at once when the length is declared, else as soon as it is passed."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the ASGI server."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        too_long = _declared_length(scope) > self._max_bytes
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            if too_long:
                raise self._refusal()
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._refusal()
            return message

        await self._app(scope, receive_limited, send)

    def _refusal(self) -> RequestTooLarge:
        return RequestTooLarge(
            f"The request body is longer than {self._max_bytes} bytes; shorten it, or raise max_body_bytes in [api]."
        )


def _request_id(sent: str | None) -> str:
    return sent if sent and _REQUEST_ID.match(sent) else uuid.uuid4().hex


def _declared_length(scope: Scope) -> int:
    declared = Headers(scope=scope).get("content-length", "")
    return int(declared) if re.fullmatch("[0-9]{1,19}", declared) else 0


def _log_access(scope: Scope, status: int, seconds: float) -> None:
    level = logging.DEBUG if scope["path"].startswith(_QUIET_PATHS) else logging.INFO
    fields = scope.get(_ACCESS_FIELDS, {})
    _access_log.log(
        level,
        "%s %s %d %.1f ms%s",
        scope["method"],
        quote(scope["path"]),
        status,
        seconds * 1000,
        "".join(f" {name}={value}" for name, value in fields.items()),
        extra={"status": status, "duration_ms": round(seconds * 1000, 3), **fields},
    )
