"""A file on its way: what has come of it, what is known of its source, and who works on it.

Everything is in ``.llmspell`` below the folder for models: ``incomplete/`` has, for each checksum, the part, a note on
where it comes from, and a lock; ``verified/`` notes which published files have been hashed. What nobody has touched for
a month is deleted when something is pulled.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from server.store.hub_listing import Checksum

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

PRIVATE_FOLDER = ".llmspell"
_MAX_NOTE_BYTES = 64 << 10
_ABANDONED_SECONDS = 30 * 24 * 3600
_SUFFIXES = (".part", ".json", "", ".lock")
"""What there may be for a checksum; a note that was being written when its process was killed has none."""


@dataclass(frozen=True, slots=True)
class SourceNote:
    """Where a part comes from; ``etag`` is the storage's name for this version of the content."""

    repository: str
    path: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class _VerifiedNote:
    path: str
    size: int
    modified_ns: int


class PartFile:
    """The part of one file; only who holds the lock may change it."""

    def __init__(self, root: Path, checksum: Checksum) -> None:
        """Name the files; nothing is touched yet."""
        self._root = root
        folder = root / PRIVATE_FOLDER
        self.path = folder / "incomplete" / f"{checksum.digest}.part"
        self._note_path = self.path.with_suffix(".json")
        self._lock_path = self.path.with_suffix(".lock")
        self._verified_path = folder / "verified" / f"{checksum.digest}.json"

    @property
    def size(self) -> int:
        """How many bytes have come."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    @property
    def etag(self) -> str:
        """The version that the part is of, or nothing if that is not known."""
        note = read_note(self._note_path)
        etag = note.get("etag")
        return etag if isinstance(etag, str) else ""

    def note_source(self, note: SourceNote) -> None:
        """Remember where the part comes from."""
        _write_note(self._note_path, asdict(note))

    def open(self) -> BinaryIO:
        """Open the part for writing at its end, and make it if there is none."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(self.path, flags, 0o666), "r+b", buffering=0)
        file.seek(0, os.SEEK_END)
        return file

    def delete(self) -> None:
        """Forget what has come."""
        self.path.unlink(missing_ok=True)
        self._note_path.unlink(missing_ok=True)

    def delete_outdated(self, repository: str, path: str) -> None:
        """Delete parts of earlier versions of the same file, unless somebody is at work on them."""
        for note_path in self.path.parent.glob("*.json"):
            note = read_note(note_path)
            if note_path != self._note_path and (note.get("repository"), note.get("path")) == (repository, path):
                _delete_unless_locked(note_path)

    def publish(self, destination: Path) -> None:
        """Move the finished part to where models are, at once and whole."""
        destination.parent.mkdir(parents=True, exist_ok=True)
        self.path.replace(destination)
        self._note_path.unlink(missing_ok=True)

    def note_verified(self, destination: Path) -> None:
        """Remember that a published file has the right content, as it is now; where that fails, it is hashed again."""
        with suppress(OSError):
            _write_note(self._verified_path, asdict(self._described(destination)))

    def is_verified(self, destination: Path) -> bool:
        """Whether a published file is one that has been hashed, and has not changed since."""
        try:
            return read_note(self._verified_path) == asdict(self._described(destination))
        except OSError:
            return False

    def _described(self, destination: Path) -> _VerifiedNote:
        status = destination.stat()
        place = destination.relative_to(self._root).as_posix()
        return _VerifiedNote(place, status.st_size, status.st_mtime_ns)

    @contextmanager
    def lock(self, wait: Callable[[], None]) -> Iterator[None]:
        """Hold the lock, which ends with the process at the latest; ``wait`` is called while somebody else has it."""
        self._lock_path.parent.mkdir(parents=True, exist_ok=True)
        file = self._locked_file(wait)
        try:
            yield
        finally:
            with suppress(OSError):  # where open files cannot be deleted, it stays for the next one
                self._lock_path.unlink()
            file.close()

    def _locked_file(self, wait: Callable[[], None]) -> BinaryIO:
        while True:
            file = self._lock_path.open("ab")
            try:
                # a lock on a file that was deleted meanwhile keeps nobody out
                if _try_lock(file) and _is_same_file(file, self._lock_path):
                    return file
            except BaseException:
                file.close()
                raise
            file.close()
            wait()


def delete_abandoned(root: Path, keep: Collection[Checksum]) -> Sequence[str]:
    """Delete what nobody has touched for a month, unless a process is at work on it, or it is among ``keep``.

    Return the names of the files that these were parts of, as far as they are known. What cannot be deleted stays.
    """
    folder = root / PRIVATE_FOLDER / "incomplete"
    last_touched: dict[str, float] = {}
    try:
        for path in folder.iterdir():
            with suppress(OSError):  # gone meanwhile
                touched = path.lstat().st_mtime
                last_touched[path.stem] = max(touched, last_touched.get(path.stem, touched))
    except OSError:  # nothing was ever downloaded, or nothing can be deleted
        return ()
    oldest = time.time() - _ABANDONED_SECONDS
    kept = {checksum.digest for checksum in keep}
    names = []
    for stem, touched in last_touched.items():
        if touched < oldest and stem not in kept:
            path = folder / f"{stem}.part"
            name = read_note(path.with_suffix(".json")).get("path")
            is_part = path.exists()
            with suppress(OSError):
                if _delete_unless_locked(path) and is_part and not path.exists():
                    names.append(name if isinstance(name, str) else stem)
    return names


def _delete_unless_locked(path: Path) -> bool:
    """Delete all there is for a checksum, unless somebody holds its lock; say whether that was done."""
    with path.with_suffix(".lock").open("ab") as lock:
        # one that was deleted meanwhile keeps nobody out
        is_free = _try_lock(lock) and _is_same_file(lock, path.with_suffix(".lock"))
        if is_free:
            for suffix in _SUFFIXES:
                with suppress(OSError):
                    path.with_suffix(suffix).unlink(missing_ok=True)
        return is_free


def _try_lock(file: BinaryIO) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_same_file(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def read_note(path: Path) -> dict[str, object]:
    """Read a note; one that is missing or broken says nothing."""
    try:
        with path.open("rb") as file:
            note = json.loads(file.read(_MAX_NOTE_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def _write_note(path: Path, note: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(note, file)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
