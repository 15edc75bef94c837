"""What ``llmspell doctor`` shows: a table on a terminal, plain lines elsewhere, and last of all what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.cli.doctor_findings import Diagnosis, Finding, Status, printable

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {Status.OK: "green", Status.NOTE: "cyan", Status.WARNING: "yellow", Status.FAILED: "bold red"}
_STATUS_WIDTH = max(len(status) for status in Status)


def print_diagnosis(console: Console, diagnosis: Diagnosis) -> None:
    """Print everything to a console, which decides by what it is whether there are colours and columns."""
    if console.is_terminal:
        _print_table(console, diagnosis)
    else:
        for line in plain_lines(diagnosis):
            console.print(line, markup=False, soft_wrap=True)
    _print_advice(console, diagnosis)


def plain_lines(diagnosis: Diagnosis) -> list[str]:
    """Return the findings as lines of text, none of which is broken."""
    width = max(len(finding.check) for finding in diagnosis.findings)
    lines = []
    for finding in diagnosis.findings:
        lines.append(f"{finding.status.value:{_STATUS_WIDTH}}  {finding.check:{width}}  {printable(finding.summary)}")
        lines += [f"{'':{_STATUS_WIDTH + width + 4}}{printable(line)}" for line in finding.details]
    return lines


def verdict(diagnosis: Diagnosis) -> str:
    """Say in a sentence how it stands."""
    if not diagnosis.can_serve:
        return "The server cannot serve anything as things are."
    if any(finding.status in {Status.FAILED, Status.WARNING} for finding in diagnosis.findings):
        return "The server can serve models; some things could be better."
    return "The server can serve models."


def _print_table(console: Console, diagnosis: Diagnosis) -> None:
    from rich import box  # noqa: PLC0415 - slow, and not needed elsewhere
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in diagnosis.findings:
        style = _STYLES[finding.status]
        table.add_row(Text(finding.status.value, style), Text(finding.check), Text(_described(finding)))
    console.print(table)


def _described(finding: Finding) -> str:
    return "\n".join((printable(finding.summary), *(f"  {printable(line)}" for line in finding.details)))


def _print_advice(console: Console, diagnosis: Diagnosis) -> None:
    console.print()
    console.print(verdict(diagnosis), markup=False, soft_wrap=True)
    if diagnosis.advice:
        console.print("What to do:")
    for number, line in enumerate(diagnosis.advice, start=1):
        # commands are to be copied as they are: no line may be broken but by the terminal
        console.print(f"{number:3}. {printable(line)}", markup=False, soft_wrap=True)
