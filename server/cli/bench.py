"""``llmspell bench``: how fast models are on this machine, side by side."""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.exit_codes import INTERRUPTED
from server.cli.serve import DEMO_MODEL, demo_model_path, is_model_file, models_from_arguments
from server.core.errors import ConfigurationError, InvalidModelSpec
from server.core.model_spec import parse_model_spec

if TYPE_CHECKING:
    from server.cli.bench_run import BenchPlan, BenchResult
    from server.config import Settings

_MAX_STREAMS = 256


def bench(  # noqa: PLR0913 - the command's options
    specs: Annotated[
        list[str] | None,
        typer.Argument(metavar="SPEC|FILE.gguf", help="The models to measure.", show_default=False),
    ] = None,
    *,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Read this configuration file.", show_default=False)
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="FILE.gguf|SPEC",
            help="Measure this, too; what `llmspell serve` takes, this command takes. Repeatable.",
            show_default=False,
        ),
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Measure the small bundled model, too, as local/demo.")] = False,
    prompt_tokens: Annotated[int, typer.Option(help="Length of the prompts, about.", min=1)] = 256,
    max_tokens: Annotated[
        int, typer.Option(help="Length of the answers; models on Ollama may end them earlier.", min=2)
    ] = 64,
    streams: Annotated[
        str, typer.Option(metavar="N[,N...]", help="Numbers of requests that are made at the same time.")
    ] = "1,4",
    rounds: Annotated[int, typer.Option(help="Times that everything is measured; medians are shown.", min=1)] = 3,
    seed: Annotated[
        int | None,
        typer.Option(help="Makes the prompts; the same one makes the same.", show_default="another one each time"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON document to standard output.")] = False,
) -> None:
    """Measure models side by side.

    Load time, memory, first token, tokens per second. No server is needed: models are loaded here, or asked of the
    Ollama daemon, as `llmspell serve` does it. A server that runs meanwhile takes its share of memory and cores.
    """
    counts = stream_counts(streams)
    models, measured = what_to_measure([*(specs or []), *(model or [])], demo=demo)
    settings = _settings(config, models)
    from server.cli.bench_report import as_json as report_as_json  # noqa: PLC0415 - slow imports, not for --help
    from server.cli.bench_report import print_table  # noqa: PLC0415
    from server.cli.bench_run import BenchPlan  # noqa: PLC0415

    # A daemon may still have the prompts of an earlier run in its cache.
    chosen = random.SystemRandom().randrange(10**6) if seed is None else seed
    plan = BenchPlan(prompt_tokens, max_tokens, counts, rounds, chosen)
    result = _run(settings, measured, plan)
    if as_json:
        typer.echo(report_as_json(result, plan))
    else:
        from rich.console import Console  # noqa: PLC0415

        print_table(Console(highlight=False), result, plan)
    if any(each.error is not None for each in result.measurements):
        raise typer.Exit(1)


def stream_counts(text: str) -> tuple[int, ...]:
    """Read the numbers of ``--streams``, each once, in ascending order."""
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = []
    if not counts or not 1 <= counts[0] <= counts[-1] <= _MAX_STREAMS:
        raise typer.BadParameter(
            f"{text!r} is not allowed; write numbers from 1 to {_MAX_STREAMS}, such as 1,4,16.",
            param_hint="'--streams'",
        )
    return tuple(counts)


def what_to_measure(arguments: Sequence[str], *, demo: bool) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the ``models`` table that the files among the arguments make, and the specs to measure, each once.

    Raises:
        ConfigurationError: a file is missing, or two of them have one name.

    """
    models, specs = dict[str, dict[str, Any]](), list[str]()
    for argument in arguments:
        path = Path(argument)
        if is_model_file(argument):
            if not path.is_file():
                raise ConfigurationError(f"there is no file {path}.")
            made = models_from_arguments([argument])
            _refuse_same_names(models, made)
            models |= made
            specs += made
        else:
            specs.append(argument)
    if demo:
        models[DEMO_MODEL] = models_from_arguments([str(demo_model_path())])[DEMO_MODEL]
        if not any(_is_demo(spec) for spec in specs):
            specs.append(DEMO_MODEL)
    if not specs:
        raise typer.BadParameter(
            "name at least one, such as local/llama3.1:8b or a FILE.gguf; --demo is the bundled one.",
            param_hint="'SPEC'",
        )
    return models, list(dict.fromkeys(specs))


def _refuse_same_names(models: dict[str, dict[str, Any]], made: dict[str, dict[str, Any]]) -> None:
    for spec in made.keys() & models.keys():
        if made[spec] != models[spec]:
            raise ConfigurationError(
                f"{models[spec]['path']} and {made[spec]['path']} would both be {spec}; rename one, or give them names "
                "in the [models] tables of a configuration file."
            )


def _is_demo(spec: str) -> bool:
    try:
        return f"local/{parse_model_spec(spec).model}" == DEMO_MODEL
    except InvalidModelSpec:
        return False


def _settings(config: Path | None, models: dict[str, dict[str, Any]]) -> Settings:
    from server.api.middleware import request_id_var  # noqa: PLC0415 - slow imports, which --help does not need
    from server.cli.logging_setup import set_up_logging  # noqa: PLC0415
    from server.config import load_settings  # noqa: PLC0415

    # nothing but what is measured is to be in memory
    overrides: dict[str, dict[str, Any]] = {"ollama": {"preload": ""}}
    settings = load_settings({**overrides, "models": models} if models else overrides, config).settings
    set_up_logging(replace(settings.logging, level="warning"), request_id_var)
    return settings


def _run(settings: Settings, specs: Sequence[str], plan: BenchPlan) -> BenchResult:
    import asyncio  # noqa: PLC0415 - slow imports, which --help does not need

    from uvicorn.loops.auto import auto_loop_factory  # noqa: PLC0415

    from server.cli.bench_run import measure  # noqa: PLC0415

    # what is running is given up in the same way, whoever asks for it
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
            return runner.run(measure(settings, specs, plan, _tell))
    except KeyboardInterrupt:
        _tell("interrupted; nothing is shown of what was measured.")
        raise typer.Exit(INTERRUPTED) from None


def _tell(line: str) -> None:
    typer.echo(f"llmspell bench: {line}", err=True)
