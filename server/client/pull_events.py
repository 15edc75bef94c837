"""The stream of a pull: bytes in, events out. Pure; both clients read with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from server.client.answers import broken_off, error_of, understanding
from server.client.calls import Call
from server.client.event_stream import DONE, Data, EventStreamReader
from server.client.fields import Fields, Unreadable, json_value
from server.core.pulling import PullEvent, PullFinished

EVENT_STREAM = "text/event-stream"


class PullReader:
    """Reads one stream; ``is_over`` says that its end was there."""

    def __init__(self, url: str, call: Call[PullEvent], headers: Mapping[str, str]) -> None:
        """Take the server's URL, for errors, what was asked, and the head of the answer.

        Raises:
            ServerUnreachable: the answer is no stream of events.

        """
        self.is_over = False
        self._url = url
        self._call = call
        self._reader = EventStreamReader()
        self._has_finished = False
        with understanding(url):
            if not headers.get("content-type", "").startswith(EVENT_STREAM):
                raise Unreadable("it is no stream of events")

    def feed(self, received: bytes) -> Iterator[PullEvent]:
        """Take bytes and return the events that they complete.

        Raises:
            LlmspellError: while iterating; the pull failed.
            ServerUnreachable: while iterating; what comes is not the stream of a pull.

        """
        with understanding(self._url):
            for each in self._reader.feed(received):
                if isinstance(each, Data) and not self.is_over:
                    yield from self._events(each.text)

    def end(self) -> None:
        """Take note that nothing more comes.

        Raises:
            ServerUnreachable: the stream lacks its end.

        """
        if not (self.is_over and self._has_finished):
            raise broken_off(self._url)

    def _events(self, text: str) -> Iterator[PullEvent]:
        if text == DONE:
            self.is_over = True
            return
        fields = Fields(json_value(text))
        if "error" in fields.document:
            raise error_of(fields)
        event = self._call.read(fields)
        self._has_finished = isinstance(event, PullFinished)
        yield event
