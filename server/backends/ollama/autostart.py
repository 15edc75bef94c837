"""Starts the Ollama daemon when none answers, and stops what it started."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import shutil
import signal
import time
from asyncio.subprocess import DEVNULL, Process
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from urllib.parse import SplitResult, urlsplit

_log = logging.getLogger(__name__)
_daemon_log = logging.getLogger("server.backends.ollama.daemon")

_PROGRAM = "ollama"
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0
_PAUSE_GROWTH = 1.5
_LAST_WORDS_SECONDS = 1.0
_NUM_LAST_LINES = 20
_MAX_LINE_LEN = 8192


_RESTART_SECONDS = 5.0
"""Least time from one start to the next."""


class DaemonProcess:
    """``ollama serve``, started by this process and stopped by it.

    Nothing here raises when the daemon cannot be started: that is logged, and the server goes on without it.
    """

    def __init__(
        self,
        url: str,
        timeout_seconds: float,
        answers: Callable[[], Awaitable[bool]],
        environ: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
        grace_seconds: float = 5.0,
    ) -> None:
        """Start nothing yet.

        Args:
            url: the daemon's base URL, as ``daemon_url`` gives it.
            timeout_seconds: how long to wait for a started daemon to answer.
            answers: whether a daemon answers at the URL; must not raise, and must give up by itself.
            environ: the environment of this process; its ``PATH`` is where ``ollama`` is looked for.
            clock: seconds, for the log.
            grace_seconds: how long the daemon may take to end before it is killed.

        """
        self._url = url
        self._timeout_seconds = timeout_seconds
        self._answers = answers
        self._environ = environ
        self._clock = clock
        self._grace_seconds = grace_seconds
        self._starting: asyncio.Task[None] | None = None
        self._spawning: asyncio.Task[_Child] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._began = 0.0

    async def start_if_absent(self) -> None:
        """Return when a daemon answers, or when it is clear that none will for now.

        A caller that is cancelled leaves the start under way; ``stop`` ends it. Calls at the same time share one
        start. A daemon that was started here and has ended is started again, but not at once.
        """
        if self._is_stopping:
            return
        if self._starting is None or (self._starting.done() and self._may_start_again()):
            self._starting = asyncio.create_task(self._start())
        await asyncio.wait([self._starting])
        if not self._starting.cancelled():
            self._starting.result()

    def _may_start_again(self) -> bool:
        spawned = self._spawning
        if spawned is None or not spawned.done() or spawned.exception() is not None:
            return False
        return spawned.result().exited.done() and self._clock() - self._began >= _RESTART_SECONDS

    async def stop(self) -> None:
        """Stop what ``start_if_absent`` started, waiting for it if it is under way; then nothing is started again."""
        self._is_stopping = True
        for task in (self._starting, self._watching):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        if self._spawning is not None:
            await asyncio.wait([self._spawning])  # never cancelled: nobody would own the process
            if self._spawning.exception() is None:
                await self._spawning.result().stop(self._grace_seconds)

    async def _start(self) -> None:
        if await self._answers():
            return
        command = self._command()
        if command is None:
            return
        self._began = began = self._clock()
        child = await self._spawn(command)
        if child is None:
            return
        try:
            async with asyncio.timeout(self._timeout_seconds):
                is_up = await self._comes_up(child)
        except TimeoutError:
            is_up = False
        self._log_outcome(child, self._clock() - began, is_up=is_up)
        if not child.exited.done():
            self._watching = asyncio.create_task(_warn_when_it_exits(child))

    def _command(self) -> str | None:
        """Give the program to run; log why there is none."""
        obstacle = _obstacle(urlsplit(self._url))
        command = shutil.which(_PROGRAM, path=self._environ.get("PATH", ""))
        if obstacle is None and command is None:
            obstacle = (
                f"there is no program {_PROGRAM!r} on the PATH; install it from https://ollama.com/download, "
                "or set `[ollama] autostart = false`"
            )
        if obstacle is None:
            return command
        _log.warning("no Ollama daemon answers at %s, and none is started: %s", self._url, obstacle)
        return None

    async def _spawn(self, command: str) -> _Child | None:
        _log.info("no Ollama daemon answers at %s: starting %s serve", self._url, command)
        environ = {**self._environ, "OLLAMA_HOST": urlsplit(self._url).netloc}
        self._spawning = asyncio.create_task(_Child.spawn(command, environ))
        try:
            return await asyncio.shield(self._spawning)
        except OSError as error:
            _log.error("%s cannot be started: %s", command, error)
            return None

    async def _comes_up(self, child: _Child) -> bool:
        """Wait until a daemon answers or ours has exited; say whether one answers."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            has_exited = child.exited.done()  # looked at first: when ours finds its port taken, the other one answers
            if await self._answers():
                return True
            if has_exited:
                return False
            await asyncio.wait([child.exited], timeout=pause)
            pause = min(pause * _PAUSE_GROWTH, _LONGEST_PAUSE_SECONDS)

    def _log_outcome(self, child: _Child, seconds: float, *, is_up: bool) -> None:
        has_exited = child.exited.done()
        if is_up and has_exited:
            _log.info("another Ollama daemon answers at %s by now and is used; the one started here ended", self._url)
        elif is_up:
            _log.info("the Ollama daemon answers at %s after %.1f s", self._url, seconds)
        elif has_exited:
            _log.error("the Ollama daemon ended with %s%s", _described(child.exited.result()), child.last_lines())
        else:
            _log.error(
                "the Ollama daemon does not answer at %s after %.1f s; it is left running, and used once it answers%s",
                self._url,
                seconds,
                child.last_lines(),
            )


