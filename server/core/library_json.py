"""Models on disk as JSON, the same over HTTP and from ``llmspell model … --json``. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from server.core.library import ActivePull, BackendHealth, Deleted, InstalledModel, ModelDetails
from server.core.model_spec import BackendName
from server.core.pulling import PullEvent, PullFinished, PullNotice, PullProgress

_LATEST = datetime.max.replace(tzinfo=UTC).timestamp()


def model_id(model: str, backend: BackendName) -> str:
    """Return a spec that selects the model on this backend, whatever other backends have."""
    return f"local/{model}@{backend.value}"


def installed_json(model: InstalledModel) -> dict[str, object]:
    """Build what is shown of a model in a list."""
    return {
        "id": model_id(model.model, model.backend) if model.model else None,
        "object": "model",
        "name": model.model or None,
        "backend": model.backend.value,
        "source": model.source,
        "state": None if model.state is None else model.state.value,
        "size_bytes": model.size_bytes,
        "modified": _utc(model.modified),
        "path": None if model.path is None else str(model.path),
        "quantization": model.quantization,
        "parameters": model.parameters,
        "context_length": model.context_length,
        "capabilities": list(model.capabilities),
        "digest": model.digest,
        "other_names": list(model.other_names),
        "copies": [str(path) for path in model.copies],
        "problem": model.problem,
    }


def details_json(details: ModelDetails) -> dict[str, object]:
    """Build what is shown of one model."""
    return installed_json(details.installed) | {
        "architecture": details.architecture,
        "title": details.name,
        "licence": details.licence,
        "template": {"source": details.template, "capabilities": list(details.template_capabilities)},
        "files": [str(path) for path in details.files],
        "projectors": [str(path) for path in details.projectors],
        "system": details.system,
        "defaults": dict(details.defaults),
        "memory": [{"context_length": each.context_length, "bytes": each.num_bytes} for each in details.memory],
        "notes": list(details.notes),
    }


def deleted_json(deleted: Deleted) -> dict[str, object]:
    """Build the answer to a deletion."""
    return {
        "id": model_id(deleted.model, deleted.backend),
        "object": "model",
        "deleted": True,
        "paths": [str(path) for path in deleted.paths],
        "freed_bytes": deleted.freed_bytes,
    }


def pull_event_json(event: PullEvent) -> dict[str, object]:
    """Build one event of a pull: ``status`` says which kind it is."""
    match event:
        case PullProgress():
            return {
                "status": event.activity.value,
                "done_bytes": event.done_bytes,
                "total_bytes": event.total_bytes,
                "bytes_per_second": round(event.bytes_per_second),
                "seconds_left": None if event.seconds_left is None else round(event.seconds_left, 1),
            }
        case PullNotice():
            return {"status": "notice", "message": event.message}
        case PullFinished():
            return {
                "status": "success",
                "id": model_id(event.model, event.backend),
                "paths": [str(path) for path in event.paths],
            }


def active_pull_json(pull: ActivePull) -> dict[str, object]:
    """Build what is shown of a pull that goes on."""
    progress: Mapping[str, object] = {"status": "queued"} if pull.progress is None else pull_event_json(pull.progress)
    return {
        "model": str(pull.spec),
        "quantization": pull.quantization,
        "backend": pull.backend.value,
        **progress,
    }


def health_json(health: BackendHealth) -> dict[str, object]:
    """Build what is shown of a backend."""
    return {
        "name": health.name.value,
        "up": health.is_up,
        "version": health.version,
        "url": health.url,
        "reason": health.reason,
    }


def _utc(seconds: int) -> str | None:
    if not 0 < seconds <= _LATEST:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
