"""``llmspell chat``: talk to a model in the terminal, or ask it one question from a script."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.cli.examples import examples
from server.cli.serve import DEMO_MODEL

_MAX_TEMPERATURE = 2.0

EPILOG = examples(
    ("llmspell chat local/llama3.1:8b", "a conversation"),
    ("llmspell chat --demo", "with the small bundled model"),
    ('llmspell chat path/to/model.gguf --system "Answer in one sentence."', "with a file"),
    ('git diff | llmspell chat llama3.1:8b --system "Write a commit message."', "one answer, for a script"),
)


def chat(  # noqa: PLR0913 - the command's options
    spec: Annotated[
        str | None,
        typer.Argument(metavar="SPEC|FILE.gguf", help="The model to talk to.", show_default=False),
    ] = None,
    *,
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="URL",
            help="Talk to the models of this server.",
            show_default="LLMSPELL_SERVER, else a server of this configuration if one runs, else none is needed",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Read this configuration file.", show_default=False)
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Talk to the small bundled model.")] = False,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="Tell the model this first.")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="0 takes the likeliest words, more takes others, too.", min=0, max=_MAX_TEMPERATURE),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Length of an answer at most.", min=1)] = None,
    timings: Annotated[bool, typer.Option("--timings", help="Say after each answer how long it took.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write each answer as one line of JSON.")] = False,
) -> None:
    """Talk to a model in the terminal; from a pipe, ask one question and write the answer to standard output.

    A running server answers, else the model is loaded here, as `llmspell serve` does it. What a model thinks before it
    answers is shown to people, dimmed, and not to programs.
    """
    if spec is None and not demo:
        raise typer.BadParameter("name one, such as local/llama3.1:8b; --demo is the bundled one.", param_hint="'SPEC'")
    from server.cli.chat_run import ChatCall, run_chat  # noqa: PLC0415 - slow imports, which --help does not need
    from server.cli.chat_source import ChatOptions  # noqa: PLC0415

    options = ChatOptions(temperature, max_tokens)
    run_chat(ChatCall(spec or DEMO_MODEL, server, config, demo, system, options, timings, as_json))
