"""Calls of native code that recurses for every character, on a stack that is deep enough for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

DEEP_STACK_BYTES = 256 << 20
"""Only what a call uses of it becomes memory; the thread's end gives that back."""

_lock = threading.Lock()


def call_on_deep_stack(work: Callable[[], T]) -> T:
    """Run ``work`` in a thread of its own with a deep stack and wait for it; one call at a time."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # noqa: BLE001 -- raised again where the result is wanted
            result.set_exception(error)

    with _lock:
        # The size is a setting of the process; a thread that starts elsewhere meanwhile gets a deep stack, too.
        usual = threading.stack_size(DEEP_STACK_BYTES)
        try:
            thread = threading.Thread(target=run, name="deep-stack", daemon=True)
            thread.start()
        finally:
            threading.stack_size(usual)
        thread.join()
    return result.result()
