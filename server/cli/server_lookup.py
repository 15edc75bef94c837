"""Which server the commands talk to, and whether it is there; looking costs no slow import where nobody answers."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from server.client.address import SERVER_VARIABLE, server_url, url_of
from server.core.errors import ServerUnreachable, TimedOut

if TYPE_CHECKING:
    from server.client import LocalLLM, ServerStatus

_CONNECT_SECONDS = 1.0
_ANSWER_SECONDS = 10.0
_HTTPS_PORT = 443
_HTTP_PORT = 80


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where the server would be.

    Attributes:
        url: its base URL.
        named_by: what says so: ``--server`` or ``LLMSPELL_SERVER``; ``None`` if it is only where a server of this
            configuration would listen, so that it need not be there.

    """

    url: str
    named_by: str | None


@dataclass(frozen=True, slots=True)
class FoundServer:
    """A server that answers, and what it says of itself; ``client`` is to be closed."""

    client: LocalLLM
    status: ServerStatus


def server_address(given: str | None, host: str, port: int, environ: Mapping[str, str] = os.environ) -> ServerAddress:
    """Return the server's address: of ``--server``, else of ``LLMSPELL_SERVER``, else where a server would listen.

    Raises:
        ConfigurationError: it is not the URL of a server.

    """
    return named_server(given, environ) or ServerAddress(url_of(host, port), None)


def named_server(given: str | None, environ: Mapping[str, str] = os.environ) -> ServerAddress | None:
    """Return the address of ``--server``, else of ``LLMSPELL_SERVER``; ``None`` if neither names one.

    Raises:
        ConfigurationError: it is not the URL of a server.

    """
    if given is not None:
        return ServerAddress(server_url(given), "--server")
    if environ.get(SERVER_VARIABLE, "").strip():
        return ServerAddress(server_url(None, environ), SERVER_VARIABLE)
    return None


def find_server(address: ServerAddress, tell: Callable[[str], None]) -> FoundServer | None:
    """Return the server if it answers; ``None`` if it need not and does not.

    ``tell`` is told of what answers in its place.

    Raises:
        LlmspellError: a server that was named does not answer, or refuses to be administered.

    """
    if address.named_by is None and not listens(address.url):
        return None
    from server.client import LocalLLM  # noqa: PLC0415 - slow

    try:
        with LocalLLM(address.url, timeout=_ANSWER_SECONDS) as client:
            status = client.status()
    except (ServerUnreachable, TimedOut) as error:
        if address.named_by is not None:
            raise
        tell(f"going on without a server. {error.message}")
        return None
    return FoundServer(LocalLLM(address.url), status)


def listens(url: str) -> bool:
    """Whether somebody accepts connections at the host and port of a URL."""
    parts = urlsplit(url)
    default = _HTTPS_PORT if parts.scheme == "https" else _HTTP_PORT
    place = (parts.hostname or "", default if parts.port is None else parts.port)
    try:
        with socket.create_connection(place, timeout=_CONNECT_SECONDS):
            return True
    except OSError:
        return False
