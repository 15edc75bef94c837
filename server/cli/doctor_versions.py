"""Versions of other programs: how they are written, and which ones this server wants. Pure."""

from __future__ import annotations

import re

OLLAMA_NEEDED = (0, 12, 6)
"""The first version of Ollama that knows ``truncate`` and ``shift`` (api/types.go): earlier ones cut prompts."""
OLLAMA_WANTED = (0, 12, 11)
"""The first one that knows ``logprobs``."""


def parse_version(text: str) -> tuple[int, ...] | None:
    """Read the numbers at the beginning of a version; ``None`` for what has none, and for the 0.0.0 of developers."""
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", text.strip())
    if match is None:
        return None
    numbers = tuple(int(part or 0) for part in match.groups())
    return numbers if any(numbers) else None
