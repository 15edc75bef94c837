"""``llmspell model status``: what runs where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from server.cli.model_options import ConfigOption, JsonOption, ServerOption
from server.cli.output import clean, duration_text, print_data, print_json, size_text
from server.cli.output_table import Column, print_table

if TYPE_CHECKING:
    from server.cli.model_access import ModelAccess
    from server.client import ServerStatus
    from server.core.library import ActivePull, BackendHealth, InstalledModel
    from server.core.ports import DeviceMemory


def status(*, server: ServerOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show what runs where, and what is in memory.

    The server, the backends, the devices, the models in memory, the downloads that go on.
    """
    from server.cli.model_access import open_access  # noqa: PLC0415 - --help does not need it

    with open_access(server, config) as access:
        if access.status is not None:
            _show_server(access.url, access.status, as_json=as_json)
        else:
            _show_machine(access, as_json=as_json)


def _show_server(url: str, found: ServerStatus, *, as_json: bool) -> None:
    if as_json:
        print_json(found.document)
        return
    since = "" if found.started is None else f", for {duration_text((_now() - found.started).total_seconds())}"
    ready = "ready" if found.is_ready else "not ready yet: models are being loaded"
    print_data(clean(f"Server: llmspell {found.version} at {url}{since}, {ready}"))
    _print_status(found, {})


def _show_machine(access: ModelAccess, *, as_json: bool) -> None:
    from server import __version__  # noqa: PLC0415 - only here
    from server.cli.model_loaded import loaded_json, loaded_models  # noqa: PLC0415 - slow
    from server.client import ServerStatus  # noqa: PLC0415 - slow
    from server.core.library_json import health_json  # noqa: PLC0415 - slow

    installed = access.models()
    found = ServerStatus(
        __version__, None, is_ready=False, backends=tuple(access.health()), models=loaded_models(installed)
    )
    if as_json:
        print_json(
            {
                "object": "status",
                "version": found.version,
                "started": None,
                "ready": False,
                "backends": [health_json(each) for each in found.backends],
                "devices": [],
                "models": [loaded_json(each) for each in found.models],
                "pulls": [],
            }
        )
        return
    print_data(clean(f"Server: none at {access.url}; `llmspell serve` starts one"))
    _print_status(found, _counts(installed))


def _print_status(found: ServerStatus, counts: dict[str, int]) -> None:
    from server.cli.model_loaded import LOADED_COLUMNS, loaded_row  # noqa: PLC0415 - slow

    _print_section(
        [Column("BACKEND", style="bold"), Column("STATE"), Column("VERSION"), Column("MODELS", "right"), Column("")],
        [_backend_row(each, counts) for each in found.backends],
    )
    _print_section(
        [Column("DEVICE", style="bold"), Column("TAKEN", "right"), Column("OF", "right"), Column("")],
        [_device_row(each) for each in found.devices],
    )
    _print_section(LOADED_COLUMNS, [loaded_row(each, _now()) for each in found.models])
    _print_section(
        [Column("DOWNLOAD", style="bold"), Column("BACKEND"), Column("STATE")],
        [_pull_row(each) for each in found.pulls],
    )


def _print_section(columns: Iterable[Column], rows: list[tuple[str, ...]]) -> None:
    if rows:
        print_data("")
        print_table(tuple(columns), rows)


def _counts(installed: Iterable[InstalledModel]) -> dict[str, int]:
    """Count the models of each backend that can be used."""
    return Counter(model.backend.value for model in installed if model.problem is None)


def _backend_row(health: BackendHealth, counts: dict[str, int]) -> tuple[str, ...]:
    name = health.name.value
    remark = health.reason if health.reason is not None and not health.is_up else health.url
    return (
        name,
        "up" if health.is_up else "down",
        health.version or "",
        str(counts[name]) if name in counts else "",
        remark or "",
    )


def _device_row(device: DeviceMemory) -> tuple[str, ...]:
    return (device.name, size_text(device.taken), size_text(device.budget), device.description)


def _pull_row(pull: ActivePull) -> tuple[str, ...]:
    from server.cli.output_progress import progress_text  # noqa: PLC0415 - slow

    name = str(pull.spec) + (f" ({pull.quantization})" if pull.quantization else "")
    return (name, pull.backend.value, "queued" if pull.progress is None else progress_text(pull.progress))


def _now() -> datetime:
    return datetime.now(UTC)