class _Child:
    """A daemon that runs, in a process group of its own; Ctrl-C in the terminal is not for it."""

    def __init__(self, process: Process, output: _Output, pipe: asyncio.BaseTransport) -> None:
        self._process = process
        self._output = output
        self._pipe = pipe
        self.exited = asyncio.create_task(self._exit())
        """Gives the exit code; never cancel it."""

    @classmethod
    async def spawn(cls, command: str, environ: Mapping[str, str]) -> _Child:
        """Start the program.

        Raises:
            OSError: it cannot be executed.

        """
        # A pipe of our own: with asyncio's, waiting for the process waits for all that inherited its output.
        read_end, write_end = os.pipe()
        try:
            pipe, output = await asyncio.get_running_loop().connect_read_pipe(_Output, os.fdopen(read_end, "rb", 0))
            try:
                process = await asyncio.create_subprocess_exec(
                    command,
                    "serve",
                    env=environ,
                    stdin=DEVNULL,
                    stdout=write_end,
                    stderr=write_end,
                    start_new_session=True,
                )
            except BaseException:
                pipe.close()
                raise
        finally:
            os.close(write_end)
        return cls(process, output, pipe)

    async def stop(self, grace_seconds: float) -> None:
        """Ask it to end, and make it end after the grace."""
        if self.exited.done():
            return
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait([self.exited], timeout=grace_seconds)
        finally:
            if not self.exited.done():
                _log.warning("the Ollama daemon did not end %g s after SIGTERM and is killed", grace_seconds)
                self._signal(signal.SIGKILL)
        await asyncio.wait([self.exited])

    def last_lines(self) -> str:
        """Give what it wrote last, to be appended to a message."""
        lines = list(self._output.last_lines)
        return "\n  ".join(["; it wrote:", *lines]) if lines else ""

    async def _exit(self) -> int:
        code = await self._process.wait()
        self._signal(signal.SIGKILL)  # model runners that it left behind would keep their memory
        await asyncio.wait([self._output.ended], timeout=_LAST_WORDS_SECONDS)
        self._pipe.close()
        return code

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):  # nobody is left; macOS says it with the second
            os.killpg(self._process.pid, number)


class _Output(asyncio.Protocol):
    """Passes what the daemon writes on to the log, line by line."""

    def __init__(self) -> None:
        self.last_lines: deque[str] = deque(maxlen=_NUM_LAST_LINES)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._partial = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._take(line)
        if len(self._partial) > _MAX_LINE_LEN:
            self._flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's interface
        self._flush()
        if not self.ended.done():
            self.ended.set_result(None)

    def _flush(self) -> None:
        partial, self._partial = self._partial, b""
        if partial:
            self._take(partial)

    def _take(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        self.last_lines.append(text)
        _daemon_log.debug("%s", text)


async def _warn_when_it_exits(child: _Child) -> None:
    await asyncio.wait([child.exited])
    _log.warning("the Ollama daemon ended with %s%s", _described(child.exited.result()), child.last_lines())


def _obstacle(url: SplitResult) -> str | None:
    """Say why ``ollama serve`` on this machine cannot be what answers at the URL."""
    host = url.hostname or ""
    if not _is_this_machine(host):
        return f"{host} is not this machine"
    if url.scheme != "http":
        return f"`{_PROGRAM} serve` does not speak {url.scheme}; use an http:// URL"
    if url.path.strip("/"):
        return f"`{_PROGRAM} serve` does not answer under a path; remove {url.path} from the URL"
    return None


def _is_this_machine(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified


def _described(exit_code: int) -> str:
    return f"exit code {exit_code}" if exit_code >= 0 else f"signal {-exit_code}"
