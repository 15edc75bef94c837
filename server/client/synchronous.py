"""The client for programs without an event loop."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from typing import TYPE_CHECKING, Self, TypeVar

from server.client import calls
from server.client.address import server_url
from server.client.answers import OK, read_answer, read_error
from server.client.calls import Call, Spec
from server.client.http import DEFAULT_TIMEOUT, patience, sync_client, translated
from server.client.pull_events import PullReader
from server.client.results import LoadedModel, ServerStatus
from server.core.library import Deleted, InstalledModel, ModelDetails
from server.core.model_spec import BackendName
from server.core.pulling import PullEvent

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")


class LocalLLM:
    """Manages the models of a running server; a context manager, or call ``close``.

    Methods raise ``LlmspellError``: what the server refuses in the class that has the code of the answer
    (``ModelNotFound``, ``ModelInUse``, …), ``ServerUnreachable`` when no llmspell server answers, ``TimedOut`` when one
    is silent for too long. One object may be used by several threads.
    """

    def __init__(self, url: str | None = None, *, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        """Take the address; nothing is sent yet.

        Args:
            url: of the server; without one ``LLMSPELL_SERVER``, else ``http://127.0.0.1:8000``.
            timeout: seconds of silence after which the server is given up; ``None`` waits for ever.

        Raises:
            ConfigurationError: this is not the URL of a server.

        """
        self.url = server_url(url, os.environ)
        self._timeout = timeout
        self._opening = threading.Lock()
        self._opened: httpx.Client | None = None

    def status(self) -> ServerStatus:
        """Return how the server is, and what is in its memory."""
        return self._ask(calls.status())

    def list(self, backend: BackendName | str | None = None) -> tuple[InstalledModel, ...]:
        """Return the models on the server's disks, of all backends or of one."""
        return self._ask(calls.models(backend))

    def show(self, spec: Spec) -> ModelDetails:
        """Return all that is known of a model."""
        return self._ask(calls.details(spec))

    def pull(self, spec: Spec, quantization: str | None = None) -> Generator[PullEvent]:
        """Download a model, or what is missing of it; the last event is ``PullFinished``.

        It begins with the iteration. Who closes the generator early leaves the pull, which ends when nobody is left;
        what has come is kept, and the same pull goes on from there.

        Raises:
            LlmspellError: while iterating; it cannot be downloaded or stored.

        """
        return self._stream(calls.pull(spec, quantization))

    def cancel_pull(self, spec: Spec, quantization: str | None = None) -> int:
        """End a download for everybody who waits for it; return how many were ended. What has come is kept."""
        return self._ask(calls.cancel_pull(spec, quantization))

    def load(self, spec: Spec, *, timeout: float | None = None) -> LoadedModel:
        """Wait until a model is in memory; ``timeout`` in seconds ends the wait, and not the load."""
        return self._ask(calls.load(spec), timeout)

    def unload(self, spec: Spec, *, force: bool = False, timeout: float | None = None) -> LoadedModel:
        """Wait until a model is out of memory.

        Requests that use it finish first; with ``force`` they end at once, with an error. ``timeout`` in seconds ends
        the wait, and not the unload.
        """
        return self._ask(calls.unload(spec, force=force), timeout)

    def delete(self, spec: Spec) -> Deleted:
        """Delete a model from the disk; one that is in use is refused with ``ModelInUse``."""
        return self._ask(calls.delete(spec))

    def close(self) -> None:
        """Close the connections; the next question opens new ones."""
        with self._opening:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, call: Call[T], limit: float | None = None) -> T:
        timeout = patience(limit if call.waits else self._timeout)
        with translated(self.url):
            answer = self._http.request(
                call.method, call.path, params=call.query or None, json=call.body, timeout=timeout
            )
        return read_answer(self.url, answer.status_code, answer.headers, answer.content, call.read)

    def _stream(self, call: Call[PullEvent]) -> Generator[PullEvent]:
        request = self._http.build_request(call.method, call.path, json=call.body, timeout=patience(self._timeout))
        with translated(self.url):
            answer = self._http.send(request, stream=True)
            try:
                if answer.status_code != OK:
                    raise read_error(self.url, answer.status_code, answer.headers, answer.read())
                reader = PullReader(self.url, call, answer.headers)
                for received in answer.iter_bytes():
                    yield from reader.feed(received)
                    if reader.is_over:
                        break
            finally:
                answer.close()
        reader.end()

    @property
    def _http(self) -> httpx.Client:
        with self._opening:
            if self._opened is None:
                self._opened = sync_client(self.url)
            return self._opened
