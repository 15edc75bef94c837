"""Answers of models that this process loads, or asks the Ollama daemon for: as the server does, without HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack

from server.api.answer import Answer
from server.api.timings import wire_timings
from server.app import create_application
from server.cli.chat_source import ChatMessage, ChatOptions, Ended, Piece, Reasoning, Text, Waiting
from server.config import Settings
from server.core.events import ChoiceFinished, Event, Failed, Finished, ReasoningDelta, TextDelta
from server.core.model_spec import BackendName
from server.core.ports import Backend, LoadProgress
from server.core.request import ChatRequest, Message, Role, SamplingParameters
from server.router import Route

_LOOK_SECONDS = 0.5
_FOR_EVER = -1


class ProcessChat:
    """A ``ChatSource`` without a server; everything is to happen on one event loop, which may rest between answers."""

    def __init__(self, settings: Settings, spec: str) -> None:
        """Wire everything up; nothing is loaded yet.

        Raises:
            ConfigurationError: the settings contradict each other.

        """
        self._application = create_application(settings)
        self.spec = spec
        self._life = AsyncExitStack()
        self._lives = False

    @property
    def place(self) -> str:
        """Where the model runs, as the end of a sentence."""
        return "without a server"

    async def check(self) -> str:
        """Return the spec of the model that will answer.

        Raises:
            LlmspellError: there is no such model, or its backend is down.

        """
        if (await self._route()).fetch is not None:
            return self.spec  # it is downloaded for the first question
        return (await self._application.router.model(self.spec)).id

    async def answer(self, messages: Sequence[ChatMessage], options: ChatOptions) -> AsyncGenerator[Piece]:
        """Answer a conversation.

        Raises:
            LlmspellError: while iterating; there is no answer, or no more of it.

        """
        route = await self._route()
        reason: str | None = None
        async with Answer(route, _request(route, messages, options), _anybody) as answer:
            while not await answer.opened(_LOOK_SECONDS):
                if (progress := answer.progress()) is not None:
                    yield _waiting(progress)
            async for batch in answer.batches():
                for event in batch:
                    if isinstance(event, ChoiceFinished):
                        reason = event.reason.value
                    elif (piece := _piece(event, reason, answer.backend)) is not None:
                        yield piece

    async def aclose(self) -> None:
        """Unload everything."""
        await self._life.aclose()

    async def _route(self) -> Route:
        if not self._lives:
            api = self._application.api
            await self._life.enter_async_context(api.router.lifespan_context(api))
            self._lives = True
        return await self._application.router.route(self.spec, may_fetch=True)


def _waiting(progress: LoadProgress) -> Waiting:
    doing = "downloading" if progress.is_download else "loading"
    return Waiting(f"{doing} {progress.fraction:.0%}{' (waiting for memory)' if progress.is_queued else ''}")


def _piece(event: Event, reason: str | None, backend: BackendName) -> Piece | None:
    match event:
        case TextDelta():
            return Text(event.text)
        case ReasoningDelta():
            return Reasoning(event.text)
        case Finished():
            return Ended(reason, wire_timings(event, backend))
        case Failed():
            raise event.error
        case _:
            return None


def _request(route: Route, messages: Sequence[ChatMessage], options: ChatOptions) -> ChatRequest:
    default = SamplingParameters()
    has_temperature = options.temperature is not None
    return ChatRequest(
        spec=route.spec,
        messages=tuple(Message(Role(each.role), each.content) for each in messages),
        sampling=SamplingParameters(temperature=options.temperature) if options.temperature is not None else default,
        given_sampling=frozenset({"temperature"}) if has_temperature else frozenset(),
        max_tokens=options.max_tokens,
        # while somebody types nothing runs here that could unload a model; how long a daemon keeps one is its business
        keep_alive=_FOR_EVER if route.backend.name is BackendName.LLAMACPP else None,
    )


def _anybody(_: Backend) -> bool:
    """All backends honour what is asked for here."""
    return True
