"""The ``llmspell model`` commands: which models there are, getting them, deleting them, having them in memory."""

from __future__ import annotations

import typer

from server.cli.examples import examples
from server.cli.install_ollama import EXAMPLES as OLLAMA_EXAMPLES
from server.cli.install_ollama import install_ollama
from server.cli.model_available import available
from server.cli.model_list import list_models
from server.cli.model_memory import load, unload
from server.cli.model_pull import pull
from server.cli.model_rm import remove
from server.cli.model_show import show
from server.cli.model_status import status
from server.cli.quick_start import QuickCommand, QuickGroup

group = typer.Typer(
    name="model",
    cls=QuickGroup,
    help="""Manage the models of this machine, on both backends.

    The commands ask the server, if one runs: the one of --server, else of the environment variable LLMSPELL_SERVER,
    else the one at the host and port of the configuration. Without a server they look at the files and ask the Ollama
    daemon themselves.

    Results go to standard output, everything else to standard error. Exit codes: 0 it is done; 1 it was refused or
    failed, and one line says why; 2 the command line is wrong; 130 it was interrupted by Ctrl-C.""",
    no_args_is_help=True,
    rich_markup_mode=None,
)

group.command(
    "status",
    cls=QuickCommand,
    epilog=examples(
        ("llmspell model status", "what runs where, and what is in memory"),
        ("llmspell model status --json", "the same for a program"),
    ),
)(status)
group.command(
    "list",
    cls=QuickCommand,
    epilog=examples(
        ("llmspell model list", "all models on this machine"),
        ("llmspell model list --backend ollama", "those of the Ollama daemon"),
        ("llmspell model list --json | jq -r '.data[].id'", "their specs"),
    ),
)(list_models)
group.command(
    "available",
    cls=QuickCommand,
    epilog=examples(
        ("llmspell model available", "what this machine can run"),
        ("llmspell model available --recommended", "all recommended models, and whether they fit"),
    ),
)(available)
group.command(
    "pull",
    cls=QuickCommand,
    epilog=examples(
        ("llmspell model pull ollama/phi3:3.8b", "from Ollama's library, by the daemon"),
        ("llmspell model pull llamacpp/mistral:7b", "a recommended model from Hugging Face"),
        ("llmspell model pull llamacpp/mistral:7b --quantization Q8_0", "the same, larger and more exact"),
        ("llmspell model pull hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M", "any GGUF repository there"),
    ),
)(pull)
group.command(
    "show",
    cls=QuickCommand,
    epilog=examples(
        ("llmspell model show phi3:3.8b", "all that is known of a model"),
        ("llmspell model show phi3:3.8b@llamacpp", "as llama.cpp sees it"),
    ),
)(show)
group.command(
    "rm",
    cls=QuickCommand,
    epilog=examples(
        ("llmspell model rm phi3:3.8b@ollama", "asks, and deletes it from the daemon"),
        ("llmspell model rm hf.co/owner/repository:Q4_K_M --yes", "asks nothing"),
    ),
)(remove)
group.command(
    "load",
    cls=QuickCommand,
    epilog=examples(("llmspell model load llama3.1:8b", "into memory, before the first request")),
)(load)
group.command(
    "unload",
    cls=QuickCommand,
    epilog=examples(
        ("llmspell model unload llama3.1:8b", "out of memory, when its requests have finished"),
        ("llmspell model unload llama3.1:8b --force", "at once; its requests fail"),
    ),
)(unload)
group.command("install-ollama", cls=QuickCommand, epilog=OLLAMA_EXAMPLES)(install_ollama)
