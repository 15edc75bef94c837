"""What happens while a model is downloaded, whoever downloads it: this process, or the Ollama daemon."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from server.core.model_spec import BackendName


class PullActivity(StrEnum):
    """What is being done for a model that is pulled.

    ``WAITING`` is for another process that downloads the same; ``CHECKING`` is hashing what is here already.
    """

    QUEUED = "queued"
    WAITING = "waiting"
    CHECKING = "checking"
    DOWNLOADING = "downloading"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far a pull is.

    Attributes:
        activity: what is being done.
        done_bytes: how much is here, of all files together.
        total_bytes: how much there will be, as far as is known.
        bytes_per_second: recent speed; 0 while nothing is known of it.
        seconds_left: how long it will take, or ``None`` while nothing is known of it.

    """

    activity: PullActivity
    done_bytes: int
    total_bytes: int
    bytes_per_second: float
    seconds_left: float | None

    @property
    def fraction(self) -> float:
        """What is done, from 0 to 1."""
        return self.done_bytes / self.total_bytes if self.total_bytes else 0.0


@dataclass(frozen=True, slots=True)
class PullNotice:
    """Something that whoever waits should know: a connection that broke, a part that could not be used."""

    message: str


@dataclass(frozen=True, slots=True)
class PullFinished:
    """The model is here.

    Attributes:
        model: the name under which the backend serves it.
        backend: whose it is.
        paths: its files, the one it is loaded by first; none for a model of the daemon.

    """

    model: str
    backend: BackendName
    paths: tuple[Path, ...] = ()


PullEvent = PullProgress | PullNotice | PullFinished
