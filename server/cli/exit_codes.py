"""Exit codes that several commands have; the help of ``llmspell`` tells all of them."""

from __future__ import annotations

import signal

INTERRUPTED = 128 + signal.SIGINT
"""As shells report a program that Ctrl-C ended."""
