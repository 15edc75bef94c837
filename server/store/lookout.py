"""Looking into folders that others write to, and remembering what was seen, to notice cheaply when it changes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_MOST_ENTRIES = 200_000
_DEEPEST = 8
_SETTLED_NS = 2_000_000_000
"""Distance in time from which a later change shows: file systems keep times in steps, of up to two seconds."""


@dataclass(frozen=True, slots=True)
class FileState:
    """A regular file as it was seen; tells it from another one that takes its place."""

    path: Path
    size: int
    mtime_ns: int
    inode: int
    device: int


@dataclass(frozen=True, slots=True)
class Complaint:
    """Something in a place that is not listed, and why."""

    path: Path
    problem: str


class Refused(Exception):
    """A file that is there and cannot be used; the text says why."""


_Stamp = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class Sight:
    """What a look at a place depended on.

    Attributes:
        stamps: size, time of change and inode of every file and folder; ``None`` for one that was not there.
        unsettled: whether something had changed so recently that another change might not show.

    """

    stamps: Mapping[str, _Stamp]
    unsettled: bool

    def is_current(self) -> bool:
        """Whether everything is as it was; costs a ``stat`` for each file and folder, and opens nothing."""
        return not self.unsettled and all(_stamp(path) == stamp for path, stamp in self.stamps.items())


class Lookout:
    """Lists folders and files, without ever failing: what cannot be read becomes a complaint.

    A folder is entered only if it is one itself: links to folders could lead anywhere, and round in circles.
    """

    def __init__(self, now_ns: int) -> None:
        """Start to look around; ``now_ns`` is the time of the files' clock."""
        self.complaints: list[Complaint] = []
        self._now_ns = now_ns
        self._stamps: dict[str, _Stamp] = {}
        self._num_entries = 0

    def sight(self) -> Sight:
        """Return what was looked at."""
        changed = (stamp[1] for stamp in self._stamps.values() if stamp is not None)
        return Sight(self._stamps, any(abs(self._now_ns - time) < _SETTLED_NS for time in changed))

    def complain(self, path: Path, problem: str) -> None:
        """Note that something cannot be listed."""
        self.complaints.append(Complaint(path, problem))

    def entries(self, directory: Path) -> list[os.DirEntry[str]]:
        """Return what is in a folder, by name and without what is hidden; nothing if it is not there."""
        self._stamps[os.fspath(directory)] = _stamp(os.fspath(directory))
        try:
            with os.scandir(directory) as found:
                entries = [entry for entry in found if not entry.name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
            self.complain(directory, f"cannot be read: {_reason(error)}")
            return []
        was_full = self._num_entries > _MOST_ENTRIES
        self._num_entries += len(entries)
        if self._num_entries > _MOST_ENTRIES:
            if not was_full:
                self.complain(directory, f"is not listed: there are more than {_MOST_ENTRIES} files in this place")
            return []
        return sorted(entries, key=lambda entry: entry.name)

    def folders(self, directory: Path) -> Iterator[os.DirEntry[str]]:
        """Return the folders in a folder."""
        return (entry for entry in self.entries(directory) if self._is_folder(entry))

    def walk(self, directory: Path, depth: int = _DEEPEST) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
        """Visit a folder and those inside it; yields each with what is in it besides folders."""
        entries = self.entries(directory)
        folders = [entry for entry in entries if self._is_folder(entry)]
        names = {entry.name for entry in folders}
        yield directory, [entry for entry in entries if entry.name not in names]
        for entry in folders:
            if depth:
                yield from self.walk(Path(entry.path), depth - 1)
            else:
                self.complain(Path(entry.path), f"is not listed: it is more than {_DEEPEST} folders deep")

    def file(self, path: Path, inside: Path | None) -> FileState:
        """Return the state of a regular file, whose path in it is the one that a link ends at.

        Args:
            path: the file, or a link to it.
            inside: the folder that a link must not lead out of; ``None`` if it may lead anywhere.

        Raises:
            Refused: it is not there, is something else, or lies outside.

        """
        self._stamps[os.fspath(path)] = _stamp(os.fspath(path))
        try:
            if path.is_symlink():
                path = path.resolve(strict=True)
                if inside is not None and not path.is_relative_to(inside):
                    raise Refused(f"is a link that leads out of {inside}")
            status = path.stat()
        except FileNotFoundError:
            raise Refused("is a link to a file that is not there" if path.is_symlink() else "is gone") from None
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links that lead in a circle
            raise Refused(f"cannot be read: {_reason(error)}") from None
        if not stat.S_ISREG(status.st_mode):
            raise Refused("is not a regular file")
        return FileState(path, status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)

    def small_file(self, path: Path, inside: Path, limit: int) -> bytes:
        """Read a file that ought to be small.

        Raises:
            Refused: as ``file`` does, or it is larger than ``limit``.

        """
        state = self.file(path, inside)
        return read_small(state.path, limit)

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        try:
            if entry.is_dir(follow_symlinks=False):
                return True
            if entry.is_symlink() and entry.is_dir():
                self.complain(Path(entry.path), "is a link to a folder, which is not followed; name that folder itself")
        except OSError:
            pass  # it went away, or a link leads in a circle: whoever asks for the file will say so
        return False


def real_folder(path: Path) -> Path:
    """Return the folder that a path leads to through links, or the path where that cannot be said."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):  # ValueError: a NUL character in the path
        return path


def is_folder(path: Path) -> bool:
    """Say whether there is a folder, or a link to one, that can be reached."""
    try:
        return path.is_dir()
    except OSError:  # a folder above it may not be entered
        return False


def read_small(path: Path, limit: int) -> bytes:
    """Read a regular file that ought to be small, and nothing that could block or be endless.

    Raises:
        Refused: it cannot be read, is something else, or is larger than ``limit``.

    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Refused("is not a regular file")
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise Refused(f"cannot be read: {_reason(error)}") from None
    if len(data) > limit:
        raise Refused(f"is larger than {limit} bytes")
    return data


def _stamp(path: str) -> _Stamp:
    try:
        status = os.stat(path)  # noqa: PTH116 - called for every file, and a Path costs more than the call
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
