"""Running a chat: which model answers, from where, and who may interrupt it."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, aclosing, contextmanager, suppress
from dataclasses import dataclass, replace
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Self, TextIO

import typer

from server.cli.chat_screen import Screen
from server.cli.chat_session import Conversation, Reply, Session
from server.cli.chat_source import ChatMessage, ChatOptions, ChatSource
from server.cli.exit_codes import INTERRUPTED
from server.cli.serve import demo_model_path, is_model_file, models_from_arguments
from server.cli.server_lookup import listens, named_server
from server.client.address import url_of
from server.core.errors import InvalidRequest, LlmspellError

_TERMINATED = 128 + signal.SIGTERM
_HEARING_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class ChatCall:
    """What the command line says; see ``server.cli.chat``."""

    spec: str
    server: str | None
    config: Path | None
    is_demo: bool
    system: str | None
    options: ChatOptions
    shows_timings: bool
    is_json: bool


def run_chat(call: ChatCall) -> None:
    """Talk in the terminal, or answer the question that comes from a pipe.

    Raises:
        LlmspellError: it is refused, or fails.
        typer.Exit: it was interrupted.

    """
    wanted = _wanted(call.spec, call.server, call.config, demo=call.is_demo)
    screen = Screen(_forgiving(sys.stdout), _forgiving(sys.stderr), as_json=call.is_json)
    termination = _Termination()
    try:
        question = None if sys.stdin is not None and sys.stdin.isatty() else _piped_question()
        with _Chat(wanted, call.options, screen, termination) as talk:
            if question is None:
                is_orderly = talk.converse(call.system, timings=call.shows_timings)
            else:
                is_orderly = talk.answer_once(call.system, question, timings=call.shows_timings)
    except KeyboardInterrupt:
        is_orderly = False
    if termination.came:
        raise typer.Exit(_TERMINATED)
    if not is_orderly:
        raise typer.Exit(INTERRUPTED)


class _Termination:
    """SIGTERM: what is running is given up as for Ctrl-C, but there is no second chance."""

    def __init__(self) -> None:
        self.came = False
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_: object) -> None:
        self.came = True
        signal.raise_signal(signal.SIGINT)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which model, and where it is to run: ``models`` is the table that files make, which no server has."""

    spec: str
    models: dict[str, dict[str, Any]]
    server: str | None
    config: Path | None

    async def source(self, tell: Callable[[str], None]) -> ChatSource:
        """Find who answers.

        Raises:
            ConfigurationError: what was said cannot be used.

        """
        on_server = None if self.models else await self._on_server(tell)
        return on_server or _in_process(self.config, self.models, self.spec)

    async def _on_server(self, tell: Callable[[str], None]) -> ChatSource | None:
        from server.cli.chat_server import ServerChat  # noqa: PLC0415 - slow imports, not for --help

        address = named_server(self.server)
        if address is not None:
            return ServerChat(address.url, self.spec)
        from server.config_sources import load_configuration  # noqa: PLC0415

        configured = load_configuration(None, self.config).configuration.server
        url = url_of(configured.host, configured.port)
        if not listens(url):
            return None
        found = ServerChat(url, self.spec)
        if await found.is_server():
            return found
        await found.aclose()
        tell(f"What listens at {url} is no llmspell server; going on without one.")
        return None


def _wanted(spec: str, server: str | None, config: Path | None, *, demo: bool) -> _Wanted:
    is_file = is_model_file(spec)
    if is_file and not Path(spec).is_file():
        raise InvalidRequest(f"there is no file {spec}.")
    models = models_from_arguments([*([spec] if is_file else []), *([str(demo_model_path())] if demo else [])])
    if models and server is not None:
        raise typer.BadParameter("a server has models of its own; name one of them.", param_hint="'--server'")
    return _Wanted(next(iter(models)) if is_file else spec, models, server, config)


