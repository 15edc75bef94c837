"""The progress of a pull as server-sent events.

The pull is never held up by whoever reads of it: a slow reader gets the latest progress, not all that was missed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Self

from server.api.answer import end_task
from server.api.completion import STREAM_END
from server.api.config import ApiConfig
from server.api.errors import error_event
from server.api.event_stream import Comments, EventStreamResponse, EventWriter
from server.api.responses import dump_json
from server.core.errors import LlmspellError, PullFailed
from server.core.library_json import pull_event_json
from server.core.pulling import PullEvent, PullFinished, PullNotice, PullProgress

_MAX_NOTICES = 100
"""Notices that are kept for a client that does not read; the oldest go first."""


def ended_early() -> PullFailed:
    """Build the error for a pull that just stops."""
    return PullFailed("The pull ended without saying that the model is here; pull it again.")


class PullListener:
    """Listens to a pull, as an async context manager; the end of the block leaves it."""

    def __init__(self, events: AsyncGenerator[PullEvent]) -> None:
        """Take what ``ModelLibrary.pull`` gives; nothing has been asked of it yet."""
        self._events = events
        self._notices: deque[PullNotice] = deque(maxlen=_MAX_NOTICES)
        self._progress: PullProgress | None = None
        self._finished: PullFinished | None = None
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._listening = asyncio.create_task(self._listen())
        self._listening.add_done_callback(lambda _: self._news.set())
        return self

    async def __aexit__(self, *_: object) -> None:
        # a task of its own: whoever cancels this one (again) cannot keep the pull from hearing of it
        self._leaving = asyncio.create_task(end_task(self._listening))
        await asyncio.shield(self._leaving)

    async def opened(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 (running out of time is no error)
        """Wait until there is something to tell, or for ``timeout`` seconds; say whether there is.

        Raises:
            LlmspellError: the pull failed, and there is nothing else to tell.

        """
        try:
            async with asyncio.timeout(timeout):
                await self._news.wait()
        except TimeoutError:
            return False
        if self._listening.done() and not (self._notices or self._progress or self._finished):
            self._listening.result()
        return True

    async def batches(self) -> AsyncIterator[Sequence[PullEvent]]:
        """Yield what is new, each time that somebody asks; the last event is ``PullFinished``.

        Raises:
            LlmspellError: the pull failed.

        """
        while True:
            await self._news.wait()
            self._news.clear()
            is_over, has_finished = self._listening.done(), self._finished is not None
            if batch := self._take_news():
                yield batch
            if has_finished:
                return
            if is_over:
                self._listening.result()

    async def _listen(self) -> None:
        async with aclosing(self._events) as events:
            async for event in events:
                match event:
                    case PullProgress():
                        self._progress = event
                    case PullNotice():
                        self._notices.append(event)
                    case PullFinished():
                        self._finished = event
                self._news.set()
        if self._finished is None:
            raise ended_early()

    def _take_news(self) -> Sequence[PullEvent]:
        news = [*self._notices, self._progress, self._finished]
        self._notices.clear()
        self._progress = None
        return [event for event in news if event is not None]


class PullStream(EventStreamResponse):
    """Sends the events of a pull as they come; a failure before the first one has an HTTP status of its own."""

    def __init__(self, listener: PullListener, config: ApiConfig) -> None:
        super().__init__(listener, Comments(config.keep_alive_comment_seconds or None, None, lambda: None), config)
        self._listener = listener
        self._failure: LlmspellError | None = None
        self._has_ended = False

    async def send_events(self, writer: EventWriter) -> None:
        """Send what there is to tell, until the pull is over."""
        try:
            async for batch in self._listener.batches():
                self._has_ended = isinstance(batch[-1], PullFinished)
                data = b"".join(b"data: " + dump_json(pull_event_json(event)) + b"\n\n" for event in batch)
                await writer.write(data + STREAM_END if self._has_ended else data, is_last=self._has_ended)
        except LlmspellError as error:
            await writer.write(self.failure_event(error), is_last=True)

    def failure_event(self, error: LlmspellError) -> bytes:
        """Build the last event of a stream that fails."""
        self._failure = error
        self._has_ended = True
        return error_event(error)

    @property
    def has_ended(self) -> bool:
        """Whether the last event has been built."""
        return self._has_ended

    def outcome(self) -> Mapping[str, object]:
        """Return what the access log says of the stream."""
        if self._failure is not None:
            return {"error": self._failure.code}
        return {} if self._has_ended else {"gave_up": True}
