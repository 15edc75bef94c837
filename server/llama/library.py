"""The llama_cpp package, set up once: backend initialised, native log lines sent to ``logging``."""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llama_cpp import __version__ as VERSION  # noqa: N812 -- as Python's own constants
from llama_cpp import llama_cpp

__all__ = ["VERSION", "brief", "loading"]

_log = logging.getLogger("server.llama.native")

# ggml_log_level: https://github.com/ggml-org/llama.cpp/blob/master/ggml/include/ggml.h
_NATIVE_WARNING, _NATIVE_ERROR = 3, 4

_of_thread = threading.local()  # errors: the lines of the load that goes on in this thread


def _on_log(level: int, text: bytes, _user_data: Any) -> None:  # noqa: ANN401 -- a void pointer
    line = text.decode("utf-8", "replace").strip()
    if not line or line == ".":
        return
    # Native "info" describes every tensor and "warnings" are about choices that this project makes on purpose, but for
    # memory that cannot be locked. The errors of a load are told by the exception that follows.
    errors: list[str] | None = getattr(_of_thread, "errors", None)
    is_error = level == _NATIVE_ERROR
    if is_error and errors is not None:
        errors.append(line)
    is_news = (is_error and errors is None) or (level == _NATIVE_WARNING and "failed to mlock" in line)
    _log.log(logging.WARNING if is_news else logging.DEBUG, "%s", line)


_callback = llama_cpp.llama_log_callback(_on_log)
llama_cpp.llama_log_set(_callback, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()


def brief(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:  # noqa: ANN401 -- ctypes types
    """Return a native function for very many calls that each take less than a microsecond.

    It keeps the interpreter to itself: beside a busy thread, handing it over for each call costs milliseconds.
    """
    address = ctypes.cast(getattr(llama_cpp._lib, name), ctypes.c_void_p).value  # noqa: SLF001 -- has no public name
    if address is None:
        raise AttributeError(name)
    return ctypes.PYFUNCTYPE(result, *arguments)(address)


@contextmanager
def loading() -> Iterator[list[str]]:
    """Collect the error lines that llama.cpp logs in this thread, which is where a load tells its reasons.

    Loads may go on side by side: what llama.cpp and ggml keep for the whole process is made once, under locks of their
    own, and everything else belongs to the model or context that is being made.
    """
    _of_thread.errors = errors = list[str]()
    try:
        yield errors
    finally:
        _of_thread.errors = None
