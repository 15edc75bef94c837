"""``llmspell serve``: from flags and configuration to a running server."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from server.core.errors import ConfigurationError, InvalidModelSpec
from server.core.model_spec import is_hugging_face, parse_model_spec

if TYPE_CHECKING:
    from server.config import LoadedSettings

DEMO_MODEL = "local/demo"
_FORBIDDEN_IN_NAMES = re.compile(r"[^A-Za-z0-9._\-+ ]+")


def serve(
    *,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Read this configuration file.", show_default=False)
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1", metavar="ADDRESS")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="TCP port; 0 takes a free one.", min=0, max=65535, show_default="8000")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="FILE.gguf|SPEC",
            help="Load this file at start and serve it as local/NAME, NAME being the file's without .gguf; or load "
            "this model of the configuration at start. Repeatable.",
            show_default=False,
        ),
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Serve the small bundled model as local/demo.")] = False,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        typer.Option(help="Least severe messages that are written.", show_default="info"),
    ] = None,
) -> None:
    """Serve models over HTTP until Ctrl-C or SIGTERM."""
    loaded = load_with_models(config, _overrides(host, port, log_level), model or [], demo=demo)
    from server.app import create_application  # noqa: PLC0415 - slow imports, which --help does not need
    from server.cli.http_server import run  # noqa: PLC0415

    run(loaded, create_application)


def load_with_models(
    config: Path | None, overrides: dict[str, dict[str, Any]], arguments: list[str], *, demo: bool
) -> LoadedSettings:
    """Return the configuration with the models of ``--model`` and ``--demo``, which are loaded at start.

    Raises:
        ConfigurationError: it cannot be used.

    """
    from server.config import load_settings  # noqa: PLC0415 - slow imports, which --help does not need

    models = models_from_arguments([*arguments, *([str(demo_model_path())] if demo else [])])
    return load_settings({**overrides, "models": models} if models else overrides, config)


def _overrides(host: str | None, port: int | None, log_level: str | None) -> dict[str, dict[str, Any]]:
    sections: dict[str, dict[str, Any]] = {
        "server": {"host": host, "port": port},
        "logging": {"level": log_level},
    }
    given = {name: {key: value for key, value in keys.items() if value is not None} for name, keys in sections.items()}
    return {name: keys for name, keys in given.items() if keys}


def models_from_arguments(arguments: list[str]) -> dict[str, dict[str, Any]]:
    """Return the ``models`` table that the arguments of ``--model`` stand for."""
    models = dict[str, dict[str, Any]]()
    for argument in arguments:
        spec, keys = (
            _model_file(Path(argument)) if is_model_file(argument) else (_model_spec(argument), {"preload": True})
        )
        earlier = models.get(spec, {})
        if "path" in earlier and "path" in keys and earlier != keys:
            raise ConfigurationError(
                f"--model: {earlier['path']} and {keys['path']} would both be {spec}; rename one, "
                f"or give them names in the [models] tables of a configuration file."
            )
        models[spec] = earlier | keys
    return models


def is_model_file(argument: str) -> bool:
    """Whether an argument means a file: one that is there, or what ends as files do and is no repository's file."""
    if Path(argument).is_file():
        return True
    if not argument.lower().endswith(".gguf"):
        return False
    try:
        return not is_hugging_face(parse_model_spec(argument).name)
    except InvalidModelSpec:
        return True


def _model_file(path: Path) -> tuple[str, dict[str, Any]]:
    if not path.is_file():
        raise ConfigurationError(f"--model: there is no file {path}.")
    return f"local/{model_name(path)}", {"path": str(path.absolute()), "preload": True}


def model_name(path: Path) -> str:
    """Return the name under which a file is served: its stem, with what specs do not allow replaced by ``-``."""
    name = _FORBIDDEN_IN_NAMES.sub("-", path.stem).lstrip("._-+ ")
    if not name:
        raise ConfigurationError(f"--model: {path} has no letter or digit to make a name of; rename it.")
    return name


def _model_spec(text: str) -> str:
    try:
        spec = parse_model_spec(text)
    except InvalidModelSpec as error:
        raise ConfigurationError(f"--model: {error.message}") from error
    return f"local/{spec.model}"


def demo_model_path() -> Path:
    """Return the file of the bundled model.

    Raises:
        ConfigurationError: this installation lacks it.

    """
    path = Path(str(resources.files("server") / "assets" / "demo.gguf"))
    if not path.is_file():
        raise ConfigurationError(f"--demo: the bundled model is missing from this installation ({path}).")
    return path
