"""Where the server is. Pure."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from server.core.errors import ConfigurationError

SERVER_VARIABLE = "LLMSPELL_SERVER"
"""The environment variable that says where the server is."""
DEFAULT_PORT = 8000

_EXAMPLE = f"http://127.0.0.1:{DEFAULT_PORT}"
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what a server listens on is nowhere to connect to


def server_url(url: str | None = None, environ: Mapping[str, str] = os.environ) -> str:
    """Return the base URL of the server: the given one, else ``LLMSPELL_SERVER``, else ``http://127.0.0.1:8000``.

    What people write is understood: ``localhost:8000``, a slash at the end, the ``/v1`` of an OpenAI base URL.

    Raises:
        ConfigurationError: it is not the URL of a server.

    """
    if url is not None:
        return _normalized(url, "The server's URL")
    if named := environ.get(SERVER_VARIABLE, "").strip():
        return _normalized(named, SERVER_VARIABLE)
    return _EXAMPLE


def url_of(host: str, port: int) -> str:
    """Return the base URL of a server on this machine that listens on an address; all addresses mean loopback."""
    return f"http://{_authority(host, port)}"


def _normalized(url: str, place: str) -> str:
    text = url.strip()
    has_scheme = "://" in text
    try:
        parts = urlsplit(text if has_scheme else f"http://{text}")
        port = DEFAULT_PORT if parts.port is None and not has_scheme else parts.port
    except ValueError as error:
        raise _refusal(place, url) from error
    if not _is_usable(parts):
        raise _refusal(place, url)
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{_authority(parts.hostname or '', port)}{path}"


def _is_usable(parts: SplitResult) -> bool:
    is_plain = not (parts.query or parts.fragment or "@" in parts.netloc)
    has_host = bool(parts.hostname) and not any(character.isspace() for character in parts.netloc + parts.path)
    return parts.scheme in {"http", "https"} and has_host and is_plain


def _authority(host: str, port: int | None) -> str:
    name = _LOOPBACK.get(host, host)
    bracketed = f"[{name}]" if ":" in name else name
    return bracketed if port is None else f"{bracketed}:{port}"


def _refusal(place: str, url: str) -> ConfigurationError:
    return ConfigurationError(f"{place}: {url!r} is not the address of a server; write one such as {_EXAMPLE}.")
