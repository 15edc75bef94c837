"""Reading a file into the system's page cache, with progress."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

_CHUNK_BYTES = 8 << 20


def read_ahead(path: Path, on_progress: Callable[[float], object]) -> None:
    """Read what the page cache lacks of a file, so that mapping it does not read gigabytes in one call.

    What is cached already costs next to nothing. Where the system does not tell what is, nothing is read.

    Args:
        path: the file.
        on_progress: called with what is done, from 0 to 1, after each 8 MiB; what it raises ends the reading.

    Raises:
        OSError: the file cannot be read.

    """
    if not hasattr(os, "RWF_NOWAIT"):
        return
    with path.open("rb", buffering=0) as file:
        descriptor, buffer = file.fileno(), bytearray(_CHUNK_BYTES)
        size = os.fstat(descriptor).st_size
        for start in range(0, size, _CHUNK_BYTES):
            end = min(start + _CHUNK_BYTES, size)
            try:
                is_cached = all(_is_cached(descriptor, position) for position in (start, end - 1))
            except OSError:  # the file system cannot say
                return
            if not is_cached:
                os.preadv(descriptor, [buffer], start)
            on_progress(end / size)


def _is_cached(descriptor: int, position: int) -> bool:
    try:
        os.preadv(descriptor, [bytearray(1)], position, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    return True
