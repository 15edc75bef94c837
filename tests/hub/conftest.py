from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.hub import FakeHub
from pulling import Puller

from server.store.hub_settings import HubSettings


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is on this machine, whatever leads to the internet."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as fake:
        yield fake


@pytest.fixture
def puller(hub: FakeHub, tmp_path: Path) -> Iterator[Puller]:
    with Puller(HubSettings(hub.url), tmp_path / "models") as each:
        yield each
