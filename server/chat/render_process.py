"""Runs a chat template in a process of its own, which is ended when it takes too long, and made anew.

A template comes with a file that anybody may have made. In the server's process it could keep the interpreter from
everybody else for as long as it likes; here it has one process with limits, and the others do not notice.
"""

from __future__ import annotations

import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

import jinja2
import markupsafe

import server
from server.chat.capabilities import TemplateCapabilities
from server.chat.render_worker import RenderOrder, Reply, StartOrder, most_characters
from server.core.errors import BackendError, InvalidRequest, ModelLoadingFailed

_LENGTH_BYTES = 4
_MOST_BYTES_PER_CHARACTER = 4
_MOST_START_BYTES = 1 << 16

# Neither the settings of the server's interpreter nor its `site` are needed: that the packages are found is enough.
_BOOT = "import sys; sys.path += sys.argv[1:]; from server.chat.render_worker import main; main()"
_PACKAGES = tuple(
    dict.fromkeys(str(Path(module.__file__ or "").absolute().parents[1]) for module in (server, jinja2, markupsafe))
)


@dataclass(frozen=True, slots=True)
class RenderLimits:
    """What a template may use.

    Attributes:
        seconds: for one conversation.
        start_seconds: for its process to start, and to compile it.
        memory_bytes: of addresses, where the platform can limit them.
        spare_characters: of text, beyond a multiple of what it was given.

    """

    seconds: float = 10.0
    start_seconds: float = 30.0
    memory_bytes: int = 1 << 30
    spare_characters: int = 4 << 20


