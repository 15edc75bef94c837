"""Models in the cache of the Hugging Face libraries.

The layout is documented at https://huggingface.co/docs/hub/local-cache. In a folder ``models--OWNER--NAME``, the file
``snapshots/COMMIT/FILE`` is a link to ``blobs/HASH``, where the hash of a large file is its SHA-256; where the system
has no links it is the file itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from server.store.lookout import Lookout, Refused, real_folder
from server.store.model_files import FoundModel, ModelFile, model_files, models_of
from server.store.model_names import names_in_folder, names_in_repository
from server.store.places import Source

_PREFIX = "models--"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MOST_REF_BYTES = 1 << 10


def scan_hugging_face(root: Path, lookout: Lookout) -> list[FoundModel]:
    """List the models of a cache.

    A file that several commits have is listed once, as the branch ``main`` has it; what only an older commit has is
    listed from the newest of these.
    """
    models: list[FoundModel] = []
    for entry in lookout.folders(real_folder(root)):
        if entry.name.startswith(_PREFIX):
            models += _repository(Path(entry.path), entry.name.removeprefix(_PREFIX).split("--"), lookout)
    return models


def _repository(home: Path, identity: list[str], lookout: Lookout) -> Iterator[FoundModel]:
    seen: set[Path] = set()
    for snapshot in _snapshots(home, lookout):
        files = [
            file
            for directory, entries in lookout.walk(snapshot)
            for file in model_files(directory, entries, lookout, home)
            if file.path.relative_to(snapshot) not in seen
        ]
        seen |= {file.path.relative_to(snapshot) for file in files}
        yield from models_of(Source.HUGGING_FACE, files, _Namer(identity, snapshot), together=True)


class _Namer:
    def __init__(self, identity: list[str], snapshot: Path) -> None:
        self._identity = identity
        self._snapshot = snapshot

    def __call__(self, file: ModelFile) -> tuple[str, ...]:
        relative = file.path.relative_to(self._snapshot)
        if len(self._identity) == 2:
            return names_in_repository(self._identity[0], self._identity[1], relative, file.name)
        # repositories from the hub's first years have no owner, and no spec as hf.co/owner/repository
        return names_in_folder(relative, file.name, "--".join(self._identity))


def _snapshots(home: Path, lookout: Lookout) -> list[Path]:
    """Return the folders of commits: the one that ``main`` points to, then the others, the newest first."""
    folders = [Path(entry.path) for entry in lookout.folders(home / "snapshots") if _COMMIT.fullmatch(entry.name)]
    main = _main_commit(home, lookout)
    return sorted(folders, key=lambda path: (path.name != main, -_modified(path), path.name))


def _main_commit(home: Path, lookout: Lookout) -> str:
    try:
        return lookout.small_file(home / "refs" / "main", home, _MOST_REF_BYTES).decode("ascii", "replace").strip()
    except Refused:
        return ""


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
