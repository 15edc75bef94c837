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
        rank: what is left out first where a terminal is too narrow: the highest number; 0 is never left out.
        least: characters to which it may be folded before another column is left out for it; 0 for all it has.

    """

    title: str
    align: Literal["left", "right"] = "left"
    style: str = ""
    rank: int = 0
    least: int = 0


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Write a table to standard output; columns in which no row has anything are left out."""
    kept = [number for number, _ in enumerate(columns) if any(row[number] for row in rows)]
    shown = [columns[number] for number in kept]
    cells = [[clean(row[number]) for number in kept] for row in rows]
    if is_terminal_output():
        _print_fitted(shown, cells)
    else:
        print_data("\n".join(_aligned(shown, cells)))


def fitting(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return the numbers of the columns to show in a width, in characters."""
    widths = [min(width, column.least or width) for column, width in zip(columns, _widths(columns, rows), strict=True)]
    kept = list(range(len(columns)))
    while sum(widths[number] + len(_GAP) for number in kept) - len(_GAP) > width:
        last = max(kept, key=lambda number: columns[number].rank)
        if not columns[last].rank:
            break
        kept.remove(last)
    return kept


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[int]:
    lines = [[column.title for column in columns], *rows]
    return [max(len(line[number]) for line in lines) for number, _ in enumerate(columns)]


def _aligned(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [[column.title for column in columns], *rows]
    widths = _widths(columns, rows)
    return [
        _GAP.join(
            cell.rjust(width) if column.align == "right" else cell.ljust(width)
            for column, cell, width in zip(columns, line, widths, strict=True)
        ).rstrip()
        for line in lines
    ]


def _print_fitted(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console  # noqa: PLC0415 - slow imports, which --help and pipes do not need
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(highlight=False)
    kept = fitting(columns, rows, console.width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (columns[number] for number in kept):
        is_figure = column.align == "right"
        table.add_column(column.title, justify=column.align, style=column.style, no_wrap=is_figure, overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[number]) for number in kept))
    console.print(table)
