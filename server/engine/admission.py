"""The door of the engine: how many sequences are inside, and whether more may enter."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from server.core.errors import LlmspellError, QueueFull

_LONGEST_RETRY_SECONDS = 60.0


class Admission:
    """How many sequences are inside the engine: the only state that other threads share with its own."""

    def __init__(self, limit: int) -> None:
        """Let at most ``limit`` sequences inside."""
        self._lock = threading.Lock()
        self._limit = limit
        self._num_inside = 0
        self._mean_seconds = 1.0
        self._closed_by: LlmspellError | None = None

    @property
    def is_open(self) -> bool:
        """Whether requests are accepted."""
        return self._closed_by is None

    @contextmanager
    def entering(self, num_sequences: int) -> Iterator[None]:
        """Hold the lock while a request is posted: after ``close`` returns, no request reaches the inbox any more.

        Raises:
            LlmspellError: the engine is closed; the error is that of ``close``.
            QueueFull: as many sequences are inside as may be.

        """
        with self._lock:
            if self._closed_by is not None:
                raise type(self._closed_by)(self._closed_by.message, retry_after=self._closed_by.retry_after)
            if self._num_inside + num_sequences > self._limit:
                raise QueueFull(
                    f"The model already has {self._num_inside} completions running or waiting; try again shortly.",
                    retry_after=min(max(self._mean_seconds, 1.0), _LONGEST_RETRY_SECONDS),
                )
            yield
            self._num_inside += num_sequences

    def leave(self, num_sequences: int, seconds: float) -> None:
        """Note that a request left after ``seconds``."""
        with self._lock:
            self._num_inside -= num_sequences
            self._mean_seconds += 0.1 * (seconds - self._mean_seconds)

    def close(self, error: LlmspellError) -> None:
        """Refuse every request from now on with an error like this one; the first one stays."""
        with self._lock:
            self._closed_by = self._closed_by or error
