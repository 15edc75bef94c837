"""A machine with models on it, a hub and a daemon, for tests of what is on disk."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from server.app_library import LibraryParts, create_library
from server.backends.ollama.config import OllamaConfig
from server.core.model_spec import BackendName, parse_model_spec
from server.core.pulling import PullEvent, PullFinished
from server.pool.config import ModelConfig, PoolConfig
from server.store.config import StoreConfig
from server.store.places import Surroundings

REPOSITORY = "owner/repo-GGUF"
NAME = f"hf.co/{REPOSITORY}"
SHORT = """
[[models]]
name = "short:7b"
title = "Short"
parameters = "7B"
repository = "owner/repo-GGUF"
size_bytes = 1000
context_length = 2048
licence = "MIT"
aliases = ["short"]
"""


@dataclass
class Machine:
    """Where everything is; ``parts`` puts the libraries together as the program does."""

    root: Path
    hub_url: str = ""
    daemon_url: str = ""
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def own(self) -> Path:
        """The folder that downloads go to."""
        return self.root / "own"

    @property
    def ollama(self) -> Path:
        """Ollama's store."""
        return self.root / "ollama"

    @property
    def hugging_face(self) -> Path:
        """The cache of Hugging Face's tools."""
        return self.root / "hf"

    def parts(
        self,
        models: Mapping[str, ModelConfig] | None = None,
        prefer: BackendName = BackendName.OLLAMA,
        *,
        enabled: bool = True,
        discover: bool = True,
        model_dirs: tuple[str, ...] = (),
    ) -> LibraryParts:
        """Make the libraries; nothing of the developer's own machine is in them."""
        recommended = self.root / "recommended.toml"
        recommended.write_text(SHORT)
        folders = {
            "OLLAMA_MODELS": str(self.ollama),
            "HF_HUB_CACHE": str(self.hugging_face),
            "HF_ENDPOINT": self.hub_url,
        }
        return create_library(
            StoreConfig(models_dir=str(self.own), discover=discover, recommended=str(recommended)),
            PoolConfig(model_dirs=model_dirs),
            OllamaConfig(enabled=enabled, url=self.daemon_url or unused_url(), detection_timeout_seconds=10),
            models or {},
            prefer,
            Surroundings(folders | self.environ, self.root / "home", platform="other"),
            self.root / "cache",
        )


def unused_url() -> str:
    """Return where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


async def collect(events: AsyncGenerator[PullEvent]) -> list[PullEvent]:
    """Return all events."""
    return [event async for event in events]


async def pulled(parts: LibraryParts, spec: str, quantization: str | None = None) -> PullFinished:
    """Pull to the end."""
    last = (await collect(parts.library.pull(parse_model_spec(spec), quantization)))[-1]
    assert isinstance(last, PullFinished)
    return last
