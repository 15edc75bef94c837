"""Writes the documents that repeat what the code says; with --check, only says which of them are stale.

They are config.example.toml, docs/configuration.md, docs/parameters.md, docs/formats.md and docs/cli.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from typer import Context
from typer.main import get_command

from server.api.config import ApiConfig
from server.api.schemas import ChatCompletionBody
from server.api.unsupported import HERE, MESSAGE_PARAMETERS, OPENAI_PARAMETERS, TOOL_PARAMETERS
from server.backends.llamacpp import LlamaCppBackend
from server.backends.ollama.backend import OllamaBackend
from server.backends.ollama.config import OllamaConfig
from server.chat.formats import FORMATS
from server.cli import app
from server.config_keys import KEYS, Key, LoggingConfig, ServerConfig
from server.core.parameters import ParameterSupport, refused
from server.pool.config import ModelConfig, PoolConfig
from server.router import RoutingConfig
from server.store.config import StoreConfig

ROOT = Path(__file__).parent.parent
SECTIONS: dict[str, type] = {
    "server": ServerConfig,
    "api": ApiConfig,
    "routing": RoutingConfig,
    "ollama": OllamaConfig,
    "llamacpp": PoolConfig,
    "store": StoreConfig,
    "models.*": ModelConfig,
    "logging": LoggingConfig,
}
EXAMPLE_MODEL = 'models."local/llama3.1:8b"'
EXAMPLE_PATH = "models/llama-3.1-8b-instruct-q4_k_m.gguf"
ALIASES_MEANING = (
    "Other names for models, so that clients written for another service run unchanged: the key is the name that "
    "clients send, the value a model spec."
)
PARAMETERS_MEANING = """\
*mapped*: the backend has the parameter, and it is passed on. *emulated*: the backend does not have it; this server does
the same by other means. *listed*: it has no effect, and the response header `x-llmspell-ignored` names it. *refused*:
the request is answered with 400 `unsupported_parameter`, naming it; with `[api] unsupported = "ignore"` it is listed
instead (images are refused all the same). What a single model lacks, such as tools or thinking, its backend refuses in
the same way, whatever that setting says. Values that ask for nothing, such as `null` or `"tools": []`, are fine
everywhere."""
PLACES = """\
The file is the one that `--config` names, else the one that `LLMSPELL_CONFIG` names, else `config.toml` in the working
directory, else `llmspell/config.toml` in the user's configuration directory (`$XDG_CONFIG_HOME`, `~/.config`). Flags
win over environment variables, which win over the file, which wins over the defaults. A key that does not exist, and a
value that is not allowed, stop the server with a message that names the place and what to write instead.

A table in an environment variable is JSON: `LLMSPELL_LLAMACPP__MEMORY_BUDGET='{"CUDA0": "40GiB"}'`. It replaces that of
the file; only `LLMSPELL_MODELS` and `LLMSPELL_ALIASES` add to it, key by key. [Memory](memory.md) says how to size the
budget.

The server writes one file: what models took when they were loaded, as `llmspell/footprints.json` in the user's cache
directory (`$XDG_CACHE_HOME`, `~/.cache`). It may be deleted at any time."""


PUBLISHED_FORMATS = ROOT / "tests" / "chat" / "published_formats.json"
FORMATS_MEANING = """\
How a model calls functions and thinks follows from its chat template. [Tools](tools.md) says what holds for all; this
is the text that the model writes (`⏎` is a line break). The thinking of a family is what its template shows; where
the same way to call comes with other tags, those are taken.

A model whose template has no words for functions gets the *generic* protocol: functions are described in the system
message, and calls are written as in Hermes."""
TESTED_MEANING = """\
## What was tested

For each format: answers made up at random by its grammar, with its markers as text and as control tokens, are read as
calls with valid arguments, cut at every place; so are texts as the models are published to write them. For each
template below: conversations with calls and results are rendered, with tools and without, and what the template
writes for a call is read as this call, cut at every place. No weights of these models were at hand.

*refused*: the template wants variables that nobody sets, and no request can be rendered."""


COMPLETION = """\
## Completion

