"""The JSON of ``core.library_json`` and of ``/admin`` read back. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from server.client.fields import Fields, Unreadable
from server.client.results import LoadedModel, ServerStatus
from server.core.errors import InvalidModelSpec
from server.core.library import ActivePull, BackendHealth, Deleted, InstalledModel, ModelDetails, PredictedMemory
from server.core.model_spec import BackendName, parse_model_spec
from server.core.ports import DeviceMemory, ModelState
from server.core.pulling import PullActivity, PullEvent, PullFinished, PullNotice, PullProgress

_PREFIX = "local/"


def installed_model(fields: Fields) -> InstalledModel:
    """Read what ``installed_json`` writes."""
    return InstalledModel(
        model=fields.text_or_none("name") or "",
        backend=fields.choice("backend", BackendName),
        source=fields.text("source"),
        size_bytes=fields.whole("size_bytes"),
        modified=_unix_time(fields.time_or_none("modified")),
        path=fields.path_or_none("path"),
        quantization=fields.text_or_none("quantization"),
        parameters=fields.text_or_none("parameters"),
        context_length=fields.whole_or_none("context_length"),
        capabilities=fields.texts("capabilities"),
        digest=fields.text_or_none("digest"),
        other_names=fields.texts("other_names"),
        copies=fields.paths("copies"),
        problem=fields.text_or_none("problem"),
        state=fields.choice_or_none("state", ModelState),
    )


def installed_models(fields: Fields) -> tuple[InstalledModel, ...]:
    """Read a list of models."""
    return fields.each("data", installed_model)


def model_details(fields: Fields) -> ModelDetails:
    """Read what ``details_json`` writes."""
    template = fields.inner("template")
    return ModelDetails(
        installed=installed_model(fields),
        architecture=fields.text_or_none("architecture"),
        name=fields.text_or_none("title"),
        licence=fields.text_or_none("licence"),
        template=template.text_or_none("source"),
        template_capabilities=template.texts("capabilities"),
        files=fields.paths("files"),
        projectors=fields.paths("projectors"),
        system=fields.text_or_none("system"),
        defaults=fields.inner("defaults").document,
        memory=fields.each("memory", lambda each: PredictedMemory(each.whole("context_length"), each.whole("bytes"))),
        notes=fields.texts("notes"),
    )


def deleted(fields: Fields) -> Deleted:
    """Read what ``deleted_json`` writes."""
    model, backend = _model_and_backend(fields)
    return Deleted(model, backend, fields.paths("paths"), fields.whole("freed_bytes"))


def cancelled(fields: Fields) -> int:
    """Read how many pulls were ended."""
    return fields.whole("cancelled")


def pull_event(fields: Fields) -> PullEvent:
    """Read what ``pull_event_json`` writes."""
    match fields.text("status"):
        case "notice":
            return PullNotice(fields.text("message"))
        case "success":
            return PullFinished(*_model_and_backend(fields), fields.paths("paths"))
        case _:
            return _progress(fields)


def finished_pull(fields: Fields) -> PullFinished:
    """Read the last event of a pull."""
    event = pull_event(fields)
    if not isinstance(event, PullFinished):
        raise Unreadable("it is not the end of a pull")
    return event


def loaded_model(fields: Fields) -> LoadedModel:
    """Read what ``/admin/status`` and ``/admin/models`` say of a model."""
    return LoadedModel(
        id=fields.text("id"),
        backend=fields.choice("backend", BackendName),
        state=fields.choice("state", ModelState),
        size_bytes=fields.whole("size_bytes"),
        memory_bytes=fields.whole_or_none("memory_bytes"),
        num_leases=fields.whole_or_none("leases"),
        num_waiting=fields.whole_or_none("waiting"),
        keep_alive_until=fields.time_or_none("keep_alive_until"),
        progress=fields.number_or_none("progress"),
    )


def server_status(fields: Fields) -> ServerStatus:
    """Read the answer of ``/admin/status``."""
    if fields.text("object") != "status":
        raise Unreadable("it is no status")
    return ServerStatus(
        version=fields.text("version"),
        started=fields.time_or_none("started"),
        is_ready=fields.flag("ready"),
        backends=fields.each("backends", _health),
        devices=fields.each("devices", _device),
        models=fields.each("models", loaded_model),
        pulls=fields.each("pulls", _active_pull),
        document=fields.document,
    )


def _health(fields: Fields) -> BackendHealth:
    return BackendHealth(
        name=fields.choice("name", BackendName),
        is_up=fields.flag("up"),
        version=fields.text_or_none("version"),
        url=fields.text_or_none("url"),
        reason=fields.text_or_none("reason"),
    )


def _device(fields: Fields) -> DeviceMemory:
    return DeviceMemory(
        name=fields.text("name"),
        description=fields.text("description"),
        budget=fields.whole("budget_bytes"),
        taken=fields.whole("taken_bytes"),
    )


def _active_pull(fields: Fields) -> ActivePull:
    try:
        spec = parse_model_spec(fields.text("model"))
    except InvalidModelSpec:
        raise Unreadable(f"{fields.text('model')!r} is no model spec") from None
    is_known = fields.whole_or_none("total_bytes") is not None
    return ActivePull(
        spec=spec,
        quantization=fields.text_or_none("quantization"),
        backend=fields.choice("backend", BackendName),
        progress=_progress(fields) if is_known else None,
    )


def _progress(fields: Fields) -> PullProgress:
    return PullProgress(
        activity=fields.choice("status", PullActivity),
        done_bytes=fields.whole("done_bytes"),
        total_bytes=fields.whole("total_bytes"),
        bytes_per_second=fields.number_or_none("bytes_per_second") or 0.0,
        seconds_left=fields.number_or_none("seconds_left"),
    )


def _model_and_backend(fields: Fields) -> tuple[str, BackendName]:
    """Take an id apart that ``model_id`` made; names of files need not follow the grammar of specs."""
    text = fields.text("id")
    model, at, backend = text.removeprefix(_PREFIX).rpartition("@")
    try:
        if at and text.startswith(_PREFIX):
            return model, BackendName(backend)
    except ValueError:
        pass  # no backend of ours
    raise Unreadable(f"{text!r} is not the id of a model")


def _unix_time(time: datetime | None) -> int:
    return 0 if time is None else int(time.astimezone(UTC).timestamp())
