"""Managing a running server from Python: ``LocalLLM`` and ``AsyncLocalLLM``.

Inference stays with the ``openai`` package::

    from server.client import LocalLLM

    with LocalLLM() as llm:
        for event in llm.pull("hf.co/owner/repo:Q4_K_M"):
            print(event)
        print(llm.status().models)
"""

from __future__ import annotations

from server.client.address import SERVER_VARIABLE, server_url
from server.client.asynchronous import AsyncLocalLLM
from server.client.results import LoadedModel, ServerStatus
from server.client.synchronous import LocalLLM

__all__ = ["SERVER_VARIABLE", "AsyncLocalLLM", "LoadedModel", "LocalLLM", "ServerStatus", "server_url"]
