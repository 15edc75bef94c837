"""One file on its way from the hub into the folder for models: resumed, hashed, published. Blocking.

A transfer runs in a thread of its own. Others read its figures at any time and set its events; nothing else is shared.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

import httpx

from server.core.errors import ChecksumMismatch, HubBusy, HubUnreachable, PullFailed
from server.core.pulling import PullActivity
from server.store.following_hash import FollowingHash
from server.store.hub import Hub
from server.store.hub_listing import HubFile, HubListing
from server.store.hub_stream import Body, BrokenOff
from server.store.part_file import PartFile, SourceNote

BACKOFF_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
_LONGEST_PATIENCE_SECONDS = 90.0
"""A hub that asks for a longer pause is left alone, and whoever waits is told."""
_MAX_RESTARTS = 3
_LOCK_SECONDS = 0.2
_BLOCK_BYTES = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)\Z")


class Cancelled(Exception):
    """Nobody wants the file any more; what has come is kept."""


class _Changed(Exception):
    """The part cannot be continued."""


class Transfer:
    """One file on its way.

    Attributes:
        activity: what is being done.
        num_bytes: how many bytes of the file are here.
        notices: sentences for whoever waits, taken from the left.
        num_fetched: how many of them have come since this transfer began.
        cancelled: set to end the transfer soon; what has come is kept.
        may_publish: set when the file may appear at its destination.

    """

    def __init__(
        self,
        hub: Hub,
        listing: HubListing,
        file: HubFile,
        *,
        root: Path,
        destination: Path,
        backoff_seconds: tuple[float, ...] = BACKOFF_SECONDS,
    ) -> None:
        """Take what is wanted and where it goes, below ``root``; nothing is touched yet."""
        self.file = file
        self.destination = destination
        self.activity = PullActivity.QUEUED
        self.num_bytes = self.num_fetched = 0
        self.notices: deque[str] = deque()
        self.cancelled = threading.Event()
        self.may_publish = threading.Event()
        self._hub = hub
        self._listing = listing
        self._part = PartFile(root, file.checksum)
        self._outdated: tuple[int, int, int] | None = None
        self._is_watching = False
        self._backoff_seconds = backoff_seconds

    def run(self) -> None:
        """Have the file at its destination, hashed.

        Raises:
            LlmspellError: it cannot be had.
            OSError: it cannot be stored.
            Cancelled: nobody wants it any more.

        """
        if self._is_here():
            return
        with self._part.lock(self._wait_for_other):
            if not self._is_here():
                self._part.delete_outdated(self._listing.repository, self.file.path)
                self._download()
                self._wait_for_others()
                self._part.publish(self.destination)
                self._part.note_verified(self.destination)
        self._be_done()

    def num_missing(self) -> int:
        """Return how many bytes are still to come; what is at the destination is believed."""
        try:
            is_here = self.destination.stat().st_size == self.file.size
        except OSError:
            is_here = False
        return 0 if is_here else max(self.file.size - self._part.size, 0)

    def _be_done(self) -> None:
        self.num_bytes = self.file.size
        self.activity = PullActivity.DONE

    def _is_here(self) -> bool:
        """Whether the file is at its destination already; one that nobody has hashed yet is hashed."""
        if self._part.is_verified(self.destination):
            self._be_done()
            return True
        try:
            status = self.destination.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        state = (status.st_ino, status.st_size, status.st_mtime_ns)
        if status.st_size != self.file.size or state == self._outdated:
            return False
        digest = self._hash_of(self.destination)
        if digest != self.file.checksum.digest:
            self._outdated = state  # which need not be found out again
            self.notices.append(f"{self.destination.name} is here, but is not what the hub has now; it is replaced.")
            self.num_bytes = 0
            return False
        self._part.note_verified(self.destination)
        self._be_done()
        return True

    def _hash_of(self, path: Path) -> str:
        following = FollowingHash(path, self.file.checksum.start(self.file.size))
        try:
            following.announce(self.file.size)
            return self._finish(following)
        finally:
            following.abandon()

    def _finish(self, following: FollowingHash) -> str:
        """Wait for the rest to be hashed; that is progress, too, where all bytes were here already."""

        def look() -> None:
            self._check()
            self.num_bytes = max(self.num_bytes, following.num_hashed)

        self.activity = PullActivity.CHECKING
        return following.finish(look)

    def _wait_for_other(self) -> None:
        self.activity = PullActivity.WAITING
        # a part that is gone has just been published
        num_bytes = min(self._part.size or self.num_bytes, self.file.size)
        if self._is_watching:
            self.num_fetched += max(num_bytes - self.num_bytes, 0)
        self._is_watching = True
        self.num_bytes = num_bytes
        if self.cancelled.wait(_LOCK_SECONDS):
            raise Cancelled

    def _wait_for_others(self) -> None:
        """Wait until the other files of the model are there."""
        self.activity = PullActivity.DONE
        while not self.may_publish.wait(_LOCK_SECONDS):
            self._check()

    def _check(self) -> None:
        if self.cancelled.is_set():
            raise Cancelled

    def _download(self) -> None:
        """Have all of the part, with the right checksum."""
        is_resumed = self._part.size > 0
        digest = self._attempts()
        if digest != self.file.checksum.digest and is_resumed:
            # a machine that lost power may have kept the length of a file and not its content
            self.notices.append(f"What was left of an earlier download of {self.file.name} is damaged; starting again.")
            self._part.delete()
            digest = self._attempts()
        if digest != self.file.checksum.digest:
            self._part.delete()
            raise ChecksumMismatch(
                f"{self.file.name} arrived damaged: its {self.file.checksum.kind} is {digest} and should be "
                f"{self.file.checksum.digest}. What was downloaded is deleted; pull again. If that does not help, "
                "something between here and the hub changes what it passes on."
            )

    def _attempts(self) -> str:
        """Ask until all of the file has come; return its digest."""
        with self._part.open() as part:
            num_failures = num_restarts = 0
            start = self._continue_at(part)
            following = self._follow(start)
            try:
                while self.num_bytes < self.file.size:
                    self._check()
                    before = self.num_bytes
                    try:
                        self._fetch(part, following)
                    except _Changed as changed:
                        self.notices.append(f"{self.file.name}: {changed}; starting again.")
                        following = self._begin_again(part, following)
                        num_restarts += 1
                        if num_restarts > _MAX_RESTARTS:
                            raise PullFailed(
                                f"{self.file.name} cannot be downloaded: the connection breaks off, and the hub does "
                                "not continue where it did. Check HF_ENDPOINT and proxies, and pull again."
                            ) from None
                    except (BrokenOff, HubUnreachable, HubBusy) as error:
                        if self._hub.settings.is_offline:
                            raise
                        num_failures = 1 if self.num_bytes > before else num_failures + 1
                        self._pause(error, num_failures)
                return self._finish(following)
            finally:
                following.abandon()

    def _continue_at(self, part: BinaryIO) -> int:
        """Return how much of the part can be used."""
        length = part.tell()
        if length > self.file.size:  # an unfinished file is not longer than the finished one
            part.truncate(0)
            part.seek(0)
            length = 0
        return length

    def _follow(self, start: int) -> FollowingHash:
        following = FollowingHash(self._part.path, self.file.checksum.start(self.file.size))
        following.announce(start)
        self.num_bytes = start
        self.activity = PullActivity.DOWNLOADING
        return following

    def _begin_again(self, part: BinaryIO, following: FollowingHash) -> FollowingHash:
        following.abandon()
        part.truncate(0)
        part.seek(0)
        return self._follow(0)

    def _pause(self, error: Exception, num_failures: int) -> None:
        """Wait before the next attempt, or give up."""
        due = getattr(error, "retry_after", None) or 0.0
        if num_failures > len(self._backoff_seconds) or due > _LONGEST_PATIENCE_SECONDS:
            if isinstance(error, BrokenOff):
                raise HubUnreachable(
                    f"The download of {self.file.name} keeps breaking off ({error}). What has come is kept: the same "
                    "command goes on from there."
                ) from error
            raise error
        seconds = max(self._backoff_seconds[num_failures - 1], due)
        reason = f"{error}".partition(". ")[0].rstrip(".")
        self.notices.append(f"{self.file.name}: {reason}; going on in {seconds:g} s.")
        if self.cancelled.wait(seconds):
            raise Cancelled

    def _fetch(self, part: BinaryIO, following: FollowingHash) -> None:
        """Ask once for what is missing, and write what comes."""
        start = self.num_bytes
        with self._hub.get_file(self._listing, self.file, self._range_headers(start)) as response:
            etag = response.headers.get("etag", "")
            self._check_place(response, start)
            self._part.note_source(SourceNote(self._listing.repository, self.file.path, self.file.size, etag))
            body = Body(response, self.file.size - start, self._hub.silence_seconds, self._check)
            block = memoryview(bytearray(_BLOCK_BYTES))
            while self.num_bytes < self.file.size:
                self._check()
                # up to where a block of the file ends: file systems are fastest with whole ones
                num_new = body.read_into(block[: _BLOCK_BYTES - self.num_bytes % _BLOCK_BYTES])
                _write(part, block[:num_new])
                self.num_bytes += num_new
                self.num_fetched += num_new
                following.announce(self.num_bytes)

    def _range_headers(self, start: int) -> dict[str, str]:
        if not start:
            return {}
        etag = self._part.etag
        # weak names of versions may stand for several contents, and must not be used here
        condition = {"if-range": etag} if etag.startswith('"') else {}
        return {"range": f"bytes={start}-"} | condition

    def _check_place(self, response: httpx.Response, start: int) -> None:
        """See that what comes is what was asked for."""
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise _Changed("the hub has less of it than there is here")
        if response.status_code == HTTPStatus.PARTIAL_CONTENT:
            match = _CONTENT_RANGE.match(response.headers.get("content-range", ""))
            if match is None or int(match[1]) != start:
                raise _Changed("the hub sent another part than it was asked for")
            self._check_size(match[3])
            return
        if response.status_code != HTTPStatus.OK:
            raise HubUnreachable(f"The hub answers with HTTP status {response.status_code} where a file was asked for.")
        self._check_size(response.headers.get("content-length", "*"))
        if start:
            raise _Changed("it has changed on the hub, or the hub cannot continue downloads")

    def _check_size(self, size: str) -> None:
        if size != "*" and int(size) != self.file.size:
            raise PullFailed(
                f"{self.file.name} has {size} bytes on the hub now instead of {self.file.size}: it was replaced "
                "meanwhile. Pull again to get the new version."
            )


def _write(file: BinaryIO, data: memoryview) -> None:
    written = file.write(data)
    while written < len(data):  # an unbuffered file may take less than it is given
        data = data[written:]
        written = file.write(data)
