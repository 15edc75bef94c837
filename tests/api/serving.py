"""Uvicorn on a real port, and a client that can say what no well-behaved client says."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"model": "local/demo", "messages": [{"role": "user", "content": "Hi"}]}


def client_of(app: FastAPI, address: str = "127.0.0.1", url: str = "http://localhost:8000") -> httpx.AsyncClient:
    """A client of an application in this process, as if it were on this machine or at another address."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(address, 50_000)), base_url=url)


def error_of(response: httpx.Response) -> tuple[int, str, str | None]:
    """Status, code and parameter of an error, which has a message."""
    error = response.json()["error"]
    assert error["message"]
    return response.status_code, error["code"], error["param"]


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        return dict(json.loads(self.body)["error"])


def http_request(body: bytes, path: str = CHAT, method: str = "POST", headers: str = "", host: str = "test") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


class Connection:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        return int(head[0].split()[1]), headers

    async def reply(self) -> Reply:
        status, headers = await self.head()
        return Reply(status, headers, await self.reader.readexactly(int(headers["content-length"])))

    async def ask(self, body: bytes, **request: str) -> Reply:
        await self.send(http_request(body, **request))
        return await self.reply()

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


@dataclass(frozen=True)
class Served:
    port: int
    server: uvicorn.Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        connection = Connection(*await asyncio.open_connection("127.0.0.1", self.port))
        try:
            yield connection
        finally:
            await connection.close()


class _Server(uvicorn.Server):
    """Uvicorn, which notices at once that it should end, and not at the next tick."""

    def __init__(self, config: uvicorn.Config) -> None:
        self._ending = asyncio.Event()
        super().__init__(config)

    @property
    def should_exit(self) -> bool:
        return self._ending.is_set()

    @should_exit.setter
    def should_exit(self, wanted: bool) -> None:
        if wanted:
            self._ending.set()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self._ending.wait()


@asynccontextmanager
async def serving(app: FastAPI, patience_seconds: int = 5) -> AsyncIterator[Served]:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()  # clients need not wait for the server
    server = _Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=patience_seconds))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield Served(listener.getsockname()[1], server)
    finally:
        server.should_exit = True
        await task
