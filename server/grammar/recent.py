"""A cache of results that take long to compute: bounded in number and size, computed once however many ask."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Recent(Generic[Result]):
    """The results of the texts that were asked for last. Any thread may ask.

    What fails is not kept: the next one who asks computes again.
    """

    def __init__(self, *, most: int, most_size: int) -> None:
        """Start empty.

        Args:
            most: results to keep.
            most_size: characters that their texts may have together.

        """
        self._most = most
        self._most_size = most_size
        self._size = 0
        self._results: OrderedDict[str, Future[Result]] = OrderedDict()
        self._lock = Lock()

    def get(self, text: str, compute: Callable[[], Result]) -> Result:
        """Return the result of a text; whoever asks for one that is being computed waits for it.

        Raises:
            Exception: whatever ``compute`` raises, to all who wait.

        """
        with self._lock:
            future = self._results.get(text)
            if is_first := future is None:
                future = self._results[text] = Future()
                self._size += len(text)
                self._shrink()
            else:
                self._results.move_to_end(text)
        if is_first:
            try:
                future.set_result(compute())
            except BaseException as error:
                self._forget(text, future)
                future.set_exception(error)
                raise
        return future.result()

    def _shrink(self) -> None:
        """Drop what was not asked for the longest, but for the latest; who waits for a result still gets it."""
        while len(self._results) > 1 and (len(self._results) > self._most or self._size > self._most_size):
            text, _ = self._results.popitem(last=False)
            self._size -= len(text)

    def _forget(self, text: str, future: Future[Result]) -> None:
        with self._lock:
            if self._results.get(text) is future:
                del self._results[text]
                self._size -= len(text)
