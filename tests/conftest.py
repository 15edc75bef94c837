"""Every test has a home, a working directory and an environment of its own."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import certifi
import pytest

_OF_USERS = ("LLMSPELL_", "HF_", "HUGGING")
_FOLDERS = ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "OLLAMA_MODELS")


def pytest_collection_finish() -> None:
    """Keep the garbage collector from what stays to the end: with all tests collected, it takes 0.2 s to look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def few_authorities(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have clients trust one public authority: each reads all of them, for 25 ms, and no test needs one."""
    first, end, _ = Path(certifi.where()).read_text(encoding="utf-8").partition("-----END CERTIFICATE-----\n")
    path = tmp_path_factory.mktemp("authorities") / "one.pem"
    path.write_text(first + end, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(path))
        yield


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
