"""Tables: fitted to a terminal by rich; in a pipe or a file aligned text of one line for each row, and nothing cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from server.cli.output import clean, is_terminal_output, print_data

_GAP = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Attributes:
        title: what is above it.
        align: where figures and texts stand.
        style: rich's, for terminals.

    """

    title: str
    align: Literal["left", "right"] = "left"
    style: str = ""


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Write a table to standard output; columns in which no row has anything are left out."""
    kept = [number for number, _ in enumerate(columns) if any(row[number] for row in rows)]
    shown = [columns[number] for number in kept]
    cells = [[clean(row[number]) for number in kept] for row in rows]
    if is_terminal_output():
        _print_fitted(shown, cells, title)
    else:
        print_data("\n".join([*([title] if title else []), *_aligned(shown, cells)]))


def _aligned(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [[column.title for column in columns], *rows]
    widths = [max(len(line[number]) for line in lines) for number, _ in enumerate(columns)]
    return [
        _GAP.join(
            cell.rjust(width) if column.align == "right" else cell.ljust(width)
            for column, cell, width in zip(columns, line, widths, strict=True)
        ).rstrip()
        for line in lines
    ]


def _print_fitted(columns: Sequence[Column], rows: Sequence[Sequence[str]], title: str) -> None:
    from rich.console import Console  # noqa: PLC0415 - slow imports, which --help and pipes do not need
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold", title=title or None, title_justify="left")
    for column in columns:
        is_figure = column.align == "right"
        table.add_column(column.title, justify=column.align, style=column.style, no_wrap=is_figure, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(table)
