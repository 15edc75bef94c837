"""Durations as Go writes them, which is how Ollama does: https://pkg.go.dev/time#ParseDuration."""

from __future__ import annotations

import re
from typing import NewType

Duration = NewType("Duration", str)
"""Text such as ``90s``, ``5m`` or ``1h30m``, which ``is_duration`` has found to be a duration, or empty."""

_DURATION = re.compile(r"[+-]?(0|([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)){1,16}\Z")


def is_duration(text: str) -> bool:
    """Whether a text is a duration such as ``90s``, ``5m`` or ``1h30m``; a negative one is, too."""
    return _DURATION.match(text) is not None


_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")


def duration_seconds(value: str | float) -> float:
    """Return the seconds of a duration, or of a number of seconds; negative ones mean for ever, as in Ollama.

    Raises:
        ValueError: the text is not a duration.

    """
    if not isinstance(value, str):
        return float(value)
    if not is_duration(value):
        raise ValueError(value)
    seconds = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in _PART.findall(value))
    return -seconds if value.startswith("-") else seconds
