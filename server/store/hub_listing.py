"""What a repository on the hub holds: files, sizes and checksums, read from the hub's answer. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from server.core.errors import InvalidRequest, PullFailed

if TYPE_CHECKING:
    from hashlib import _Hash

_REPOSITORY = re.compile(
    r"[A-Za-z0-9_](?:[A-Za-z0-9._\-]*[A-Za-z0-9_])?/[A-Za-z0-9_](?:[A-Za-z0-9._\-]*[A-Za-z0-9_])?\Z"
)
_MAX_REPOSITORY_LEN = 193  # two names of 96 characters
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_FORBIDDEN_IN_NAMES = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')
_RESERVED_NAMES = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|\Z)", re.IGNORECASE)
_MAX_PATH_LEN = 512
_MAX_NAME_LEN = 240
_MAX_FILES = 100_000
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,99}\Z")
_DEFAULT_REVISION = "main"


class Gating(StrEnum):
    """What it takes to be given the files."""

    OPEN = "open"
    AUTOMATIC = "auto"
    MANUAL = "manual"


class ChecksumKind(StrEnum):
    """How the hub describes content: large files by SHA-256, small ones as git does."""

    SHA256 = "sha256"
    GIT = "git-sha1"


@dataclass(frozen=True, slots=True)
class Checksum:
    """What the content of a file must hash to."""

    kind: ChecksumKind
    digest: str

    def start(self, size: int) -> _Hash:
        """Begin a hash over ``size`` bytes."""
        if self.kind is ChecksumKind.SHA256:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository; ``path`` is relative and safe to use below a folder."""

    path: str
    size: int
    checksum: Checksum

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True, slots=True)
class HubListing:
    """A repository at one commit: its GGUF files, and what must be done to get them."""

    repository: str
    commit: str
    gating: Gating
    is_private: bool
    files: tuple[HubFile, ...]
    architecture: str | None = None
    context_length: int | None = None


def check_repository(repository: str) -> str:
    """Return the name of a repository if it is one.

    Raises:
        InvalidRequest: it is not ``owner/name``.

    """
    if len(repository) > _MAX_REPOSITORY_LEN or ".." in repository or not _REPOSITORY.match(repository):
        raise InvalidRequest(
            f"{repository[:_MAX_REPOSITORY_LEN]!r} is not a repository; write hf.co/owner/repository[:quantization].",
            param="model",
        )
    return repository


def is_safe_path(path: str) -> bool:
    """Whether a path from the hub stays below the folder it is joined to, on every system."""
    parts = path.split("/")
    return 0 < len(path) <= _MAX_PATH_LEN and all(_is_safe_name(part) for part in parts)


def _is_safe_name(name: str) -> bool:
    return (
        0 < len(name.encode(errors="replace")) <= _MAX_NAME_LEN
        and not name.startswith(".")
        and not name.endswith((".", " "))
        and not _FORBIDDEN_IN_NAMES.search(name)
        and not _RESERVED_NAMES.match(name)
        and name.isprintable()
    )


def read_listing(answer: object, repository: str) -> HubListing:
    """Read the hub's answer about a model, ``/api/models/{repository}?blobs=true``.

    Raises:
        PullFailed: it is not such an answer, or names a file outside the repository.

    """
    try:
        return _read(answer, repository)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PullFailed(
            f"What answers for {repository} does not behave as Hugging Face does ({error}); check HF_ENDPOINT."
        ) from error


def tree_to_ask(answer: object) -> str | None:
    """Return the revision whose tree has to be asked for; ``None`` if the answer will do.

    It will not if it names GGUF files and not their sizes or checksums: mirrors may not know ``?blobs=true``.
    """
    rows = answer.get("siblings") if isinstance(answer, dict) else None
    if not isinstance(answer, dict) or not isinstance(rows, list) or not _lack_details(rows):
        return None
    with suppress(ValueError):  # told by ``read_listing``
        return revision_of(answer)
    return None


def _lack_details(rows: Iterable[object]) -> bool:
    return any(
        isinstance(row, dict)
        and _is_gguf(row.get("rfilename"))
        and "lfs" not in row
        and not {"size", "blobId"} <= {*row}
        for row in rows
    )


def revision_of(answer: Mapping[str, Any]) -> str:
    """Return the commit that an answer is about, or the default branch of a mirror that does not say.

    Raises:
        ValueError: it says something else.

    """
    commit = answer.get("sha")
    if commit is None:
        return _DEFAULT_REVISION
    if not isinstance(commit, str) or not _REVISION.match(commit):
        raise ValueError("it names no commit")
    return commit


def with_tree(answer: object, tree: Iterable[object]) -> object:
    """Add what ``/api/models/{repository}/tree/{revision}`` says of files: their sizes and checksums."""
    if not isinstance(answer, dict):
        return answer
    rows = [
        {"rfilename": row.get("path"), "size": row.get("size"), "blobId": row.get("oid"), "lfs": row.get("lfs")}
        for row in tree
        if isinstance(row, dict) and row.get("type", "file") == "file"
    ]
    return {**answer, "siblings": rows}


def _is_gguf(name: object) -> bool:
    return isinstance(name, str) and name.lower().endswith(".gguf")


def _read(answer: object, repository: str) -> HubListing:
    if not isinstance(answer, dict):
        raise TypeError("its answer is not a JSON object")
    rows = answer["siblings"]
    if not isinstance(rows, list) or len(rows) > _MAX_FILES:
        raise ValueError("its list of files cannot be used")
    described = answer.get("gguf")
    facts: Mapping[str, Any] = described if isinstance(described, dict) else {}
    return HubListing(
        repository=_canonical(answer.get("id"), repository),
        commit=revision_of(answer),
        gating=_gating(answer.get("gated")),
        is_private=answer.get("private") is True,
        files=tuple(_file(row, repository) for row in rows if _is_gguf(row["rfilename"])),
        architecture=facts["architecture"] if isinstance(facts.get("architecture"), str) else None,
        context_length=facts["context_length"] if isinstance(facts.get("context_length"), int) else None,
    )


def _canonical(name: object, repository: str) -> str:
    """Return the name as the hub spells it: capitals do not matter there, and repositories are renamed."""
    return check_repository(name) if isinstance(name, str) and "/" in name else repository


def _gating(value: object) -> Gating:
    if value is False or value is None:
        return Gating.OPEN
    return Gating.MANUAL if value == "manual" else Gating.AUTOMATIC


def _file(row: Mapping[str, Any], repository: str) -> HubFile:
    path = row["rfilename"]
    if not isinstance(path, str) or not is_safe_path(path):
        raise PullFailed(
            f"The repository {repository} has a file named {str(path)[:_MAX_PATH_LEN]!r}, which cannot be stored "
            "safely. Choose another repository."
        )
    large = row.get("lfs")
    if isinstance(large, dict):
        size, digest, kind = large["size"], large.get("sha256") or large["oid"], ChecksumKind.SHA256
    else:
        size, digest, kind = row["size"], row["blobId"], ChecksumKind.GIT
    form = _SHA256 if kind is ChecksumKind.SHA256 else _COMMIT
    if not isinstance(digest, str) or not form.match(digest):
        raise ValueError(f"it gives no checksum for {path}")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError(f"it gives no size for {path}")
    return HubFile(path, size, Checksum(kind, digest))
