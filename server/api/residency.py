"""Models and devices as ``/admin/models`` shows them. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from server.core.ports import DeviceMemory, FirstTokenRecord, ResidencyStatus

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


def model_entry(model_id: str, status: ResidencyStatus) -> dict[str, object]:
    """Build what is shown of a model; ``model_id`` is its spec as ``/v1/models`` lists it."""
    return {
        "id": model_id,
        "object": "model",
        "state": status.state.value,
        "pinned": status.is_pinned,
        "preload": status.is_preloaded,
        "bytes": _bytes(status),
        "leases": status.num_leases,
        "waiting": status.num_waiting,
        "last_use": _utc(status.last_use),
        "keep_alive_until": _utc(status.keep_alive_until),
        "context_length": status.context_length,
        "kv_cells": status.kv_cells,
        "gpu_layers": status.gpu_layers,
        "saved_prompts": {"count": status.num_saved, "bytes": status.saved_bytes},
        "load_seconds": None if status.load_seconds is None else round(status.load_seconds, 3),
        "progress": None if status.progress is None else status.progress.fraction,
        "failure": status.failure,
        "ttft": _first_token(status.first_token),
    }


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


def _utc(seconds: float | None) -> str | None:
    """Write a Unix time as ISO 8601; what is beyond the calendar is never."""
    if seconds is None or seconds > _LATEST:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
