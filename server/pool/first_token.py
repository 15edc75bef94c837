"""How long the requests of a model waited for their first token, beside what the operator aims at."""

from __future__ import annotations

from collections import deque
from statistics import median

from server.core.ports import FirstTokenRecord

_NUM_REMEMBERED = 1000


class FirstTokens:
    """The latest waiting times of one model, in seconds."""

    def __init__(self, target: float | None) -> None:
        """Hold the times against ``target`` seconds; ``None`` if there is no target."""
        self._target = target
        self._latest: deque[float] = deque(maxlen=_NUM_REMEMBERED)

    def add(self, seconds: float) -> None:
        """Note that a first token came ``seconds`` after its request."""
        self._latest.append(seconds)

    def record(self) -> FirstTokenRecord:
        """Sum up the latest thousand."""
        if not self._latest:
            return FirstTokenRecord(target=self._target)
        target = self._target
        met = None if target is None else sum(seconds <= target for seconds in self._latest) / len(self._latest)
        return FirstTokenRecord(len(self._latest), median(self._latest), target, met)
