"""Real server processes on real ports: one with the demo model for all tests, others for special configurations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from gguf_shapes import LlamaShape, write_llama
from openai import OpenAI
from serving import Server

Start = Callable[..., Server]

SLOW = LlamaShape(layers=8, width=512, heads=8, kv_heads=2, hidden=1536, vocabulary=512, context=8192, weights="Q8_0")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """``llmspell serve --demo``."""
    with Server("--demo", home=tmp_path_factory.mktemp("home")) as server:
        yield server
        assert server.failures == []


@pytest.fixture(scope="session")
def client(demo: Server) -> Iterator[OpenAI]:
    """The SDK's client for the demo server."""
    with demo.client() as client:
        yield client


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start servers that live as long as the test; ``config`` is the text of a configuration file."""
    with ExitStack() as running:

        def run(*arguments: str, config: str = "", variables: Mapping[str, str] | None = None) -> Server:
            file = tmp_path / "e2e.toml"
            file.write_text(config, encoding="utf-8")
            return running.enter_context(Server("--config", str(file), *arguments, home=tmp_path, variables=variables))

        yield run


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose prompts take seconds and whose answers go on for minutes; served as ``local/slow``."""
    path = tmp_path_factory.mktemp("models") / "slow.gguf"
    write_llama(path, SLOW)
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest file that generates text."""
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    write_llama(path)
    return path
