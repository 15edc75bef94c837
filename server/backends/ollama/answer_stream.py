"""The daemon's answers as event streams: one request for one choice, and several merged into one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Self

from server.backends.ollama.chat_events import ChatDecoder, merged_timings, merged_usage, timings_since_arrival
from server.backends.ollama.daemon_errors import RETRY_SECONDS, broken_off, error_of_response, silent, unreachable
from server.backends.ollama.http_stream import (
    ConnectionFailed,
    HttpStreamClient,
    NotConnected,
    SilenceTooLong,
    StreamedResponse,
)
from server.core.errors import BackendError, LlmspellError
from server.core.events import Event, Failed, Finished, Started

_PATH = "/api/chat"
_log = logging.getLogger(__name__)
_MAX_ERROR_BYTES = 64 * 1024
_MAX_READY_EVENTS = 4096
"""An answer whose reader falls behind by this much is not read from the daemon until it has caught up."""


class Choice:
    """One request to the daemon, for one choice of the answer."""

    def __init__(self, client: HttpStreamClient, url: str, silence_seconds: float, waited: Callable[[], float]) -> None:
        """Take what is asked through; ``waited`` gives the seconds since the request arrived at the backend."""
        self._client = client
        self._url = url
        self._silence_seconds = silence_seconds
        self._waited = waited
        self._first_token: float | None = None
        self._response: StreamedResponse | None = None
        self.is_closed = False

    async def open(self, body: bytes, decoder: ChatDecoder, model: str) -> None:
        """Send the request and wait until the daemon answers it, which it does with the first token.

        Raises:
            LlmspellError: the daemon refuses, or cannot be reached.

        """
        self._decoder = decoder
        try:
            response = await self._client.post(_PATH, body)
        except NotConnected as error:
            raise DaemonAway(unreachable(self._url, str(error)).message, str(error)) from error
        except ConnectionFailed as error:
            raise broken_off(str(error)) from error
        except SilenceTooLong:
            raise silent(self._silence_seconds) from None
        if response.status != HTTPStatus.OK:
            raise await self._refusal(response, model)
        self._response = response
        if self.is_closed:
            response.close()

    async def events(self) -> Sequence[Event]:
        """Wait for the next events; empty when there are no more. Does not raise: a failure is an event."""
        while not self._decoder.is_over and self._response is not None:
            try:
                data = await self._response.read()
            except ConnectionFailed as error:
                return self._failed(broken_off(str(error)))
            except SilenceTooLong:
                return self._failed(silent(self._silence_seconds))
            if self.is_closed:
                return ()
            if self._first_token is None:
                self._first_token = self._waited()
            if events := self._decoder.feed(data) if data else self._decoder.end():
                if isinstance(events[-1], Finished):
                    events[-1] = _since_arrival(events[-1], self._first_token)
                return events
        if self._response is not None:
            self._response.finish()
        return ()

    def close(self) -> None:
        """Give the request up if it still runs."""
        self.is_closed = True
        if self._response is not None:
            self._response.close()

    def _failed(self, error: LlmspellError) -> Sequence[Event]:
        self.close()
        return (Failed(error),)

    async def _refusal(self, response: StreamedResponse, model: str) -> LlmspellError:
        body = b""
        try:
            while len(body) < _MAX_ERROR_BYTES and (data := await response.read()):
                body += data
        except (ConnectionFailed, SilenceTooLong) as error:
            return broken_off(str(error) or "it fell silent")
        finally:
            response.close()
        return error_of_response(response.status, response.headers, body, model)


class DaemonAway(BackendError):
    """The daemon cannot be reached; ``reason`` says why in a few words."""

    def __init__(self, message: str, reason: str) -> None:
        """Create an error; the message is for the client."""
        super().__init__(message, retry_after=RETRY_SECONDS)
        self.reason = reason


class SingleAnswer:
    """``core.ports.EventStream`` over one opened choice."""

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self._started = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[Event]:
        events = await self._choice.events()
        if not events:
            raise StopAsyncIteration
        if self._started:
            return events
        self._started = True
        return [Started(), *events]

    async def aclose(self) -> None:
        """Give the request up if it still runs."""
        self._choice.close()


class MergedAnswer:
    """``core.ports.EventStream`` over several choices, which are asked for at the same time."""

    def __init__(self, choices: Sequence[Choice], openings: Sequence[Callable[[], Awaitable[None]]]) -> None:
        """Take the choices and what opens each of them; ``open`` must be called first."""
        self._choices = choices
        self._openings = openings
        self._ready: list[Event] = [Started()]
        self._finished: list[Finished] = []
        self._is_over = False
        self._news = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._pumps: list[asyncio.Task[None]] = []
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def open(self) -> None:
        """Send the requests and wait until one of them is answered: a daemon may serve them one after the other.

        Raises:
            LlmspellError: the daemon refuses, or cannot be reached.

        """
        self._pumps = [
            asyncio.create_task(self._pump(choice, opening))
            for choice, opening in zip(self._choices, self._openings, strict=True)
        ]
        try:
            await self._opened
        except BaseException:
            await self.aclose()
            raise

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[Event]:
        while not self._ready:
            if self._is_over:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        events, self._ready = self._ready, []
        self._has_room.set()
        return events

    async def aclose(self) -> None:
        """Give up what still runs."""
        self._ready = []
        self._end()
        pumps, self._pumps = self._pumps, []
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, choice: Choice, opening: Callable[[], Awaitable[None]]) -> None:
        try:
            await opening()
            if not self._opened.done():
                self._opened.set_result(None)
            while events := await choice.events():
                self._add(events)
                await self._has_room.wait()
        except LlmspellError as error:
            self._refused(error)
        except Exception:  # noqa: BLE001 (logged, and sent)
            # a bug here must not leave the reader waiting for the other choices for ever
            _log.exception("an answer of the Ollama daemon could not be read")
            self._refused(BackendError("The answer of the Ollama daemon could not be read."))

    def _refused(self, error: LlmspellError) -> None:
        if self._opened.done():
            self._add([Failed(error)])
        else:
            self._opened.set_exception(error)

    def _add(self, events: Sequence[Event]) -> None:
        if self._is_over:
            return
        *others, last = events
        self._ready += others
        if isinstance(last, Finished):
            self._finished.append(last)
            if len(self._finished) == len(self._choices):
                self._ready.append(_merged(self._finished))
                self._end()
        else:
            self._ready.append(last)
            if isinstance(last, Failed):
                self._end()
        if len(self._ready) > _MAX_READY_EVENTS and not self._is_over:
            self._has_room.clear()
        self._news.set()

    def _end(self) -> None:
        self._is_over = True
        for choice in self._choices:
            choice.close()
        self._has_room.set()
        self._news.set()


def _since_arrival(finished: Finished, first_token: float) -> Finished:
    return Finished(finished.usage, timings_since_arrival(finished.timings, first_token))


def _merged(finished: Sequence[Finished]) -> Finished:
    return Finished(
        merged_usage([each.usage for each in finished]), merged_timings([each.timings for each in finished])
    )
