"""What the daemon says while it pulls a model, as this server's progress and errors. Pure.

``PullModel`` in https://github.com/ollama/ollama, ``server/images.go``: a line every 60 ms while a blob comes, one blob
after the other, then a line for each thing that is done with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from server.core.errors import (
    CannotStore,
    ChecksumMismatch,
    DiskFull,
    HubBusy,
    HubDenied,
    HubUnreachable,
    LlmspellError,
    ModelNotFound,
    PullFailed,
)
from server.core.pulling import PullActivity, PullProgress
from server.core.speed import SpeedMeter

_ACTIVITIES = {
    "pulling manifest": PullActivity.QUEUED,
    "verifying sha256 digest": PullActivity.CHECKING,
    "writing manifest": PullActivity.CHECKING,
    "removing unused layers": PullActivity.CHECKING,
    "removing any unused layers": PullActivity.CHECKING,
    "success": PullActivity.DONE,
}
_MOST_BLOBS = 100_000
_MOST_NOTICES = 1000
_MOST_NOTICE_LEN = 500


class PullLines:
    """What all lines so far say together."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self._activity = PullActivity.QUEUED
        self._blobs: dict[str, _Blob] = {}

    @property
    def is_complete(self) -> bool:
        """Whether the daemon has said that it has the model."""
        return self._activity is PullActivity.DONE

    @property
    def has_begun(self) -> bool:
        """Whether the daemon has found the model."""
        return self._activity is not PullActivity.QUEUED

    def take(self, line: Mapping[str, object]) -> None:
        """Take the next line."""
        status = line.get("status")
        digest, total = line.get("digest"), _count(line.get("total"))
        if isinstance(digest, str) and total:
            self._activity = PullActivity.DOWNLOADING
            if digest in self._blobs or len(self._blobs) < _MOST_BLOBS:
                done = min(_count(line.get("completed")), total)
                self._blobs.setdefault(digest, _Blob(done)).take(done, total)
        elif isinstance(status, str) and status in _ACTIVITIES:
            self._activity = _ACTIVITIES[status]
        elif isinstance(status, str) and not digest and status and len(self.notices) < _MOST_NOTICES:
            self.notices.append(f"Ollama: {status[:_MOST_NOTICE_LEN]}")

    def progress(self, meter: SpeedMeter) -> PullProgress:
        """Return how far it is; ``meter`` is of whoever asks."""
        done = sum(blob.done for blob in self._blobs.values())
        total = sum(blob.total for blob in self._blobs.values())
        speed = meter.speed(sum(blob.fetched for blob in self._blobs.values()))
        is_coming = self._activity is PullActivity.DOWNLOADING and speed > 0
        return PullProgress(self._activity, done, total, max(speed, 0.0), (total - done) / speed if is_coming else None)


class _Blob:
    """Bytes of one blob; what was there at its first line was not downloaded now."""

    def __init__(self, first: int) -> None:
        self._first = first
        self.done = first
        self.total = 0

    def take(self, done: int, total: int) -> None:
        self.done, self.total = done, total

    @property
    def fetched(self) -> int:
        return max(self.done - self._first, 0)


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def pull_error(message: str, model: str) -> LlmspellError:
    """Turn the sentence with which the daemon ends a pull into an error."""
    message = message.strip().rstrip(".")
    lowered = f": {message.lower()}"  # a status may come first, or after what was tried
    for phrases, build in _MEANINGS:
        if any(phrase in lowered for phrase in phrases):
            return build(message, model)
    return PullFailed(f"Ollama could not download {model}: {message}.")


def _unknown(message: str, model: str) -> LlmspellError:
    return ModelNotFound(
        f"Ollama knows no model {model} to download ({message}). https://ollama.com/search shows what there is; GGUF "
        "files of Hugging Face are pulled as hf.co/owner/repository.",
        param="model",
    )


_MEANINGS: tuple[tuple[tuple[str, ...], Callable[[str, str], LlmspellError]], ...] = (
    (
        ("no space left on device", "not enough space", "disk quota"),
        lambda message, model: DiskFull(
            f"The disk with Ollama's models has no room for {model} ({message}). Delete something and pull again: what "
            "has come is kept."
        ),
    ),
    (
        ("permission denied", "read-only file system"),
        lambda message, _: CannotStore(
            f"Ollama's daemon cannot write to its folder for models ({message}). Correct its permissions, or "
            "OLLAMA_MODELS."
        ),
    ),
    (
        ("digest mismatch",),
        lambda message, model: ChecksumMismatch(
            f"What Ollama downloaded of {model} is not what it should be, and is deleted ({message}). Pull again."
        ),
    ),
    (
        ("newer version of ollama", ": 412:", "requires a newer"),
        lambda message, model: PullFailed(f"{model} needs a newer Ollama: update it, and pull again ({message})."),
    ),
    (
        ("unauthorized", "access denied", ": 401:", ": 403:"),
        lambda message, model: HubDenied(
            f"Ollama may not download {model} ({message}): it is private, or does not exist. `ollama signin` gives "
            "access to private models."
        ),
    ),
    (
        (": 429:", "too many requests"),
        lambda message, _: HubBusy(f"The registry is busy ({message}). Pull again later."),
    ),
    (("manifest: file does not exist", "manifest unknown", ": 404:"), _unknown),
    (
        (
            "no such host",
            "dial tcp",
            "lookup ",
            "connection refused",
            "connection reset",
            "network is unreachable",
            "i/o timeout",
            "tls:",
            "x509:",
            "max retries exceeded",
            "deadline exceeded",
            "unexpected eof",
            "part stalled",
            ": 500:",
            ": 502:",
            ": 503:",
            ": 504:",
        ),
        lambda message, model: HubUnreachable(
            f"Ollama's daemon could not reach what it downloads {model} from ({message}). Check the network and pull "
            "again: what has come is kept.",
        ),
    ),
)
