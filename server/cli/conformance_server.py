"""A server for the time that a check takes, in this process, on a free port of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

import uvicorn

from server.app import create_application
from server.cli.http_server import base_url, bind
from server.config import Settings
from server.core.errors import LlmspellError

_LOCAL = "127.0.0.1"
_PAUSE_SECONDS = 0.02


class _Server(uvicorn.Server):
    """Uvicorn, which leaves signals to whoever runs it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def local_server(settings: Settings) -> AsyncIterator[str]:
    """Serve what the settings say, wherever they say to listen; gives the base URL.

    Raises:
        ConfigurationError: the settings contradict each other.

    """
    sockets = bind(replace(settings.server, host=_LOCAL, port=0))
    application = create_application(settings)
    config = uvicorn.Config(
        application.api, lifespan="off", ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=5
    )
    server = _Server(config)
    async with application.api.router.lifespan_context(application.api):
        serving = asyncio.create_task(server.serve(sockets))
        try:
            while not server.started:
                if serving.done():
                    serving.result()
                    raise LlmspellError("The server for the check ended before it served anything.")
                await asyncio.sleep(_PAUSE_SECONDS)
            yield base_url(_LOCAL, sockets[0])
        finally:
            server.should_exit = True
            await serving
