"""``llmspell model available``: models that can be pulled by a short name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.model_options import ConfigOption, JsonOption, ServerOption
from server.cli.output import is_terminal_output, print_json, size_text, tell
from server.cli.output_table import Column, print_table

if TYPE_CHECKING:
    from server.cli.model_access import ModelAccess
    from server.cli.model_fit import Fit, Memory
    from server.core.library import InstalledModel
    from server.store.recommended import RecommendedModel

_COLUMNS = (
    Column("CLASS", style="bold", rank=1),
    Column("MODEL", style="bold", rank=3),
    Column("SIZE", "right"),
    Column("FITS"),
    Column("HERE", style="green", rank=2),
    Column("OLLAMA"),
    Column("LLAMA.CPP"),
    Column("CAPABILITIES", rank=4),
    Column("LICENCE", rank=5),
)
_CPU = "CPU"


@dataclass(frozen=True, slots=True)
class AvailableModel:
    """A model of the catalogue on this machine: where it would fit, and which backends have it."""

    model: RecommendedModel
    fit: Fit | None
    here: tuple[str, ...]


def available(
    *,
    recommended: Annotated[
        bool, typer.Option("--recommended", help="All recommended models, also those too large for this machine.")
    ] = False,
    server: ServerOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List models to pull, and whether they fit into memory.

    These are the recommended models of this program and of the file that [store] recommended names. Beside them
    `llmspell model pull` takes every GGUF repository of Hugging Face, and every model of Ollama's library.

    FITS is an estimate of where the model would be, from its size (a twentieth and half a gigabyte are added) and this
    machine's memory: "yes, on the GPU"; "partly on the GPU", the rest in main memory; "yes" without a GPU; "if memory
    is freed" where other programs have it now; "too large". HERE names the backends that have the model already.
    """
    from server.cli.model_access import open_access  # noqa: PLC0415 - --help does not need it
    from server.cli.model_machine import machine_memory  # noqa: PLC0415
    from server.store.recommended import load_recommended  # noqa: PLC0415

    with open_access(server, config) as access:
        extension = access.configuration.store.recommended
        catalogue = load_recommended(Path(extension) if extension else None)
        memory = machine_memory()
        found = available_models(catalogue, access.models(), _with_evictable(memory, access))
    shown = [each for each in found if recommended or each.fit is None or each.fit.value != "no"]
    if as_json:
        print_json({"object": "list", "data": [available_json(each) for each in shown]})
        return
    _print_classes(shown)
    _tell_about(found, shown, memory)


def available_models(
    catalogue: Iterable[RecommendedModel], installed: Sequence[InstalledModel], memory: Memory | None
) -> list[AvailableModel]:
    """Find out for each model where it would fit, and whether it is here already."""
    from server.cli.model_fit import fit_of  # noqa: PLC0415 - --help does not need it

    backends = dict[str, dict[str, None]]()
    for model in installed:
        if model.problem is None:
            for name in (model.model, *model.other_names):
                backends.setdefault(f"{model.backend.value}/{name}".lower(), {})[model.backend.value] = None
    return [
        AvailableModel(
            model,
            None if memory is None else fit_of(model.size_bytes, memory),
            tuple(dict.fromkeys(name for key in _keys(model) for name in backends.get(key, {}))),
        )
        for model in catalogue
    ]


def available_json(available: AvailableModel) -> dict[str, object]:
    """Build what is shown of a model of the catalogue."""
    model = available.model
    return {
        "name": model.name,
        "object": "recommended_model",
        "title": model.title,
        "parameters": model.parameters,
        "size_bytes": model.size_bytes,
        "size_class": model.size_class,
        "context_length": model.context_length,
        "capabilities": [each.value for each in model.capabilities],
        "licence": model.licence,
        "note": model.note or None,
        "aliases": list(model.aliases),
        "ollama": model.ollama_spec,
        "llamacpp": model.llamacpp_spec,
        "repository": model.repository,
        "quantization": model.quantization,
        "fits": None if available.fit is None else available.fit.value,
        "installed": list(available.here),
    }


def _keys(model: RecommendedModel) -> Iterable[str]:
    """Return the names of a model as ``available_models`` notes them, on both backends."""
    from server.core.model_spec import equivalent_names  # noqa: PLC0415 - --help does not need it

    for known_as in (model.name, *model.aliases):
        for name in equivalent_names(known_as):
            yield f"ollama/{name}".lower()
            yield f"llamacpp/{name}".lower()  # of Ollama's store
    yield f"llamacpp/hf.co/{model.repository}:{model.quantization}".lower()


def _print_classes(available: Sequence[AvailableModel]) -> None:
    """Print the models; on a terminal a size class is named once."""
    rows, last = list[tuple[str, ...]](), ""
    for each in available:
        size_class = each.model.size_class
        rows.append((("" if size_class == last and is_terminal_output() else size_class), *_row(each)))
        last = size_class
    if rows:
        print_table(_COLUMNS, rows)


def _row(available: AvailableModel) -> tuple[str, ...]:
    from server.cli.model_fit import FIT_WORDS  # noqa: PLC0415 - --help does not need it

    model = available.model
    return (
        model.title,
        size_text(model.size_bytes),
        "?" if available.fit is None else FIT_WORDS[available.fit],
        ", ".join(available.here),
        model.ollama_spec,
        model.llamacpp_spec,
        ", ".join(model.capabilities),
        model.licence,
    )


def _tell_about(found: Sequence[AvailableModel], shown: Sequence[AvailableModel], memory: Memory | None) -> None:
    if memory is not None:
        gpu = f" and {size_text(memory.gpu)} on GPUs" if memory.gpu else ""
        tell(f"This machine has {size_text(memory.total)} of memory{gpu}, {size_text(memory.free)} are free.")
    if num_hidden := len(found) - len(shown):
        tell(f"{num_hidden} more are too large for it; with --recommended they are listed, too.")
    tell("`llmspell model pull SPEC` takes what stands under OLLAMA or LLAMA.CPP.")


def _with_evictable(memory: Memory | None, access: ModelAccess) -> Memory | None:
    """Count what the server's own models take in main memory as free: it unloads them for others."""
    if memory is None or access.status is None:
        return memory
    taken = sum(device.taken for device in access.status.devices if device.name == _CPU)
    return replace(memory, free=min(memory.total, memory.free + taken))
