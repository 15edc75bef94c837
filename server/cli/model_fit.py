"""Whether a model would fit into this machine's memory, roughly and before it is downloaded. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

_SHARE = 1.05
_CONVERSATION_BYTES = 500_000_000


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of a machine, in bytes.

    Attributes:
        free: of main memory, what is available now.
        total: of main memory, what this process may use at most.
        gpu: of all GPUs together; 0 without one.
        is_shared: whether the GPU's is a part of main memory.

    """

    free: int
    total: int
    gpu: int = 0
    is_shared: bool = False


class Fit(StrEnum):
    """Where a model would be."""

    GPU = "gpu"
    PARTLY = "partly"
    MEMORY = "memory"
    TIGHT = "tight"
    NO = "no"


FIT_WORDS = {
    Fit.GPU: "yes, on the GPU",
    Fit.PARTLY: "partly on the GPU",
    Fit.MEMORY: "yes",
    Fit.TIGHT: "if memory is freed",
    Fit.NO: "too large",
}


def needed_bytes(size_bytes: int) -> int:
    """Return what a model of a size takes in memory, with a conversation of some thousand tokens, about."""
    return round(size_bytes * _SHARE) + _CONVERSATION_BYTES


def fit_of(size_bytes: int, memory: Memory) -> Fit:
    """Say where a model of a size would be."""
    needed = needed_bytes(size_bytes)
    if needed <= memory.gpu:
        return Fit.GPU
    beside = 0 if memory.is_shared else memory.gpu
    if needed > memory.total + beside:
        return Fit.NO
    if needed > memory.free + beside:
        return Fit.TIGHT
    return Fit.PARTLY if memory.gpu and not memory.is_shared else Fit.MEMORY
