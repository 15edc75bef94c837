"""``llmspell model list``: the models on this machine's disks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from server.cli.model_options import BackendOption, ConfigOption, JsonOption, ServerOption
from server.cli.output import date_text, print_json, size_text, tell
from server.cli.output_table import Column, print_table
from server.core.model_spec import BackendName, is_hugging_face

if TYPE_CHECKING:
    from server.cli.model_access import ModelAccess
    from server.core.library import InstalledModel

_COLUMNS = (
    Column("NAME", style="bold"),
    Column("SHORT NAME", style="bold"),
    Column("BACKEND"),
    Column("SIZE", "right"),
    Column("QUANTIZATION", rank=1),
    Column("PARAMETERS", "right", rank=2),
    Column("MODIFIED", rank=3),
    Column("STATE"),
    Column("SOURCE", rank=4),
    Column("PROBLEM", style="red", least=24),
)


def list_models(
    *,
    backend: BackendOption = None,
    server: ServerOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the models on this machine.

    Those that cannot be used are listed with the reason. A model in Ollama's store that both backends can run is one
    line; so are copies of a file. With --json there is one entry for each backend. What a file holds is shown as far as
    it is known: a list opens no files, `llmspell model show` does.
    """
    from server.cli.model_access import open_access  # noqa: PLC0415 - --help does not need it

    with open_access(server, config) as access:
        models = access.models(backend)
        if as_json:
            from server.core.library_json import installed_json  # noqa: PLC0415 - --help does not need it

            print_json({"object": "list", "data": [installed_json(model) for model in models]})
        elif models:
            rows = [row(each) for each in merged(models)]
            print_table(_COLUMNS, sorted(rows, key=lambda cells: cells[0].lower()))
        else:
            _tell_that_there_is_none(access, backend)


def _tell_that_there_is_none(access: ModelAccess, backend: BackendName | None) -> None:
    asked = [each for each in access.health() if backend in (None, each.name)]
    for health in asked:
        if not health.is_up:
            tell(f"{health.name.value} is down: {health.reason}" if health.reason else f"{health.name.value} is down")
    if not any(health.is_up for health in asked):
        return  # who cannot be asked may have models
    tell("There are no models here yet. `llmspell model available` shows some, `llmspell model pull SPEC` gets one.")


def merged(models: Iterable[InstalledModel]) -> list[tuple[InstalledModel, ...]]:
    """Put together what is one model: one of the daemon's, and its files in the daemon's store for llama.cpp."""
    found = list[list["InstalledModel"]]()
    by_name = dict[str, list["InstalledModel"]]()
    for model in models:
        name = model.model.lower() if model.model and model.source in ("daemon", "ollama") else ""
        group = by_name.get(name)
        if name and group is not None and all(each.backend is not model.backend for each in group):
            group.append(model)
            continue
        found.append([model])
        if name:
            by_name[name] = found[-1]
    return [tuple(sorted(group, key=lambda each: each.source != "daemon")) for group in found]


def row(group: Sequence[InstalledModel]) -> tuple[str, ...]:
    """Return the cells of one line, for a model as one or two backends see it."""
    first = group[0]
    usable = [each for each in group if each.problem is None]
    return (
        first.model or (first.path.name if first.path else "?"),
        short_name(first),
        ", ".join(dict.fromkeys(each.backend.value for each in usable or group)),
        size_text(first.size_bytes),
        next((each.quantization for each in group if each.quantization), ""),
        next((each.parameters for each in group if each.parameters), ""),
        date_text(max(each.modified for each in group)),
        _states(group),
        ", ".join(dict.fromkeys("ollama" if each.source == "daemon" else each.source for each in group)),
        "" if usable else first.problem or "",
    )


def short_name(model: InstalledModel) -> str:
    """Return the shortest name with a tag of a model that is called after its repository; nothing for others."""
    if not is_hugging_face(model.model):
        return ""
    names = [name for name in model.other_names if "/" not in name]
    return min(names, key=lambda name: (":" not in name, len(name)), default="")


def _states(group: Sequence[InstalledModel]) -> str:
    known = {each.backend.value: each.state.value for each in group if each.state is not None}
    if len(set(known.values())) <= 1:
        return next(iter(known.values()), "")
    return ", ".join(f"{state} ({name})" for name, state in known.items() if state != "cold")
