"""Each test that asks for a client gets both in turn."""

from __future__ import annotations

import pytest
from both_clients import Ask, Pull, ask_async, ask_sync, pull_async, pull_sync


@pytest.fixture(params=[ask_sync, ask_async], ids=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    found: Ask = request.param
    return found


@pytest.fixture(params=[pull_sync, pull_async], ids=["sync", "async"])
def pull(request: pytest.FixtureRequest) -> Pull:
    found: Pull = request.param
    return found
