"""``llmspell model load`` and ``unload``: models into memory and out of it."""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Annotated, Self

import typer

from server.cli.exit_codes import INTERRUPTED
from server.cli.model_options import ConfigOption, JsonOption, ServerOption, SpecArgument
from server.cli.output import clean, is_terminal_error, print_data, print_json, share_text, size_text, tell

if TYPE_CHECKING:
    from server.cli.model_access import ModelAccess
    from server.cli.output_progress import Bar
    from server.client import LoadedModel

_LOOK_SECONDS = 0.5


def load(
    spec: SpecArgument,
    *,
    server: ServerOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Load a model into memory, and wait until it is there.

    Models of llama.cpp are loaded by the server, which has to run. Models of Ollama are loaded by its daemon. Ctrl-C
    ends the wait; a load that has begun goes on.
    """
    from server.cli.model_access import open_access  # noqa: PLC0415 - --help does not need it

    with open_access(server, config) as access:
        try:
            loaded = _load_and_watch(access, spec)
        except KeyboardInterrupt:
            tell("Interrupted; a load that has begun goes on.")
            raise typer.Exit(INTERRUPTED) from None
    _show(loaded, as_json=as_json)


def unload(
    spec: SpecArgument,
    *,
    force: Annotated[bool, typer.Option("--force", help="At once: requests that use it end with an error.")] = False,
    server: ServerOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Unload a model from memory, and wait until it is out.

    Requests that use it finish first. The next request loads it again.
    """
    from server.cli.model_access import open_access  # noqa: PLC0415 - --help does not need it

    with open_access(server, config) as access:
        try:
            unloaded = access.unload(spec, force=force)
        except KeyboardInterrupt:
            tell("Interrupted; the unload goes on.")
            raise typer.Exit(INTERRUPTED) from None
    _show(unloaded, as_json=as_json)


def _load_and_watch(access: ModelAccess, spec: str) -> LoadedModel:
    """Wait for a load in a thread, and show how far it is meanwhile."""
    if access.status is None:
        return access.load(spec)
    loaded = Future["LoadedModel"]()
    # nobody waits for it in the end: Ctrl-C leaves it behind
    threading.Thread(target=_complete, args=(loaded, access, spec), daemon=True).start()
    with _LoadDisplay(spec) as display:
        while not _is_done(loaded):
            display.show(access.loading(spec))
    return loaded.result()


def _complete(loaded: Future[LoadedModel], access: ModelAccess, spec: str) -> None:
    try:
        loaded.set_result(access.load(spec))
    except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
        loaded.set_exception(error)


def _is_done(loaded: Future[LoadedModel]) -> bool:
    return bool(wait([loaded], timeout=_LOOK_SECONDS).done)


class _LoadDisplay:
    """Shows how far a load is: a bar on a terminal, else a line where something changes."""

    def __init__(self, name: str) -> None:
        from server.cli.output_progress import Bar  # noqa: PLC0415 - --help does not need it

        self._name = name
        self._bar: Bar | None = Bar(name) if is_terminal_error() else None
        self._shown = ""

    def show(self, model: LoadedModel | None) -> None:
        if model is None or model.progress is None:
            return
        text = f"{model.state.value} {share_text(model.progress)}"
        if self._bar is not None:
            self._bar.move(model.progress, 1.0, text)
        elif text != self._shown:
            tell(f"{self._name}: {text}")
        self._shown = text

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.__exit__()


def _show(model: LoadedModel, *, as_json: bool) -> None:
    if as_json:
        from server.cli.model_loaded import loaded_json  # noqa: PLC0415 - --help does not need it

        print_json(loaded_json(model))
        return
    memory = "" if model.memory_bytes is None else f", {size_text(model.memory_bytes)}"
    print_data(clean(f"{model.id} {model.state.value}{memory}"))
