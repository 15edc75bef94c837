"""Models in memory, as the ``model`` commands show them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from server.cli.output import duration_text, share_text, size_text
from server.cli.output_table import Column
from server.client.results import LoadedModel
from server.core.errors import InvalidModelSpec
from server.core.library import InstalledModel
from server.core.library_json import model_id
from server.core.model_spec import equivalent_names, parse_model_spec
from server.core.ports import ModelState

LOADED_COLUMNS = (
    Column("IN MEMORY", style="bold"),
    Column("STATE"),
    Column("MEMORY", "right"),
    Column("REQUESTS", "right"),
    Column("WAITING", "right"),
    Column("UNTIL"),
)
_OUT = (None, ModelState.COLD, ModelState.FAILED)


def loaded_models(installed: Iterable[InstalledModel]) -> tuple[LoadedModel, ...]:
    """Return those that are in memory, as far as that is known, on their way in or on their way out."""
    return tuple(
        LoadedModel(model_id(model.model, model.backend), model.backend, model.state, model.size_bytes)
        for model in installed
        if model.state is not None and model.state not in _OUT
    )


def loading_model(spec: str, models: Sequence[LoadedModel]) -> LoadedModel | None:
    """Return the model that is being loaded for a spec or alias; ``None`` if it is not clear which one that is."""
    loading = [model for model in models if model.state is ModelState.LOADING]
    try:
        names = {f"local/{name}".lower() for name in equivalent_names(parse_model_spec(spec).model)}
    except InvalidModelSpec:
        names = set[str]()  # an alias
    meant = [model for model in loading if model.id.partition("@")[0].lower() in names] or loading
    return meant[0] if len(meant) == 1 else None


def loaded_row(model: LoadedModel, now: datetime) -> tuple[str, ...]:
    """Return the cells of ``LOADED_COLUMNS``."""
    state = model.state.value
    if model.progress is not None:
        state += f" {share_text(model.progress)}"
    return (
        model.id,
        state,
        "" if model.memory_bytes is None else size_text(model.memory_bytes),
        str(model.num_leases or ""),
        str(model.num_waiting or ""),
        _until(model.keep_alive_until, now),
    )


def loaded_json(model: LoadedModel) -> dict[str, object]:
    """Build what ``/admin/status`` shows of a model."""
    until = model.keep_alive_until
    return {
        "id": model.id,
        "backend": model.backend.value,
        "state": model.state.value,
        "size_bytes": model.size_bytes,
        "memory_bytes": model.memory_bytes,
        "leases": model.num_leases,
        "waiting": model.num_waiting,
        "keep_alive_until": None if until is None else _utc(until),
        "progress": model.progress,
    }


def _until(time: datetime | None, now: datetime) -> str:
    return "" if time is None else f"in {duration_text((time - now).total_seconds())}"


def _utc(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