class RenderProcess:
    """A template in a process of its own, which starts at once and is waited for when it is needed.

    Any thread may use it. Conversations are rendered one after the other; a process that ended, for whatever reason, is
    replaced when the next one comes.
    """

    def __init__(self, source: str, limits: RenderLimits | None = None) -> None:
        """Start compiling a template.

        Raises:
            ModelLoadingFailed: there can be no further process.

        """
        self._source = source
        self._limits = limits or RenderLimits()
        self._lock = threading.Lock()
        self._is_closed = False
        self._capabilities: TemplateCapabilities | None = None
        self._worker: _Worker | None = self._new_worker()

    @property
    def capabilities(self) -> TemplateCapabilities:
        """What the template can do; waits until it is compiled.

        Raises:
            ModelLoadingFailed: it cannot be compiled.
            BackendError: this was closed.

        """
        with self._lock:
            if self._capabilities is None:
                self._ready_worker()
            return self._capabilities or TemplateCapabilities()

    def render(self, variables: Mapping[str, object], *, border: str, now: datetime) -> str:
        """Run the template with plain values: text, numbers, lists and dictionaries.

        Args:
            variables: what it is given.
            border: a character that it may not escape; empty for none.
            now: the local time that ``strftime_now`` formats.

        Raises:
            InvalidRequest: the template refuses what it was given.
            BackendError: it took too long, or too much; or its process was ended.
            ModelLoadingFailed: its process cannot be started again.

        """
        limits = self._limits
        order = pickle.dumps(
            RenderOrder(
                variables=variables,
                border=border,
                now=now,
                spare_characters=limits.spare_characters,
                seconds=limits.seconds,
            )
        )
        most_bytes = most_characters(len(order), limits.spare_characters) * _MOST_BYTES_PER_CHARACTER
        with self._lock:
            worker = self._ready_worker()
            try:
                kind, text = worker.ask(order, limits.seconds, most_bytes)
            except _Ended as error:
                self._give_up()
                raise BackendError(f"The model's chat template cannot render these messages: {error}.") from error
            if kind not in (Reply.TEXT, Reply.REFUSED):
                self._give_up()
                raise BackendError(f"The model's chat template cannot render these messages: {text}.")
        if kind == Reply.REFUSED:
            raise InvalidRequest(f"The model's chat template does not accept these messages: {text}", param="messages")
        return text

    def close(self) -> None:
        """End the process; whoever waits for it gets an error. May be called again."""
        self._is_closed = True
        worker = self._worker
        if worker is not None:
            worker.kill()
        with self._lock:
            self._give_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _new_worker(self) -> _Worker:
        limits = self._limits
        order = StartOrder(
            source=self._source,
            probes=self._capabilities is None,
            memory_bytes=limits.memory_bytes,
            seconds=limits.start_seconds,
        )
        try:
            return _Worker(pickle.dumps(order), limits.start_seconds)
        except OSError as error:
            raise ModelLoadingFailed(
                f"The process for the chat template cannot be started: {error}.", retry_after=1.0
            ) from error

    def _ready_worker(self) -> _Worker:
        """Return the process with its template compiled; call it with the lock."""
        if self._worker is not None and self._worker.has_ended and self._worker.is_compiled:
            self._give_up()
        if self._is_closed:
            raise BackendError("The model was unloaded before its chat template was used. Send the request again.")
        worker = self._worker = self._worker or self._new_worker()
        if not worker.is_compiled:
            try:
                found = worker.found(self._limits.start_seconds)
                self._capabilities = self._capabilities or found
            except (_Ended, ValueError) as error:
                self._give_up()
                raise ModelLoadingFailed(f"The chat template cannot be used: {error}.") from error
            worker.is_compiled = True
        return worker

    def _give_up(self) -> None:
        """End the process; call it with the lock."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.end()


class _Ended(Exception):
    """The process did not answer as it should; the message says why, as the end of a sentence."""


class _Worker:
    """A running ``render_worker``. Used by one thread at a time, but for ``kill``."""

    def __init__(self, start_order: bytes, seconds: float) -> None:
        self.is_compiled = False
        self._socket, theirs = socket.socketpair()
        with theirs, ExitStack() as undo:
            undo.callback(self._socket.close)
            # In a session of its own, the terminal's signals do not reach it: it ends with the server, not before.
            self._process = subprocess.Popen(  # noqa: S603 -- this Python, this package
                [sys.executable, "-I", "-S", "-c", _BOOT, *_PACKAGES],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            undo.pop_all()
        with suppress(_Ended):  # whoever waits for the answer hears of it
            self._send(start_order, time.monotonic() + seconds, seconds)

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def found(self, seconds: float) -> TemplateCapabilities:
        """Wait until the template is compiled.

        Raises:
            _Ended: it cannot be.
            ValueError: the answer makes no sense.

        """
        kind, text = self.answer(seconds, _MOST_START_BYTES)
        if kind != Reply.CAPABILITIES:
            raise _Ended(text)
        return TemplateCapabilities.from_json(text)

    def ask(self, order: bytes, seconds: float, most_bytes: int) -> tuple[bytes, str]:
        """Send a request and wait for what ``answer`` returns."""
        self._send(order, time.monotonic() + seconds, seconds)
        return self.answer(seconds, most_bytes)

    def answer(self, seconds: float, most_bytes: int) -> tuple[bytes, str]:
        """Wait for an answer: its kind, one of ``Reply``, and text.

        Raises:
            _Ended: there is none.

        """
        deadline = time.monotonic() + seconds
        length = int.from_bytes(self._receive(_LENGTH_BYTES, deadline, seconds), "big")
        if not 0 < length <= most_bytes:
            raise _Ended("its process answered with nonsense")
        payload = self._receive(length, deadline, seconds)
        try:
            return bytes(payload[:1]), payload[1:].decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise _Ended("its process answered with nonsense") from error

    def kill(self) -> None:
        """End the process; ``end`` has to follow. Any thread may call it."""
        self._process.kill()

    def end(self) -> None:
        """End the process and give back what it had."""
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def _send(self, order: bytes, deadline: float, seconds: float) -> None:
        self._limit(deadline, seconds)
        try:
            self._socket.sendall(len(order).to_bytes(_LENGTH_BYTES, "big") + order)
        except TimeoutError as error:
            raise _too_slow(seconds) from error
        except OSError as error:
            raise self._gone() from error

    def _receive(self, num_bytes: int, deadline: float, seconds: float) -> bytearray:
        buffer = bytearray(num_bytes)
        view, filled = memoryview(buffer), 0
        while filled < num_bytes:
            self._limit(deadline, seconds)
            try:
                num_read = self._socket.recv_into(view[filled:])
            except TimeoutError as error:
                raise _too_slow(seconds) from error
            except OSError as error:
                raise self._gone() from error
            if not num_read:
                raise self._gone()
            filled += num_read
        return buffer

    def _limit(self, deadline: float, seconds: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise _too_slow(seconds)
        self._socket.settimeout(left)

    def _gone(self) -> _Ended:
        self._process.kill()  # without its socket it is of no use
        return _Ended(f"its process ended with code {self._process.wait()}")


def _too_slow(seconds: float) -> _Ended:
    return _Ended(f"it did not finish in {seconds:g} s")
