"""Where the tests of images get their images from."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import pytest

from server.backends.ollama.images import ImageFetcher, ImageLimits, Resolver
from server.core.errors import InvalidRequest

PARAM = "messages[0].content[1].image_url"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(40))
LIMITS = ImageLimits(max_bytes=1000, timeout_seconds=10, allow_private=True)

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answer(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    if not {"content_length", "transfer_encoding"} & headers.keys():
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def redirect(location: str) -> bytes:
    return answer(status="302 Found", location=location, set_cookie="session=1; Path=/")


@dataclass
class Site:
    """An HTTP server on this machine: paths and the bytes, or the behaviour, behind them."""

    paths: dict[str, bytes | Handler] = field(default_factory=dict)
    requests: list[bytes] = field(default_factory=list)
    port: int = 0
    scheme: str = "http"

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(request)
            behaviour = self.paths[request.split()[1].decode()]
            if isinstance(behaviour, bytes):
                writer.write(behaviour)
            else:
                await behaviour(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def listening(site: Site, context: ssl.SSLContext | None = None) -> AsyncIterator[Site]:
    server = await asyncio.start_server(site, "127.0.0.1", ssl=context)
    site.port = server.sockets[0].getsockname()[1]
    async with server:
        yield site


def resolver(*answers: list[str]) -> Resolver:
    """Give one answer after the other; the last one for ever."""
    remaining = list(answers)

    async def resolve(_host: str, _port: int) -> list[str]:
        return remaining.pop(0) if len(remaining) > 1 else remaining[0]

    return resolve


class Recorder(httpx.AsyncBaseTransport):
    """Connects nowhere: what is asked of it is kept, and answered from a list."""

    def __init__(self, *responses: httpx.Response) -> None:
        self.requests: list[httpx.Request] = []
        self._responses = list(responses)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self._responses.pop(0)


async def load(fetcher: ImageFetcher, url: str) -> bytes:
    try:
        return await fetcher.load(url, PARAM)
    finally:
        await fetcher.aclose()


async def refusal(fetcher: ImageFetcher, url: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        await load(fetcher, url)
    assert caught.value.param == PARAM
    return caught.value.message


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
