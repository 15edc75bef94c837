"""What ``llmspell doctor --conformance`` shows: a matrix of features and models, or one JSON document."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from server import __version__
from server.cli.conformance_suite import ModelReport, Outcome, Result
from server.cli.doctor_findings import printable

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {Result.PASSES: "green", Result.FAILS: "bold red", Result.UNSUPPORTED: "yellow"}
_ERROR = "no answer"


def print_matrix(console: Console, reports: Sequence[ModelReport]) -> None:
    """Print the matrix, and below it the reasons."""
    if console.is_terminal:
        _print_table(console, reports)
    else:
        for line in plain_matrix(reports):
            console.print(line, markup=False, soft_wrap=True)
    for line in reasons(reports):
        console.print(line, markup=False, soft_wrap=True)
    console.print()
    for report in reports:
        console.print(summary(report), markup=False, soft_wrap=True)


def plain_matrix(reports: Sequence[ModelReport]) -> list[str]:
    """Return the matrix as lines of text in columns."""
    features = _features(reports)
    first = max((len(feature) for feature in features), default=0)
    widths = [max(len(report.model), *(len(result) for result in Result), len(_ERROR)) for report in reports]
    lines = [
        "  ".join([f"{'':{first}}", *(f"{each.model:{width}}" for each, width in zip(reports, widths, strict=True))])
    ]
    for feature in features:
        cells = [f"{_cell(report, feature):{width}}" for report, width in zip(reports, widths, strict=True)]
        lines.append("  ".join([f"{feature:{first}}", *cells]))
    return [line.rstrip() for line in lines]


def reasons(reports: Sequence[ModelReport]) -> Iterator[str]:
    """Say why checks failed, why features are unsupported, and what else is to be known; failures first."""
    for report in reports:
        if report.error:
            yield f"\n{report.model}: {printable(report.error)}"
    for result in (Result.FAILS, Result.UNSUPPORTED, Result.PASSES):
        checks_of = _checks_by_reason(reports, result)
        if checks_of:
            yield f"\n{_TITLES[result]}:"
        for (model, reason), checks in checks_of.items():
            yield f"  {f'{model}, ' if len(reports) > 1 else ''}{', '.join(checks)}: {printable(reason)}"


def _checks_by_reason(reports: Sequence[ModelReport], result: Result) -> dict[tuple[str, str], list[str]]:
    found = dict[tuple[str, str], list[str]]()
    for report in reports:
        for each in report.outcomes:
            if each.result is result and each.reason:
                found.setdefault((report.model, each.reason), []).append(each.check)
    return found


_TITLES = {Result.FAILS: "What failed", Result.UNSUPPORTED: "Unsupported, and said so", Result.PASSES: "Remarks"}


def summary(report: ModelReport) -> str:
    """Say how a model did, in a line."""
    if report.error:
        return f"{report.model}: could not be checked"
    counts = {result: sum(each.result is result for each in report.outcomes) for result in Result}
    return (
        f"{report.model}: {counts[Result.PASSES]} of {len(report.outcomes)} pass, {counts[Result.FAILS]} fail, "
        f"{counts[Result.UNSUPPORTED]} unsupported"
    )


def as_json(reports: Sequence[ModelReport], url: str) -> str:
    """Return everything as one JSON document."""
    document = {
        "object": "conformance",
        "version": __version__,
        "server": url,
        "models": [
            {
                "model": report.model,
                "error": report.error or None,
                "checks": [_outcome_json(each) for each in report.outcomes],
            }
            for report in reports
        ],
    }
    return json.dumps(document, indent=2)


def _outcome_json(outcome: Outcome) -> dict[str, str | None]:
    return {"check": outcome.check, "result": outcome.result.value, "reason": outcome.reason or None}


def _features(reports: Sequence[ModelReport]) -> list[str]:
    return list(dict.fromkeys(outcome.check for report in reports for outcome in report.outcomes))


def _cell(report: ModelReport, feature: str) -> str:
    found = next((each.result.value for each in report.outcomes if each.check == feature), None)
    return found or _ERROR


def _print_table(console: Console, reports: Sequence[ModelReport]) -> None:
    from rich import box  # noqa: PLC0415 - slow, and not needed elsewhere
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("")
    for report in reports:
        table.add_column(Text(report.model), overflow="fold")
    for feature in _features(reports):
        cells = [_cell(report, feature) for report in reports]
        table.add_row(feature, *(Text(cell, _STYLES[Result(cell)] if cell in list(Result) else "") for cell in cells))
    console.print(table)
