"""The HTTP application: routes, middleware and error handlers around a ``ModelRouter``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from server import __version__
from server.api.config import ApiConfig
from server.api.errors import describe_error, error_response, http_error_response
from server.api.middleware import BodyLimit, RequestContext, note_access
from server.api.openapi import describe_schemas
from server.api.routes import admin, admin_library, admin_status, chat, health, models
from server.api.services import Services, install_services
from server.core.errors import LlmspellError
from server.core.library import Loadable
from server.core.ports import Residency
from server.library import ModelLibrary
from server.router import ModelRouter

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that went away; only the access log ever sees it."""

# the URL for pulling would else be taken for that of a model
_ROUTERS = (chat.routes, models.routes, health.routes, admin_status.routes, admin_library.routes, admin.routes)
_ENDPOINTS = [route for each in _ROUTERS for route in each.routes if isinstance(route, Route)]

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_api(
    router: ModelRouter,
    config: ApiConfig,
    lifespan: Lifespan | None = None,
    residency: Residency | None = None,
    library: ModelLibrary | None = None,
    daemon: Loadable | None = None,
) -> FastAPI:
    """Build the application.

    The process should run under uvicorn with a graceful shutdown timeout, which is what bounds running streams at the
    end.

    Args:
        router: where requests go.
        config: what the operator says about the HTTP surface.
        lifespan: surrounds the application's life: what is behind the other arguments is started and stopped there.
        residency: what ``/admin`` administers; without it there are no such URLs.
        library: the models on disk; without it there is none of the URLs that are about these.
        daemon: the memory of the Ollama daemon; without it its models are not loaded and unloaded.

    """
    app = FastAPI(
        title="llmspell-server",
        version=__version__,
        summary="One OpenAI-compatible HTTP API over the models that run on your own hardware.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    install_services(app, Services(router, config, residency, library, daemon))
    for endpoints in _ROUTERS:
        app.include_router(endpoints)
    describe_schemas(app)
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
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and (allowed := _allowed_methods(request.scope["path"])):
        error.headers = {"Allow": ", ".join(allowed)}
    return http_error_response(error, request.method, request.url.path)


def _allowed_methods(path: str) -> Sequence[str]:
    """Name the methods of all endpoints of a URL; the router names those of the first one only."""
    matching = [each for each in _ENDPOINTS if each.path_regex.match(path)]
    return sorted(set().union(*(each.methods or () for each in matching)))


async def _on_validation_error(_: Request, error: RequestValidationError) -> Response:
    return error_response(describe_error(error.errors()[0]))


async def _on_disconnect(_: Request, __: ClientDisconnect) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)
