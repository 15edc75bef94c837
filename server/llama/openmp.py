"""The worker threads that OpenMP keeps for every thread that computes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from llama_cpp import llama_cpp

_PAUSE_SOFT = 1


def end_workers() -> None:
    """End the workers of this thread; its next computation starts new ones. Nothing happens without OpenMP.

    OpenMP counts the workers of all threads together. When they are more than the processors, those of every thread
    sleep at each barrier instead of spinning: beside an idle model, a busy one would need a third more for each token.
    """
    _pause()(_PAUSE_SOFT)


@cache
def _pause() -> Callable[[int], object]:
    # libllama depends on the library that computes, and that one on OpenMP's, so its handle finds the function.
    function: Callable[[int], object] | None = getattr(llama_cpp._lib, "omp_pause_resource_all", None)  # noqa: SLF001
    return function or (lambda _kind: None)
