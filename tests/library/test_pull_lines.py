"""From the daemon's lines to progress and errors, without a daemon."""

from __future__ import annotations

import pytest

from server.backends.ollama.pull_lines import PullLines, pull_error
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


class Stage:
    """Lines, and somebody who looks at them at times of a test's choice."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lines = PullLines()
        self.meter = SpeedMeter(lambda: self.now)

    def look(self, now: float, *lines: dict[str, object]) -> PullProgress:
        self.now = now
        for line in lines:
            self.lines.take(line)
        return self.lines.progress(self.meter)


def blob(name: str, total: object, completed: object = None) -> dict[str, object]:
    line: dict[str, object] = {"status": f"pulling {name}", "digest": f"sha256:{name}", "total": total}
    return line if completed is None else line | {"completed": completed}


def test_bytes_of_all_blobs_are_summed_and_speed_is_of_what_comes_now() -> None:
    stage = Stage()
    assert stage.look(0, {"status": "pulling manifest"}) == PullProgress(PullActivity.QUEUED, 0, 0, 0.0, None)
    assert not stage.lines.has_begun
    begun = stage.look(1, blob("a", 1000, 400))  # of an earlier pull
    assert (begun.done_bytes, begun.total_bytes, begun.bytes_per_second, begun.seconds_left) == (400, 1000, 0.0, None)
    later = stage.look(5, blob("a", 1000, 500))
    assert later.bytes_per_second == pytest.approx(20)
    assert later.seconds_left == pytest.approx(25)
    both = stage.look(6, blob("a", 1000, 1000), blob("b", 200), blob("b", 200, 50))
    assert (both.activity, both.done_bytes, both.total_bytes) == (PullActivity.DOWNLOADING, 1050, 1200)


def test_speed_is_that_of_the_last_seconds() -> None:
    stage = Stage()
    stage.look(0, blob("a", 10_000))
    for second in range(1, 11):
        stage.look(second, blob("a", 10_000, 100 * second))
    for second in range(11, 31):
        last = stage.look(second, blob("a", 10_000, 1000 + 10 * (second - 10)))
    assert last.bytes_per_second == pytest.approx(10)


def test_the_rest_is_checking_until_success() -> None:
    stage = Stage()
    stage.look(0, blob("a", 10, 10))
    for status in ("verifying sha256 digest", "writing manifest", "removing unused layers"):
        assert stage.look(1, {"status": status}).activity is PullActivity.CHECKING
        assert not stage.lines.is_complete
    done = stage.look(2, {"status": "success"})
    assert done.activity is PullActivity.DONE
    assert stage.lines.is_complete
    assert stage.lines.notices == []


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"status": 3},
        {"status": None, "total": 5},
        blob("a", "many"),
        blob("a", -5, 10),
        blob("a", total=True, completed=True),
        {"digest": 5, "total": 5},
    ],
)
def test_lines_of_no_meaning_change_nothing(line: dict[str, object]) -> None:
    stage = Stage()
    assert stage.look(0, line) == PullProgress(PullActivity.QUEUED, 0, 0, 0.0, None)


def test_more_than_all_cannot_be_done() -> None:
    assert Stage().look(0, blob("a", 10, 50)).done_bytes == 10


def test_other_statuses_are_notices_and_not_without_end() -> None:
    stage = Stage()
    for number in range(2000):
        stage.look(0, {"status": f"status {number} {'x' * 1000}"})
    assert len(stage.lines.notices) == 1000
    assert all(len(notice) < 600 for notice in stage.lines.notices)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("pull model manifest: file does not exist", ModelNotFound),
        ('pull model manifest: Get "https://host/v2/": dial tcp: lookup host: no such host', HubUnreachable),
        ("max retries exceeded: part stalled", HubUnreachable),
        ("pull model manifest: 503: busy", HubUnreachable),
        ("503: busy", HubUnreachable),
        ("pull model manifest: 429: slow down", HubBusy),
        ("unauthorized: access denied", HubDenied),
        ("401: {}", HubDenied),
        ("write /models/blobs/x-partial: no space left on device", DiskFull),
        ("open /models/blobs/x: permission denied", CannotStore),
        ("digest mismatch, file must be downloaded again: want a, got b", ChecksumMismatch),
        ("pull model manifest: 412: The model requires a newer version of Ollama.", PullFailed),
        ("insecure protocol http", PullFailed),
    ],
)
def test_the_daemons_sentences(message: str, kind: type[LlmspellError]) -> None:
    error = pull_error(message, "x:1b")
    assert type(error) is kind
    assert message.rstrip(".") in error.message
