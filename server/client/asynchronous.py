"""The client for programs with an event loop."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Self, TypeVar

from server.client import calls
from server.client.address import server_url
from server.client.answers import OK, read_answer, read_error
from server.client.calls import Call, Spec
from server.client.http import DEFAULT_TIMEOUT, async_client, patience, translated
from server.client.pull_events import PullReader
from server.client.results import LoadedModel, ServerStatus
from server.core.library import Deleted, InstalledModel, ModelDetails
from server.core.model_spec import BackendName
from server.core.pulling import PullEvent

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")


class AsyncLocalLLM:
    """``LocalLLM`` for an event loop: the same methods, arguments, results and errors.

    An async context manager, or call ``close``. One object belongs to one event loop.
    """

    def __init__(self, url: str | None = None, *, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        """Take the address and the patience, as ``LocalLLM`` does.

        Raises:
            ConfigurationError: this is not the URL of a server.

        """
        self.url = server_url(url, os.environ)
        self._timeout = timeout
        self._opened: httpx.AsyncClient | None = None

    async def status(self) -> ServerStatus:
        """Return how the server is, and what is in its memory."""
        return await self._ask(calls.status())

    async def list(self, backend: BackendName | str | None = None) -> tuple[InstalledModel, ...]:
        """Return the models on the server's disks, of all backends or of one."""
        return await self._ask(calls.models(backend))

    async def show(self, spec: Spec) -> ModelDetails:
        """Return all that is known of a model."""
        return await self._ask(calls.details(spec))

    def pull(self, spec: Spec, quantization: str | None = None) -> AsyncGenerator[PullEvent]:
        """Download a model as ``LocalLLM.pull`` does.

        Close the generator (``contextlib.aclosing``) to leave the pull at a moment of your own: a loop that is left
        with ``break`` closes it some time later.
        """
        return self._stream(calls.pull(spec, quantization))

    async def cancel_pull(self, spec: Spec, quantization: str | None = None) -> int:
        """End a download for everybody who waits for it; return how many were ended. What has come is kept."""
        return await self._ask(calls.cancel_pull(spec, quantization))

    async def load(self, spec: Spec, *, timeout: float | None = None) -> LoadedModel:  # noqa: ASYNC109 - as LocalLLM
        """Wait until a model is in memory; ``timeout`` in seconds ends the wait, and not the load."""
        return await self._ask(calls.load(spec), timeout)

    async def unload(
        self,
        spec: Spec,
        *,
        force: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - as LocalLLM
    ) -> LoadedModel:
        """Wait until a model is out of memory, as ``LocalLLM.unload`` does."""
        return await self._ask(calls.unload(spec, force=force), timeout)

    async def delete(self, spec: Spec) -> Deleted:
        """Delete a model from the disk; one that is in use is refused with ``ModelInUse``."""
        return await self._ask(calls.delete(spec))

    async def close(self) -> None:
        """Close the connections; the next question opens new ones."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _ask(self, call: Call[T], limit: float | None = None) -> T:
        timeout = patience(limit if call.waits else self._timeout)
        with translated(self.url):
            answer = await self._http.request(
                call.method, call.path, params=call.query or None, json=call.body, timeout=timeout
            )
        return read_answer(self.url, answer.status_code, answer.headers, answer.content, call.read)

    async def _stream(self, call: Call[PullEvent]) -> AsyncGenerator[PullEvent]:
        request = self._http.build_request(call.method, call.path, json=call.body, timeout=patience(self._timeout))
        with translated(self.url):
            answer = await self._http.send(request, stream=True)
            try:
                if answer.status_code != OK:
                    raise read_error(self.url, answer.status_code, answer.headers, await answer.aread())
                reader = PullReader(self.url, call, answer.headers)
                async for received in answer.aiter_bytes():
                    for event in reader.feed(received):
                        yield event
                    if reader.is_over:
                        break
            finally:
                await answer.aclose()
        reader.end()

    @property
    def _http(self) -> httpx.AsyncClient:
        if self._opened is None:
            self._opened = async_client(self.url)
        return self._opened
