"""Every test has a home, a working directory and an environment of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_OF_USERS = ("LLMSPELL_", "HF_", "HUGGING")
_FOLDERS = ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "OLLAMA_MODELS")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home directory; nothing that the developer has configured reaches a test, not even a subprocess."""
    directory = tmp_path / "home"
    directory.mkdir()
    monkeypatch.setenv("HOME", str(directory))
    monkeypatch.setenv("USERPROFILE", str(directory))
    for variable in [name for name in os.environ if name.startswith(_OF_USERS) or name in _FOLDERS]:
        monkeypatch.delenv(variable)
    return directory
