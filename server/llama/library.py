"""The llama_cpp package, set up once: backend initialised, native log lines sent to ``logging``."""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llama_cpp import llama_cpp

_log = logging.getLogger("server.llama.native")

# ggml_log_level: https://github.com/ggml-org/llama.cpp/blob/master/ggml/include/ggml.h
_NATIVE_ERROR = 4

_loading = threading.Lock()
_of_thread = threading.local()  # errors: the lines of the load that goes on in this thread


def _on_log(level: int, text: bytes, _user_data: Any) -> None:  # noqa: ANN401 -- a void pointer
    line = text.decode("utf-8", "replace").strip()
    if not line or line == ".":
        return
    # Native "info" describes every tensor and "warnings" are about choices that this project makes on purpose. The
    # errors of a load are told by the exception that follows.
    errors: list[str] | None = getattr(_of_thread, "errors", None)
    is_error = level == _NATIVE_ERROR
    if is_error and errors is not None:
        errors.append(line)
    _log.log(logging.WARNING if is_error and errors is None else logging.DEBUG, "%s", line)


_callback = llama_cpp.llama_log_callback(_on_log)
llama_cpp.llama_log_set(_callback, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()


@contextmanager
def loading() -> Iterator[list[str]]:
    """Hold the right to load, one load at a time, and collect the error lines that llama.cpp logs in this thread.

    The native loader reports its reasons through the process-wide log only, where engines of other models write, too.
    """
    with _loading:
        _of_thread.errors = errors = list[str]()
        try:
            yield errors
        finally:
            _of_thread.errors = None
