"""Managing a running server from Python: ``LocalLLM`` and ``AsyncLocalLLM``.

Inference stays with the ``openai`` package::

    from server.client import LocalLLM

    with LocalLLM() as llm:
        for event in llm.pull("hf.co/owner/repo:Q4_K_M"):
            print(event)
        print(llm.status().models)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.client.address import SERVER_VARIABLE, server_url
    from server.client.asynchronous import AsyncLocalLLM
    from server.client.results import LoadedModel, ServerStatus
    from server.client.synchronous import LocalLLM

__all__ = ["SERVER_VARIABLE", "AsyncLocalLLM", "LoadedModel", "LocalLLM", "ServerStatus", "server_url"]

_HOMES = {
    "SERVER_VARIABLE": "address",
    "AsyncLocalLLM": "asynchronous",
    "LoadedModel": "results",
    "LocalLLM": "synchronous",
    "ServerStatus": "results",
    "server_url": "address",
}


def __getattr__(name: str) -> object:
    # imported when they are used: commands that find no server need the address only
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
