"""``llmspell model rm``: deletes a model from the disk."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.model_options import ConfigOption, JsonOption, ServerOption, SpecArgument
from server.cli.output import clean, print_data, print_json, size_text, tell
from server.core.errors import ModelNotFound

if TYPE_CHECKING:
    from server.cli.model_access import ModelAccess

_YES = ("y", "yes")


def remove(
    spec: SpecArgument,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    server: ServerOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a model from the disk, after asking.

    Only what this program downloaded and what the Ollama daemon has can be deleted; files of other programs, and those
    that the configuration names, are theirs. A model that requests use is not deleted.
    """
    if not yes and not sys.stdin.isatty():
        raise typer.BadParameter("there is no terminal to ask at; say --yes.", param_hint="'--yes'")
    from server.cli.model_access import open_access  # noqa: PLC0415 - --help does not need it
    from server.core.library_json import deleted_json, model_id  # noqa: PLC0415

    with open_access(server, config) as access:
        if not yes and not _is_wanted(access, spec):
            tell("Nothing was deleted.")
            raise typer.Exit(1)
        deleted = access.delete(spec)
    if as_json:
        print_json(deleted_json(deleted))
        return
    print_data(clean(f"deleted {model_id(deleted.model, deleted.backend)}, {size_text(deleted.freed_bytes)} freed"))
    for path in deleted.paths:
        tell(f"  {path}")


def _is_wanted(access: ModelAccess, spec: str) -> bool:
    try:
        model = access.details(spec).installed
    except ModelNotFound:
        what = f"what has come of {spec} so far, if anything"
    else:
        place = f" at {model.path}" if model.path else " from the Ollama daemon"
        what = f"{spec}, {size_text(model.size_bytes)}{place}"
    typer.echo(clean(f"Delete {what}? [y/N]: "), nl=False, err=True)
    return sys.stdin.readline().strip().lower() in _YES
