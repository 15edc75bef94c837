from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.hub import FakeHub
from fakes.ollama import FakeModel, FakeOllama
from machines import Machine


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is on this machine, whatever leads to the internet."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as fake:
        yield fake


@pytest.fixture
def daemon() -> Iterator[FakeOllama]:
    """A daemon with one model, which can pull another."""
    with FakeOllama(FakeModel("demo", size=1000), offered=[FakeModel("new:1b", size=100_000)]) as fake:
        yield fake


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine without network and without a daemon."""
    return Machine(tmp_path)


@pytest.fixture
def on_hub(machine: Machine, hub: FakeHub) -> Machine:
    """The machine, with the hub in reach."""
    machine.hub_url = hub.url
    return machine


@pytest.fixture
def with_daemon(machine: Machine, daemon: FakeOllama) -> Machine:
    """The machine, with a daemon."""
    machine.daemon_url = daemon.url
    return machine