def _in_process(config: Path | None, models: dict[str, dict[str, Any]], spec: str) -> ChatSource:
    from server.api.middleware import request_id_var  # noqa: PLC0415 - slow imports, not for --help
    from server.cli.chat_process import ProcessChat  # noqa: PLC0415
    from server.cli.logging_setup import set_up_logging  # noqa: PLC0415
    from server.config import load_settings  # noqa: PLC0415

    # nothing is to be in memory but what somebody talks to
    overrides: dict[str, dict[str, Any]] = {"ollama": {"preload": ""}}
    settings = load_settings({**overrides, "models": models} if models else overrides, config).settings
    set_up_logging(replace(settings.logging, level="error"), request_id_var)
    return ProcessChat(settings, spec)


class _Chat:
    """Answers on an event loop of its own, which rests between answers; a context manager."""

    def __init__(self, wanted: _Wanted, options: ChatOptions, screen: Screen, termination: _Termination) -> None:
        self._wanted = wanted
        self._termination = termination
        self._options = options
        self._screen = screen

    def __enter__(self) -> Self:
        from uvicorn.loops.auto import auto_loop_factory  # noqa: PLC0415 - slow imports, not for --help

        with ExitStack() as stack:
            self._runner = stack.enter_context(asyncio.Runner(loop_factory=auto_loop_factory()))
            self._source = self._runner.run(self._wanted.source(self._screen.tell))
            stack.callback(lambda: self._runner.run(self._source.aclose()))
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def converse(self, system: str | None, *, timings: bool) -> bool:
        """Answer what is typed; return whether that ended in an orderly way, and not by Ctrl-C."""
        model = self._runner.run(self._source.check())
        self._screen.tell(f"{model}, {self._source.place}. /help lists commands, Ctrl-D leaves.")
        conversation = Conversation(model, system)
        read_line = _line_reader()

        def read(prompt: str) -> str:
            try:
                with _heard_signals():
                    return read_line(prompt)
            except KeyboardInterrupt:
                if self._termination.came:
                    raise EOFError from None
                raise

        return Session(conversation, self._reply, self._screen, read, timings=timings).run()

    def answer_once(self, system: str | None, question: str, *, timings: bool) -> bool:
        """Answer one question; return whether it was answered, and not stopped by Ctrl-C."""
        conversation = Conversation(self._source.spec, system, [ChatMessage("user", question)])
        reply = self._reply(conversation)
        self._screen.note_ending(timings=timings)
        return not reply.was_stopped

    def _reply(self, conversation: Conversation) -> Reply:
        self._screen.begin()
        try:
            self._runner.run(self._show(conversation))
        except KeyboardInterrupt:
            text = self._screen.end(conversation.model)
            if self._termination.came:
                raise
            return Reply(text, was_stopped=True)
        except LlmspellError:
            self._screen.drop()
            raise
        return Reply(self._screen.end(conversation.model))

    async def _show(self, conversation: Conversation) -> None:
        async with aclosing(self._source.answer(conversation.all_messages, self._options)) as pieces:
            async for piece in pieces:
                self._screen.show(piece)


@contextmanager
def _heard_signals() -> Iterator[None]:
    """Have no signal go unheard while a line is read.

    One that comes in the moment before the system waits for keys would be looked at after the next key only; so a
    timer breaks the waiting now and then, which shows nowhere else.
    """
    if not hasattr(signal, "setitimer"):  # Windows
        yield
        return
    earlier = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, _HEARING_SECONDS, _HEARING_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


def _line_reader() -> Callable[[str], str]:
    """Return what reads a line from the terminal: with a history and keys to edit it, where Python has that."""
    with suppress(ImportError):
        import readline  # noqa: F401, PLC0415 - its import is what it does
    if sys.stdout.isatty():
        return input

    def read(prompt: str) -> str:
        sys.stderr.write(prompt)
        sys.stderr.flush()
        return input()

    return read


def _piped_question() -> str:
    try:
        question = "" if sys.stdin is None else sys.stdin.buffer.read().decode().strip()
    except UnicodeDecodeError as error:
        raise InvalidRequest("Standard input is not UTF-8 text.") from error
    if not question:
        raise typer.BadParameter("there is no question on standard input.", param_hint="standard input")
    return question


def _forgiving(stream: TextIO) -> TextIO:
    """Let a stream write what its encoding lacks as a question mark, rather than fail within an answer."""
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="replace")
    return stream
