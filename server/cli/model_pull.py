"""``llmspell model pull``: downloads a model."""

from __future__ import annotations

import shlex
import signal
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.exit_codes import INTERRUPTED
from server.cli.model_options import ConfigOption, JsonOption, PullArgument, ServerOption
from server.cli.output import print_data, tell
from server.core.errors import LlmspellError, PullFailed

if TYPE_CHECKING:
    from server.cli.model_access import ModelAccess
    from server.core.pulling import PullFinished


def pull(
    spec: PullArgument,
    *,
    quantization: Annotated[
        str | None,
        typer.Option(
            "--quantization",
            "-q",
            metavar="Q",
            help="Which file of a repository, such as Q4_K_M or Q8_0; Ollama's models have it in their tag instead.",
            show_default="Q4_K_M, or the nearest to it",
        ),
    ] = None,
    server: ServerOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Download a model, or what is missing of it.

    Its spec is written to standard output in the end. A name without a backend goes to the Ollama daemon if it is up,
    else to Hugging Face if it is a recommended model's; hf.co/... always goes to Hugging Face. Ctrl-C leaves what has
    come: the same command goes on from there. With --json every event is one line.
    """
    from server.cli.model_access import open_access  # noqa: PLC0415 - --help does not need it

    with open_access(server, config) as access:
        try:
            finished = _follow(access, spec, quantization, as_json=as_json)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # who presses again does not want to wait for anything
            tell("Interrupted. What has come is kept: run the same command again to go on.")
            raise typer.Exit(INTERRUPTED) from None
        if as_json:
            return
        print_data(_id(finished))
        tell(_advice(access, finished, spec if quantization is None else None))


def _id(finished: PullFinished) -> str:
    from server.core.library_json import model_id  # noqa: PLC0415 - --help does not need it

    return model_id(finished.model, finished.backend)


def _advice(access: ModelAccess, finished: PullFinished, spec: str | None) -> str:
    """Say what can be done with what has come; by the name that was asked for, if that means it."""
    name = _id(finished)
    for each in (spec, name) if spec is not None else (name,):
        try:
            found = access.details(each).installed
        except LlmspellError:
            continue
        if (found.model, found.backend) != (finished.model, finished.backend):
            continue  # short names may be those of other models
        if found.problem is not None:
            return f"It is here, but cannot be used: {found.problem}."
        name = each
        break
    return f"It is here. Try it with `llmspell chat {shlex.quote(name)}`."


def _follow(access: ModelAccess, spec: str, quantization: str | None, *, as_json: bool) -> PullFinished:
    """Show a pull until its end."""
    from server.cli.output_progress import pull_display  # noqa: PLC0415 - --help does not need it
    from server.core.pulling import PullFinished  # noqa: PLC0415

    with closing(access.pull(spec, quantization)) as events, pull_display(spec, as_json=as_json) as display:
        for event in events:
            display.show(event)
            if isinstance(event, PullFinished):
                return event
    raise PullFailed("The download ended without saying how; run the same command again.")
