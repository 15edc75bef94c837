"""A streamed answer as server-sent events."""

from __future__ import annotations

from collections.abc import Mapping

from server.api.answer import Answer
from server.api.completion import ChunkEncoder
from server.api.config import ApiConfig
from server.api.event_stream import Comments, EventStreamResponse, EventWriter
from server.api.timings import access_fields
from server.core.errors import LlmspellError
from server.core.events import Failed


class AnswerStream(EventStreamResponse):
    """Sends the events of an answer as they come; a refusal before the first output has an HTTP status of its own."""

    def __init__(
        self, answer: Answer, encoder: ChunkEncoder, config: ApiConfig, headers: Mapping[str, str] | None = None
    ) -> None:
        comments = Comments(
            config.keep_alive_comment_seconds or None, config.loading_comment_seconds or None, answer.progress
        )
        super().__init__(answer, comments, config, headers)
        self._answer = answer
        self._encoder = encoder

    def late_headers(self) -> Mapping[str, str]:
        """Say who answers."""
        return self._answer.headers

    async def send_events(self, writer: EventWriter) -> None:
        """Send the chunks."""
        pending = self._encoder.opening()
        async for batch in self._answer.batches():
            pending += self._encoder.encode(batch)
            if pending:
                await writer.write(pending, is_last=self._encoder.ended)
            pending = b""
        if closing := self._encoder.closing():
            await writer.write(closing, is_last=True)

    def failure_event(self, error: LlmspellError) -> bytes:
        """Build the last event of a stream that fails."""
        return self._encoder.encode([Failed(error)])

    @property
    def has_ended(self) -> bool:
        """Whether the last event has been built."""
        return self._encoder.ended

    def outcome(self) -> Mapping[str, object]:
        """Return what the access log says of the stream."""
        if finished := self._encoder.finished:
            return access_fields(finished)
        return {"error": self._encoder.failure.code} if self._encoder.failure else {"gave_up": True}
