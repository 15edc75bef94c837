"""``llmspell doctor --conformance``: does a model answer as OpenAI's clients need it?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from server.cli.bench import what_to_measure
from server.cli.conformance_chat import CHAT_CHECKS
from server.cli.conformance_errors import ERROR_CHECKS
from server.cli.conformance_features import FEATURE_CHECKS
from server.cli.conformance_forms import FORM_CHECKS
from server.cli.conformance_report import as_json as report_as_json
from server.cli.conformance_report import print_matrix
from server.cli.conformance_suite import ModelReport, run_checks
from server.cli.conformance_wire import Wire
from server.cli.doctor_checks import Occupant
from server.cli.doctor_look import port
from server.cli.exit_codes import INTERRUPTED
from server.cli.serve import DEMO_MODEL, is_model_file
from server.cli.server_lookup import listens, server_address
from server.client.address import url_of
from server.core.errors import ConfigurationError, InvalidModelSpec, ServerUnreachable
from server.core.model_spec import parse_model_spec

if TYPE_CHECKING:
    from server.config import Settings

CHECKS = (*CHAT_CHECKS, *FORM_CHECKS, *FEATURE_CHECKS, *ERROR_CHECKS)
_NOWHERE = ""


def check_conformance(arguments: Sequence[str], config: Path | None, server: str | None, *, as_json: bool) -> None:
    """Check the models side by side, and show how they did.

    Raises:
        ConfigurationError: the configuration cannot be used, or a file is missing.
        typer.Exit: a check failed, or somebody interrupted it.

    """
    try:
        url, reports = asyncio.run(_check_all(arguments, config, server))
    except KeyboardInterrupt:
        _tell("interrupted; nothing is shown of what was checked.")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        typer.echo(report_as_json(reports, url))
    else:
        print_matrix(Console(highlight=False), reports)
    if any(report.has_failed for report in reports):
        raise typer.Exit(1)


async def _check_all(
    arguments: Sequence[str], config: Path | None, server: str | None
) -> tuple[str, Sequence[ModelReport]]:
    reports = list[ModelReport]()
    async with _url(arguments, config, server) as (url, specs), Wire(url) as wire:
        for spec in specs:
            _tell(f"{len(CHECKS)} checks of {spec} at {wire.url}")
            with _progress() as tell:
                reports.append(await run_checks(wire, spec, CHECKS, tell))
        return wire.url, reports


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Show on a terminal which check is being made; elsewhere that would be too many lines."""
    console = Console(stderr=True, highlight=False)
    with console.status("") as status:
        yield lambda text: status.update(escape(text))


@asynccontextmanager
async def _url(
    arguments: Sequence[str], config: Path | None, server: str | None
) -> AsyncIterator[tuple[str, Sequence[str]]]:
    """Give a server to ask, and what to ask it for: the one that was named, the one that runs, or one of our own."""
    named = server_address(server, _NOWHERE, 0)
    if named.named_by is not None:
        specs = _specs(arguments, named.named_by)
        if not await asyncio.to_thread(listens, named.url):
            raise ServerUnreachable(
                f"No server answers at {named.url} ({named.named_by}). Start one with `llmspell serve`; without "
                f"{named.named_by}, a server is started for the time of the check."
            )
        yield named.url, specs
        return
    models, specs = what_to_measure(arguments, demo=any(_is_demo(each) for each in arguments))
    settings = _settings(config, models)
    running = await asyncio.to_thread(port, settings.server)
    if running.occupant is Occupant.OURS and not any(is_model_file(each) for each in arguments):
        yield url_of(settings.server.host, settings.server.port), specs
        return
    from server.cli.conformance_server import local_server  # noqa: PLC0415 - slow, and not always needed

    async with local_server(settings) as url:
        yield url, specs


def _specs(arguments: Sequence[str], named_by: str) -> Sequence[str]:
    """Return what a server is asked for, which knows nothing of the files of this machine."""
    for each in arguments:
        if is_model_file(each):
            raise ConfigurationError(
                f"{named_by} names a server, which serves models, not files: name {each} by a spec, or leave "
                f"{named_by} out."
            )
    return list(dict.fromkeys(arguments))


def _is_demo(text: str) -> bool:
    try:
        return f"local/{parse_model_spec(text).model}" == DEMO_MODEL
    except InvalidModelSpec:
        return False


def _settings(config: Path | None, models: dict[str, dict[str, Any]]) -> Settings:
    from server.api.middleware import request_id_var  # noqa: PLC0415 - slow
    from server.cli.logging_setup import set_up_logging  # noqa: PLC0415
    from server.config import load_settings  # noqa: PLC0415

    # nothing but what is checked is to be in memory
    overrides: dict[str, dict[str, Any]] = {"ollama": {"preload": ""}}
    settings = load_settings(overrides | ({"models": models} if models else {}), config).settings
    set_up_logging(replace(settings.logging, level="error"), request_id_var)
    return settings


def _tell(line: str) -> None:
    typer.echo(f"llmspell doctor: {line}", err=True)
