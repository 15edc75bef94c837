"""The HTTP application: routes, middleware and error handlers around a ``ModelRouter``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from server import __version__
from server.api.config import ApiConfig
from server.api.errors import describe_error, error_response, http_error_response
from server.api.middleware import BodyLimit, RequestContext, note_access
from server.api.openapi import describe_bodies
from server.api.routes import admin, chat, health, models
from server.api.services import Services, install_services
from server.core.errors import LlmspellError
from server.core.ports import Residency
from server.router import ModelRouter

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that went away; only the access log ever sees it."""

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_api(
    router: ModelRouter,
    config: ApiConfig,
    lifespan: Lifespan | None = None,
    residency: Residency | None = None,
) -> FastAPI:
    """Build the application.

    ``lifespan`` surrounds its life: the backends behind ``router`` are started and stopped there. ``residency`` is what
    ``/admin/models`` administers; without it there is no such URL. The process should run under uvicorn with a graceful
    shutdown timeout, which is what bounds running streams at the end.
    """
    app = FastAPI(
        title="llmspell-server",
        version=__version__,
        summary="One OpenAI-compatible HTTP API over the models that run on your own hardware.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    install_services(app, Services(router, config, residency))
    for module in (chat, models, health, admin):
        app.include_router(module.routes)
    describe_bodies(app)
    _handle_errors(app)
    app.add_middleware(BodyLimit, max_bytes=config.max_body_bytes)
    app.add_middleware(RequestContext)  # added last, so it surrounds everything
    return app


def _handle_errors(app: FastAPI) -> None:
    app.exception_handler(LlmspellError)(_on_error)
    app.exception_handler(HTTPException)(_on_http_error)
    app.exception_handler(RequestValidationError)(_on_validation_error)
    app.exception_handler(ClientDisconnect)(_on_disconnect)


async def _on_error(request: Request, error: LlmspellError) -> Response:
    note_access(request.scope, error=error.code)
    return error_response(error)


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    return http_error_response(error, request.method, request.url.path)


async def _on_validation_error(_: Request, error: RequestValidationError) -> Response:
    return error_response(describe_error(error.errors()[0]))


async def _on_disconnect(_: Request, __: ClientDisconnect) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)
