"""Deleting a model from our own folder: its files, what is left of its downloads, and folders that are empty then.

Only what the index found in our own folder is deleted, by the names that the folder itself has; nothing that a user
writes becomes a path.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from server.core.errors import CannotStore
from server.store.hub_listing import Checksum, ChecksumKind
from server.store.lookout import real_folder
from server.store.model_files import FoundModel
from server.store.model_index import Listing
from server.store.model_names import read_file_name
from server.store.part_file import PRIVATE_FOLDER, PartFile, read_note


@dataclass(frozen=True, slots=True)
class Removed:
    """The files that are gone, the bytes that the disk has more, and whether somebody's work was left alone."""

    paths: tuple[Path, ...] = ()
    freed_bytes: int = 0
    is_busy: bool = False


class _Busy(Exception):
    """Another process is at work on a part."""


def files_of(model: FoundModel, listing: Listing) -> tuple[Path, ...]:
    """Return the files that belong to a model and to no other: its parts, the first one first, and its projectors."""
    others = [each for each in _all(listing) if each != model]
    used = {path for other in others for path in other.projectors}
    return (*parts_of(model.path), *(path for path in model.projectors if path not in used))


def parts_of(path: Path) -> tuple[Path, ...]:
    """Return the files of the split model whose first one is given, or of a whole one that alone, as they are there."""
    wanted = read_file_name(path.name)
    if wanted is None or wanted.count == 1:
        return (path,)
    found = {path: wanted.number}
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            name = read_file_name(entry.name)
            if name is not None and (name.stem, name.count) == (wanted.stem, wanted.count):
                found[path.with_name(entry.name)] = name.number
    return tuple(sorted(found, key=lambda each: found[each]))


def remove(paths: Sequence[Path], root: Path) -> Removed:
    """Delete files below ``root``, the first one first, and the folders that are empty then.

    Links are deleted, and not what they lead to.

    Raises:
        CannotStore: one of them cannot be deleted, or lies elsewhere; those before it are gone.

    """
    root = real_folder(root)
    places = {_place(path, root) for path in paths}
    freed, gone = 0, []
    for path in paths:
        folder = real_folder(path.parent)
        if not folder.is_relative_to(root):
            raise CannotStore(f"{path} is not inside {root}, and is not deleted.")
        try:
            freed += _delete(folder / path.name)
        except OSError as error:
            raise CannotStore(
                f"{path} cannot be deleted: {error.strerror}. Correct the permissions of its folder, or delete it "
                "yourself."
            ) from error
        gone.append(path)
    for path in paths:
        _remove_empty(real_folder(path.parent), root)
    _forget_verified(root, places)
    return Removed(tuple(gone), freed)


def remove_parts(root: Path, repository: str, is_meant: Callable[[str], bool]) -> Removed:
    """Delete what has come of downloads that did not finish, unless somebody is at work on them.

    Args:
        root: the folder for models.
        repository: the repository of Hugging Face that they come from.
        is_meant: whether a path in it is one of a file to forget.

    """
    freed, gone, is_busy = 0, [], False
    for note_path in sorted((root / PRIVATE_FOLDER / "incomplete").glob("*.json")):
        note = read_note(note_path)
        if str(note.get("repository")).lower() != repository.lower() or not is_meant(str(note.get("path"))):
            continue
        part = PartFile(root, Checksum(ChecksumKind.SHA256, note_path.stem))
        try:
            with suppress(OSError), part.lock(_give_up):
                size = part.size
                part.delete()
                freed += size
                gone.append(part.path)
        except _Busy:
            is_busy = True
    return Removed(tuple(gone), freed, is_busy)


def _give_up() -> None:
    raise _Busy


def _all(listing: Listing) -> Iterator[FoundModel]:
    for entry in listing.entries:
        yield from (named.found for named in (entry.main, *entry.copies))


def _delete(path: Path) -> int:
    """Delete a file; return the bytes that its disk has more: none while it has another name."""
    try:
        status = path.lstat()
        path.unlink()
    except FileNotFoundError:
        return 0
    return status.st_size if status.st_nlink == 1 and not stat.S_ISLNK(status.st_mode) else 0


def _remove_empty(folder: Path, root: Path) -> None:
    with suppress(OSError):  # it is not empty
        while folder != root and folder.is_relative_to(root):
            folder.rmdir()
            folder = folder.parent


def _place(path: Path, root: Path) -> str:
    """Return how notes name a file."""
    return os.path.relpath(real_folder(path.parent) / path.name, root).replace(os.sep, "/")


def _forget_verified(root: Path, places: Collection[object]) -> None:
    """Delete the notes that say what these files were."""
    for note_path in (root / PRIVATE_FOLDER / "verified").glob("*.json"):
        if read_note(note_path).get("path") in places:
            with suppress(OSError):
                note_path.unlink()
