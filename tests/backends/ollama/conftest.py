"""Event loops for tests of what speaks with the daemon."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Mapping

import pytest

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

_ON_EACH_LOOP = {
    "test_answer_stream",
    "test_backend",
    "test_backend_lifecycle",
    "test_bad_daemons",
    "test_http_responses",
    "test_http_stream",
}
"""Modules whose tests run on both loops, because they depend on how a loop treats sockets and tasks."""


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, LoopFactory]:
    factories: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop}
    if item.path.stem in _ON_EACH_LOOP and importlib.util.find_spec("uvloop") is not None:
        import uvloop  # noqa: PLC0415

        factories["uvloop"] = uvloop.new_event_loop
    return factories
