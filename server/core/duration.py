"""Durations as Go writes them, which is how Ollama does: https://pkg.go.dev/time#ParseDuration."""

from __future__ import annotations

import re

_DURATION = re.compile(r"[+-]?(0|([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)){1,16}\Z")


def is_duration(text: str) -> bool:
    """Whether a text is a duration such as ``90s``, ``5m`` or ``1h30m``; a negative one is, too."""
    return _DURATION.match(text) is not None
