"""Examples below the help of a command, which docs/cli.md shows, too."""

from __future__ import annotations

_KEPT = "\b"  # click leaves the lines of a paragraph alone that begins with it


def examples(*lines: tuple[str, str]) -> str:
    """Return the epilog of a command: each example a command and what it does."""
    width = max(len(command) for command, _ in lines)
    shown = (f"  {command:{width}}  # {meaning}" for command, meaning in lines)
    return "\n".join([_KEPT, "Examples:", *shown])
