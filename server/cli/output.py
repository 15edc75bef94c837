"""What the commands write: data to standard output, everything else to standard error; figures as people read them."""

from __future__ import annotations

import json
import sys
from datetime import datetime

import typer

_UNITS = ("B", "kB", "MB", "GB", "TB")
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def print_data(text: str) -> None:
    """Write a line, or several, to standard output."""
    typer.echo(text)


def print_json(value: object) -> None:
    """Write a JSON document to standard output: on one line, unless somebody reads it on a terminal."""
    typer.echo(json.dumps(value, indent=2 if is_terminal_output() else None))


def print_json_line(value: object) -> None:
    """Write a JSON value as one line to standard output, at once."""
    typer.echo(json.dumps(value))


def tell(message: str) -> None:
    """Write a line to standard error: what happens, and what to do about it."""
    typer.echo(clean(message), err=True)


def is_terminal_output() -> bool:
    """Whether somebody reads standard output at once."""
    return sys.stdout.isatty()


def is_terminal_error() -> bool:
    """Whether somebody watches standard error, who can be shown what moves."""
    return sys.stderr.isatty()


def clean(text: str) -> str:
    """Return a text on one line without what would move a terminal's cursor or change its colours."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def size_text(num_bytes: float) -> str:
    """Say a number of bytes in powers of 1000, as Ollama does and disks are sold: ``4.7 GB``."""
    value, unit = float(num_bytes), _UNITS[0]
    for unit in _UNITS:  # the last one stays
        if abs(value) < 999.5 or unit == _UNITS[-1]:
            break
        value /= 1000
    digits = 1 if unit != "B" and abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def duration_text(seconds: float) -> str:
    """Say how long something takes, in its two largest units: ``1 h 05 min``."""
    whole = max(0, round(seconds))
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def share_text(fraction: float) -> str:
    """Say a share of 1 in percent: ``42 %``."""
    return f"{100 * fraction:.0f} %"


def date_text(unix_time: int) -> str:
    """Say the day of a Unix time where this program runs; nothing for 0."""
    try:
        return f"{datetime.fromtimestamp(unix_time).astimezone():%Y-%m-%d}" if unix_time > 0 else ""
    except (OverflowError, OSError, ValueError):  # beyond the calendar
        return ""
