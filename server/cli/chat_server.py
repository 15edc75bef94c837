"""Answers of a running server, over its ``/v1``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from urllib.parse import quote

from server.cli.chat_source import ChatMessage, ChatOptions, Ended, Piece, Reasoning, Text, Waiting
from server.client.answers import OK, broken_off, error_of, read_answer, read_error, understanding
from server.client.event_stream import DONE, Comment, Data, EventStreamReader
from server.client.fields import Fields, json_value
from server.client.http import async_client, patience, translated
from server.core.errors import LlmspellError

_SHORT_SECONDS = 10.0
_WAITING = ("loading", "downloading")


class ServerChat:
    """A ``ChatSource`` over HTTP."""

    def __init__(self, url: str, spec: str) -> None:
        """Take the server's base URL; nothing is sent yet."""
        self._url = url
        self.spec = spec
        self._http = async_client(url)

    @property
    def place(self) -> str:
        """Where the model runs, as the end of a sentence."""
        return f"on the server at {self._url}"

    async def is_server(self) -> bool:
        """Whether a llmspell server answers at the address, and not something else."""
        try:
            with translated(self._url):
                answer = await self._http.get("/", timeout=patience(_SHORT_SECONDS))
            name = read_answer(self._url, answer.status_code, answer.headers, answer.content, _name)
        except LlmspellError:
            return False
        return name == "llmspell"

    async def check(self) -> str:
        """Return the spec of the model that will answer.

        Raises:
            LlmspellError: there is no such model, or no server.

        """
        with translated(self._url):
            answer = await self._http.get(f"/v1/models/{quote(self.spec, safe=':@')}", timeout=patience(_SHORT_SECONDS))
        return read_answer(self._url, answer.status_code, answer.headers, answer.content, _id)

    async def answer(self, messages: Sequence[ChatMessage], options: ChatOptions) -> AsyncGenerator[Piece]:
        """Answer a conversation.

        Raises:
            LlmspellError: while iterating; there is no answer, or no more of it.

        """
        reader = _AnswerReader(self._url)
        with translated(self._url):
            request = self._http.build_request(
                "POST", "/v1/chat/completions", json=_body(self.spec, messages, options), timeout=patience(None)
            )
            answer = await self._http.send(request, stream=True)
            try:
                if answer.status_code != OK:
                    raise read_error(self._url, answer.status_code, answer.headers, await answer.aread())
                async for received in answer.aiter_bytes():
                    for piece in reader.feed(received):
                        yield piece
            finally:
                await answer.aclose()
        yield reader.end()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()


class _AnswerReader:
    """Makes pieces of the bytes of a stream. Pure."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._events = EventStreamReader()
        self._is_over = False
        self._reason: str | None = None
        self._timings: dict[str, object] = {}

    def feed(self, received: bytes) -> Iterator[Piece]:
        with understanding(self._url):
            for event in self._events.feed(received):
                match event:
                    case Comment() if event.text.startswith(_WAITING):
                        yield Waiting(event.text)
                    case Data(text=text) if text == DONE:
                        self._is_over = True
                    case Data(text=text):
                        yield from self._chunk(Fields(json_value(text)))

    def end(self) -> Ended:
        if not self._is_over:
            raise broken_off(self._url)
        return Ended(self._reason, self._timings)

    def _chunk(self, fields: Fields) -> Iterator[Piece]:
        if "error" in fields.document:
            raise error_of(fields)
        self._timings = fields.inner("timings").document or self._timings
        for reason, delta in fields.each(
            "choices", lambda each: (each.text_or_none("finish_reason"), each.inner("delta"))
        ):
            self._reason = reason or self._reason
            if text := delta.text_or_none("reasoning_content"):
                yield Reasoning(text)
            if text := delta.text_or_none("content"):
                yield Text(text)


def _body(spec: str, messages: Sequence[ChatMessage], options: ChatOptions) -> dict[str, object]:
    given = {"temperature": options.temperature, "max_tokens": options.max_tokens}
    return {
        "model": spec,
        "messages": [{"role": each.role, "content": each.content} for each in messages],
        "stream": True,
        "stream_options": {"include_timings": True},
        **{name: value for name, value in given.items() if value is not None},
    }


def _id(fields: Fields) -> str:
    return fields.text("id")


def _name(fields: Fields) -> str | None:
    return fields.text_or_none("name")
