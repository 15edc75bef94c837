"""The ``llmspell`` command: one file per command group."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from server import __version__
from server.cli import bench, chat, serve
from server.core.errors import LlmspellError

app = typer.Typer(
    name="llmspell",
    help="Serve the language models of this machine through one OpenAI-compatible HTTP API.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("serve")(serve.serve)
app.command("bench")(bench.bench)
app.command("chat", epilog=chat.EPILOG)(chat.chat)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - the signature is typer's
    if wanted:
        typer.echo(f"llmspell {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    del version


def main(command: Callable[[], object] = app) -> None:
    """Run the command; what this project refuses on purpose is one line on standard error and exit code 1."""
    try:
        command()
    except LlmspellError as error:
        print(f"llmspell: error: {error.message}", file=sys.stderr)  # noqa: T201 - logging may not be set up yet
        sys.exit(1)
