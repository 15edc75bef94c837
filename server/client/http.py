"""httpx, which takes a while to import: only when the first question is asked. Its failures are translated here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from server.core.errors import ConfigurationError, ServerUnreachable, TimedOut

if TYPE_CHECKING:
    import ssl

    import httpx

DEFAULT_TIMEOUT = 60.0
"""Seconds; a stream that has nothing to say sends a sign of life more often than that."""
_CONNECT_TIMEOUT = 5.0


def sync_client(url: str) -> httpx.Client:
    """Open connections to a server; proxies for the way to the internet do not lead there."""
    import httpx  # noqa: PLC0415 - slow

    return httpx.Client(base_url=url, transport=httpx.HTTPTransport(verify=_certificates(url)))


def async_client(url: str) -> httpx.AsyncClient:
    """Open connections to a server; proxies for the way to the internet do not lead there."""
    import httpx  # noqa: PLC0415 - slow

    return httpx.AsyncClient(base_url=url, transport=httpx.AsyncHTTPTransport(verify=_certificates(url)))


def _certificates(url: str) -> ssl.SSLContext | bool:
    """Return whom to trust; most servers are on this machine and need no certificates, which take a while to load.

    Raises:
        ConfigurationError: the certificates that the environment names cannot be read.

    """
    import httpx  # noqa: PLC0415 - slow

    if not url.startswith("https:"):
        return False
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise ConfigurationError(
            f"The certificates to trust cannot be read ({error}). Correct SSL_CERT_FILE and SSL_CERT_DIR."
        ) from error


def patience(silence: float | None) -> httpx.Timeout:
    """Return how long to wait: a moment for the connection, so many seconds for anything to come."""
    import httpx  # noqa: PLC0415 - slow

    return httpx.Timeout(silence, connect=_CONNECT_TIMEOUT)


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Translate what httpx raises in the block.

    Raises:
        ServerUnreachable: the server cannot be reached, or the connection broke.
        TimedOut: it is there and says nothing.

    """
    import httpx  # noqa: PLC0415 - slow

    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise ServerUnreachable(
            f"No server answers at {url} ({_reason(error)}). Start one with `llmspell serve`, or say where it is "
            "(LLMSPELL_SERVER)."
        ) from error
    except httpx.TimeoutException as error:
        raise TimedOut(
            f"The server at {url} has taken longer than it was given to say anything; see its log, or allow it more "
            "time (timeout)."
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServerUnreachable(
            f"The connection to the server at {url} broke ({_reason(error)}). See the server's log, and try again; a "
            "pull goes on from where it was."
        ) from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
