"""The real program, run as a user does it: with a home of its own, in pipes or on a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import prestarted

PATIENCE = 120.0
NOWHERE = "http://127.0.0.1:9"
"""Where nothing answers."""
_NOT_INHERITED = ("LLMSPELL_", "OLLAMA_", "HF_", "HUGGING", "XDG_", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")


def free_port() -> int:
    """A port at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it wrote."""

    code: int
    output: str
    errors: str

    @property
    def document(self) -> Any:  # noqa: ANN401 - any JSON
        return json.loads(self.output)


@dataclass
class Program:
    """``llmspell`` on a machine without a server, a daemon and a way to the hub, unless ``variables`` say otherwise."""

    home: Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def models(self) -> Path:
        """Our own folder for models."""
        return self.home / ".local" / "share" / "llmspell" / "models"

    @property
    def environment(self) -> Mapping[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
        ours = {
            "HOME": str(self.home),
            "OLLAMA_HOST": NOWHERE,
            "HF_ENDPOINT": NOWHERE,
            "NO_PROXY": "127.0.0.1",
            "LLMSPELL_SERVER__PORT": "9",
        }
        return kept | ours | self.variables

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "server", *arguments]

    def run(self, *arguments: str, text: str | None = None) -> Outcome:
        """Run it in pipes to its end; ``text`` is what comes in."""
        done = prestarted.run(*arguments, text=text or "", timeout=PATIENCE, env=self.environment, cwd=self.home)
        return Outcome(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Start it in pipes; it is gone in the end."""
        process = subprocess.Popen(
            self.command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            cwd=self.home,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def on_terminal(self, *arguments: str, answer: str = "", size: tuple[int, int] = (40, 160)) -> Outcome:
        """Run it on a terminal of (lines, columns); ``answer`` is typed once it has asked something."""
        child, terminal = pty.fork()
        if child == 0:
            os.chdir(self.home)
            lines, columns = (str(each) for each in size)
            environment = {**self.environment, "TERM": "xterm", "LINES": lines, "COLUMNS": columns}
            os.execve(sys.executable, self.command(*arguments), environment)
        shown = b""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 1.0)[0]:
                continue
            try:
                received = os.read(terminal, 65536)
            except OSError:  # Linux's way to say that nobody is on the other side any more
                received = b""
            if not received:
                break
            shown += received
            if answer and shown.rstrip().endswith(b"[y/N]:"):
                os.write(terminal, answer.encode())
                answer = ""
        os.close(terminal)
        return Outcome(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown.decode().replace("\r\n", "\n"), "")
