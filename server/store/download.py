"""Downloading models: several files at once, several askers together, progress for each of them.

Bytes are moved by threads (``transfer.py``); here, on the event loop, they are started, watched and ended. Any number
of processes may pull into the same folder: a file is downloaded by one of them, and the others watch it grow.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from server.core.background import in_thread
from server.core.errors import CannotStore, DiskFull
from server.core.pulling import PullActivity, PullNotice, PullProgress
from server.core.speed import SpeedMeter
from server.store.hub import Hub
from server.store.hub_listing import HubFile, HubListing
from server.store.lookout import is_folder, real_folder
from server.store.part_file import delete_abandoned
from server.store.pull_plan import PullPlan, in_gigabytes
from server.store.transfer import BACKOFF_SECONDS, Transfer

_NUM_AT_ONCE = 4
_LOOK_SECONDS = 0.2
_PARTING_SECONDS = 2.0
"""How long threads may take to end that nobody waits for any more; then they are left to end by themselves."""
_SPARE_BYTES = 64 << 20
_BY_IMPORTANCE = (PullActivity.DOWNLOADING, PullActivity.CHECKING, PullActivity.WAITING, PullActivity.QUEUED)


@dataclass(frozen=True, slots=True)
class Downloaded:
    """The model is here; ``path`` is the file to load it by, ``paths`` are all of its files."""

    path: Path
    projector: Path | None
    paths: tuple[Path, ...]


DownloadEvent = PullProgress | PullNotice | Downloaded


class Downloads:
    """Everything that this process is downloading into one folder; used on one event loop."""

    def __init__(
        self,
        hub: Hub,
        root: Path,
        *,
        free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
        clock: Callable[[], float] = time.monotonic,
        look_seconds: float = _LOOK_SECONDS,
        backoff_seconds: tuple[float, ...] = BACKOFF_SECONDS,
    ) -> None:
        """Take the hub and the folder for models, which is made when it is needed."""
        self._hub = hub
        self._root = root
        self._free_bytes = free_bytes
        self._clock = clock
        self._look_seconds = look_seconds
        self._backoff_seconds = backoff_seconds
        self._flights: dict[tuple[str, ...], _Flight] = {}

    async def listing(self, repository: str) -> HubListing:
        """Ask the hub what a repository holds.

        Raises:
            LlmspellError: it does not say.

        """
        return await in_thread(self._hub.listing, repository)

    async def pull(self, plan: PullPlan) -> AsyncGenerator[DownloadEvent]:
        """Download what is missing of a model; the last event is ``Downloaded``.

        Who asks for what is being downloaded already joins in. The download ends when the last one has left; what has
        come by then is kept, and the next pull continues it.

        Raises:
            LlmspellError: while iterating; it cannot be downloaded or stored.

        """
        flight = self._flights.get(plan.key)
        if flight is None:
            flight = self._flights[plan.key] = _Flight(
                self._root, plan, self._free_bytes, [self._transfer(plan, file) for file in plan.files]
            )
        flight.num_listeners += 1
        try:
            async with aclosing(self._watch(flight)) as events:
                async for event in events:
                    yield event
        finally:
            flight.num_listeners -= 1
            if not flight.num_listeners and self._flights.get(plan.key) is flight:
                del self._flights[plan.key]
                await flight.end()

    def _transfer(self, plan: PullPlan, file: HubFile) -> Transfer:
        return Transfer(
            self._hub,
            plan.listing,
            file,
            root=self._root,
            destination=self._root / plan.place_of(file),
            backoff_seconds=self._backoff_seconds,
        )

    async def _watch(self, flight: _Flight) -> AsyncGenerator[DownloadEvent]:
        meter = SpeedMeter(self._clock)
        num_notices = 0
        last: PullProgress | None = None
        flight.progress(meter)  # speed counts from here, not from the first look
        while True:
            is_over = await flight.wait(self._look_seconds)
            notices = flight.notices()
            for message in notices[num_notices:]:
                yield PullNotice(message)
            num_notices = len(notices)
            progress = flight.progress(meter)
            if progress != last:
                last = progress
                yield progress
            if is_over:
                yield flight.finished()
                return


class _Flight:
    """One model on its way, however many wait for it."""

    def __init__(
        self, root: Path, plan: PullPlan, free_bytes: Callable[[Path], int], transfers: Sequence[Transfer]
    ) -> None:
        self.num_listeners = 0
        self._root = root
        self._plan = plan
        self._free_bytes = free_bytes
        self._transfers = transfers
        for transfer in self._transfers[:-1]:
            transfer.may_publish.set()
        self._num_to_come = len(self._transfers)
        self._release_last()
        self._said: list[str] = []
        self._slots = asyncio.Semaphore(_NUM_AT_ONCE)
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(_retrieve)

    async def wait(self, seconds: float) -> bool:
        """Wait for the end, but not for longer than that; say whether it has come."""
        await asyncio.wait([self._task], timeout=seconds)
        return self._task.done()

    def notices(self) -> Sequence[str]:
        """Return all that was said so far."""
        for transfer in self._transfers:
            while transfer.notices:
                self._said.append(transfer.notices.popleft())
        return self._said

    def progress(self, meter: SpeedMeter) -> PullProgress:
        """Return how far it is."""
        activities = {transfer.activity for transfer in self._transfers}
        activity = next((each for each in _BY_IMPORTANCE if each in activities), PullActivity.DONE)
        done, total = sum(transfer.num_bytes for transfer in self._transfers), self._plan.size
        speed = meter.speed(sum(transfer.num_fetched for transfer in self._transfers))
        return PullProgress(activity, done, total, speed, (total - done) / speed if speed > 0 else None)

    def finished(self) -> Downloaded:
        """Return the outcome, or raise it."""
        self._task.result()
        paths = {transfer.file: transfer.destination for transfer in self._transfers}
        projector = self._plan.projector
        model = [paths[file] for file in self._plan.model.shards]
        return Downloaded(
            path=model[0],
            projector=None if projector is None else paths[projector],
            paths=(*model, *(() if projector is None else (paths[projector],))),
        )

    async def end(self) -> None:
        """Stop, if it is not over."""
        self._stop_transfers()
        await asyncio.wait([self._task], timeout=_PARTING_SECONDS)
        self._task.cancel()

    def _stop_transfers(self) -> None:
        for transfer in self._transfers:
            transfer.cancelled.set()

    async def _run(self) -> None:
        try:
            await in_thread(self._prepare)
            # the one that waits for the others first: it must be among those that have begun
            tasks = [asyncio.create_task(self._transfer(transfer)) for transfer in reversed(self._transfers)]
            for task in tasks:
                task.add_done_callback(_retrieve)
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            if pending:
                self._stop_transfers()
                await asyncio.wait(pending, timeout=_PARTING_SECONDS)
            failures = [error for task in done if (error := task.exception()) is not None]
            if failures:
                raise failures[0]
        except OSError as error:
            raise cannot_store(error, self._root) from error

    async def _transfer(self, transfer: Transfer) -> None:
        async with self._slots:
            await in_thread(transfer.run)
        self._num_to_come -= 1
        self._release_last()

    def _release_last(self) -> None:
        """Let the file that the model is loaded by appear, once all others are there."""
        *others, last = self._transfers
        # a file with the same content waits for the first one's lock
        is_twin = any(other.file.checksum == last.file.checksum for other in others)
        if self._num_to_come <= 1 or is_twin:
            last.may_publish.set()

    def _prepare(self) -> None:
        """See that there is room, and make some; blocking."""
        self._root.mkdir(parents=True, exist_ok=True)
        for transfer in self._transfers:
            _check_place(transfer.destination, self._root)
        for name in delete_abandoned(self._root, [transfer.file.checksum for transfer in self._transfers]):
            self._said.append(f"Deleted what had come of {name}: nobody has continued that download for a month.")
        num_missing = sum(transfer.num_missing() for transfer in self._transfers)
        num_free = self._free_bytes(self._root)
        if num_missing and num_missing + _SPARE_BYTES > num_free:
            raise DiskFull(
                f"{self._root} has no room for {self._plan.listing.repository} {self._plan.model.quantization}: "
                f"{in_gigabytes(num_missing)} are to come, and {in_gigabytes(num_free)} are free. Delete something, "
                "choose a smaller quantization, or another folder."
            )


def _check_place(destination: Path, root: Path) -> None:
    """See that a file can appear where it belongs, before hours of download.

    Raises:
        CannotStore: a folder has its name already, or a link leads out of the folder for models.

    """
    folder = real_folder(destination.parent)
    if not folder.is_relative_to(real_folder(root)):
        raise CannotStore(
            f"{destination.parent} leads out of {root} to {folder}, where nothing is looked for. Remove that link; "
            "another folder for models is chosen with [store] models_dir in the configuration."
        )
    if is_folder(destination):
        raise CannotStore(f"{destination} is a folder, and the file to download has that name. Remove it.")


def cannot_store(error: OSError, root: Path) -> CannotStore:
    """Say what the system's refusal to store something means."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFull(
            f"The disk with {root} is full. Delete something and pull again: what has come is kept, and the download "
            "goes on from there."
        )
    if error.errno == errno.EFBIG:
        return CannotStore(f"{root} is on a file system that cannot hold files this large. Choose another folder.")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return CannotStore(
            f"{root} cannot be written to ({error.strerror}). Change its permissions, or choose another folder."
        )
    return CannotStore(f"Nothing can be stored in {root}: {error}")


def _retrieve(task: asyncio.Task[None]) -> None:
    """Look at the outcome: nobody may be left who waits for it."""
    if not task.cancelled():
        task.exception()
