"""How fast a figure grows that is looked at from time to time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

_WINDOW_SECONDS = 8.0


class SpeedMeter:
    """Recent speed: over the last eight seconds, as far as there are that many."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Measure by ``clock``, in seconds."""
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque()

    def speed(self, figure: int) -> float:
        """Take a figure that grows, and return by how much it has grown a second; 0 while nothing is known of it."""
        now = self._clock()
        self._samples.append((now, figure))
        while len(self._samples) > 2 and self._samples[1][0] < now - _WINDOW_SECONDS:
            self._samples.popleft()
        since, before = self._samples[0]
        return (figure - before) / (now - since) if now > since else 0.0
