"""One process, one event loop: uvicorn listens, the first log line says where, then models are loaded."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import uvicorn
from uvicorn.loops.auto import auto_loop_factory
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server import __version__
from server.api.event_stream import CUT
from server.api.middleware import request_id_var
from server.cli.logging_setup import set_up_logging
from server.config import LoadedSettings, ServerConfig, Settings
from server.core.errors import ConfigurationError

if TYPE_CHECKING:
    from fastapi import FastAPI

_BACKLOG = 2048
_MAX_HEADER_BYTES = 65536
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ABSENT_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

_log = logging.getLogger(__name__)


class Servable(Protocol):
    """What ``server.app`` makes."""

    @property
    def api(self) -> FastAPI:
        """The application; its lifespan loads nothing."""
        ...

    @property
    def preload(self) -> Callable[[], Awaitable[None]]:
        """Loads models while requests may already arrive."""
        ...

    @property
    def wind_down(self) -> Callable[[], object]:
        """Ends what a shutdown need not wait for; called when it begins."""
        ...


def run(loaded: LoadedSettings, create_application: Callable[[Settings], Servable]) -> None:
    """Serve until a signal asks to stop, then let running requests finish.

    Args:
        loaded: the settings, and where they come from.
        create_application: makes what is served; called on the event loop.

    Raises:
        ConfigurationError: the settings contradict each other, or the address cannot be listened on.
        LlmspellError: a model cannot be loaded.

    """
    set_up_logging(loaded.settings.logging, request_id_var)
    # as the first process of a container, this one would ignore SIGTERM until uvicorn handles it
    for number in _STOP_SIGNALS:
        signal.signal(number, _exit)
    with ExitStack() as cleanup:
        # taken before anything slow, so that a port in use is told at once
        sockets = bind(loaded.settings.server)
        for bound in sockets:
            cleanup.callback(bound.close)
        with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
            runner.run(_serve(loaded, create_application, sockets))


def _exit(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)  # as shells report a process that a signal ended


async def _serve(
    loaded: LoadedSettings, create_application: Callable[[Settings], Servable], sockets: list[socket.socket]
) -> None:
    settings = loaded.settings
    application = create_application(settings)
    url = base_url(settings.server.host, sockets[0])
    config = _uvicorn_config(application.api, settings.server)
    server = _Server(config, application, lambda: _announce(loaded, url))
    # Modules and schemas stay for good: looking through them again takes the garbage collector 50 to 150 ms, in which
    # no stream gets a token.
    gc.collect()
    gc.freeze()
    # outside uvicorn, which would log a traceback and exit by itself when the lifespan raises
    async with application.api.router.lifespan_context(application.api):
        try:
            await server.serve(sockets)
        finally:
            await server.end_loading()


def _uvicorn_config(app: FastAPI, config: ServerConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        http=_Protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        timeout_graceful_shutdown=config.graceful_shutdown_seconds,
    )


class _Protocol(HttpToolsProtocol):
    """Uvicorn's, with what ASGI has no word for: a way to cut the connection of a client that does not read."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {CUT: {"cut": self.transport.abort}}


class _Server(uvicorn.Server):
    """Uvicorn that loads models once it listens, stops if that fails, and takes stopping on a signal for a success."""

    def __init__(self, config: uvicorn.Config, application: Servable, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._application = application
        self._announce = announce
        self._loading: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except OSError as error:
            raise ConfigurationError(f"cannot listen: {error.strerror}.") from error
        self._announce()
        self._loading = asyncio.create_task(self._load())

    async def _load(self) -> None:
        try:
            await self._application.preload()
        except BaseException:
            self.should_exit = True
            raise
        _log.info("ready")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._application.wind_down()
        await super().shutdown(sockets)

    async def end_loading(self) -> None:
        """Stop loading if it still goes on; raise what it failed with."""
        if self._loading is None:
            return
        self._loading.cancel()
        await asyncio.wait({self._loading})
        if not self._loading.cancelled():
            self._loading.result()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on a signal; unlike uvicorn's, does not raise the signal again after a clean stop."""
        original = {number: signal.signal(number, self.handle_exit) for number in _STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in original.items():
                signal.signal(number, handler)


def bind(config: ServerConfig) -> list[socket.socket]:
    """Take the port on every address that ``host`` stands for, without listening yet.

    Raises:
        ConfigurationError: the host is unknown, or the port is in use or not allowed.

    """
    try:
        addresses = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # the latter when it cannot be a host name
        raise ConfigurationError(f"cannot listen on {config.host!r}: there is no such host.") from error
    sockets = list[socket.socket]()
    for family, _, _, _, address in addresses:
        port = sockets[0].getsockname()[1] if sockets else config.port
        try:
            sockets.append(_bound_socket(family, (address[0], port, *address[2:])))
        except OSError as error:
            # a name such as localhost may have an IPv6 address on a machine without IPv6
            if error.errno in _ABSENT_ADDRESS and len(addresses) > 1:
                continue
            for bound in sockets:
                bound.close()
            raise ConfigurationError(_cannot_bind(config, error)) from error
    return sockets


def _bound_socket(family: int, address: tuple[Any, ...]) -> socket.socket:
    # asyncio has the kernel send each event at once only where the socket says that it speaks TCP
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def _cannot_bind(config: ServerConfig, error: OSError) -> str:
    reason = error.strerror
    if error.errno == errno.EADDRINUSE:
        reason = "the port is in use. Stop what uses it, or choose another one with --port"
    return f"cannot listen on {config.host} port {config.port}: {reason}."


def base_url(host: str, bound: socket.socket) -> str:
    """Return what clients put as their base URL."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{bound.getsockname()[1]}/v1"


def _announce(loaded: LoadedSettings, url: str) -> None:
    models = sorted(loaded.settings.models)
    _log.info(
        "llmspell %s serves %s at %s (configuration: %s)",
        __version__,
        ", ".join([*models, *(["Ollama's models"] if loaded.settings.ollama.enabled else [])]) or "what it finds",
        url,
        loaded.source,
        extra={"url": url, "models": models, "configuration": loaded.source},
    )
