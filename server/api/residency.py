"""Models in memory and devices as ``/admin`` shows them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

from server.core.library import InstalledModel
from server.core.library_json import model_id
from server.core.model_spec import BackendName, equivalent_names
from server.core.ports import DeviceMemory, FirstTokenRecord, ModelCard, ModelState, PreloadedModel, ResidencyStatus
from server.router import ListedModel

_IN_MEMORY = frozenset({ModelState.LOADING, ModelState.WARM, ModelState.DRAINING})
_BY_IMPORTANCE = (ModelState.WARM, ModelState.LOADING, ModelState.DRAINING, ModelState.FAILED)

_LATEST = datetime.max.replace(tzinfo=UTC).timestamp()


def device_entry(device: DeviceMemory) -> dict[str, object]:
    """Build what is shown of a device; more can be taken than the budget when a load took more than was predicted."""
    return {
        "name": device.name,
        "description": device.description,
        "budget_bytes": device.budget,
        "taken_bytes": device.taken,
        "free_bytes": max(0, device.budget - device.taken),
    }


def model_entry(listed: ListedModel, status: ResidencyStatus) -> dict[str, object]:
    """Build what is shown of a model."""
    return {
        "id": listed.id,
        "object": "model",
        "backend": listed.card.backend.value,
        "state": status.state.value,
        "size_bytes": listed.card.size_bytes,
        "memory_bytes": _memory_bytes(listed, status),
        "pinned": status.is_pinned,
        "preload": status.is_preloaded,
        "bytes": _bytes(status),
        "leases": status.num_leases,
        "waiting": status.num_waiting,
        "last_use": utc(status.last_use),
        "keep_alive_until": utc(status.keep_alive_until),
        "context_length": status.context_length,
        "kv_cells": status.kv_cells,
        "gpu_layers": status.gpu_layers,
        "saved_prompts": {"count": status.num_saved, "bytes": status.saved_bytes},
        "load_seconds": None if status.load_seconds is None else round(status.load_seconds, 3),
        "progress": None if status.progress is None else status.progress.fraction,
        "failure": status.failure,
        "ttft": _first_token(status.first_token),
    }


def loaded_entry(listed: ListedModel, status: ResidencyStatus) -> dict[str, object]:
    """Build what is shown of a model among those in memory; what only the daemon knows of its models is ``None``."""
    is_own = listed.card.backend is BackendName.LLAMACPP
    return {
        "id": listed.id,
        "backend": listed.card.backend.value,
        "state": status.state.value,
        "size_bytes": listed.card.size_bytes,
        "memory_bytes": _memory_bytes(listed, status),
        "leases": status.num_leases if is_own else None,
        "waiting": status.num_waiting if is_own else None,
        "keep_alive_until": utc(status.keep_alive_until),
        "progress": None if status.progress is None else status.progress.fraction,
    }


def own_models(
    listed: Iterable[ListedModel], statuses: Iterable[ResidencyStatus]
) -> Sequence[tuple[ListedModel, ResidencyStatus]]:
    """Find out under which ids the models of this process are listed.

    One that is listed no more, because its file is gone, can still be in memory.
    """
    by_name = {each.card.model: each for each in listed if each.card.backend is BackendName.LLAMACPP}
    return [(by_name.get(each.model) or _unlisted(each), each) for each in statuses]


def daemon_models(listed: Iterable[ListedModel]) -> Sequence[tuple[ListedModel, ResidencyStatus]]:
    """Find out which models of the daemon are in memory, as far as it says."""
    others = (each for each in listed if each.card.backend is not BackendName.LLAMACPP)
    return [(each, ResidencyStatus(each.card.model, each.card.state)) for each in others]


def is_in_memory(status: ResidencyStatus) -> bool:
    """Whether a model is in memory, on its way there, or on its way out."""
    return status.state in _IN_MEMORY


def with_states(models: Iterable[InstalledModel], statuses: Iterable[ResidencyStatus]) -> Sequence[InstalledModel]:
    """Fill in which models of this process are in memory; of its own models a daemon has said so already."""
    states = {name.lower(): status.state for status in statuses for name in equivalent_names(status.model)}
    return [replace(each, state=_state(each, states)) for each in models]


def readiness(preloaded: Iterable[PreloadedModel]) -> Literal["ready", "loading", "failed"]:
    """Say whether all models that must have been in memory before the server is ready have been there."""
    present = tuple(preloaded)
    if any(model.card.state is ModelState.FAILED for model in present):
        return "failed"
    return "ready" if all(model.is_ready for model in present) else "loading"


def utc(seconds: float | None) -> str | None:
    """Write a Unix time as ISO 8601; what is beyond the calendar is never."""
    if seconds is None or seconds > _LATEST:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _unlisted(status: ResidencyStatus) -> ListedModel:
    card = ModelCard(status.model, BackendName.LLAMACPP, status.state, created=0, size_bytes=0, context_length=None)
    return ListedModel(model_id(status.model, BackendName.LLAMACPP), card)


def _state(model: InstalledModel, states: Mapping[str, ModelState]) -> ModelState | None:
    if model.backend is not BackendName.LLAMACPP:
        return model.state
    # copies have states of their own
    found = {states[name.lower()] for name in (model.model, *model.other_names) if name.lower() in states}
    return next((state for state in _BY_IMPORTANCE if state in found), ModelState.COLD)


def _memory_bytes(listed: ListedModel, status: ResidencyStatus) -> int | None:
    """Return what a model takes, as far as is known; ``None`` for one that is not in memory."""
    if not is_in_memory(status):
        return None
    if listed.card.backend is not BackendName.LLAMACPP:
        return listed.card.memory_bytes
    num_bytes = status.predicted if status.measured is None else status.measured
    return sum(num_bytes.values()) if num_bytes else None


def _bytes(status: ResidencyStatus) -> dict[str, object]:
    measured = status.measured
    return {
        device: {
            "predicted": status.predicted.get(device, 0),
            "measured": None if measured is None else measured.get(device, 0),
        }
        for device in dict.fromkeys((*status.predicted, *(measured or ())))
    }


def _first_token(record: FirstTokenRecord) -> dict[str, object]:
    return {
        "count": record.count,
        "median_ms": _milliseconds(record.median),
        "target_ms": _milliseconds(record.target),
        "attainment": record.attainment,
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
