"""``python -m server`` in processes that need not import first: forks of one that has imported everything.

Importing takes a second of CPU time, and tests start servers and commands by the hundred. A fork has a pid, standard
streams, an environment, a working directory, signals and an end of its own, like any process; what it does not show is
how the interpreter starts and what is imported when. A test about that starts the program itself.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

_LATE_IMPORTS = (
    "anyio._backends._asyncio",
    "rich.live",
    "rich.progress",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
)
"""What libraries import once they are used."""
_READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "OMP_", "GOMP_", "OPENBLAS_", "MALLOC_", "GLIBC_", "CUDA_", "GGML_")
"""How the names of variables begin that the interpreter and native libraries read before anything else is done."""
_TAKES_THE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
"""Without a terminal of its own, a program would hear nothing of Ctrl-C."""
_MAX_REQUEST_BYTES = 2**18
_NUM_DESCRIPTORS = 4


class Fork:
    """``llmspell`` with these arguments; what tests use of ``subprocess.Popen``. All streams are text."""

    def __init__(
        self, *arguments: str, env: Mapping[str, str], cwd: Path | None = None, terminal: int | None = None
    ) -> None:
        """Start it with three pipes, or on a terminal, which becomes its own."""
        self.args = arguments
        request = {"arguments": arguments, "env": dict(env), "cwd": str(cwd or Path.cwd())}
        self._status, status = os.pipe()
        self.stdin: IO[str] | None = None
        self.stdout: IO[str] | None = None
        self.stderr: IO[str] | None = None
        if terminal is None:
            theirs, ours = zip(os.pipe(), reversed(os.pipe()), reversed(os.pipe()), strict=True)
            self.stdin, self.stdout, self.stderr = (
                open(descriptor, mode, encoding="utf-8")  # noqa: SIM115, PTH123 - open as long as the process is known
                for descriptor, mode in zip(ours, "wrr", strict=True)
            )
            _template().send(request, [*theirs, status])
            _close(*theirs)
        else:
            _template().send(request | {"has_terminal": True}, [terminal, terminal, terminal, status])
        _close(status)
        self.pid = int(self._next_number(None))
        self.returncode: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close_streams()
        self.wait()

    def poll(self) -> int | None:
        """Return the exit code, or ``None`` while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; the exit code is negative if a signal was the end.

        Raises:
            subprocess.TimeoutExpired: it has not ended.

        """
        if self.returncode is None:
            self.returncode = self._next_number(timeout)
            os.close(self._status)
        return self.returncode

    def communicate(self, text: str = "", timeout: float | None = None) -> tuple[str, str]:
        """Send a text and return what was written on standard output and standard error until the end.

        Raises:
            subprocess.TimeoutExpired: it has not ended.

        """
        deadline = None if timeout is None else time.monotonic() + timeout
        assert self.stdin is not None
        written: dict[IO[str] | None, str] = {}
        readers = [
            threading.Thread(target=lambda each=stream: written.update({each: each.read()}), daemon=True)
            for stream in (self.stdout, self.stderr)
        ]
        for reader in readers:
            reader.start()
        with suppress(BrokenPipeError):
            self.stdin.write(text)
            self.stdin.flush()
        with suppress(BrokenPipeError):
            self.stdin.close()
        for reader in readers:
            reader.join(None if deadline is None else max(0, deadline - time.monotonic()))
            if reader.is_alive():  # it runs, or somebody to whom it has left its streams does
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(None if deadline is None else max(0, deadline - time.monotonic()))
        self._close_streams()
        return written[self.stdout], written[self.stderr]

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _close_streams(self) -> None:
        for stream in filter(None, (self.stdin, self.stdout, self.stderr)):
            with suppress(BrokenPipeError):
                stream.close()

    def _next_number(self, timeout: float | None) -> int:
        if not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        number = os.read(self._status, 8)
        assert number, "the process from which all are forked has ended"
        return int.from_bytes(number, "big", signed=True)


Running = Fork | subprocess.Popen[str]
Start = Callable[..., Running]


def start(*arguments: str, env: Mapping[str, str], cwd: Path | None = None, terminal: int | None = None) -> Running:
    """Start ``llmspell`` with three pipes, or on a terminal, which becomes its own: in the quickest way there is."""
    return (Fork if _can_be_forked(env) else start_alone)(*arguments, env=env, cwd=cwd, terminal=terminal)


def start_alone(
    *arguments: str, env: Mapping[str, str], cwd: Path | None = None, terminal: int | None = None
) -> subprocess.Popen[str]:
    """Start it as users do."""
    before = [] if terminal is None else ["-c", _TAKES_THE_TERMINAL, sys.executable]
    stream = subprocess.PIPE if terminal is None else terminal
    return subprocess.Popen(
        [sys.executable, *before, "-m", "server", *arguments],
        stdin=stream,
        stdout=stream,
        stderr=stream,
        encoding="utf-8",
        env=env,
        cwd=cwd,
        start_new_session=terminal is not None,
    )


def run(
    *arguments: str, env: Mapping[str, str], cwd: Path | None = None, text: str = "", timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run ``llmspell`` with these arguments to its end; ``text`` is what comes in.

    Raises:
        subprocess.TimeoutExpired: it did not end; it is gone.

    """
    with start(*arguments, env=env, cwd=cwd) as process:
        try:
            output, errors = process.communicate(text, timeout)
        except BaseException:
            process.kill()
            raise
        return subprocess.CompletedProcess(arguments, process.wait(), output, errors)


