"""The ``llmspell`` command: one file per command group."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from server import __version__
from server.cli import bench, chat, doctor, model, serve, shell_completion
from server.cli.output import clean
from server.cli.quick_start import QuickGroup
from server.core.errors import LlmspellError

_PROGRAM = "llmspell"
# httpx brings a command line of its own, which imports rich and click: half of the time that importing it takes.
# This process has another one; without its module httpx does as if those were not installed.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type] # None: it cannot be imported
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}

app = typer.Typer(
    name=_PROGRAM,
    cls=QuickGroup,
    help="""Serve the language models of this machine through one OpenAI-compatible HTTP API.

    Exit codes: 0 it is done; 1 it was refused or failed, and one line says why; 2 the command line is wrong; 130 it was
    interrupted by Ctrl-C.""",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes longer to import than the help may take
    add_completion=False,
)
app.command("serve")(serve.serve)
app.add_typer(model.group)
app.command("chat", epilog=chat.EPILOG)(chat.chat)
app.command("bench")(bench.bench)
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor)


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
    install_completion: Annotated[
        bool,
        typer.Option(
            "--install-completion",
            help="Have the shell (bash, zsh or fish; SHELL names it) complete commands, options and models, and exit.",
            callback=shell_completion.install,
            is_eager=True,
        ),
    ] = False,
    show_completion: Annotated[
        bool,
        typer.Option(
            "--show-completion",
            help="Print the script for that, and exit.",
            callback=shell_completion.show,
            is_eager=True,
        ),
    ] = False,
) -> None:
    del version, install_completion, show_completion


def _run() -> object:
    return app(prog_name=_PROGRAM)


def _open_what_is_closed() -> None:
    """Have all three streams, in a shell that was told to close one, too: no file opened later may take its place."""
    nowhere = Path(os.devnull)
    sys.stdin = sys.stdin or nowhere.open(encoding="utf-8")
    sys.stdout = sys.stdout or nowhere.open("w", encoding="utf-8")
    sys.stderr = sys.stderr or nowhere.open("w", encoding="utf-8")


def main(command: Callable[[], object] = _run) -> None:
    """Run the command; what this project refuses on purpose is one line on standard error and exit code 1."""
    if shell_completion.is_asked():
        shell_completion.prepare()
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a name shows most of it
    try:
        command()
    except LlmspellError as error:
        # hubs, daemons and names of files have a say in it
        _fail(error.message)
    except OSError as error:
        if error.errno not in _UNWRITABLE or error.filename is not None:
            raise
        # what is left in the stream's memory must not fail once more at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _fail(f"The output cannot be written: {error.strerror}.")


def _fail(message: str) -> NoReturn:
    with suppress(OSError):  # nobody can be told
        print(f"llmspell: error: {clean(' '.join(message.splitlines()))}", file=sys.stderr)  # noqa: T201 - logging may not be set up yet
    sys.exit(1)
