"""Every question to the server: what is sent, and how the answer is read. Pure; both clients send these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import quote

from server.client import wire
from server.client.fields import Fields
from server.client.results import LoadedModel, ServerStatus
from server.core.errors import InvalidModelSpec
from server.core.library import Deleted, InstalledModel, ModelDetails
from server.core.model_spec import BackendName, ModelSpec
from server.core.pulling import PullEvent

T = TypeVar("T")

Spec = str | ModelSpec
"""A model spec, or an alias that the server knows."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One question.

    Attributes:
        method: of HTTP.
        path: below the server's URL, escaped.
        read: makes the result of the answer's JSON, or of each event of a stream.
        query: parameters in the URL.
        body: JSON that is sent.
        waits: whether the answer comes when something is done that may take for ever, so that silence is no failure.

    """

    method: str
    path: str
    read: Callable[[Fields], T]
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, object] | None = None
    waits: bool = False


def status() -> Call[ServerStatus]:
    """Ask how the server is."""
    return Call("GET", "/admin/status", wire.server_status)


def models(backend: BackendName | str | None) -> Call[tuple[InstalledModel, ...]]:
    """Ask for all models on disk."""
    query = {} if backend is None else {"backend": str(backend)}
    return Call("GET", "/admin/library", wire.installed_models, query)


def details(spec: Spec) -> Call[ModelDetails]:
    """Ask for all that is known of a model."""
    return Call("GET", f"/admin/library/{_segment(spec)}", wire.model_details)


def pull(spec: Spec, quantization: str | None) -> Call[PullEvent]:
    """Have a model downloaded."""
    body = _pull_body(spec, quantization) | {"stream": True}
    return Call("POST", "/admin/models/pull", wire.pull_event, body=body)


def cancel_pull(spec: Spec, quantization: str | None) -> Call[int]:
    """End a download for everybody."""
    return Call("POST", "/admin/models/pull/cancel", wire.cancelled, body=_pull_body(spec, quantization))


def load(spec: Spec) -> Call[LoadedModel]:
    """Have a model loaded."""
    return Call("POST", f"/admin/models/{_segment(spec)}/load", wire.loaded_model, waits=True)


def unload(spec: Spec, *, force: bool) -> Call[LoadedModel]:
    """Have a model unloaded."""
    path = f"/admin/models/{_segment(spec)}/unload"
    return Call("POST", path, wire.loaded_model, body={"force": True} if force else None, waits=True)


def delete(spec: Spec) -> Call[Deleted]:
    """Have a model deleted from the disk."""
    return Call("DELETE", f"/admin/models/{_segment(spec)}", wire.deleted)


def _pull_body(spec: Spec, quantization: str | None) -> dict[str, object]:
    return {"model": str(spec), "quantization": quantization}


def _segment(spec: Spec) -> str:
    """Escape a spec into one segment of a path, which no client may take for several."""
    text = str(spec)
    if not text.strip("."):
        raise InvalidModelSpec(f"{text!r} is not a model spec; write one such as local/llama3.1:8b.")
    return quote(text, safe=":@")
