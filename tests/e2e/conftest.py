"""Real server processes on real ports: one with the demo model for all tests, others for special configurations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fakes.ollama import Call, FakeModel, FakeOllama, Pause, Reply
from gguf_shapes import LlamaShape, write_llama
from openai import OpenAI
from serving import Server, Site, using_ollama

Start = Callable[..., Server]

REAL_URL = os.environ.get("LLMSPELL_TEST_OLLAMA_URL", "")
REAL_MODEL = os.environ.get("LLMSPELL_TEST_OLLAMA_MODEL", "")

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


def speak(body: Mapping[str, Any]) -> Reply:
    """Say what the demo model says."""
    asked = body["messages"][-1]["content"]
    if "France" in asked:
        return Reply(text="The capital of France is Paris.")
    return Reply(text="Once upon a time there was a llama. " * 10) if "story" in asked else Reply()


@pytest.fixture(scope="session")
def fake() -> Iterator[FakeOllama]:
    """A daemon with models for all that the tests of both backends do; ``stuck`` and ``endless`` never finish."""
    weather = Reply(calls=[Call("get_weather", {"city": "Paris"})], before="")
    with FakeOllama(
        FakeModel("spell", ("completion",)),
        FakeModel("spell-tools", ("completion", "tools"), reply=weather),
        FakeModel("spell-think", ("completion", "thinking"), reply=Reply(text="Four.", thinking="Two and two.")),
        FakeModel("spell-endless", reply=Reply(tokens=[" word"] * 10)),
        FakeModel("spell-stuck"),
        reply=speak,
    ) as daemon:
        daemon.on(Pause(4), model="spell-endless", path="/api/chat", times=None)
        daemon.on(Pause("request"), model="spell-stuck", path="/api/chat", times=None)
        yield daemon


@pytest.fixture(scope="session")
def between(fake: FakeOllama, slow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with models on both backends."""
    home = tmp_path_factory.mktemp("between")
    with Server("--demo", "--model", str(slow_model), home=home, variables=using_ollama(fake.url)) as server:
        yield server
        assert server.failures == []


@pytest.fixture(scope="session")
def real_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A model on a real daemon."""
    with Server(home=tmp_path_factory.mktemp("real_site"), variables=using_ollama(REAL_URL)) as server:
        with server.client() as client:
            listed = {model.id: (model.model_extra or {})["capabilities"] for model in client.models.list()}
            model = client.models.retrieve(f"local/{REAL_MODEL}@ollama").id
        endless = next((name for name in listed if name.endswith("-endless:latest")), None)
        yield Site(
            "ollama",
            server,
            model,
            with_tools=model if "tools" in listed[model] else None,
            thinking=next((name for name, capabilities in listed.items() if "thinking" in capabilities), None),
            endless={"model": endless, "max_tokens": 100_000} if endless else None,
        )
        assert server.failures == []


@pytest.fixture(scope="session")
def pool_site(between: Server) -> Site:
    """The demo model in the server's own pool."""
    slow = {"model": "local/slow@llamacpp", "ignore_eos": True}
    demo = "local/demo@llamacpp"
    return Site("llamacpp", between, demo, with_tools=demo, endless=slow, stuck=slow)


@pytest.fixture(scope="session")
def fake_site(between: Server, fake: FakeOllama) -> Site:
    """A model of the stand-in for the daemon."""
    return Site(
        "ollama",
        between,
        "local/spell@ollama",
        with_tools="local/spell-tools",
        thinking="local/spell-think",
        endless={"model": "local/spell-endless"},
        stuck={"model": "local/spell-stuck"},
        fake=fake,
    )


DAEMONS = ("fake_site", "real_site") if REAL_URL and REAL_MODEL else ("fake_site",)


@pytest.fixture(params=["pool_site", *DAEMONS])
def site(request: pytest.FixtureRequest) -> Site:
    """A model on each backend in turn."""
    found: Site = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=DAEMONS)
def daemon_site(request: pytest.FixtureRequest) -> Site:
    """A model of each daemon in turn."""
    found: Site = request.getfixturevalue(request.param)
    return found
