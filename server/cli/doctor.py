"""``llmspell doctor``: what works on this machine, and what to do about what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.exit_codes import INTERRUPTED
from server.core.errors import ConfigurationError

if TYPE_CHECKING:
    from server.cli.doctor_checks import ConfigFacts
    from server.cli.doctor_findings import Diagnosis, Finding
    from server.config_sources import Configuration

EXAMPLES = """\b
Examples:
  llmspell doctor                           # what works here
  llmspell doctor --online --json           # the same for a program, with the hub
  llmspell doctor --conformance local/demo  # what clients can rely on
  llmspell doctor --conformance phi3@ollama --conformance phi3@llamacpp"""


def doctor(
    *,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Read this configuration file.", show_default=False)
    ] = None,
    online: Annotated[bool, typer.Option("--online", help="Ask the hub that models are pulled from, too.")] = False,
    conformance: Annotated[
        list[str] | None,
        typer.Option(
            "--conformance",
            metavar="SPEC|FILE.gguf",
            help="Instead of the machine, check what OpenAI's clients rely on when they ask this model. Repeatable: "
            "models are shown side by side.",
            show_default=False,
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="URL",
            help="With --conformance: the server to ask.",
            show_default="LLMSPELL_SERVER, else the one that runs here, else one just for this",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON document to standard output.")] = False,
) -> None:
    """Say what works on this machine, and what to do about what does not.

    Exit code 0: the server can serve something (warnings do not change that), or no check of --conformance failed.
    1: it cannot, or one did. 2: wrong usage.
    """
    if conformance:
        if online:
            raise typer.BadParameter("the hub is not asked with --conformance; leave it out.", param_hint="'--online'")
        from server.cli.conformance import check_conformance  # noqa: PLC0415 - slow imports, not for --help

        check_conformance(conformance, config, server, as_json=as_json)
        return
    if server is not None:
        raise typer.BadParameter("only --conformance asks a server; leave it out.", param_hint="'--server'")
    import asyncio  # noqa: PLC0415 - slow imports, which --help does not need

    try:
        diagnosis = asyncio.run(diagnose(config, online=online))
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps(diagnosis.to_json(), indent=2))
    else:
        from rich.console import Console  # noqa: PLC0415 - slow

        from server.cli.doctor_report import print_diagnosis  # noqa: PLC0415

        print_diagnosis(Console(highlight=False), diagnosis)
    if not diagnosis.can_serve:
        raise typer.Exit(1)


async def diagnose(config: Path | None, *, online: bool) -> Diagnosis:
    """Look at everything, and judge it.

    Raises:
        ConfigurationError: the file that was asked for is not there.

    """
    import asyncio  # noqa: PLC0415 - slow imports, which --help does not need

    from server.cli import doctor_checks as checks  # noqa: PLC0415
    from server.cli import doctor_llama, doctor_look  # noqa: PLC0415
    from server.cli.doctor_findings import Diagnosis  # noqa: PLC0415
    from server.config_sources import inherited_environment  # noqa: PLC0415

    settings, facts = _configuration(config)
    environ = inherited_environment()
    around = doctor_look.surroundings(environ)
    build, asked_hub, daemon = await asyncio.gather(
        asyncio.to_thread(doctor_look.build, environ),
        asyncio.to_thread(doctor_look.hub, around, online=online),
        doctor_look.ollama(settings, facts.source),
    )
    models = doctor_look.models(settings)
    findings: list[Finding | None] = [
        checks.check_config(facts),
        checks.check_port(doctor_look.port(settings.server)),
        doctor_llama.check_llama(build, doctor_look.hardware(), doctor_look.installation()),
        doctor_llama.check_devices(build),
        checks.check_models(models),
        checks.check_folders(doctor_look.folders(settings, around), models),
        checks.check_ollama(daemon),
        checks.check_store(doctor_look.store(doctor_look.store_folder(settings, around))),
        checks.check_hub(asked_hub),
        checks.check_limits(doctor_look.limits(), models),
    ]
    return Diagnosis(tuple(finding for finding in findings if finding is not None))


def _configuration(config: Path | None) -> tuple[Configuration, ConfigFacts]:
    from server.cli.doctor_checks import ConfigFacts  # noqa: PLC0415 - slow imports, which --help does not need
    from server.config_sources import Configuration, load_configuration  # noqa: PLC0415
    from server.store.recommended import load_recommended  # noqa: PLC0415

    if config is not None and not config.exists():
        raise ConfigurationError(f"--config: there is no file {config}.")
    try:
        loaded = load_configuration(None, config)
        if extension := loaded.configuration.store.recommended:
            load_recommended(Path(extension))
    except ConfigurationError as error:
        return Configuration(), ConfigFacts("", error.message)
    return loaded.configuration, ConfigFacts(loaded.source)
