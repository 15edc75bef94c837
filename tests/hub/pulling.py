"""Pulling into a folder, for tests."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from server.core.pulling import PullNotice, PullProgress
from server.store.download import Downloaded, DownloadEvent, Downloads
from server.store.hub import Hub
from server.store.hub_settings import HubSettings
from server.store.part_file import PRIVATE_FOLDER
from server.store.pull_plan import PullPlan, plan_pull

REPOSITORY = "owner/repo-GGUF"
FILE = "model-Q4_K_M.gguf"


def content(num_bytes: int, seed: int = 1) -> bytes:
    """Bytes that no two seeds share."""
    return random.Random(seed).randbytes(num_bytes)


class Puller:
    """Somebody who pulls into a folder; retries are quick."""

    def __init__(
        self,
        settings: HubSettings,
        root: Path,
        *,
        backoff: tuple[float, ...] = (0.01, 0.02, 0.04),
        silence: float = 5.0,
        free_bytes: Callable[[Path], int] = lambda _: 1 << 50,
        clock: Callable[[], float] = time.monotonic,
        look: float = 0.02,
    ) -> None:
        self.root = root
        self.hub = Hub(settings, silence_seconds=silence)
        self.downloads = Downloads(
            self.hub, root, look_seconds=look, backoff_seconds=backoff, free_bytes=free_bytes, clock=clock
        )
        self.events: list[DownloadEvent] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hub.close()

    def plan(self, quantization: str | None = None, repository: str = REPOSITORY) -> PullPlan:
        return plan_pull(self.hub.listing(repository), quantization)

    async def pull(self, plan: PullPlan | None = None) -> Downloaded:
        """Pull to the end; the events are kept."""
        self.events = []
        async for event in self.downloads.pull(plan or self.plan()):
            self.events.append(event)  # also those before a failure
        last = self.events[-1]
        assert isinstance(last, Downloaded)
        return last

    @property
    def notices(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, PullNotice)]

    @property
    def progress(self) -> list[PullProgress]:
        return [event for event in self.events if isinstance(event, PullProgress)]

    @property
    def parts(self) -> list[Path]:
        """What is left of downloads that did not finish."""
        return sorted((self.root / PRIVATE_FOLDER).glob("incomplete/*"))

    @property
    def part_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.parts if path.suffix == ".part")

    @property
    def published(self) -> list[str]:
        """What others see in the folder."""
        private = self.root / PRIVATE_FOLDER
        return sorted(
            path.relative_to(self.root).as_posix()
            for path in self.root.rglob("*")
            if path.is_file() and not path.is_relative_to(private)
        )
