"""The stand-in for Ollama in a process of its own, which a test can kill and start again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import httpx

_TESTS = Path(__file__).resolve().parents[1]


class OllamaProcess:
    """``python -m fakes.ollama``; a context manager. It keeps its port from one start to the next."""

    def __init__(self, *arguments: str, port: int = 0) -> None:
        """Take arguments as the command line does."""
        self.port = port
        self._arguments = arguments
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it; it listens on return."""
        path = os.pathsep.join(filter(None, [str(_TESTS), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fakes.ollama", "--port", str(self.port), *self._arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        assert self._process.stdout is not None
        announced = self._process.stdout.readline().strip()
        assert announced, "the stand-in ended at once"
        self.port = int(announced.rpartition(":")[2])

    def kill(self) -> None:
        """End it in the way of ``kill -9``."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def tell(self, what: str, **body: Any) -> Any:  # noqa: ANN401
        """Script it: ``tell("rules", do="cut", after=2)``; see ``control.py``."""
        response = httpx.post(f"{self.url}/_fake/{what}", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def ask(self, what: str) -> Any:  # noqa: ANN401
        """Look at its records: ``ask("requests")``, ``ask("state")``."""
        return httpx.get(f"{self.url}/_fake/{what}").json()