def _can_be_forked(env: Mapping[str, str]) -> bool:
    def read_at_start(variables: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in variables.items() if name.startswith(_READ_AT_START)}

    return sys.platform == "linux" and read_at_start(env) == read_at_start(os.environ)


class _Template:
    """The process that has imported everything, as its users see it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self.close)

    def send(self, request: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        """Have it fork; ``descriptors`` are three standard streams, and where pid and exit code are written."""
        socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)

    def close(self) -> None:
        """End it."""
        self._socket.close()
        self._process.wait()


@functools.cache
def _template() -> _Template:
    return _Template()


# --- in the process that has imported everything, and in its forks ---


def _import_all() -> None:
    """Import what servers and commands import, in an order in which they do it, too."""
    import server.cli  # noqa: PLC0415 - first: it decides what is imported of libraries

    for module in pkgutil.walk_packages(server.__path__, "server."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in _LATE_IMPORTS:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is never freed need not be looked at again, nor be copied for that


def _fork_on_demand(requests: socket.socket) -> list[str]:
    """Fork for each request until they end; return, in each fork, its arguments."""
    running: dict[int, tuple[int, int]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not requests:
                    _bury(*running.pop(key.fd), key.fd, selector)
                    continue
                data, descriptors, _, _ = socket.recv_fds(requests, _MAX_REQUEST_BYTES, _NUM_DESCRIPTORS)
                if not data:
                    os._exit(0)
                *streams, status = descriptors
                pid = os.fork()
                if pid == 0:
                    break
                _close(*streams)
                watched = os.pidfd_open(pid)
                running[watched] = (pid, status)
                selector.register(watched, selectors.EVENT_READ)
                _tell(status, pid)
            else:
                continue
            break
    requests.close()
    _close(status, *running, *(other for _, other in running.values()))
    return _become(json.loads(data), streams)


def _bury(pid: int, status: int, watched: int, selector: selectors.BaseSelector) -> None:
    _, ended = os.waitpid(pid, 0)
    selector.unregister(watched)
    _tell(status, os.waitstatus_to_exitcode(ended))
    _close(watched, status)


def _tell(status: int, number: int) -> None:
    with suppress(BrokenPipeError):  # nobody wants to know
        os.write(status, number.to_bytes(8, "big", signed=True))


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _become(request: Mapping[str, Any], streams: list[int]) -> list[str]:
    """Take over what a process is given at its start; return its arguments."""
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    _close(*streams)
    if "has_terminal" in request:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    sys.stdin, sys.stdout, sys.stderr = (
        TextIOWrapper(os.fdopen(number, mode, closefd=False), errors=errors, line_buffering=in_lines)
        for number, mode, errors, in_lines in (
            (0, "rb", "strict", False),
            (1, "wb", "strict", os.isatty(1)),
            (2, "wb", "backslashreplace", True),
        )
    )
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.path.insert(0, request["cwd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return list(request["arguments"])


if __name__ == "__main__":
    del sys.path[0]  # this folder, which is none of theirs
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which close the socket then
    _import_all()
    sys.argv[1:] = _fork_on_demand(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module("server", run_name="__main__", alter_sys=True)
