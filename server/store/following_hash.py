"""Hashing a file while another thread writes it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

_CHUNK_BYTES = 1 << 18
_BATCH_BYTES = 4 << 20
"""How much must have come before the thread wakes up: taking turns for each block, both threads stay on one core."""
_LOOK_SECONDS = 0.1


class FollowingHash:
    """Hashes a file from its beginning, in a thread of its own, never past the end that was announced.

    What was written is read back: from the system's cache, which costs a tenth of the hashing. That a part of an
    earlier run has to be read again costs no time: it happens while the rest comes.
    """

    def __init__(self, path: Path, start: _Hash) -> None:
        """Start; ``start`` is a hash that may have been fed already."""
        self._path = path
        self._hash = start
        self._changed = threading.Condition()
        self._end = 0
        self._is_last = self._is_awake = False
        self._failure: OSError | None = None
        self.num_hashed = 0
        self._thread = threading.Thread(target=self._run, name="hash", daemon=True)
        self._thread.start()

    def announce(self, end: int) -> None:
        """Say that the file is written up to ``end``."""
        with self._changed:
            self._end = end
            if end - self.num_hashed >= _BATCH_BYTES:
                self._changed.notify()

    def finish(self, look: Callable[[], None]) -> str:
        """Wait until everything that was announced is hashed, and return the digest.

        Args:
            look: called again and again meanwhile; what it raises ends the waiting.

        Raises:
            OSError: the file cannot be read.

        """
        self._end_with_last()
        while self._thread.is_alive():
            self._thread.join(_LOOK_SECONDS)
            look()
        if self._failure is not None:
            raise self._failure
        return self._hash.hexdigest()

    def abandon(self) -> None:
        """Stop at once."""
        self.announce(0)
        self._end_with_last()
        self._thread.join()

    def _end_with_last(self) -> None:
        with self._changed:
            self._is_last = True
            self._changed.notify()

    def _run(self) -> None:
        try:
            self._follow()
        except OSError as error:
            self._failure = error

    def _follow(self) -> None:
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        with self._path.open("rb", buffering=0) as file:
            while num_due := self._wait_for_more():
                num_read = file.readinto(buffer[: min(num_due, _CHUNK_BYTES)])
                if not num_read:
                    raise OSError(f"{self._path} became shorter while it was written")
                self._hash.update(buffer[:num_read])
                self.num_hashed += num_read

    def _wait_for_more(self) -> int:
        """Wait until there is something to hash, and return how many bytes; 0 at the end."""
        with self._changed:
            while self._end - self.num_hashed < (1 if self._is_awake else _BATCH_BYTES) and not self._is_last:
                self._is_awake = False
                self._changed.wait()
            self._is_awake = True
            return max(self._end - self.num_hashed, 0)
