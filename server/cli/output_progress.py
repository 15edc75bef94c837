"""How a pull goes on: a bar on a terminal, a line now and then in a log, an event a line for programs."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from server.cli.output import clean, duration_text, is_terminal_error, print_json_line, share_text, size_text, tell
from server.core.library_json import pull_event_json
from server.core.pulling import PullActivity, PullEvent, PullFinished, PullNotice, PullProgress

_LINE_SECONDS = 30.0
_LINE_FRACTION = 0.1
_WORDS = {
    PullActivity.QUEUED: "waiting for its turn",
    PullActivity.WAITING: "another program downloads it",
    PullActivity.CHECKING: "checking what is here",
    PullActivity.DOWNLOADING: "downloading",
    PullActivity.DONE: "done",
}


class PullDisplay(Protocol):
    """Shows the events of one pull within its context."""

    def show(self, event: PullEvent) -> None:
        """Show what happened; what a pull ends with is shown by who asked for it."""
        ...

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        ...


def pull_display(name: str, *, as_json: bool) -> PullDisplay:
    """Choose how a pull is shown."""
    if as_json:
        return JsonLines()
    return ProgressBar(name) if is_terminal_error() else ProgressLines(name)


class JsonLines:
    """Events as JSON, to standard output: the same as in the stream of ``POST /admin/models/pull``."""

    def show(self, event: PullEvent) -> None:
        """Write an event."""
        print_json_line(pull_event_json(event))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class ProgressLines:
    """Lines on standard error: when something else begins, at each tenth, and after half a minute without one."""

    def __init__(self, name: str, now: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._now = now
        self._shown: PullProgress | None = None
        self._shown_at = 0.0

    def show(self, event: PullEvent) -> None:
        """Write a line if it is worth one."""
        match event:
            case PullNotice():
                tell(f"{self._name}: {event.message}")
            case PullProgress() if self._is_news(event):
                self._shown, self._shown_at = event, self._now()
                tell(f"{self._name}: {progress_text(event)}")

    def _is_news(self, event: PullProgress) -> bool:
        last = self._shown
        if last is None or event.activity is not last.activity:
            return True
        is_further = int(event.fraction / _LINE_FRACTION) > int(last.fraction / _LINE_FRACTION)
        return is_further or self._now() - self._shown_at >= _LINE_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Bar:
    """A bar on a terminal, at standard error, that disappears in the end."""

    def __init__(self, name: str) -> None:
        """Take what stands before the bar."""
        from rich.console import Console  # noqa: PLC0415 - slow imports, which --help and pipes do not need
        from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415
        from rich.table import Column  # noqa: PLC0415

        self._console = Console(stderr=True, highlight=False, markup=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TextColumn("{task.fields[figures]}", markup=False, table_column=Column(no_wrap=True)),
            console=self._console,
            expand=True,
            transient=True,
        )
        self._task = self._progress.add_task(clean(name), total=None, figures="")

    def move(self, done: float, total: float, figures: str) -> None:
        """Show how far it is; 0 of 0 is not known."""
        self._progress.update(self._task, total=total or None, completed=done, figures=clean(figures))

    def say(self, message: str) -> None:
        """Write a line that stays, above the bar."""
        self._console.print(clean(message))

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class ProgressBar(Bar):
    """The bar of a pull, with speed and time left as the pull tells them."""

    def show(self, event: PullEvent) -> None:
        """Move the bar; what is to be read stays above it."""
        match event:
            case PullNotice():
                self.say(event.message)
            case PullProgress():
                self.move(event.done_bytes, event.total_bytes, progress_text(event))
            case PullFinished():
                pass


def progress_text(progress: PullProgress) -> str:
    """Say in words how far a pull is: ``downloading 1.2 of 4.7 GB (25 %), 98.0 MB/s, 36 s left``."""
    parts = [_WORDS[progress.activity]]
    if progress.total_bytes:
        done, total = size_text(progress.done_bytes), size_text(progress.total_bytes)
        if done.split()[1] == total.split()[1]:
            done = done.split()[0]
        parts[0] += f" {done} of {total} ({share_text(progress.fraction)})"
    if progress.bytes_per_second:
        parts.append(f"{size_text(progress.bytes_per_second)}/s")
    if progress.seconds_left is not None and progress.activity is not PullActivity.DONE:
        parts.append(f"{duration_text(progress.seconds_left)} left")
    return ", ".join(parts)
