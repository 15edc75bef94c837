"""Names of models for the completion of arguments; whatever fails, nothing is completed and nothing is said."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

_PREFIXES = ("", "local/")


def complete_installed(incomplete: str) -> list[str]:
    """Complete the spec of a model that is on this machine's disks."""
    return _beginning_with(incomplete, _installed)


def complete_pullable(incomplete: str) -> list[str]:
    """Complete the spec of a recommended model, or of one that is here and may lack something."""
    return _beginning_with(incomplete, _recommended)


def _beginning_with(incomplete: str, specs: Callable[[], Iterable[str]]) -> list[str]:
    with suppress(Exception):  # a traceback in the middle of a command line helps nobody
        wanted = incomplete.lower()
        return sorted({spec for spec in specs() if spec.lower().startswith(wanted)})
    return []


def _installed() -> Iterator[str]:
    """Name what is in the files: the daemon's models are among them, where its store can be read."""
    from server.cli.model_access import open_library  # noqa: PLC0415 - only here
    from server.config_sources import load_configuration  # noqa: PLC0415

    configuration = load_configuration().configuration
    for entry in open_library(configuration).index.listing().entries:
        if entry.problem is None and entry.name is not None:
            yield from (f"{prefix}{entry.name}" for prefix in _PREFIXES)
    yield from configuration.models
    yield from configuration.aliases


def _recommended() -> Iterator[str]:
    from pathlib import Path  # noqa: PLC0415 - only here

    from server.config_sources import load_configuration  # noqa: PLC0415
    from server.store.recommended import load_recommended  # noqa: PLC0415

    extension = load_configuration().configuration.store.recommended
    for model in load_recommended(Path(extension) if extension else None):
        yield model.ollama_spec
        yield model.llamacpp_spec
