"""Arguments and options that several ``model`` commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.cli.model_names import complete_installed, complete_pullable
from server.core.model_spec import BackendName

SpecArgument = Annotated[
    str,
    typer.Argument(
        metavar="SPEC",
        help="The model: NAME[:VARIANT], with @ollama or @llamacpp for one of the two backends.",
        show_default=False,
        autocompletion=complete_installed,
    ),
]
PullArgument = Annotated[
    str,
    typer.Argument(
        metavar="SPEC",
        help="The model: hf.co/OWNER/REPOSITORY[:QUANTIZATION], llamacpp/NAME for a recommended one, ollama/NAME for "
        "one of Ollama's.",
        show_default=False,
        autocompletion=complete_pullable,
    ),
]
BackendOption = Annotated[
    BackendName | None, typer.Option("--backend", help="Only the models of this backend.", show_default=False)
]
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="Ask this server, and nothing else.",
        show_default="LLMSPELL_SERVER, else the configured address if a server is there",
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Read this configuration file.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON to standard output, for programs.")]
