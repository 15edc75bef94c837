"""Opening files that an operator named, which may be anything."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from server.core.errors import ModelLoadingFailed


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, unbuffered, and nothing that could block or be endless.

    Raises:
        ModelLoadingFailed: it cannot be read, or is something else.

    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise ModelLoadingFailed(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL character in the path
        raise ModelLoadingFailed(f"{str(path)!r} cannot be read: {error}") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a directory; name the .gguf file in it" if stat.S_ISDIR(mode) else "not a regular file"
        raise ModelLoadingFailed(f"{path} is {kind}")
    return os.fdopen(descriptor, "rb", buffering=0)