bash, zsh and fish complete commands, options and the names of models once `llmspell --install-completion` has written a
script to where the shell looks for such; it says what else the shell needs, and changes no file of yours. The shell is
the one that the environment variable `SHELL` names. `eval "$(llmspell --show-completion)"` does it for one session.
Names are those of the files on this machine and of the recommended models."""


def meanings(config: type) -> dict[str, str]:
    """Return what the docstring of a configuration class says of each attribute."""
    _, _, attributes = (inspect.getdoc(config) or "").partition("Attributes:\n")
    entries = re.findall(r"^    (\w+): (.+(?:\n        .+)*)", attributes, re.MULTILINE)
    return {name: text[:1].upper() + " ".join(text.split())[1:] for name, text in entries}


def summary(config: type) -> str:
    """Return what the docstring of a configuration class says of its section."""
    first_line = (inspect.getdoc(config) or "").splitlines()[0]
    _, _, text = first_line.partition(": ")
    return text[:1].upper() + text[1:]


def shown_default(key: Key) -> str:
    """Return a default as TOML writes it."""
    value = key.default.value if isinstance(key.default, StrEnum) else key.default
    return json.dumps(value)


def comment(text: str) -> str:
    """Return ``text`` as TOML comments of at most 100 columns."""
    return textwrap.fill(
        text.replace("``", ""), 100, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


def example_section(section: str, config: type) -> str:
    """Return one section of the example file; that of a model is commented out, for it has no default."""
    is_model = section == "models.*"
    off = "# " if is_model else ""
    lines = [comment(summary(config)), f"{off}[{EXAMPLE_MODEL if is_model else section}]"]
    for name, text in meanings(config).items():
        key = KEYS[f"{section}.{name}"]
        required = key.default is dataclasses.MISSING
        value = json.dumps(EXAMPLE_PATH) if required else shown_default(key)
        allowed = f" Allowed: {key.allowed}." if key.type not in (str, bool) else ""
        lines += ["", comment(text + allowed), f"{off}{name} = {value}"]
    return "\n".join(lines)


def example_file() -> str:
    """Return config.example.toml."""
    head = comment(
        "Every key of the configuration, with its default: a copy of this file changes nothing. Paths are relative to "
        "the file. Flags and environment variables (LLMSPELL_SERVER__PORT) win over it."
    )
    sections = [example_section(section, config) for section, config in SECTIONS.items()]
    aliases = "\n".join([comment(ALIASES_MEANING), "[aliases]", '# "gpt-4o-mini" = "local/llama3.1:8b"'])
    return "\n\n\n".join([head, *sections, aliases]) + "\n"


def configuration_section(section: str, config: type) -> str:
    """Return the table of one section for docs/configuration.md."""
    title = 'models."local/…"' if section == "models.*" else section
    lines = [f"## `[{title}]`", "", f"{summary(config)}", ""]
    lines += ["| key | default | allowed | environment variable | meaning |", "| --- | --- | --- | --- | --- |"]
    for name, text in meanings(config).items():
        key = KEYS[f"{section}.{name}"]
        default = "required" if key.default is dataclasses.MISSING else f"`{shown_default(key)}`"
        variable = f"`{key.variable}`" if key.variable else "in `LLMSPELL_MODELS`"
        lines.append(f"| `{name}` | {default} | {key.allowed} | {variable} | {text.replace('``', '`')} |")
    return "\n".join(lines).replace("``", "`")


def configuration_page() -> str:
    """Return docs/configuration.md."""
    head = f"# Configuration\n\n{PLACES}\n\n[`config.example.toml`](../config.example.toml) is the same as a file."
    sections = [configuration_section(section, config) for section, config in SECTIONS.items()]
    models = (
        "Paths are relative to the file. `LLMSPELL_MODELS` holds all the tables as one JSON object: "
        '`{"local/llama3.1:8b": {"path": "/models/llama.gguf"}}`.'
    )
    aliases = (
        f'## `[aliases]`\n\n{ALIASES_MEANING}\n\n```toml\n[aliases]\n"gpt-4o-mini" = "local/llama3.1:8b"\n```\n\n'
        "`LLMSPELL_ALIASES` holds them as one JSON object."
    )
    position = list(SECTIONS).index("models.*")
    sections[position] += f"\n\n{models}"
    return "\n\n".join([head, *sections, aliases]) + "\n"


def parameter_row(name: str, supports: Sequence[ParameterSupport]) -> str:
    """Return one row of the table of parameters."""
    cells = (f"{each.treatment.value}: {each.note}" if each.note else each.treatment.value for each in supports)
    return " | ".join([f"| `{name}`", *cells]) + " |"


def parameter_page() -> str:
    """Return docs/parameters.md."""
    backends = {
        LlamaCppBackend.name: LlamaCppBackend.parameters,
        OllamaBackend.name: OllamaBackend.parameters,
    }
    own = [name for name in ChatCompletionBody.model_fields if name not in HERE]
    columns = " | ".join(name.value for name in backends)
    lines = [
        "# Parameters of chat completions",
        PARAMETERS_MEANING,
        "## What depends on the backend",
        f"| parameter | {columns} |\n| --- | {' | '.join('---' for _ in backends)} |",
    ]
    rows = [
        parameter_row(name, [parameters.get(name, refused()) for parameters in backends.values()])
        for name in (*own, *TOOL_PARAMETERS, *MESSAGE_PARAMETERS)
    ]
    lines[-1] = "\n".join([lines[-1], *rows])
    here = [parameter_row(name, [support]) for name, support in HERE.items()]
    lines += ["## What this server does itself", "\n".join(["| parameter | treatment |\n| --- | --- |", *here])]
    others = ", ".join(f"`{name}`" for name in OPENAI_PARAMETERS)
    nobody = (
        f"{others}: refused, unless the value asks for nothing (`null`, and OpenAI's defaults). `store` and "
        "`service_tier` are listed instead."
    )
    lines += ["## What nobody here has", nobody]
    return "\n\n".join(lines) + "\n"


def code(text: str) -> str:
    """Write a text as code in a cell of a table."""
    if not text:
        return ""
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    space = " " if "`" in text else ""
    return fence + space + text.replace("|", "\\|").replace("\n", "⏎") + space + fence


def formats_page() -> str:
    """Return docs/formats.md: how families of models call and think, and which published templates are tested."""
    published = json.loads(PUBLISHED_FORMATS.read_text(encoding="utf-8"))
    lines = ["| format | families | a call | thinking ends with |", "| --- | --- | --- | --- |"]
    for each in FORMATS:
        cells = [each.name, ", ".join(each.families), code(each.example), code(each.thinking_end or "")]
        lines.append(f"| {' | '.join(cells)} |")
    tested = ["| chat template | format |", "| --- | --- |"]
    tested += [f"| {template} | {name} |" for template, name in published.items()]
    return "\n\n".join(["# Formats", FORMATS_MEANING, "\n".join(lines), TESTED_MEANING, "\n".join(tested)]) + "\n"


def command_page() -> str:
    """Return docs/cli.md: every command with its arguments, options and examples."""
    command = get_command(app)
    return "\n\n".join([*command_sections(command, "llmspell", level=1), COMPLETION]) + "\n"


def command_sections(command: Any, name: str, level: int) -> Iterator[str]:  # noqa: ANN401 - a private type of typer's
    """Yield the paragraphs about a command, and then those about the commands in it."""
    context = Context(command, info_name=name)
    yield f"{'#' * level} `{name}`"
    yield inspect.cleandoc(command.help)
    yield f"```console\n$ {' '.join([name, *command.collect_usage_pieces(context)])}\n```"
    for title, kind in (("Arguments", "argument"), ("Options", "option")):
        parameters = [each for each in command.get_params(context) if each.param_type_name == kind]
        if records := [record for each in parameters if (record := each.get_help_record(context))]:
            yield f"**{title}**:"
            yield "\n".join(f"* `{shown}`: {meaning}" for shown, meaning in records)
    if command.epilog:
        yield "**Examples**:"
        yield f"```console\n{example_lines(command.epilog)}\n```"
    inner = [(each, command.get_command(context, each)) for each in getattr(command, "commands", {})]
    if inner:
        yield "**Commands**:"
        yield "\n".join(f"* `{each}`: {each_command.help.splitlines()[0]}" for each, each_command in inner)
    for each, each_command in inner:
        yield from command_sections(each_command, f"{name} {each}", level + 1)


def example_lines(epilog: str) -> str:
    """Return the examples of a command as somebody types them."""
    return "\n".join(f"$ {line.strip()}" for line in epilog.splitlines() if line.startswith("  "))


def main() -> int:
    """Write or check the documents; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a document is stale")
    check = parser.parse_args().check
    documents = {
        "config.example.toml": example_file(),
        "docs/configuration.md": configuration_page(),
        "docs/parameters.md": parameter_page(),
        "docs/formats.md": formats_page(),
        "docs/cli.md": command_page(),
    }
    stale = {name for name, text in documents.items() if not _is_current(ROOT / name, text)}
    for name in sorted(stale):
        if check:
            print(f"{name} is stale; run tools/generate_docs.py")
        else:
            (ROOT / name).write_text(documents[name], encoding="utf-8")
            print(f"wrote {name}")
    return 1 if check and stale else 0


def _is_current(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
