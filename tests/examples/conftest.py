"""A server with the demo model and a stand-in for the Ollama daemon, and how the examples are started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes.hub import FakeHub
from fakes.ollama import Call, FakeModel, FakeOllama, Reply

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PATIENCE = 120.0
_NOT_INHERITED = ("LLMSPELL_", "OLLAMA_", "HF_", "XDG_", "OPENAI_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def environment(home: Path) -> dict[str, str]:
    """The environment of a user who has configured nothing."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(_NOT_INHERITED)}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return kept | {"HOME": str(home), "USERPROFILE": str(home), "PYTHONPATH": path}


def agent(body: Mapping[str, Any]) -> Reply:
    """Call both functions, one of them in a way that fails, and then say what they said."""
    if body["messages"][-1]["role"] == "tool":
        said = [each["content"] for each in body["messages"] if each["role"] == "tool"]
        return Reply(text=f"I was told {' and '.join(said)}.")
    calls = [
        Call("calculate", {"expression": "7 * 24 * 60 * 60"}),
        Call("calculate", {"expression": "__import__('os').getcwd()"}),
        Call("today"),
    ]
    return Reply(calls=calls)


@pytest.fixture(scope="session")
def daemon() -> Iterator[FakeOllama]:
    with FakeOllama(
        FakeModel("demo", ("completion",), reply=Reply(text="Paris, says the daemon.")),
        FakeModel("agent", ("completion", "tools"), reply=agent),
    ) as running:
        yield running


@pytest.fixture(scope="session")
def hub() -> Iterator[FakeHub]:
    """A stand-in for Hugging Face with the demo model."""
    with FakeHub() as running:
        running.add("owner/spell-GGUF", {"spell.F16.gguf": ROOT / "server" / "assets" / "demo.gguf"})
        yield running


@pytest.fixture(scope="session")
def server(daemon: FakeOllama, hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that has ``config.toml`` of the examples, and both backends."""
    home = tmp_path_factory.mktemp("home")
    variables = {
        "HF_ENDPOINT": hub.url,
        "LLMSPELL_LOGGING__FORMAT": "json",
        "LLMSPELL_MODELS": json.dumps({"local/demo": {"context_length": 512}}),  # some stories would not end for long
        "LLMSPELL_OLLAMA__CONNECT_TIMEOUT_SECONDS": "30",  # machines are busy
        "LLMSPELL_OLLAMA__DETECTION_TIMEOUT_SECONDS": "30",
        "LLMSPELL_OLLAMA__URL": daemon.url,
        "LLMSPELL_ROUTING__PREFER": "llamacpp",
    }
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "server", "serve", "--demo", "--port", "0"),
            *("--config", str(EXAMPLES / "config.toml")),
        ],
        env=environment(home) | variables,
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as process:
        listener = _Listener(process)
        try:
            yield listener.url()
        finally:
            process.terminate()
            process.wait(PATIENCE)
            listener.join(PATIENCE)


class _Listener(threading.Thread):
    """Reads the log to its end, so that the server is never kept waiting."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        super().__init__(name="log of the server", daemon=True)
        self._process = process
        self._found = threading.Event()
        self._url = ""
        self.start()

    def run(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if not self._url and (url := json.loads(line).get("url")):
                self._url = str(url).removesuffix("/v1")
                self._found.set()
        self._found.set()

    def url(self) -> str:
        assert self._found.wait(PATIENCE), "the server does not say where it listens"
        assert self._url, "the server ended"
        assert httpx.get(f"{self._url}/health/live", timeout=PATIENCE).status_code == 200
        return self._url


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(server: str, home: Path) -> Run:
    """Run an example to its end, as its documentation says."""

    def run_example(name: str, *arguments: str, typed: str = "", url: str = server) -> subprocess.CompletedProcess[str]:
        program = "bash" if name.endswith(".sh") else sys.executable
        return subprocess.run(
            [program, str(EXAMPLES / name), *arguments],
            input=typed,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=PATIENCE,
            check=False,
            env=environment(home) | {"LLMSPELL_SERVER": url},
            cwd=home,
        )

    return run_example
