"""A program in a terminal of its own, with somebody who types."""

from __future__ import annotations

import os
import pty
import select
import time
from collections.abc import Mapping, Sequence
from typing import Self

import prestarted

PATIENCE = 120.0
CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """A context manager; ``shown`` is all that the program has written."""

    def __init__(self, arguments: Sequence[str], variables: Mapping[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        environ = {**os.environ, "TERM": "dumb", **variables}
        self.process = prestarted.start(*arguments, env=environ, terminal=theirs)
        os.close(theirs)
        self.shown = ""
        self._seen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        os.close(self._ours)

    def wait_for(self, text: str) -> None:
        """Read until the program has written a text, after what was waited for before."""
        deadline = time.monotonic() + PATIENCE
        while (place := self.shown.find(text, self._seen)) < 0:
            assert time.monotonic() < deadline, f"{text!r} never came: {self.shown!r}"
            assert self._read(deadline - time.monotonic()), f"the program ended before {text!r}: {self.shown!r}"
        self._seen = place + len(text)

    def type(self, line: str) -> None:
        """Type a line."""
        self.press(f"{line}\n")

    def press(self, keys: str) -> None:
        """Type without ending the line."""
        os.write(self._ours, keys.encode())

    def exit_code(self) -> int:
        """Read to the end and return the exit code."""
        deadline = time.monotonic() + PATIENCE
        while self._read(max(0.0, deadline - time.monotonic())):
            assert time.monotonic() < deadline, f"the program does not end: {self.shown!r}"
        return self.process.wait(PATIENCE)

    def _read(self, timeout: float) -> bool:
        ready, _, _ = select.select([self._ours], [], [], timeout)
        if not ready:
            return True
        try:
            received = os.read(self._ours, 65536)
        except OSError:  # how Linux says that the other side is closed
            return False
        self.shown += received.decode(errors="replace").replace("\r\n", "\n")
        return bool(received)
