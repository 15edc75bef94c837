"""Runs the HTTP server around an application without models: ``stub_server.py CASE PORT FORMAT``.

CASE says how loading goes: ``ok``, ``fails``, ``slow`` (for ever), ``bug`` (raises what nobody foresaw).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from server.cli import main
from server.cli.http_server import run
from server.config import Settings, load_settings
from server.core.errors import ModelLoadingFailed

case, port, log_format = sys.argv[1:]


@dataclass(frozen=True)
class Application:
    api: FastAPI
    preload: Callable[[], Awaitable[None]]
    wind_down: Callable[[], object] = lambda: None


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield
    print("unloaded", flush=True)  # noqa: T201 - the tests read it


async def preload() -> None:
    print("loading", flush=True)  # noqa: T201
    if case == "fails":
        raise ModelLoadingFailed("x.gguf is truncated.")
    if case == "bug":
        raise ZeroDivisionError
    if case == "slow":
        await asyncio.Event().wait()


def create_application(_: Settings) -> Application:
    app = FastAPI(lifespan=lifespan)

    async def numbers() -> AsyncIterator[str]:
        for number in range(5):
            yield f"{number}\n"
            await asyncio.sleep(0.1)

    @app.get("/numbers")
    async def stream() -> StreamingResponse:
        return StreamingResponse(numbers())

    return Application(app, preload)


def serve() -> None:
    flags = {"server": {"port": int(port)}, "logging": {"format": log_format}}
    run(load_settings(flags), create_application)


main(serve)
